"""What the pages about cycles show: read from rows, said in plain words. It changes nothing.

A stage's `result` is read with care: an older cycle may lack a key that a newer one has.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from console import words
from console.stage_facts import energy_fact, stage_facts, tracker_facts
from console.steps import Steps, counted, log_of, steps_of
from core.db import utcnow
from core.errors import NotFound
from core.language import N_, gettext, ngettext, retold
from core.language import lazy_gettext as _l
from core.settings import Settings
from finetune.cycle import LEASE, UNFINISHED, new_judgments, still_of
from finetune.models import Cycle, Lease, StageRun
from policy.models import PolicyVersion

PAGE = 25
STAGE_WORDS = {
    "collect": (_l("Collect"), _l("the served policy answers the seed prompts")),
    "compare": (_l("Compare"), _l("two versions answer the seed prompts, for people to judge")),
    "rate": (_l("Rate"), _l("a script judges the new tasks, marked as simulated")),
    "snapshot": (_l("Snapshot"), _l("judgments become a frozen, hashed dataset")),
    "reward": (_l("Reward models"), _l("learn which completion people prefer, and which ones break rules")),
    "update": (_l("Update"), _l("an adapter is trained on the preferences")),
    "gate": (_l("Gate"), _l("candidate and incumbent answer the frozen suites")),
    "promote": (_l("Promote"), _l("the candidate goes live, or the incumbent stays")),
}
NOTES = (
    N_("likelihoods"), N_("%(version)s: %(n)s suite prompts"), N_("%(n)s completions"),
    N_("%(n)s tasks judged (simulated)"), N_("step %(n)s, loss %(loss)s"),
    N_("step %(n)s, reward %(reward)s, KL %(kl)s"), N_("step %(n)s"), N_("frozen layers: %(n)s"),
    N_("completions scored: %(n)s"), N_("%(n)s prompts answered twice"), N_("reference log-probabilities: %(n)s"),
)  # fmt: skip
"""What stages say of themselves while they run, see `finetune` and `training.run`."""

OUTCOMES = (
    N_("cancelled by %(who)s"),
    N_("%(version)s is active"),
    N_("finished: %(stages)s"),
)
"""How cycles end, see `finetune`. Of one that failed, the error is told as it was met."""


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
    steps: list[Steps] = field(default_factory=list)
    told: int = 0  # steps; the page asks for them again when there are more

    @property
    def numbers(self) -> dict[str, Any]:
        """What changes while it runs, ready to be shown; the page's script puts it in place."""
        run = self.run
        badge, word = words.STAGE_STATES[self.state]
        figures = []
        if run is not None:
            figures.append(words.duration(_seconds(run, self.state)))
            figures += [gettext("peak %(memory)s", memory=words.megabytes(run.peak_mb))] if run.peak_mb else []
            figures += [gettext("attempt %(n)s", n=run.attempts)] if run.attempts > 1 else []
            if run.energy:
                took = {"energy": words.energy(run.energy.get("kwh")), "co2": words.mass(run.energy.get("co2_kg"))}
                figures.append(gettext("%(energy)s, %(co2)s CO2 (estimated)", **took))
        return {
            "name": self.name,
            "state": self.state,
            "badge": badge,
            "word": str(word),
            "progress": round(run.progress, 4) if run else 0.0,
            "note": _note(run, self.state) if run else "",
            "figures": " · ".join(figures),
            "error": run.error if run else None,
            "told": self.told,
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
    standing = (
        ngettext(
            "%(n)s judgment is new since the last snapshot.",
            "%(n)s judgments are new since the last snapshot.",
            n,
            n=words.number(n),
        )
        if simulated
        else ngettext(
            "%(n)s judgment by people is new since the last snapshot.",
            "%(n)s judgments by people are new since the last snapshot.",
            n,
            n=words.number(n),
        )
    )
    sentences = []
    if settings.cycle_cron:
        sentences.append(words.cron(settings.cycle_cron))
    if wanted := settings.cycle_min_judgments:
        sentences.append(
            gettext("It also starts once %(n)s judgments are new.", n=words.number(wanted))
            if sentences
            else gettext("A cycle starts once %(n)s judgments are new.", n=words.number(wanted))
        )
    if not sentences:
        sentences.append(gettext("No schedule is set: a cycle starts when somebody starts it."))
    return [*sentences, standing]


def outcome_words(cycle: Cycle) -> str:
    """How a cycle ended, in the reader's language as far as it is told in words of ours."""
    if not cycle.outcome or cycle.state == "failed":
        return cycle.outcome or ""
    if cycle.state == "refused":
        version, _, checks = cycle.outcome.partition(" failed: ")
        named = ", ".join(words.check_name(name) for name in checks.split(", "))
        return gettext("%(version)s failed: %(checks)s", version=version, checks=named) if checks else cycle.outcome
    return retold(cycle.outcome, OUTCOMES)


def find_cycle(session: Session, cycle_id: int) -> Cycle:
    """The cycle of this id, or NotFound."""
    cycle = session.get(Cycle, cycle_id)
    if cycle is None:
        raise NotFound(gettext("there is no cycle %(cycle_id)s", cycle_id=cycle_id))
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
    told = counted(session, cycle.id)
    found = []
    for name in _planned(cycle, runs):
        run = runs.get(name)
        state = run.state if run else "waiting" if unfinished else "not run"
        state = "stopped" if state == "running" and not unfinished else state
        title, about = map(str, STAGE_WORDS.get(name, (name.capitalize(), "")))
        result = (run.result or {}) if run and results else {}
        steps = steps_of(session, run, log_of(name, result)) if run and results else []
        found.append(StageView(name, title, about, state, run, _facts(name, run, result), steps, told.get(name, 0)))
    return found


def _facts(name: str, run: StageRun | None, result: dict[str, Any]) -> list[str]:
    facts = stage_facts(name, result)
    if run is not None and run.state != "running":
        facts += tracker_facts(run.trackers or [])
    return facts


def find_stage_steps(session: Session, cycle: Cycle, stage: str) -> list[Steps]:
    """The steps of one stage of a cycle; none where it has told of none.

    Raises:
        NotFound: the cycle has no such stage, or it has not begun.
    """
    run = session.scalar(select(StageRun).where(StageRun.cycle_id == cycle.id, StageRun.name == stage))
    if run is None:
        raise NotFound(
            gettext("cycle %(cycle_id)s has no stage %(name)r that has begun", cycle_id=cycle.id, name=stage)
        )
    return steps_of(session, run, log_of(stage, run.result or {}))


def energy_words(session: Session, cycle: Cycle) -> str:
    """What a cycle took in all, or "" where nothing was measured."""
    query = select(StageRun.energy).where(StageRun.cycle_id == cycle.id).order_by(StageRun.id)
    return energy_fact([energy for energy in session.scalars(query) if energy])


def live_state(session: Session, cycle: Cycle) -> dict[str, Any]:
    """What the page polls. `fingerprint` changes when the page itself has something new to show."""
    stages = [s.numbers for s in stage_views(session, cycle, results=False)]
    badge, word = words.CYCLE_STATES[cycle.state]
    key = "|".join([cycle.state, *(f"{s['name']}:{s['state']}" for s in stages)])
    return {
        "id": cycle.id,
        "state": cycle.state,
        "badge": badge,
        "word": str(word),
        "outcome": cycle.outcome,
        "unfinished": cycle.state in UNFINISHED,
        "elapsed": words.duration(elapsed(cycle)),
        "left": _left(session, cycle),
        "energy": energy_words(session, cycle),
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
        return gettext("Waiting for a worker to take it up. If none is running, “make run” starts one.")
    return gettext(
        "No worker is on it right now. It goes on from its last finished stage as soon as one runs (“make run”)."
    )


def _planned(cycle: Cycle, runs: dict[str, StageRun]) -> list[str]:
    planned = [str(name) for name in (cycle.settings or {}).get("stages", [])]
    return planned + [name for name in runs if name not in planned]


def _seconds(run: StageRun, state: str) -> float:
    """Over all attempts, as far as they told; what the one under way has not told yet is added."""
    return max(run.seconds, (utcnow() - run.started_at).total_seconds()) if state == "running" else run.seconds


def _note(run: StageRun, state: str) -> str:
    """What the stage says of itself, and about how long it still takes."""
    note = retold(run.note, NOTES)
    if state != "running":
        return note if state in ("failed", "stopped") else ""
    left = run.still_s()
    if left is None:
        return note
    told = gettext("about %(time)s left", time=words.duration(left))
    return f"{note} · {told}" if note else told


def _left(session: Session, cycle: Cycle) -> str:
    """About how long the whole cycle still takes, or "" where that cannot be said."""
    left = still_of(session, cycle)
    return gettext("about %(time)s left in all", time=words.duration(left)) if left is not None else ""
