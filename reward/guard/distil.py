"""Distilling the rule reward model into the guard's: from answers to a head on a frozen encoder, measured and stored.

In: completions under rules, as the rule reward model and as people judged them (`reward.guard.answers`). Out: a folder with
`head.safetensors` and `run.json`, which hold weights, temperature, thresholds and figures (Hinton et al. 2015,
arXiv:1503.02531: the student learns the teacher's probabilities, not its decisions).

A stream is asked about before it ends. So each completion is learnt four times, cut after a quarter, a half and three quarters and
whole, all with the answer for the whole: P(broken) of a part is how likely the completion will break the rule. A part
weighs as much as there is of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.intervals import rate
from core.settings import RewardSettings
from reward.evaluation import fit_temperature
from reward.guard import fit
from reward.guard.answers import Answer, Asked, Text
from reward.guard.encoder import Encoder, end_of
from reward.guard.figures import LEAST_PEOPLE, TOO_FEW, agreement, threshold
from reward.guard.fit import Answers
from reward.guard.student import STAGE, Rule, Student, thresholds_of
from training.run import Progress, silent, write_run

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
PEOPLE_WEIGHT = 2.0
"""What people's verdict on a completion counts beside an answer of the teacher."""
LEAST_ANSWERS = 40
LEAST_OF_A_SIDE = 5
LEAST_AUC = 0.7
TRADE_OFF = (0.01, 0.02, 0.05, 0.1, 0.2)
ENCODED_TOGETHER = 32
RULE_FOLDS = 3
RELOAD_TOLERANCE = 1e-3

NO_TEACHER = "there is no rule reward model to learn from"
BELOW_BAR = "the rule reward model does not clear its bar, so there is nothing worth learning from it"
TOO_FEW_ANSWERS = "only %(n)d answers are to be learnt from; at least %(least)d are needed"
ONE_SIDED = "only %(n)d of the answers to learn from call a rule broken, or kept; at least %(least)d of each are needed"


@dataclass(frozen=True)
class _Said:
    """What a head says of answers' texts, by fraction: (M, K) P(broken)."""

    p: Any
    answers: list[Answer]


def why_not(asked: Asked) -> str | None:
    """Why nothing can be learnt from these answers, or None."""
    train = [a for by in ("teacher", "people") for a in asked.of(heldout=False, by=by)]
    if len(train) < LEAST_ANSWERS:
        return TOO_FEW_ANSWERS % {"n": len(train), "least": LEAST_ANSWERS}
    broken = sum(a.broken > 0.5 for a in train)
    fewer = min(broken, len(train) - broken)
    return ONE_SIDED % {"n": fewer, "least": LEAST_OF_A_SIDE} if fewer < LEAST_OF_A_SIDE else None


def train_guard(
    asked: Asked,
    encoder: Encoder,
    out: Path,
    settings: RewardSettings,
    *,
    teacher: dict[str, Any],
    progress: Progress = silent,
    snapshot_sha256: str = "",
) -> dict[str, Any]:
    """Train, save, reload, compare and evaluate a guard's model.

    Args:
        out: an existing empty folder that receives it.
        teacher: what is recorded of the rule reward model: `sha256` and `clears_bar`.

    Returns:
        whole: agreement with the teacher on held-out prompt clusters; people: the same with people's verdicts; by_fraction: with
        the teacher, when only so much of the text is there; on_the_way: hits anywhere on the way of a text, beside what people say
        of it where there is enough of that, else the teacher; trade_off: the same at other shares of false hits; unseen: on rules
        that were held out whole; per_rule; thresholds; temperature; n_train, n_people, n_heldout, texts, rules; clears_bar.

        The bar: the teacher clears its own, the lower 95 % bound of the AUC of its decision on held-out clusters is at least
        `LEAST_AUC`, the Brier score is better than that of always saying its mean, and of what breaks a rule more is hit on the way
        than `guard_false_hits_frac`, by the lower 95 % bound: hits drawn by lot would be as many.

    Raises:
        StageError: too few answers (`why_not`), or logits that change on reloading.
    """
    if why := why_not(asked):
        raise StageError(f"no guard's model: {why}")
    states = _states(encoder, asked.texts, progress)
    rules = encoder.rules([rule.text for rule in asked.rules])
    train = [*asked.of(heldout=False, by="teacher"), *asked.of(heldout=False, by="people")]
    rows = _rows(train, asked.texts)
    out_of_fold = fit.out_of_fold(states, rules, rows, len(FRACTIONS), settings.guard_epochs, settings.seed)
    wholes = slice(len(FRACTIONS) - 1, None, len(FRACTIONS))  # parts are less sure, and would make the whole so too
    temperature = fit_temperature(out_of_fold[wholes].tolist(), rows.target[wholes].tolist())
    unread = _said_of(out_of_fold / temperature, train)
    thresholds = _thresholds(unread, asked.rules, settings.guard_false_hits_frac)
    weights = fit.fit(states, rules, rows, len(FRACTIONS), settings.guard_epochs, settings.seed)
    student = Student(encoder, weights, temperature, thresholds_of(thresholds))
    progress(0.95, "guard: measured")
    measured = _measure(student, states, rules, asked)
    measured["trade_off"] = [
        {
            "false_hits_frac": frac,
            **_on_the_way(_judged(student, states, rules, asked), _limits(unread, asked.rules, frac)),
        }
        for frac in TRADE_OFF
    ]
    measured["unseen"] = _unseen(rows, states, rules, asked, temperature, thresholds["common"], settings)
    made = {
        "encoder_sha256": encoder.sha256, "teacher_sha256": teacher["sha256"], "temperature": temperature,
        "thresholds": thresholds, "probe": student.probe(), "fractions": list(FRACTIONS),
    }  # fmt: skip
    student.save(out)
    write_run(out, STAGE, settings.model_dump(), encoder.device, **made)
    _check_reload(student, Student.load(out, encoder), asked)
    facts = {
        **measured,
        "thresholds": thresholds,
        "temperature": temperature,
        "clears_bar": bool(teacher["clears_bar"]) and _clears(measured, settings.guard_false_hits_frac),
        "n_train": len(asked.of(heldout=False, by="teacher")),
        "n_people": len(asked.of(heldout=False, by="people")),
        "n_heldout": len(asked.of(heldout=True, by="teacher")),
        "texts": len(asked.texts),
        "rules": len(asked.rules),
    }
    write_run(out, STAGE, settings.model_dump(), encoder.device, snapshot_sha256=snapshot_sha256, **(made | facts))
    return facts


def parts(text: str) -> list[str]:
    """A completion cut at each of `FRACTIONS`, in characters; the last is all of it."""
    return [text[: max(1, round(frac * len(text)))] for frac in FRACTIONS]


def _states(encoder: Encoder, texts: Sequence[Text], progress: Progress) -> Any:
    """(N · K, 3H) states of all parts of all texts, a text's parts one after the other."""
    import torch

    tokens = [encoder.tokens(end_of(text.prompt), part) for text in texts for part in parts(text.completion)]
    found = torch.zeros(len(tokens), 3 * encoder.width)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids))  # little padding
    for start in range(0, len(order), ENCODED_TOGETHER):
        batch = order[start : start + ENCODED_TOGETHER]
        found[batch] = encoder.states([tokens[i] for i in batch])
        progress(0.9 * (start + len(batch)) / len(order), f"guard: {start + len(batch)}/{len(order)} texts encoded")
    return found


def _rows(answers: Sequence[Answer], texts: Sequence[Text]) -> Answers:
    """Each answer once for each part of its text; the parts of an answer lie one after the other."""
    import torch

    k = len(FRACTIONS)
    fold = fit.folds_of([text.cluster for text in texts])
    people = {"people": PEOPLE_WEIGHT, "teacher": 1.0}
    weight = torch.tensor([a.weight * people[a.by] * frac for a in answers for frac in FRACTIONS])
    return Answers(
        at=torch.tensor([a.text * k + part for a in answers for part in range(k)], dtype=torch.long),
        rule=torch.tensor([a.rule for a in answers for _ in range(k)], dtype=torch.long),
        target=torch.tensor([a.broken for a in answers for _ in range(k)]),
        weight=weight / weight.mean() if len(weight) else weight,
        fold=torch.tensor([fold[a.text] for a in answers for _ in range(k)], dtype=torch.long),
    )


def _said_of(logit: Any, answers: Sequence[Answer]) -> _Said:
    return _Said(logit.sigmoid().reshape(len(answers), len(FRACTIONS)), list(answers))


def _say(student: Student, states: Any, rules: Any, answers: Sequence[Answer], texts: Sequence[Text]) -> _Said:
    rows = _rows(answers, texts)
    return _said_of(fit.ask(student.weights, states, rules, rows) / student.temperature, answers)


def _thresholds(said: _Said, rules: Sequence[Rule], false_hits_frac: float) -> dict[str, Any]:
    """Thresholds for a share of false hits, by rule where it has enough clean texts, on answers that no head had learnt.

    What people call clean decides where there is enough of it, else what anybody does: a teacher that is unsure calls clean what
    is not, and thresholds would lie above all that is broken.
    """
    largest = said.p.amax(1).tolist()
    clean: dict[int, list[float]] = {}
    by_people: dict[int, list[float]] = {}
    for value, answer in zip(largest, said.answers, strict=True):
        if answer.broken <= 0.5:
            clean.setdefault(answer.rule, []).append(value)
            if answer.by == "people":
                by_people.setdefault(answer.rule, []).append(value)
    every = [v for values in by_people.values() for v in values]
    common = threshold(every, false_hits_frac)
    of_people = common is not None
    if not of_people:
        every = [v for values in clean.values() for v in values]
        common = threshold(every, false_hits_frac)
    else:
        clean = by_people
    few = common is None
    if common is None:
        common = math.nextafter(max(every), math.inf)
    by_rule = []
    for j, rule in enumerate(rules):
        own = threshold(clean.get(j, []), false_hits_frac)
        by_rule.append({
            "rule": rule.name, "text": rule.text, "threshold": common if own is None else own, "own": own is not None,
            "n_clean": len(clean.get(j, [])),
        })  # fmt: skip
    return {
        "false_hits_frac": false_hits_frac, "common": common, "n_clean": len(every), "of_people": of_people, "too_few": few,
        "by_rule": by_rule,
    }  # fmt: skip


def _measure(student: Student, states: Any, rules: Any, asked: Asked) -> dict[str, Any]:
    """All figures on held-out prompt clusters but those of unseen rules."""
    limits = [student.thresholds.of(rule) for rule in asked.rules]
    said = _say(student, states, rules, asked.of(heldout=True, by="teacher"), asked.texts)
    by_people = _say(student, states, rules, asked.of(heldout=True, by="people"), asked.texts)
    judged = _judged(student, states, rules, asked)
    n = len(by_people.answers)
    few = {"n": n, "undefined": TOO_FEW % {"n": n, "least": LEAST_PEOPLE}}
    return {
        "whole": _agree(said, limits, -1),
        "people": few if n < LEAST_PEOPLE else _agree(by_people, limits, -1),
        "by_fraction": _by_fraction(said, limits),
        "on_the_way": _on_the_way(judged, limits),
        "per_rule": _per_rule(said, asked.rules, limits),
    }


def _judged(student: Student, states: Any, rules: Any, asked: Asked) -> _Said:
    """What it says of held-out texts that people judged, where they are enough; else of those that the teacher did."""
    by_people = asked.of(heldout=True, by="people")
    enough = len(by_people) >= LEAST_PEOPLE
    return _say(student, states, rules, by_people if enough else asked.of(heldout=True, by="teacher"), asked.texts)


def _limits(unread: _Said, rules: Sequence[Rule], false_hits_frac: float) -> list[float]:
    found = thresholds_of(_thresholds(unread, rules, false_hits_frac))
    return [found.of(rule) for rule in rules]


def _agree(said: _Said, limits: Sequence[float], part: int) -> dict[str, Any]:
    p = said.p[:, part].tolist()
    hit = [v >= limits[a.rule] for v, a in zip(p, said.answers, strict=True)]
    return agreement(p, [a.broken for a in said.answers], hit)


def _by_fraction(said: _Said, limits: Sequence[float]) -> list[dict[str, Any]]:
    """Agreement with the teacher's answer for the whole, and with the student's own decision on it, by how much is there."""
    import torch

    limit = torch.tensor([limits[a.rule] for a in said.answers])
    hits = said.p >= limit[:, None]
    found = []
    for part, frac in enumerate(FRACTIONS):
        agreed = _agree(said, limits, part)
        same = int((hits[:, part] == hits[:, -1]).sum())
        row = {name: agreed.get(name) for name in ("n", "auc", "kappa", "recall", "false_hits")}
        found.append({"frac": frac, **row, "as_whole": rate(same, len(hits))})
    return found


def _on_the_way(said: _Said, limits: Sequence[float]) -> dict[str, Any]:
    """Hits anywhere on the way: what a reader of the stream is spared, and what is stopped for nothing."""
    largest = said.p.amax(1).tolist() if said.answers else []
    hit = [v >= limits[a.rule] for v, a in zip(largest, said.answers, strict=True)]
    found = agreement(largest, [a.broken for a in said.answers], hit)
    by = sorted({answer.by for answer in said.answers})
    return {"by": by, **{name: found.get(name) for name in ("n", "kappa", "recall", "false_hits")}}


def _per_rule(said: _Said, rules: Sequence[Rule], limits: Sequence[float]) -> list[dict[str, Any]]:
    found = []
    for j, rule in enumerate(rules):
        places = [i for i, a in enumerate(said.answers) if a.rule == j]
        mine = _agree(_Said(said.p[places], [said.answers[i] for i in places]), limits, -1)
        row = {name: mine.get(name) for name in ("n", "auc", "kappa", "recall", "false_hits")}
        found.append({"rule": rule.name, "threshold": limits[j], **row})
    return found


def _unseen(
    rows: Answers, states: Any, rules: Any, asked: Asked, temperature: float, common: float, settings: RewardSettings
) -> dict[str, Any]:
    """Agreement on rules that were held out whole, and on held-out prompts: by heads that saw neither."""
    import torch

    names = sorted({rule.name for rule in asked.rules})
    heldout = asked.of(heldout=True, by="teacher")
    said: list[Any] = []
    answers: list[Answer] = []
    for n in range(min(RULE_FOLDS, len(names)) if len(names) > 1 else 0):
        held = [j for j, rule in enumerate(asked.rules) if rule.name in names[n::RULE_FOLDS]]
        kept = ~torch.isin(rows.rule, torch.tensor(held))
        mine = [a for a in heldout if a.rule in held]
        if not kept.any() or not mine:
            continue
        weights = fit.fit(states, rules, rows.where(kept), len(FRACTIONS), settings.guard_epochs, settings.seed)
        said.append(fit.ask(weights, states, rules, _rows(mine, asked.texts)))
        answers += mine
    if not answers:
        return {"n": 0, "rules": 0, "undefined": "there are no two rules of which one could be held out"}
    found = _agree(_said_of(torch.cat(said) / temperature, answers), [common] * len(asked.rules), -1)
    return found | {"rules": len({asked.rules[a.rule].name for a in answers})}


def _clears(measured: dict[str, Any], false_hits_frac: float) -> bool:
    whole, caught = measured["whole"], measured["on_the_way"]["recall"]
    low = whole["auc"].get("low")
    better = low is not None and low >= LEAST_AUC and whole["brier"] < whole["brier_of_mean"]
    return better and caught is not None and caught["low"] is not None and caught["low"] > false_hits_frac


def _check_reload(trained: Student, reloaded: Student, asked: Asked) -> None:
    texts = [(end_of(text.prompt), text.completion) for text in asked.texts[:8]]
    states = trained.encoder.states([trained.encoder.tokens(*text) for text in texts])
    words = [rule.text for rule in asked.rules]
    apart = float((trained.logits(states, words) - reloaded.logits(states, words)).abs().max())
    if not apart <= RELOAD_TOLERANCE:
        raise StageError(
            f"logits changed by up to {apart:.4g} when the guard's model was saved and loaded; at most {RELOAD_TOLERANCE} is"
            " expected. Nothing is registered."
        )
