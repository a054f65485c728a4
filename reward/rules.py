"""The rule reward model: how likely a completion breaks a rule, given the conversation and the rule's words.

In: verdicts of a snapshot, each P(broken) as Dawid and Skene's matrices have it. Out: a folder with one LoRA adapter, its
head and `run.json`. The rule stands in the input as text, so a rule that nobody has judged yet is asked about in the same
way (Glaese et al. 2022, arXiv:2209.14375). What the model makes of such a rule is measured: the rules are held out in parts,
one after the other, and each part is predicted by a model that saw neither its rules nor its prompts. These models are
members on one base; the last one sees all rules and is kept.

Question first, rule last: the rules of a completion share its conversation, which goes through the model once.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.settings import RewardSettings
from feedback.dataset import RuleExample
from reward import probe
from reward.evaluation import auc, calibration, demand_apart, fit_temperature
from reward.loss import rule_loss
from reward.members import POOLING, Members
from reward.scoring import PROBE, Item, check_probe, held_in, places_of, read_record
from training.device import Device, find_device
from training.loop import Schedule, fit
from training.prefix import neighbours
from training.run import Progress, Row, silent, write_run

LEAST_EXAMPLES = 16
LEAST_TO_FIT = 20
RELOAD_TOLERANCE = 1e-3
FINAL = "rules"
PROBE_RULE = "Do not refuse to help with something harmless."
QUESTION = "Does your last reply break this rule?\n{rule}"

ONE_RULE = "only %(n)d rule has verdicts; at least two are needed to hold one out"
NOTHING_UNSEEN = "no verdict is on a rule and a prompt that the other parts did not see"
TOO_FEW_TO_SCALE = "a part of the rules has fewer than %(least)d verdicts outside of it to fit a temperature on"


@dataclass(frozen=True)
class _Part:
    """One part of the rules held out: what its model learns from, and what it is asked, by index."""

    train: list[int]
    asked: list[int]


class RuleScorer:
    """P(broken) of completions under rules. Not thread-safe: see `RewardService`."""

    def __init__(self, members: Members, temperature: float) -> None:
        self.members = members
        self.temperature = temperature
        self.tokenizer = members.tokenizer

    @classmethod
    def load(cls, folder: Path, base: Path, device: Device = "auto") -> "RuleScorer":
        """Load a rule reward model from `folder` onto the base.

        Raises:
            ArtifactError: the folder is no rule reward model, or does not fit this base.
        """
        record = read_record(folder, "rules")
        return cls.on(Members.load(places_of(folder, record), base, device, held_in(record)), folder, record)

    @classmethod
    def on(cls, members: Members, folder: Path, record: dict[str, Any]) -> "RuleScorer":
        """The same with members that are loaded already."""
        scorer = cls(members, record["temperature"])
        check_probe(record["probe"], scorer.probe(), folder)
        return scorer

    def p_broken(self, items: Sequence[Item], rules: Sequence[str]) -> list[list[float]]:
        """For each (prompt, completion) P(broken) of each rule's text, (N, R)."""
        logits = self.logits([(item, rule) for item in items for rule in rules])
        found = [1 / (1 + math.exp(-max(-500.0, logit / self.temperature))) for logit in logits]
        return [found[i * len(rules) : (i + 1) * len(rules)] for i in range(len(items))]

    def logits(self, asked: Sequence[tuple[Item, str]]) -> list[float]:
        """Logits of P(broken) at temperature 1."""
        ids = [encode_question(self.tokenizer, prompt, text, rule) for (prompt, text), rule in asked]
        found: list[float] = self.members.scores(ids)[0].tolist()
        return found

    def probe(self) -> list[float]:
        """What it says of the texts that every reward model is asked about."""
        return self.logits([(item, PROBE_RULE) for item in PROBE])


def encode_question(tokenizer: Any, prompt: list[dict[str, str]], completion: str, rule: str) -> list[int]:
    """Ids of the conversation with its completion, the question whether it breaks the rule, and where the answer begins."""
    turns = [
        *prompt,
        {"role": "assistant", "content": completion},
        {"role": "user", "content": QUESTION.format(rule=rule)},
    ]
    return list(tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False))


def why_not(train: Sequence[RuleExample]) -> str | None:
    """Why a rule reward model cannot be trained on these, or None."""
    if len(train) < LEAST_EXAMPLES:
        return f"only {len(train)} verdicts on rules are to be trained on; at least {LEAST_EXAMPLES} are needed"
    broken = sum(e.broken > 0.5 for e in train)
    if not broken or broken == len(train):
        return f"all {len(train)} verdicts say the same, so there is nothing to tell apart"
    return None


def train_rules(  # noqa: PLR0913 (inputs, outputs and settings of a stage)
    train: Sequence[RuleExample],
    heldout: Sequence[RuleExample],
    base: Path,
    work: Path,
    out: Path,
    settings: RewardSettings,
    *,
    device: Device = "auto",
    snapshot_sha256: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train, save, reload, compare and evaluate a rule reward model.

    Args:
        work: folder of checkpoints, kept between attempts.
        out: an existing empty folder that receives the adapter.

    Returns:
        unseen: AUC, calibration and n on rules and prompts that the model asked did not see; seen: the same on held-out
        prompts of rules that it did; per_rule; temperature; clears_bar; n_train, rules, dropped_long, steps, log.

        The bar: the lower 95 % bound of the AUC on unseen rules lies above one half, and its Brier score is better than
        that of always saying how often rules are broken.

    Raises:
        StageError: too few verdicts (`why_not`), a non-finite loss, no room, or scores that change on reloading.
    """
    demand_apart(train, heldout)
    target = find_device(device)
    usable, dropped = _usable(train, heldout, base, settings.max_length_tokens)
    n_train = sum(not is_heldout for _, is_heldout in usable)
    examples = [example for example, _ in usable]
    if why := why_not(examples[:n_train]):
        raise StageError(f"no rule reward model: {why}; {dropped} verdicts were dropped for their length")
    parts = _parts(examples, n_train, settings.rule_folds)
    members = Members.fresh(base, len(parts) + 1, settings, device)
    ids = [encode_question(members.tokenizer, e.prompt, e.completion, e.rule_text) for e in examples]
    log = _fit_parts(
        members,
        [*(p.train for p in parts), list(range(n_train))],
        examples,
        ids,
        settings,
        work,
        snapshot_sha256,
        progress,
    )
    unseen, temperature = _on_unseen(members, parts, examples, ids)
    final = members.only(members.names[-1:])
    seen_logits = final.scores(ids[n_train:])[0].tolist()
    _save(final, out)
    final.release()
    scorer = RuleScorer(final, temperature)
    made = {"pooling": POOLING, "scored_by": [FINAL], "temperature": temperature, "probe": scorer.probe()}
    write_run(out, "rules", settings.model_dump(), target, **made)
    _check_reload(scorer, RuleScorer.load(out, base, device), examples)
    facts = {
        "unseen": unseen,
        "seen": _figures([_sigmoid(v / temperature) for v in seen_logits], examples[n_train:]),
        "per_rule": _per_rule(examples[n_train:], seen_logits, unseen.pop("by_rule")),
        "clears_bar": _clears(unseen),
        "temperature": temperature,
        "n_train": n_train,
        "rules": len({e.rule for e in examples}),
        "dropped_long": dropped,
        "steps": len(log),
        "log": log,
    }
    write_run(out, "rules", settings.model_dump(), target, snapshot_sha256=snapshot_sha256, **(made | facts))
    return facts


def _usable(
    train: Sequence[RuleExample], heldout: Sequence[RuleExample], base: Path, max_length_tokens: int
) -> tuple[list[tuple[RuleExample, bool]], int]:
    """Examples that fit, those to train on first, each with whether it is held out; and how many do not fit."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    every = [(example, False) for example in train] + [(example, True) for example in heldout]
    kept = [
        (e, h)
        for e, h in every
        if len(encode_question(tokenizer, e.prompt, e.completion, e.rule_text)) <= max_length_tokens
    ]
    return kept, len(every) - len(kept)


def _parts(examples: Sequence[RuleExample], n_train: int, folds: int) -> list[_Part]:
    """The rules in parts, by the hash of their names. A part's model sees neither its rules nor what is asked of it."""
    rules = sorted({e.rule for e in examples}, key=lambda rule: hashlib.sha256(rule.encode()).digest())
    if len(rules) < 2:
        return []
    found = []
    for n in range(min(folds, len(rules))):
        held = set(rules[n::folds])
        train = [i for i in range(n_train) if examples[i].rule not in held]
        prompts = {examples[i].cluster for i in train}
        asked = [i for i, e in enumerate(examples) if e.rule in held and e.cluster not in prompts]
        if asked and why_not([examples[i] for i in train]) is None:
            found.append(_Part(train, asked))
    return found


def _fit_parts(
    members: Members,
    rows: Sequence[list[int]],
    examples: Sequence[RuleExample],
    ids: Sequence[list[int]],
    settings: RewardSettings,
    work: Path,
    about: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train a member on each set of rows; the last is the one that is kept."""
    import torch

    schedules = [
        Schedule(
            settings.rule_epochs,
            settings.batch_size,
            settings.learning_rate,
            settings.save_steps,
            settings.seed + 7919 * k,
        )
        for k in range(len(rows))
    ]
    steps = [schedule.steps(len(r)) for schedule, r in zip(schedules, rows, strict=True)]
    members.prepare(ids, neighbours([tuple(row) for row in ids]), progress)
    _probe(members, rows, examples, ids)
    log: list[dict[str, Any]] = []
    for k, name in enumerate(members.names):
        mine, done = rows[k], sum(steps[:k])
        mean = sum(examples[i].weight for i in mine) / len(mine)

        def loss(batch: list[int], *, name: str = name, mine: list[int] = mine, mean: float = mean) -> Any:
            chosen = [mine[i] for i in batch]
            logits = members.forward(name, [ids[i] for i in chosen])
            broken, weight = (
                torch.tensor(values, device=logits.device)
                for values in ([examples[i].broken for i in chosen], [examples[i].weight / mean for i in chosen])
            )
            return rule_loss(logits, broken, weight)

        def tell(
            frac: float, note: str, rows: Sequence[Row] = (), *, done: int = done, n: int = steps[k], k: int = k
        ) -> None:
            step = done + round(frac * n)
            told = [{**row, "step": row["step"] + done, "member": k} for row in rows]
            progress(step / sum(steps), f"step {step}/{sum(steps)}, {note.rpartition(', ')[2]}", told)

        mark = json.dumps([settings.model_dump(), about, name, [ids[i] for i in mine]], sort_keys=True)
        told = fit(
            members.parameters(name), len(mine), loss, schedules[k], work / name,
            fingerprint=hashlib.sha256(mark.encode()).hexdigest(), memory=settings, progress=tell,
        )  # fmt: skip
        log += [{**row, "step": row["step"] + done, "member": k} for row in told]
    return log


def _probe(
    members: Members, rows: Sequence[list[int]], examples: Sequence[RuleExample], ids: Sequence[list[int]]
) -> None:
    """Each member's head begins as a linear probe of its verdicts; its ridge is chosen on the same ones."""
    import numpy as np

    used = sorted({i for mine in rows for i in mine})
    features = dict(zip(used, members.features([ids[i] for i in used]).numpy(), strict=True))
    for name, mine in zip(members.names, rows, strict=True):
        broken, weight = (np.array([getattr(examples[i], of) for i in mine]) for of in ("broken", "weight"))
        found = probe.fit_labels(
            np.stack([features[i] for i in mine]), broken, weight / weight.mean(), [examples[i].cluster for i in mine]
        )
        members.set_head(name, found.weight, found.bias)


def _on_unseen(
    members: Members, parts: Sequence[_Part], examples: Sequence[RuleExample], ids: Sequence[list[int]]
) -> tuple[dict[str, Any], float]:
    """What is made of unseen rules, and the temperature for use. Each part is scaled by what was fitted on the others."""
    rules = len({e.rule for e in examples})
    if not parts:
        why = ONE_RULE % {"n": rules} if rules < 2 else NOTHING_UNSEEN
        return {"n": 0, "rules": 0, "undefined": why, "by_rule": {}}, 1.0
    logits = [
        members.only([members.names[n]]).scores([ids[i] for i in p.asked])[0].tolist() for n, p in enumerate(parts)
    ]
    asked = [examples[i] for part in parts for i in part.asked]
    flat = [v for values in logits for v in values]
    by_rule: dict[str, tuple[list[float], list[RuleExample]]] = {}
    for value, example in zip(flat, asked, strict=True):
        scores, of = by_rule.setdefault(example.rule, ([], []))
        scores.append(value)
        of.append(example)
    found = _figures([_sigmoid(v) for v in flat], asked) | {"rules": len(by_rule), "by_rule": by_rule}
    temperature = fit_temperature(flat, [e.broken for e in asked]) if len(flat) >= LEAST_TO_FIT else 1.0
    others = [[n for n in range(len(parts)) if n != m] for m in range(len(parts))]
    given = [[v for n in o for v in logits[n]] for o in others]
    said = [[examples[i].broken for n in o for i in parts[n].asked] for o in others]
    if min(map(len, given)) < LEAST_TO_FIT:
        return found | {"not_scaled": TOO_FEW_TO_SCALE % {"least": LEAST_TO_FIT}}, temperature
    fitted = [fit_temperature(g, s) for g, s in zip(given, said, strict=True)]
    scaled = [_sigmoid(v / t) for t, values in zip(fitted, logits, strict=True) for v in values]
    after = _figures(scaled, asked)
    return found | {f"{k}_scaled": after[k] for k in ("ece", "brier", "bins")}, temperature


def _figures(said: Sequence[float], examples: Sequence[RuleExample]) -> dict[str, Any]:
    """AUC of verdicts that lean to a side, calibration against P(broken), and the Brier score of always saying its mean."""
    if not examples:
        return {"n": 0, "auc": auc([], []), "undefined": "there are no verdicts"}
    was = [e.broken for e in examples]
    mean = sum(was) / len(was)
    leaning = [(p, y > 0.5) for p, y in zip(said, was, strict=True) if y != 0.5]
    return {
        "n": len(examples),
        "broken": mean,
        "auc": auc([p for p, _ in leaning], [y for _, y in leaning]),
        "brier_of_mean": sum((mean - y) ** 2 for y in was) / len(was),
        **calibration(said, was),
    }


def _per_rule(
    heldout: Sequence[RuleExample],
    logits: Sequence[float],
    unseen: dict[str, tuple[list[float], list[RuleExample]]],
) -> list[dict[str, Any]]:
    """AUC by rule: on held-out prompts by the model that is kept, and by the one that did not see the rule."""
    found = []
    for rule in sorted({e.rule for e in heldout} | set(unseen)):
        mine = [(v, e.broken) for v, e in zip(logits, heldout, strict=True) if e.rule == rule and e.broken != 0.5]
        scores, examples = unseen.get(rule, ([], []))
        asked = [(v, e.broken) for v, e in zip(scores, examples, strict=True) if e.broken != 0.5]
        found.append({
            "rule": rule,
            "seen": auc([v for v, _ in mine], [y > 0.5 for _, y in mine]),
            "unseen": auc([v for v, _ in asked], [y > 0.5 for _, y in asked]),
        })  # fmt: skip
    return found


def _clears(unseen: dict[str, Any]) -> bool:
    low = unseen.get("auc", {}).get("low")
    brier = unseen.get("brier_scaled", unseen.get("brier"))
    return low is not None and brier is not None and low > 0.5 and brier < unseen["brier_of_mean"]


def _save(final: Members, out: Path) -> None:
    """The kept member under the name that it is loaded by."""
    final.save(out)
    (out / final.names[0]).rename(out / FINAL)


def _check_reload(trained: RuleScorer, reloaded: RuleScorer, examples: Sequence[RuleExample]) -> None:
    asked = [((e.prompt, e.completion), e.rule_text) for e in examples[:8]]
    apart = [abs(a - b) for a, b in zip(trained.logits(asked), reloaded.logits(asked), strict=True)]
    if not all(d <= RELOAD_TOLERANCE for d in apart):
        raise StageError(
            f"logits changed by up to {max(apart):.4g} when the rule reward model was saved and loaded; at most"
            f" {RELOAD_TOLERANCE} is expected. Nothing is registered."
        )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, x)))
