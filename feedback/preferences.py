"""From judgments to preferences: who was preferred over whom, by how much, and on whose word.

Sources, in order of precedence on the same judgment: a correction (edited ≻ original; where the edited side was
preferred even before, edited ≻ the other side), a pairwise choice (net signed strength over a task's
judgments), a ranking (neighbours in the mean order, better ≻ worse), a rating gap (thumbs count as 5 and 1), a rule
contrast (kept ≻ broken on the same prompt), an imported pair. One act of one annotator counts once.
Superseded and surplus judgments are left out, and those of tasks that measure annotators (known answers, repeats);
simulated ones too, unless asked for. What a reviewer settled stands for the judgments that contradicted each other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from core.messages import conversation_hash
from feedback.models import (
    UNLEARNT,
    Completion,
    Correction,
    ImportedPair,
    Judgment,
    Prompt,
    RuleJudgment,
    Task,
    TaskItem,
)

RATING_GAP = 2
SIGN = {"a": 1, "b": -1}
WITH_TEXTS = (selectinload(Task.items).joinedload(TaskItem.completion).joinedload(Completion.prompt),)


@dataclass(frozen=True)
class Preference:
    """One training pair. `chosen` and `rejected` are the assistant's texts alone; `margin` is in strength steps."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    margin: float = 1.0
    source: str = ""
    cluster: str = ""
    category: str | None = None
    harmful: bool | None = None
    simulated: bool = False
    chosen_complete: bool = True  # False: cut at the token limit, so that no end of turn must be learnt there
    rejected_complete: bool = True


@dataclass(frozen=True)
class Side:
    """One side of a pair: a text, and whether it came to its end or was cut at the token limit."""

    text: str
    complete: bool = True

    @classmethod
    def of(cls, completion: Completion) -> "Side":
        """The side that a stored completion makes."""
        return cls(completion.text, completion.finish_reason not in ("length", "cancelled", "error"))


@dataclass
class Gathered:
    """Preferences with the judgments they rest on, and what was left out and why."""

    preferences: list[Preference] = field(default_factory=list)
    judgment_ids: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        prompt: Prompt,
        chosen: Side,
        rejected: Side,
        margin: float,
        source: str,
        judgments: Iterable[Judgment] = (),
        *,
        simulated: bool = False,
    ) -> None:
        """Add a pair unless its texts are equal; `judgments` are the ones it rests on, one simulated marks it so."""
        acts = list(judgments)
        if chosen.text.strip() == rejected.text.strip():
            self.counts["left_out_equal_texts"] += 1
            return
        self.judgment_ids |= {j.id for j in acts}
        self.counts[f"from_{source.split(':', maxsplit=1)[0]}"] += 1
        self.preferences.append(
            Preference(
                prompt.messages, chosen.text, rejected.text, margin, source,
                category=prompt.category, harmful=prompt.harmful, simulated=simulated or any(j.simulated for j in acts),
                chosen_complete=chosen.complete, rejected_complete=rejected.complete,
            )
        )  # fmt: skip


def gather(session: Session, *, include_simulated: bool, max_imported_pairs: int) -> Gathered:
    """All preferences that the database holds now, in a stable order."""
    gathered = Gathered()
    acts = standing_acts(session, include_simulated=include_simulated, counts=gathered.counts)
    by_id = {j.id: j for j in acts}
    corrected = _from_corrections(session, gathered, by_id)
    _from_choices(session, gathered, [j for j in acts if j.kind == "pairwise" and j.id not in corrected])
    _from_rankings(session, gathered, [j for j in acts if j.kind == "ranking" and j.id not in corrected])
    _from_ratings(session, gathered, acts)
    _from_rules(session, gathered, by_id)
    _from_imports(session, gathered, include_simulated, max_imported_pairs)
    return gathered


def standing_acts(session: Session, *, include_simulated: bool, counts: Counter[str]) -> list[Judgment]:
    """The judgments that count for training, oldest first; how many were left out, and why, is added to `counts`."""
    later = aliased(Judgment)
    superseded = select(later.supersedes_id).where(later.supersedes_id.is_not(None))
    standing = select(Judgment).where(Judgment.id.not_in(superseded)).order_by(Judgment.id)
    measuring = set(session.scalars(select(Task.id).where(Task.pool.in_(UNLEARNT))))
    settled = _settled(session, superseded)
    acts: list[Judgment] = []
    for judgment in session.scalars(standing):
        if judgment.surplus:
            counts["left_out_surplus"] += 1
        elif judgment.simulated and not include_simulated:
            counts["left_out_simulated"] += 1
        elif judgment.task_id in measuring:
            counts["left_out_measuring"] += 1
        elif judgment.task_id in settled:
            counts["left_out_settled"] += 1
        else:
            acts.append(judgment)
    return acts


def _settled(session: Session, superseded: Select[int | None]) -> set[int | None]:
    """Tasks whose judgments a reviewer's own stands for."""
    query = select(Task.about_id).join(Judgment, Judgment.task_id == Task.id).where(Task.pool == "adjudication")
    return set(session.scalars(query.where(~Judgment.surplus, Judgment.id.not_in(superseded))))


def _from_corrections(session: Session, gathered: Gathered, by_id: dict[int, Judgment]) -> set[int]:
    rows = session.execute(
        select(Correction, Completion)
        .join(Completion, Completion.id == Correction.completion_id)
        .options(joinedload(Completion.prompt))
        .order_by(Correction.id)
    )
    tasks = {
        task.id: task
        for task in session.scalars(
            select(Task)
            .options(*WITH_TEXTS)
            .join(Judgment, Judgment.task_id == Task.id)
            .join(Correction)
            .where(Task.kind == "pairwise")
        )
    }
    used = set()
    for correction, completion in rows:
        judgment = by_id.get(correction.judgment_id)
        if judgment is not None:
            used.add(judgment.id)
            task = tasks.get(judgment.task_id) if judgment.task_id is not None else None
            worse = _worse_side(task, judgment.choice, completion) or completion
            edited, other = Side(correction.text), Side.of(worse)
            gathered.add(completion.prompt, edited, other, 3.0, f"correction:{correction.id}", [judgment])
    return used


def _worse_side(task: Task | None, choice: str | None, completion: Completion) -> Completion | None:
    """What a pairwise choice set below this completion, if anything."""
    if task is None or choice not in SIGN:
        return None
    better, worse = task.completions
    if choice == "b":
        better, worse = worse, better
    return worse if better.id == completion.id else None


def _from_choices(session: Session, gathered: Gathered, judgments: list[Judgment]) -> None:
    for task, acts in _by_task(session, judgments):
        net = sum(SIGN.get(j.choice or "", 0) * (j.strength or 0) for j in acts) / len(acts)
        if net == 0:
            gathered.counts["left_out_tie"] += 1
            continue
        a, b = (Side.of(completion) for completion in task.completions)
        chosen, rejected = (a, b) if net > 0 else (b, a)
        gathered.add(task.completions[0].prompt, chosen, rejected, abs(net), f"choice:{task.id}", acts)


def _from_rankings(session: Session, gathered: Gathered, judgments: list[Judgment]) -> None:
    """Neighbours in the order of a task's mean ranks: better ≻ worse, by how many ranks they lie apart."""
    for task, acts in _by_task(session, judgments):
        orders = [ranks for j in acts if j.choice != "all_wrong" and (ranks := (j.answer or {}).get("ranks"))]
        if not orders:
            gathered.counts["left_out_all_wrong"] += 1
            continue
        mean = [sum(ranks[n] for ranks in orders) / len(orders) for n in range(len(task.items))]
        order = sorted(range(len(mean)), key=mean.__getitem__)
        for better, worse in pairwise(order):
            gap = mean[worse] - mean[better]
            if gap == 0:
                gathered.counts["left_out_tie"] += 1
                continue
            chosen, rejected = task.completions[better], task.completions[worse]
            gathered.add(chosen.prompt, Side.of(chosen), Side.of(rejected), gap, f"ranking:{task.id}", acts)


def _by_task(session: Session, judgments: list[Judgment]) -> Iterator[tuple[Task, list[Judgment]]]:
    """Tasks with their judgments, in the order of their ids."""
    by_task: dict[int, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        if judgment.task_id is not None:
            by_task[judgment.task_id].append(judgment)
    query = select(Task).options(*WITH_TEXTS).where(Task.id.in_(by_task)).order_by(Task.id)
    for task in session.scalars(query):
        yield task, by_task[task.id]


def _from_ratings(session: Session, gathered: Gathered, judgments: list[Judgment]) -> None:
    """Best over worst rated completion of a prompt, where their mean ratings lie two points apart or more."""
    of_tasks = select(TaskItem.task_id, TaskItem.completion_id).join(Task).where(Task.kind == "rating")
    rated: dict[int | None, str] = {row.task_id: row.completion_id for row in session.execute(of_tasks)}
    marks: dict[str, list[tuple[float, Judgment]]] = defaultdict(list)
    for judgment in judgments:
        mark = judgment.rating or ({1: 5, -1: 1}[judgment.thumbs] if judgment.thumbs else None)
        completion_id = judgment.completion_id or rated.get(judgment.task_id)
        if mark and completion_id:
            marks[completion_id].append((mark, judgment))
    by_prompt: dict[int, list[Completion]] = defaultdict(list)
    query = (
        select(Completion)
        .options(joinedload(Completion.prompt))
        .where(Completion.id.in_(marks))
        .order_by(Completion.id)
    )
    for completion in session.scalars(query):
        by_prompt[completion.prompt_id].append(completion)
    for prompt_id, completions in sorted(by_prompt.items()):
        mean = {c.id: sum(m for m, _ in marks[c.id]) / len(marks[c.id]) for c in completions}
        best, worst = max(completions, key=lambda c: mean[c.id]), min(completions, key=lambda c: mean[c.id])
        gap = mean[best.id] - mean[worst.id]
        if gap >= RATING_GAP:
            acts = [j for c in (best, worst) for _, j in marks[c.id]]
            gathered.add(best.prompt, Side.of(best), Side.of(worst), gap / 2, f"rating:{prompt_id}", acts)


def _from_rules(session: Session, gathered: Gathered, by_id: dict[int, Judgment]) -> None:
    """Kept over broken on the same prompt, where no other source paired the two texts."""
    paired = {_texts(p.prompt, p.chosen, p.rejected) for p in gathered.preferences}
    rows = session.execute(
        select(RuleJudgment, Completion)
        .join(Completion, Completion.id == RuleJudgment.completion_id)
        .options(joinedload(Completion.prompt))
        .order_by(RuleJudgment.id)
    )
    verdicts: dict[tuple[int, int], dict[str, dict[str, tuple[Completion, Judgment]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for verdict, completion in rows:
        judgment = by_id.get(verdict.judgment_id)
        if judgment is not None and verdict.verdict != "unsure":
            by_verdict = verdicts[(completion.prompt_id, verdict.rule_version_id)]
            by_verdict[verdict.verdict].setdefault(completion.id, (completion, judgment))
    for (_, rule_version_id), by_verdict in sorted(verdicts.items()):
        broken, kept = by_verdict["broken"], by_verdict["kept"]
        for good_id, (good, first) in kept.items():
            for bad_id, (bad, second) in broken.items():
                texts = _texts(good.prompt.messages, good.text, bad.text)
                if good_id in broken or bad_id in kept or texts in paired:
                    continue
                paired.add(texts)
                gathered.add(good.prompt, Side.of(good), Side.of(bad), 2.0, f"rule:{rule_version_id}", [first, second])


def _texts(prompt: list[dict[str, str]], one: str, other: str) -> tuple[str, frozenset[str]]:
    """Two texts of a prompt, whichever is better."""
    return conversation_hash(prompt), frozenset((one, other))


def _from_imports(session: Session, gathered: Gathered, include_simulated: bool, limit: int) -> None:
    query = (
        select(ImportedPair)
        .options(joinedload(ImportedPair.prompt), joinedload(ImportedPair.chosen), joinedload(ImportedPair.rejected))
        .order_by(ImportedPair.id.desc())
        .limit(limit)
    )
    for pair in reversed(session.scalars(query).all()):
        if pair.simulated and not include_simulated:
            gathered.counts["left_out_simulated"] += 1
            continue
        margin = pair.margin if pair.margin is not None else 1.0
        chosen, rejected = Side.of(pair.chosen), Side.of(pair.rejected)
        gathered.add(pair.prompt, chosen, rejected, margin, f"import:{pair.id}", simulated=pair.simulated)
