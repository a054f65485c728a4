"""What the pages about cycles show: read from rows, said in plain words. It changes nothing.

A stage's `result` is read with care: an older cycle may lack a key that a newer one has.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from console import words
from console.curves import Curve, loss_curve
from core.db import utcnow
from core.errors import NotFound
from core.settings import Settings
from finetune.cycle import LEASE, UNFINISHED, new_judgments
from finetune.models import Cycle, Lease, StageRun
from policy.models import PolicyVersion

PAGE = 25
GUESSING = (0.6931, "guessing")  # −log σ(0): a reward model that knows nothing
STAGE_WORDS = {
    "collect": ("Collect", "the served policy answers the seed prompts"),
    "rate": ("Rate", "a script judges the new tasks, marked as simulated"),
    "snapshot": ("Snapshot", "judgments become a frozen, hashed dataset"),
    "reward": ("Reward model", "learns which completion people prefer"),
    "update": ("Update", "a fresh adapter is trained on the preferences"),
    "gate": ("Gate", "candidate and incumbent answer the frozen suites"),
    "promote": ("Promote", "the candidate goes live, or the incumbent stays"),
}
COUNT_WORDS = {
    "from_choice": "pairwise choices",
    "from_correction": "corrections",
    "from_rating": "ratings",
    "from_rule": "rule verdicts",
    "from_import": "imported pairs",
    "left_out_tie": "ties",
    "left_out_simulated": "simulated",
    "left_out_surplus": "surplus judgments",
    "left_out_equal_texts": "with equal texts",
    "left_out_double": "doubles",
    "left_out_frozen_suite": "too close to a frozen suite",
}


@dataclass(frozen=True)
class CycleRow:
    """One line of the list."""

    cycle: Cycle
    version: str | None

    @property
    def seconds(self) -> float | None:
        """From start to end, or to now."""
        return elapsed(self.cycle)


@dataclass(frozen=True)
class StageView:
    """One stage as the page shows it; `state` also says "waiting", "stopped" and "not run"."""

    name: str
    title: str
    about: str
    state: str
    run: StageRun | None = None
    facts: list[str] = field(default_factory=list)
    curve: Curve | None = None

    @property
    def numbers(self) -> dict[str, Any]:
        """What changes while it runs, ready to be shown; the page's script puts it in place."""
        run = self.run
        badge, word = words.STAGE_STATES[self.state]
        figures = []
        if run is not None:
            figures.append(words.duration(_seconds(run, self.state)))
            figures += [f"peak {words.megabytes(run.peak_mb)}"] if run.peak_mb else []
            figures += [f"attempt {run.attempts}"] if run.attempts > 1 else []
        return {
            "name": self.name,
            "state": self.state,
            "badge": badge,
            "word": word,
            "progress": round(run.progress, 4) if run else 0.0,
            "note": _note(run, self.state) if run else "",
            "figures": " · ".join(figures),
            "error": run.error if run else None,
        }


def list_cycles(session: Session, before: int | None, state: str | None) -> tuple[list[CycleRow], int | None]:
    """A page of cycles, newest first, and the id to go on from."""
    query = (
        select(Cycle, PolicyVersion.name)
        .outerjoin(PolicyVersion, PolicyVersion.cycle_id == Cycle.id)
        .options(defer(Cycle.settings))
        .order_by(Cycle.id.desc())
        .limit(PAGE + 1)
    )
    query = query.where(Cycle.id < before) if before else query
    query = query.where(Cycle.state == state) if state else query
    rows = [CycleRow(cycle, name) for cycle, name in session.execute(query)]
    return rows[:PAGE], rows[PAGE - 1].cycle.id if len(rows) > PAGE else None


def schedule_words(session: Session, settings: Settings) -> list[str]:
    """When the next round starts, in sentences."""
    simulated = settings.snapshot.include_simulated
    n = new_judgments(session, include_simulated=simulated)
    standing = f"{words.counted(n, 'judgment')}{'' if simulated else ' by people'} {'is' if n == 1 else 'are'} new"
    standing += " since the last snapshot"
    sentences = []
    if settings.cycle_cron:
        sentences.append(f"A cycle starts {words.cron(settings.cycle_cron)}.")
    if settings.cycle_min_judgments:
        wanted = words.number(settings.cycle_min_judgments)
        sentences.append(f"{'It also' if sentences else 'A cycle'} starts once {wanted} judgments are new; {standing}.")
    else:
        sentences.append(f"{standing[0].upper()}{standing[1:]}.")
    if not settings.cycle_cron and not settings.cycle_min_judgments:
        sentences.insert(0, "No schedule is set: a cycle starts when somebody starts it.")
    return sentences


def find_cycle(session: Session, cycle_id: int) -> Cycle:
    """The cycle of this id, or NotFound."""
    cycle = session.get(Cycle, cycle_id)
    if cycle is None:
        raise NotFound(f"there is no cycle {cycle_id}")
    return cycle


def elapsed(cycle: Cycle) -> float | None:
    """Seconds from a cycle's start to its end, or to now."""
    if cycle.started_at is None:
        return None
    return ((cycle.finished_at or utcnow()) - cycle.started_at).total_seconds()


def stage_views(session: Session, cycle: Cycle, *, results: bool = True) -> list[StageView]:
    """All stages of a cycle in order, those to come as well. Without `results`, the large columns stay unread."""
    query = select(StageRun).where(StageRun.cycle_id == cycle.id)
    runs = {r.name: r for r in session.scalars(query if results else query.options(defer(StageRun.result)))}
    unfinished = cycle.state in UNFINISHED
    found = []
    for name in _planned(cycle, runs):
        run = runs.get(name)
        state = run.state if run else "waiting" if unfinished else "not run"
        state = "stopped" if state == "running" and not unfinished else state
        title, about = STAGE_WORDS.get(name, (name.capitalize(), ""))
        result = (run.result or {}) if run and results else {}
        found.append(StageView(name, title, about, state, run, stage_facts(name, result), _curve(name, result)))
    return found


def live_state(session: Session, cycle: Cycle) -> dict[str, Any]:
    """What the page polls. `fingerprint` changes when the page itself has something new to show."""
    stages = [s.numbers for s in stage_views(session, cycle, results=False)]
    badge, word = words.CYCLE_STATES[cycle.state]
    key = "|".join([cycle.state, *(f"{s['name']}:{s['state']}" for s in stages)])
    return {
        "id": cycle.id,
        "state": cycle.state,
        "badge": badge,
        "word": word,
        "outcome": cycle.outcome,
        "unfinished": cycle.state in UNFINISHED,
        "elapsed": words.duration(elapsed(cycle)),
        "waiting_for": waiting_for(session, cycle),
        "fingerprint": hashlib.sha256(key.encode()).hexdigest()[:16],
        "stages": stages,
    }


def waiting_for(session: Session, cycle: Cycle) -> str:
    """Why an unfinished cycle does not move, or "": no worker holds the lease."""
    if cycle.state not in UNFINISHED:
        return ""
    expires_at = session.scalar(select(Lease.expires_at).where(Lease.name == LEASE))
    if expires_at is not None and expires_at > utcnow():
        return ""
    if cycle.state == "requested":
        return "Waiting for a worker to take it up. If none is running, “make run” starts one."
    return "No worker is on it right now. It goes on from its last finished stage as soon as one runs (“make run”)."


def stage_facts(name: str, result: dict[str, Any]) -> list[str]:
    """A stage's result in sentences; none where it has no result."""
    return FACTS[name](result) if result and name in FACTS else []


def _snapshot_facts(r: dict[str, Any]) -> list[str]:
    counts = r.get("counts") or {}
    n_simulated = r.get("n_simulated") or 0
    facts = [f"{words.counted(r.get('n_train'), 'pair')} to train on, {words.number(r.get('n_heldout'))} held out."]
    facts.append(
        f"{words.number(n_simulated)} of them rest on simulated judgments, not on people’s."
        if n_simulated
        else "None of them rests on simulated judgments."
    )
    used = [f"{words.number(n)} {_count_word(k)}" for k, n in counts.items() if k.startswith("from_") and n]
    left = [f"{words.number(n)} {_count_word(k)}" for k, n in counts.items() if k.startswith("left_out_") and n]
    facts += [f"Made from {', '.join(used)}."] if used else []
    facts.append(f"Left out: {', '.join(left)}." if left else "Nothing was left out.")
    if counts.get("redactions"):
        facts.append(f"{words.counted(counts['redactions'], 'personal detail')} blacked out.")
    return facts


def _reward_facts(r: dict[str, Any]) -> list[str]:
    interval = words.percent_interval(r.get("low"), r.get("high"))
    facts = [
        f"Ranks {words.percent(r.get('accuracy'))} of held-out pairs as they were judged "
        f"(95 % interval {interval}, n {words.number(r.get('n'))}); "
        f"going by length alone: {words.percent(r.get('length_only'))}."
    ]
    if "clears_bar" in r:
        facts.append(
            "Its lower bound beats length alone."
            if r["clears_bar"]
            else "Its lower bound does not beat length alone, so it may have learned little else."
        )
    return [*facts, *_trained(r.get("n_train"), r)]


def _update_facts(r: dict[str, Any]) -> list[str]:
    facts = _trained(r.get("n_pairs"), r)
    loss, parameters = words.number(r.get("loss")), words.number(r.get("trainable_parameters"))
    facts.append(f"Mean loss over the run {loss} nats; {parameters} trained parameters.")
    if smoothing := r.get("label_smoothing"):
        facts.append(f"Label smoothing {words.number(smoothing['value'])}: {smoothing['why']}.")
    return [*facts, f"Made the candidate {r['policy_version']}."] if r.get("policy_version") else facts


def _trained(n_pairs: Any, r: dict[str, Any]) -> list[str]:
    dropped = r.get("dropped_long")
    tail = f", {words.number(dropped)} dropped as too long" if dropped else ", none dropped as too long"
    return [f"Trained on {words.counted(n_pairs, 'pair')}{tail}; {words.counted(r.get('steps'), 'step')}."]


def _gate_facts(r: dict[str, Any]) -> list[str]:
    version = r.get("policy_version", "The candidate")
    if r.get("passed"):
        return [f"{version} passed every check."]
    return [f"{version} failed: {', '.join(r.get('failed') or ['no check is named'])}."]


def _promote_facts(r: dict[str, Any]) -> list[str]:
    version = r.get("policy_version", "The candidate")
    return [f"{version} went live." if r.get("promoted") else f"{version} was refused; the incumbent stays."]


FACTS = {
    "collect": lambda r: [f"{words.counted(r.get('completions'), 'completion')} by {r.get('policy_version')}."],
    "rate": lambda r: [f"{words.counted(r.get('judgments'), 'simulated judgment')} by a script, none by people."],
    "snapshot": _snapshot_facts,
    "reward": _reward_facts,
    "update": _update_facts,
    "gate": _gate_facts,
    "promote": _promote_facts,
}


def _count_word(key: str) -> str:
    return COUNT_WORDS.get(key) or key.split("_", 1)[-1].replace("_", " ")


def _planned(cycle: Cycle, runs: dict[str, StageRun]) -> list[str]:
    planned = [str(name) for name in (cycle.settings or {}).get("stages", [])]
    return planned + [name for name in runs if name not in planned]


def _curve(name: str, result: dict[str, Any]) -> Curve | None:
    if name == "reward":
        return loss_curve(result.get("log"), "Loss of the reward model", guide=GUESSING)
    return loss_curve(result.get("log"), "Loss of the update (preference + imitation)") if name == "update" else None


def _seconds(run: StageRun, state: str) -> float:
    """Over all attempts, as far as they told; what the one under way has not told yet is added."""
    return max(run.seconds, (utcnow() - run.started_at).total_seconds()) if state == "running" else run.seconds


def _note(run: StageRun, state: str) -> str:
    """What the stage says of itself, and about how long it still takes."""
    if state != "running":
        return run.note if state in ("failed", "stopped") else ""
    now = (utcnow() - run.started_at).total_seconds()
    if run.progress < 0.05 or now < 5 or run.attempts > 1:
        return run.note
    left = now * (1 - run.progress) / run.progress
    return f"{run.note} · about {words.duration(left)} left".lstrip(" ·")
