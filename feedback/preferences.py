"""From judgments to preferences: who was preferred over whom, by how much, and on whose word.

Sources, in order of precedence on the same judgment: a correction (edited ≻ original; where the edited side was
preferred even before, edited ≻ the other side), a pairwise choice (net signed strength over a task's
judgments), a ranking (neighbours in the mean order, better ≻ worse), a rating gap (thumbs count as 5 and 1), a rule
contrast (kept ≻ broken on the same prompt), an imported pair. One act of one annotator counts once.
Superseded and surplus judgments are left out, and those of tasks that measure annotators (known answers, repeats);
simulated ones too, unless asked for. What a reviewer settled stands for the judgments that contradicted each other.

Each pair keeps the votes it rests on: who (as a number), how strongly, and how much their word weighs
(`feedback.quality.reliability`). Direction, margin, target and weight follow from the votes by `weigh`, so that a part of
the annotators gives the pair as it would be without the others. Pairs that nobody prefers a side of are ties: they teach
a reward model that two texts are worth the same, and nothing else takes them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from core.messages import conversation_hash
from feedback.consent import LEARNT
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
from feedback.quality.reliability import JudgmentWeights
from feedback.rule_examples import RuleExample, rule_examples

RATING_GAP = 2
CORRECTED = 3.0
CONTRASTED = 2.0
SIGN = {"a": 1, "b": -1}
WITH_TEXTS = (selectinload(Task.items).joinedload(TaskItem.completion).joinedload(Completion.prompt),)


class Vote(NamedTuple):
    """One annotator's word on a pair: `strength` in steps, positive for the chosen side; `weight` 0 … 1."""

    annotator: int
    strength: float
    weight: float = 1.0


class Weighed(NamedTuple):
    """What votes say together: net strength for the chosen side, P(chosen is better), and the mean weight."""

    net: float
    target: float
    weight: float


def weigh(votes: Sequence[Vote]) -> Weighed:
    """Votes as one: net and target are means weighted by weight, the target's by strength too (a tie counts half, at 1).

    So the target lies above one half exactly where the net strength is positive. All weights 1 and one vote of strength s
    give (s, 1, 1), or (0, 0.5, 1) for a tie.

    Raises:
        ValueError: there are no votes, or none of them weighs anything.
    """
    total = math.fsum(v.weight for v in votes)
    if total <= 0:
        raise ValueError(f"{len(votes)} votes of no weight say nothing; leave the pair out")
    stake = [v.weight * (abs(v.strength) or 1.0) for v in votes]
    for_it = math.fsum(
        s * (1.0 if v.strength > 0 else 0.0 if v.strength < 0 else 0.5) for s, v in zip(stake, votes, strict=True)
    )
    net = math.fsum(v.weight * v.strength for v in votes) / total
    return Weighed(net, for_it / math.fsum(stake), total / len(votes))


@dataclass(frozen=True)
class Preference:
    """One training pair. `chosen` and `rejected` are the assistant's texts alone; `margin` is in strength steps.

    `target` is P(chosen is better): 1 where all agree, 0.5 for a tie. `weight` is how much the pair counts, 1 by default.
    `votes` is what both rest on; none for pairs that were made elsewhere, or frozen before there were votes.
    """

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
    weight: float = 1.0
    target: float = 1.0
    votes: list[Vote] = field(default_factory=list)

    @property
    def tie(self) -> bool:
        """Whether nobody prefers a side, or as many as prefer the other."""
        return self.target == 0.5

    def turned(self) -> "Preference":
        """The same pair with its sides changed over; votes, margin and target stay as they are told."""
        return replace(
            self, chosen=self.rejected, rejected=self.chosen,
            chosen_complete=self.rejected_complete, rejected_complete=self.chosen_complete,
        )  # fmt: skip


def as_voted(pair: Preference, votes: Sequence[Vote]) -> Preference:
    """The pair as these votes have it: its sides, margin, target and weight follow from them.

    Args:
        votes: at least one; strengths in favour of the pair's chosen side.
    """
    said = weigh(votes)
    if said.net < 0:
        pair, votes = pair.turned(), [vote._replace(strength=-vote.strength) for vote in votes]
        said = weigh(votes)
    target = 0.5 if said.net == 0 else said.target
    return replace(pair, margin=said.net, target=target, weight=said.weight, votes=list(votes))


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
    """Preferences and ties with the judgments they rest on, and what was left out and why."""

    preferences: list[Preference] = field(default_factory=list)
    ties: list[Preference] = field(default_factory=list)
    judgment_ids: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    weights: JudgmentWeights = field(default_factory=JudgmentWeights)
    rules: list[RuleExample] = field(default_factory=list)

    def vote(self, judgment: Judgment, strength: float) -> Vote:
        """A judgment as a vote; one of nobody known is of an annotator of its own."""
        who = judgment.annotator_id if judgment.annotator_id is not None else -judgment.id
        return Vote(who, strength, self.weights.on_pairs(judgment))

    def add(
        self,
        prompt: Prompt,
        one: Side,
        other: Side,
        votes: Sequence[Vote],
        source: str,
        judgments: Iterable[Judgment] = (),
        *,
        margin: float = 0.0,
        simulated: bool = False,
    ) -> None:
        """Add a pair unless its texts are equal.

        Args:
            votes: strengths in favour of `one`; empty for a pair from elsewhere, whose chosen side `one` is.
            judgments: the ones it rests on; one simulated marks it so.
            margin: of a pair without votes.
        """
        acts = list(judgments)
        if one.text.strip() == other.text.strip():
            self.counts["left_out_equal_texts"] += 1
            return
        said = weigh(votes) if votes else Weighed(margin, 1.0, 1.0)
        if votes and said.net < 0:
            one, other = other, one
            votes = [vote._replace(strength=-vote.strength) for vote in votes]
            said = weigh(votes)
        tied = bool(votes) and said.net == 0
        self.judgment_ids |= {j.id for j in acts}
        self.counts["from_tie" if tied else f"from_{source.split(':', maxsplit=1)[0]}"] += 1
        (self.ties if tied else self.preferences).append(
            Preference(
                prompt.messages, one.text, other.text, said.net, source,
                category=prompt.category, harmful=prompt.harmful, simulated=simulated or any(j.simulated for j in acts),
                chosen_complete=one.complete, rejected_complete=other.complete,
                weight=said.weight, target=0.5 if tied else said.target, votes=list(votes),
            )
        )  # fmt: skip


def gather(
    session: Session,
    *,
    include_simulated: bool,
    max_imported_pairs: int,
    weights: Callable[[list[Judgment]], JudgmentWeights] | None = None,
) -> Gathered:
    """All preferences that the database holds now, in a stable order.

    Args:
        weights: what judgments weigh, given those that stand; without it each weighs 1.
    """
    gathered = Gathered()
    acts = standing_acts(session, include_simulated=include_simulated, counts=gathered.counts)
    by_id = {j.id: j for j in acts}
    gathered.weights = weights(acts) if weights else JudgmentWeights()
    corrected = _from_corrections(session, gathered, by_id)
    _from_choices(session, gathered, [j for j in acts if j.kind == "pairwise" and j.id not in corrected])
    _from_rankings(session, gathered, [j for j in acts if j.kind == "ranking" and j.id not in corrected])
    _from_ratings(session, gathered, acts)
    _from_rules(session, gathered, by_id)
    gathered.rules, used = rule_examples(session, by_id, gathered.weights)
    gathered.judgment_ids |= used
    _from_imports(session, gathered, include_simulated, max_imported_pairs)
    return gathered


def standing_acts(session: Session, *, include_simulated: bool, counts: Counter[str]) -> list[Judgment]:
    """The judgments that count for training, oldest first; how many were left out, and why, is added to `counts`."""
    later = aliased(Judgment)
    superseded = select(later.supersedes_id).where(later.supersedes_id.is_not(None))
    standing = select(Judgment).where(Judgment.id.not_in(superseded)).order_by(Judgment.id)
    measuring = set(session.scalars(select(Task.id).where(Task.pool.in_(UNLEARNT))))
    settled = _settled(session, superseded)
    kept_from_us, about_them = _not_learnable(session)
    acts: list[Judgment] = []
    for judgment in session.scalars(standing):
        if judgment.surplus:
            counts["left_out_surplus"] += 1
        elif judgment.simulated and not include_simulated:
            counts["left_out_simulated"] += 1
        elif judgment.id in kept_from_us or judgment.task_id in about_them:
            counts["left_out_no_consent"] += 1
        elif judgment.task_id in measuring:
            counts["left_out_measuring"] += 1
        elif judgment.task_id in settled:
            counts["left_out_settled"] += 1
        else:
            acts.append(judgment)
    return acts


def _not_learnable(session: Session) -> tuple[set[int], set[int]]:
    """Judgments of completions without consent to training, or whose text was erased, and the tasks of such completions."""
    of_thumbs = select(Judgment.id).join(Completion, Completion.id == Judgment.completion_id)
    of_verdicts = select(RuleJudgment.judgment_id).join(Completion, Completion.id == RuleJudgment.completion_id)
    of_tasks = select(TaskItem.task_id).join(Completion, Completion.id == TaskItem.completion_id)
    judgments, verdicts, tasks = (set(session.scalars(q.where(~LEARNT))) for q in (of_thumbs, of_verdicts, of_tasks))
    return judgments | verdicts, tasks


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
            vote = gathered.vote(judgment, CORRECTED)
            gathered.add(completion.prompt, edited, other, [vote], f"correction:{correction.id}", [judgment])
    return used


def _worse_side(task: Task | None, choice: str | None, completion: Completion) -> Completion | None:
    """What a pairwise choice set below this completion, if anything."""
    if task is None or choice not in SIGN:
        return None
    better, worse = task.completions
    if choice == "b":
        better, worse = worse, better
    return worse if better.id == completion.id and worse.prompt_id == completion.prompt_id else None


def _from_choices(session: Session, gathered: Gathered, judgments: list[Judgment]) -> None:
    for task, acts in _by_task(session, judgments):
        if task.completions[0].prompt_id != task.completions[1].prompt_id:  # it tells prompts apart, and no policy
            gathered.counts["left_out_other_system_prompt"] += 1
            continue
        votes = [gathered.vote(j, SIGN.get(j.choice or "", 0) * (j.strength or 0)) for j in acts]
        a, b = (Side.of(completion) for completion in task.completions)
        gathered.add(task.completions[0].prompt, a, b, votes, f"choice:{task.id}", acts)


def _from_rankings(session: Session, gathered: Gathered, judgments: list[Judgment]) -> None:
    """Neighbours in the order of a task's mean ranks: better ≻ worse, by how many ranks they lie apart."""
    for task, acts in _by_task(session, judgments):
        orders = [(j, ranks) for j in acts if j.choice != "all_wrong" and (ranks := (j.answer or {}).get("ranks"))]
        if not orders:
            gathered.counts["left_out_all_wrong"] += 1
            continue
        weight = [gathered.vote(j, 0.0).weight for j, _ in orders]
        mean = [
            math.fsum(w * ranks[n] for w, (_, ranks) in zip(weight, orders, strict=True)) / math.fsum(weight)
            for n in range(len(task.items))
        ]
        for better, worse in pairwise(sorted(range(len(mean)), key=mean.__getitem__)):
            votes = [gathered.vote(j, ranks[worse] - ranks[better]) for j, ranks in orders]
            chosen, rejected = task.completions[better], task.completions[worse]
            gathered.add(chosen.prompt, Side.of(chosen), Side.of(rejected), votes, f"ranking:{task.id}", acts)


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
        mean = {c.id: _mean_mark(gathered, marks[c.id]) for c in completions}
        best, worst = max(completions, key=lambda c: mean[c.id]), min(completions, key=lambda c: mean[c.id])
        gap = mean[best.id] - mean[worst.id]
        if gap >= RATING_GAP:
            acts = [j for c in (best, worst) for _, j in marks[c.id]]
            votes = [gathered.vote(j, gap / 2) for j in acts]
            gathered.add(best.prompt, Side.of(best), Side.of(worst), votes, f"rating:{prompt_id}", acts)


def _mean_mark(gathered: Gathered, marks: list[tuple[float, Judgment]]) -> float:
    weights = [gathered.vote(j, 0.0).weight for _, j in marks]
    return math.fsum(w * m for w, (m, _) in zip(weights, marks, strict=True)) / math.fsum(weights)


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
                votes = [
                    gathered.vote(j, CONTRASTED)._replace(weight=gathered.weights.on_rules(j)) for j in (first, second)
                ]
                source, acts = f"rule:{rule_version_id}", [first, second]
                gathered.add(good.prompt, Side.of(good), Side.of(bad), votes, source, acts)


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
        gathered.add(pair.prompt, chosen, rejected, (), f"import:{pair.id}", margin=margin, simulated=pair.simulated)
