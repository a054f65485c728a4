"""What people say together, and how reliable each of them is, without knowing the truth.

Rule verdicts: Dawid and Skene 1979 (crowd-kit's DawidSkene). Each person has a matrix P(says k | truth is c), found by EM
together with the truth; "unsure" is no verdict and is left out. Reliability is sum over c of P(c) P(says c | c). All rules
are taken together: a person has one matrix.

Pairs: NoisyBT (Bugakova et al. 2019, as crowd-kit's NoisyBradleyTerry has it). A person prefers the left side with

    P(left) = g s(x_left - x_right) + (1 - g) s(b),   s the logistic function

g, the reliability, is the probability that the texts decide and not a habit; s(b) is how often habit takes the left side,
as it was shown. "Same" and "both bad" prefer no side and are left out.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.language import N_
from feedback.models import TaskItem
from feedback.quality.acts import Act, Window, load_acts
from feedback.quality.estimate import Estimate, Reason, missing

VERDICTS = ("broken", "kept")
UNSEEN = 0.01
"""What a matrix gives to what it never saw: EM on few tasks ends at 0 and 1, which no single verdict bears."""

LEAST_TASKS = 20
LEAST_ACTS = 10
SCORE_PRIOR = 0.1
"""Weight of the prior that pulls the scores of two texts together: with two judgments of a pair, the likelihood alone has
no maximum."""

PERSON_PRIOR = 1.0
"""Weight of the prior on reliability and habit: as of one judgment each way, so that neither ends at 0 or 1."""

TOO_FEW = N_("only %(n)d tasks have two such judgments of different people; %(least)d are needed")
ONE_ANSWER = N_("everybody said the same of all of them, so no one can be told from another")
TOO_FEW_ACTS = N_("only %(n)d of their judgments are of tasks that others judged too; %(least)d are needed")


@dataclass(frozen=True)
class Settled:
    """What a task's judgments say together."""

    task_id: int
    says: str  # broken, kept; a, b
    probability: float
    n: int
    rule: str | None = None


@dataclass(frozen=True)
class Verdicts:
    """Dawid and Skene's estimates: how often a rule is broken, and what each person says of what is."""

    prior: dict[str, float]  # by truth
    says: dict[int, dict[str, dict[str, float]]]  # by person, truth, and what they say

    def broken(self, votes: Iterable[tuple[int | None, str]]) -> float:
        """P(broken | who said "broken" or "kept"), by Bayes' rule; somebody unknown is as the mean of all."""
        logs = {truth: math.log(max(p, UNSEEN)) for truth, p in self.prior.items()}
        for who, said in votes:
            matrix = self.says.get(who, self._mean) if who is not None else self._mean
            for truth in logs:
                logs[truth] += math.log(min(max(matrix[truth].get(said, 0.0), UNSEEN), 1 - UNSEEN))
        return 1 / (1 + math.exp(logs["kept"] - logs["broken"]))

    @cached_property
    def _mean(self) -> dict[str, dict[str, float]]:
        n = len(self.says)
        return {t: {s: math.fsum(m[t].get(s, 0.0) for m in self.says.values()) / n for s in VERDICTS} for t in VERDICTS}


@dataclass(frozen=True)
class Consensus:
    """Tasks with what people say of them together, the least certain first, and reliability by annotator."""

    settled: list[Settled] = field(default_factory=list)
    reliability: dict[int, Estimate] = field(default_factory=dict)
    undefined: Reason | None = None
    verdicts: Verdicts | None = None  # of rules alone


def rule_consensus(session: Session, window: Window) -> Consensus:
    """Dawid-Skene over the newest rule checks that two people or more gave a verdict on."""
    acts = _shared([act for act in load_acts(session, "rule_check", window) if act.verdict in ("broken", "kept")])
    why = _why_not(acts, {act.verdict for act in acts})
    return Consensus(undefined=why) if why else dawid_skene(acts)


def dawid_skene(acts: list[Act]) -> Consensus:
    """The consensus of verdicts "broken" and "kept"."""
    import pandas as pd
    from crowdkit.aggregation.classification.dawid_skene import DawidSkene

    rows = [(act.task_id, act.annotator_id, act.verdict) for act in acts]
    model = DawidSkene(n_iter=100).fit(pd.DataFrame(rows, columns=["task", "worker", "label"]))
    prior = model.priors_.to_dict()
    matrix = model.errors_.to_dict("index")  # (worker, said) -> {truth: probability}

    def right(worker: int) -> float:
        return math.fsum(p * matrix.get((worker, truth), {}).get(truth, 0.0) for truth, p in prior.items())

    by_task = _by_task(acts)
    settled = [
        Settled(int(task), max(row, key=row.__getitem__), float(max(row.values())), len(by_task[task]), by_task[task][0].rule)
        for task, row in model.probas_.to_dict("index").items()
    ]  # fmt: skip
    says = {
        worker: {t: {said: matrix.get((worker, said), {}).get(t, 0.0) for said in VERDICTS} for t in VERDICTS}
        for worker in {act.annotator_id for act in acts}
    }
    verdicts = Verdicts({truth: float(prior.get(truth, 0.0)) for truth in VERDICTS}, says)
    return Consensus(sorted(settled, key=lambda s: s.probability), _of_each(acts, right), verdicts=verdicts)


def pair_consensus(session: Session, window: Window) -> Consensus:
    """NoisyBT over the newest pairs of which two people or more preferred a side."""
    acts = _shared([act for act in load_acts(session, "pairwise", window) if act.choice in ("a", "b")])
    why = _why_not(acts, {act.choice for act in acts})
    if why:
        return Consensus(undefined=why)
    tasks = {act.task_id for act in acts}
    items = select(TaskItem.task_id, TaskItem.position, TaskItem.completion_id).where(TaskItem.task_id.in_(tasks))
    return noisy_bt(acts, {(row.task_id, row.position): row.completion_id for row in session.execute(items)})


def noisy_bt(acts: list[Act], completions: dict[tuple[int, int], str]) -> Consensus:
    """The consensus of choices "a" and "b".

    Args:
        completions: completion ids by task and position; a text that stands in several tasks has one score.
    """
    import pandas as pd

    rows = [
        (
            act.annotator_id,
            completions[act.task_id, act.left],
            completions[act.task_id, 1 - act.left],
            completions[act.task_id, "ab".index(str(act.choice))],
        )
        for act in acts
    ]
    model = _model()(n_iter=500, tol=1e-9, regularization_ratio=SCORE_PRIOR)
    model.fit(pd.DataFrame(rows, columns=["worker", "left", "right", "label"]))
    score = {name: math.log(s / (1 - s)) for name, s in model.scores_.clip(1e-9, 1 - 1e-9).to_dict().items()}
    skill = model.skills_.to_dict()
    settled = []
    for task_id, group in _by_task(acts).items():
        a_wins = 1 / (1 + math.exp(score[completions[task_id, 1]] - score[completions[task_id, 0]]))
        settled.append(Settled(task_id, "a" if a_wins >= 0.5 else "b", max(a_wins, 1 - a_wins), len(group)))
    return Consensus(sorted(settled, key=lambda s: s.probability), _of_each(acts, skill.__getitem__))


def _model() -> Any:
    """crowd-kit's NoisyBradleyTerry with its objective and gradient put right.

    In crowd-kit 1.4.2 the gradient of biases and skills is that of one comparison only and stands one place too low, and
    the prior's sign differs between objective and gradient; skills then stay where chance began them. A test shows it.
    """
    import numpy as np
    from crowdkit.aggregation.pairwise.noisy_bt import NoisyBradleyTerry
    from scipy.special import expit, log_expit

    def parts(x: Any, pairs: Any, workers: Any, n_labels: int, n_workers: int) -> tuple[Any, ...]:
        first = pairs[:, 0] == pairs[:, 2]
        y = np.where(first, 1.0, -1.0)
        gap = x[pairs[:, 0]] - x[pairs[:, 1]]
        bias = x[1 + n_labels + workers]
        skill = x[1 + n_labels + n_workers + workers]
        texts, habit, g = expit(y * gap), expit(y * bias), expit(skill)
        return y, texts, habit, g, g * texts + (1 - g) * habit

    class Model(NoisyBradleyTerry):  # type: ignore[misc]
        @staticmethod
        def _compute_log_likelihood(
            x: Any, pairs: Any, workers: Any, labels: int, n_workers: int, ratio: float
        ) -> float:
            *_, p = parts(x, pairs, workers, labels, n_workers)
            apart = x[1 : labels + 1] - x[0]
            prior = np.sum(log_expit(apart) + log_expit(-apart))
            habits = x[1 + labels :]  # of biases and skills
            prior_of_people = np.sum(log_expit(habits) + log_expit(-habits))
            return float(-np.sum(np.log(p)) - ratio * prior - PERSON_PRIOR * prior_of_people)

        @staticmethod
        def _compute_gradient(x: Any, pairs: Any, workers: Any, labels: int, n_workers: int, ratio: float) -> Any:
            y, texts, habit, g, p = parts(x, pairs, workers, labels, n_workers)
            of_gap = y * g * texts * (1 - texts) / p
            gradient = np.zeros_like(x)
            np.add.at(gradient, pairs[:, 0], of_gap)
            np.add.at(gradient, pairs[:, 1], -of_gap)
            np.add.at(gradient, 1 + labels + workers, y * (1 - g) * habit * (1 - habit) / p)
            np.add.at(gradient, 1 + labels + n_workers + workers, g * (1 - g) * (texts - habit) / p)
            gradient[1 + labels :] -= PERSON_PRIOR * np.tanh(x[1 + labels :] / 2)
            pull = ratio * np.tanh((x[1 : labels + 1] - x[0]) / 2)
            gradient[1 : labels + 1] -= pull
            gradient[0] += pull.sum()
            return -gradient

    return Model


def _shared(acts: list[Act]) -> list[Act]:
    """Acts of tasks that have two or more of them."""
    return [act for group in _by_task(acts).values() if len(group) > 1 for act in group]


def _by_task(acts: list[Act]) -> dict[int, list[Act]]:
    groups: dict[int, list[Act]] = defaultdict(list)
    for act in acts:
        groups[act.task_id].append(act)
    return groups


def _why_not(acts: list[Act], said: set[str | None]) -> Reason | None:
    n = len({act.task_id for act in acts})
    if n < LEAST_TASKS:
        return Reason(TOO_FEW, {"n": n, "least": LEAST_TASKS})
    return Reason(ONE_ANSWER) if len(said) < 2 else None


def _of_each(acts: list[Act], value: Any) -> dict[int, Estimate]:
    """An estimate for each annotator; undefined where too few of their acts are shared."""
    n_of: dict[int, int] = defaultdict(int)
    for act in acts:
        n_of[act.annotator_id] += 1
    return {
        who: Estimate(float(value(who)), n=n) if n >= LEAST_ACTS else missing(TOO_FEW_ACTS, n, least=LEAST_ACTS)
        for who, n in sorted(n_of.items())
    }
