"""What the student learns from: completions under rules, as the rule reward model and as people judged them.

The rule reward model takes a second for some of these, so it is not asked about every completion under every rule: completions
that people gave verdicts on come first, then sides of pairs, each under a few rules drawn by hash. Where people gave a verdict,
theirs is what is learnt; of held-out completions the teacher is asked too, to be compared with.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feedback.dataset import Preference, RuleExample
from reward.guard.student import Rule
from reward.rules import RuleScorer
from reward.scoring import Item
from training.run import Progress

RULES_EACH = 5
HELDOUT_FRAC = 0.3
"""Share of the teacher's answers that is spent on measuring."""
ASKED_TOGETHER = 16
MORE_JUDGED = 600
"""Completions of a side, beyond those that the teacher is asked about, of which people's verdicts are taken: each is encoded four times."""


@dataclass(frozen=True)
class Text:
    """A completion with its conversation."""

    prompt: list[dict[str, str]]
    completion: str
    cluster: str
    heldout: bool

    @property
    def item(self) -> Item:
        """As reward models are asked."""
        return self.prompt, self.completion


@dataclass(frozen=True)
class Answer:
    """P(broken) of a text under a rule, by place; `by` is "teacher" or "people"."""

    text: int
    rule: int
    broken: float
    weight: float
    by: str


@dataclass(frozen=True)
class Asked:
    """Texts, rules and answers that belong together."""

    texts: list[Text]
    rules: list[Rule]
    answers: list[Answer]

    def of(self, *, heldout: bool, by: str) -> list[Answer]:
        """Answers of one side by the teacher or by people."""
        return [a for a in self.answers if a.by == by and self.texts[a.text].heldout == heldout]


def texts_of(pairs: Sequence[Preference], verdicts: Sequence[RuleExample], *, heldout: bool) -> list[Text]:
    """Completions of one side of a split, each once: those with verdicts first, each kind in an order by hash."""
    judged = [Text(v.prompt, v.completion, v.cluster, heldout) for v in verdicts]
    sides = [Text(p.prompt, t, p.cluster, heldout) for p in pairs for t in (p.chosen, p.rejected)]
    found = {_key(text): text for text in [*sorted(judged, key=_key), *sorted(sides, key=_key)] if text.completion}
    return list(found.values())


def gather(
    train: Sequence[Text],
    heldout: Sequence[Text],
    verdicts: Sequence[RuleExample],
    rules: Sequence[Rule],
    teacher: RuleScorer,
    most: int,
    progress: Progress,
) -> Asked:
    """Ask the teacher `most` times at most, and put people's verdicts beside it.

    Args:
        verdicts: of both sides; their rules are asked about in the words that they had when they were judged.
    """
    spent_on_heldout = round(most * HELDOUT_FRAC)
    each = min(RULES_EACH, max(1, len(rules)))
    judged = {_key(Text(v.prompt, v.completion, v.cluster, False)) for v in verdicts}
    n_train, n_heldout = (most - spent_on_heldout) // each, spent_on_heldout // each
    rest = [*train[n_train : n_train + MORE_JUDGED], *heldout[n_heldout : n_heldout + MORE_JUDGED]]
    more = [text for text in rest if _key(text) in judged]
    texts = [*train[:n_train], *heldout[:n_heldout], *more]
    place = {_key(text): i for i, text in enumerate(texts)}
    all_rules = list(dict.fromkeys([*rules, *(Rule(v.rule, v.rule_text) for v in verdicts)]))
    number = {rule: j for j, rule in enumerate(all_rules)}
    people: dict[tuple[int, int], tuple[float, float]] = {}
    for v in verdicts:
        at = place.get(_key(Text(v.prompt, v.completion, v.cluster, False)))
        if at is not None:
            people[at, number[Rule(v.rule, v.rule_text)]] = v.broken, v.weight
    asked = enumerate(texts[: len(texts) - len(more)])
    wanted = {i: _rules_for(text, i, len(rules), each, people) for i, text in asked}
    answers = [Answer(i, j, broken, weight, "people") for (i, j), (broken, weight) in people.items()]
    answers += _ask(teacher, texts, all_rules, wanted, progress)
    return Asked(texts, all_rules, answers)


def _rules_for(text: Text, i: int, n: int, each: int, people: dict[tuple[int, int], Any]) -> list[int]:
    """The rules that the teacher is asked about: of a held-out text those that people judged too, else others."""
    judged = [j for at, j in people if at == i]
    drawn = sorted(range(n), key=lambda j: hashlib.sha256(_key(text) + j.to_bytes(4)).digest())
    others = [j for j in drawn if j not in judged]
    return ([*judged, *others] if text.heldout else others)[:each]


def _ask(
    teacher: RuleScorer, texts: Sequence[Text], rules: Sequence[Rule], wanted: dict[int, list[int]], progress: Progress
) -> list[Answer]:
    import torch

    found: list[Answer] = []
    order = list(wanted)
    for start in range(0, len(order), ASKED_TOGETHER):
        batch = [(i, j) for i in order[start : start + ASKED_TOGETHER] for j in wanted[i]]
        logit = torch.tensor(teacher.logits([(texts[i].item, rules[j].text) for i, j in batch]), dtype=torch.float64)
        broken = torch.sigmoid(logit / teacher.temperature).tolist()
        found += [Answer(i, j, p, 1.0, "teacher") for (i, j), p in zip(batch, broken, strict=True)]
        progress(
            min(start + ASKED_TOGETHER, len(order)) / len(order),
            f"guard: {len(found)} answers of the rule reward model",
        )
    return found


def _key(text: Text) -> bytes:
    said = repr([(turn["role"], turn["content"]) for turn in text.prompt])
    return hashlib.sha256(f"{said}\0{text.completion}".encode()).digest()
