"""The preference reward model: an ensemble of LoRA adapters with scalar heads on the frozen base.

In: preferences and ties of a snapshot. Out: a folder with the members, each a PEFT adapter, and `run.json`, reloaded and
compared before anyone may register it. Training and scoring encode with `training.encode`, so that template and end of text
never differ between the two. A member's head is a linear probe of the frozen base (`reward.probe`); its adapter then learns under
it. The loss is in `reward.loss`, what each member sees in `reward.ensemble`, what is measured in `reward.evaluation`.

The loop is ours: stock trainers drop the columns that weights, margins and ties stand in, train one member a run, and push
what sides, members and epochs share through the model each time. Resumable: a killed run ends with the weights of an
unbroken one.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.settings import RewardSettings
from feedback.dataset import Preference
from reward import probe
from reward.ensemble import bootstrap_by, penalised, resample, write_average
from reward.evaluation import demand_apart, evaluate_pairs, length_only_accuracy
from reward.loss import preference_loss
from reward.members import POOLING, Members
from reward.scoring import PROBE, RewardScorer
from training import ranks
from training.device import Device, find_device
from training.encode import encode_completion, encode_prompt
from training.loop import Schedule, fit
from training.memory import Held
from training.run import Progress, Row, part_of, silent, write_run

__all__ = ["RewardScorer", "check_reload", "encode_pair", "evaluate", "train_reward"]

MIN_PAIRS = 8
RELOAD_TOLERANCE = 1e-3
OFFSET_PAIRS = 64
AVERAGED = "averaged"
CURVE = (0.25, 0.5, 1.0)
TRAINING_SHARE = 0.7
"""Of the stage's progress; the rest is the evaluation."""


@dataclass(frozen=True)
class Pair:
    """An encoded pair as one member learns it: token ids of both sides, target, margin and weight."""

    chosen: list[int]
    rejected: list[int]
    target: float
    margin: float
    weight: float


def train_reward(  # noqa: PLR0913 (inputs, outputs and settings of a stage)
    train: Sequence[Preference],
    heldout: Sequence[Preference],
    base: Path,
    work: Path,
    out: Path,
    settings: RewardSettings,
    *,
    device: Device = "auto",
    snapshot_sha256: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train, save, reload, compare and evaluate a reward model.

    Args:
        train: pairs and ties.
        heldout: of which ties are left out of the evaluation.
        work: folder of checkpoints, kept between attempts.
        out: an existing empty folder that receives the members.

    Returns:
        What `evaluate` says of `heldout`; n_train, ties, steps, log; pairs left out for their length as dropped_long and
        dropped_long_heldout, and those that are equal once they are cut as dropped_equal; how members were made.

    Raises:
        StageError: too few pairs, splits that share a cluster, a non-finite loss, no room, or scores that change on
            reloading.
    """
    demand_apart(train, heldout)
    target = find_device(device)
    members = Members.fresh(base, settings.members, settings, device)
    kept, dropped = _usable(members.tokenizer, train, settings.max_length_tokens)
    heldout, dropped_heldout = _usable(members.tokenizer, [p for p in heldout if not p.tie], settings.max_length_tokens)
    if sum(not p.tie for p in kept) < MIN_PAIRS or not heldout:
        raise StageError(
            f"{sum(not p.tie for p in kept)} training and {len(heldout)} held-out pairs are usable; a reward model needs at"
            f" least {MIN_PAIRS} and 1. Collect more judgments."
        )
    seen = [_seen(kept, settings, k) for k in range(settings.members)]
    log = _fit_members(members, seen, settings, work, snapshot_sha256, part_of(progress, 0.0, TRAINING_SHARE))
    members.save(out)
    scored_by = members.names
    if settings.combine == "averaged" and len(members.names) > 1:
        write_average(out, members.names, AVERAGED)
        scored_by = [AVERAGED]
    averaged = scored_by != members.names
    trained = Members.load({AVERAGED: out / AVERAGED}, base, device, Held.by(settings)) if averaged else members
    offsets = _offsets(trained, kept)
    members.release()
    scorer = RewardScorer(trained, offsets, settings.sd_weight)
    made = {"pooling": POOLING, "scored_by": scored_by, "offsets": offsets, "probe": scorer.score(PROBE)}
    write_run(out, "reward", settings.model_dump(), target, **made)
    reloaded = RewardScorer.load(out, base, device)
    check_reload(scorer, reloaded, heldout)
    del members, trained, scorer  # one base in memory is enough for the rest
    facts = evaluate(reloaded, kept, heldout, part_of(progress, TRAINING_SHARE, 1.0)) | {
        **{f"dropped_{why}": n for why, n in dropped.items()},
        "dropped_long_heldout": dropped_heldout["long"],
        "n_train": len(kept),
        "ties": sum(p.tie for p in kept),
        "members": settings.members,
        "combine": settings.combine,
        "bootstrap": bootstrap_by(kept) if settings.members > 1 else "none",
        "steps": len(log),
        "log": log,
    }
    if settings.learning_curve:
        facts["learning_curve"] = _learning_curve(kept, heldout, base, work / "curve", settings, device)
    write_run(out, "reward", settings.model_dump(), target, snapshot_sha256=snapshot_sha256, **(made | facts))
    return facts


def check_reload(trained: RewardScorer, reloaded: RewardScorer, pairs: Sequence[Preference]) -> None:
    """Raise StageError unless the saved model scores as the trained one did: a lost head is the classic."""
    items = [(p.prompt, p.chosen) for p in pairs[:8]]
    apart = [abs(a - b) for a, b in zip(trained.score(items), reloaded.score(items), strict=True)]
    if not all(d <= RELOAD_TOLERANCE for d in apart):
        raise StageError(
            f"scores changed by up to {max(apart):.4g} when the reward model was saved and loaded; at most {RELOAD_TOLERANCE}"
            " is expected. Nothing is registered."
        )


def evaluate(
    scorer: RewardScorer, train: Sequence[Preference], heldout: Sequence[Preference], progress: Progress = silent
) -> dict[str, Any]:
    """Held-out pairs scored and judged by `evaluate_pairs`; and the accuracy of each member alone.

    The bar: the accuracy's lower 95 % bound lies above that of a baseline which sees lengths only.
    """
    pairs = [encode_pair(scorer.tokenizer, pair) for pair in heldout]
    ids = [pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    scores = scorer.member_scores(ids, progress)  # (K, 2N)
    chosen, rejected = scores[:, : len(pairs)], scores[:, len(pairs) :]
    baseline = length_only_accuracy([p for p in train if not p.tie], heldout)
    together = penalised(scores, scorer.sd_weight).tolist()
    facts = evaluate_pairs(heldout, together[: len(pairs)], together[len(pairs) :], length_only=baseline)
    facts["member_accuracies"] = (chosen > rejected).float().mean(1).tolist()
    facts["member_sd"] = scores.std(0, correction=0).mean().item()
    return facts


def encode_pair(tokenizer: Any, pair: Preference) -> dict[str, list[int]]:
    """`chosen_ids` and `rejected_ids`, prompt included.

    Where one side was cut at a token limit, both are cut to the same number of tokens: else the model would learn that
    a text which breaks off is the worse one, and nothing of what it says.
    """
    prompt = encode_prompt(tokenizer, pair.prompt)
    chosen = encode_completion(tokenizer, pair.chosen, complete=pair.chosen_complete)
    rejected = encode_completion(tokenizer, pair.rejected, complete=pair.rejected_complete)
    if not (pair.chosen_complete and pair.rejected_complete):
        n = min(len(chosen), len(rejected))
        chosen, rejected = chosen[:n], rejected[:n]
    return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}


def _usable(
    tokenizer: Any, pairs: Sequence[Preference], max_length_tokens: int
) -> tuple[list[Preference], dict[str, int]]:
    """Pairs that can be trained on, and how many are too long, or equal once they are encoded and cut."""
    kept, dropped = [], {"long": 0, "equal": 0}
    for pair in pairs:
        row = encode_pair(tokenizer, pair)
        if max(map(len, row.values())) > max_length_tokens:
            dropped["long"] += 1
        elif row["chosen_ids"] == row["rejected_ids"]:
            dropped["equal"] += 1
        else:
            kept.append(pair)
    return kept, dropped


def _seen(pairs: Sequence[Preference], settings: RewardSettings, k: int) -> list[Preference]:
    """What member `k` learns from: all pairs where it is the only one, else its own draw of annotators."""
    if settings.members == 1:
        return list(pairs)
    drawn = [p for p in resample(pairs, settings.seed * 1_000_003 + k) if p is not None]
    return drawn or list(pairs)  # a single annotator or cluster is always drawn; nothing else can leave none


def _encoded(tokenizer: Any, pairs: Sequence[Preference], settings: RewardSettings) -> list[Pair]:
    """Encoded pairs with their weights at a mean of 1, so that the learning rate means the same whatever they are."""
    mean = sum(p.weight for p in pairs) / len(pairs)
    found = []
    for pair in pairs:
        row = encode_pair(tokenizer, pair)
        margin = 0.0 if pair.tie else settings.margin_per_step * abs(pair.margin)
        found.append(Pair(row["chosen_ids"], row["rejected_ids"], pair.target, margin, pair.weight / mean))
    return found


def _fit_members(
    members: Members,
    seen: Sequence[Sequence[Preference]],
    settings: RewardSettings,
    work: Path,
    about: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train one member after the other; a log with a line per step of each, steps counted through."""
    rows = [_encoded(members.tokenizer, pairs, settings) for pairs in seen]
    schedules = [_schedule(settings, k) for k in range(len(rows))]
    steps = [s.steps(len(r)) for s, r in zip(schedules, rows, strict=True)]
    _prepare(members, rows, schedules, progress)
    _probe(members, seen, rows)
    log: list[dict[str, Any]] = []
    for k, name in enumerate(members.names):
        done = sum(steps[:k])

        def tell(
            frac: float, note: str, rows: Sequence[Row] = (), *, done: int = done, n: int = steps[k], k: int = k
        ) -> None:
            step = done + round(frac * n)
            told = [{**row, "step": row["step"] + done, "member": k} for row in rows]
            progress(step / sum(steps), f"step {step}/{sum(steps)}, {note.rpartition(', ')[2]}", told)

        told = fit(
            members.parameters(name), len(rows[k]), _loss_of(members, name, rows[k], settings), schedules[k],
            work / name, fingerprint=_fingerprint(settings, about, name, rows[k]), memory=settings, progress=tell,
        )  # fmt: skip
        log += [{**row, "step": row["step"] + done, "member": k} for row in told]
    return log


def _schedule(settings: RewardSettings, k: int) -> Schedule:
    return Schedule(
        settings.epochs, settings.batch_size, settings.learning_rate, settings.save_steps, settings.seed + 7919 * k
    )


def _loss_of(members: Members, name: str, rows: Sequence[Pair], settings: RewardSettings) -> Callable[[list[int]], Any]:
    import torch

    def loss(batch: list[int]) -> Any:
        pairs = [rows[i] for i in batch]
        n = len(pairs)
        ids = [p.chosen for p in pairs] + [p.rejected for p in pairs]
        values = members.forward(name, ids, [(i, i + n) for i in range(n)])  # (2B,)
        target, margin, weight = (
            torch.tensor([getattr(p, of) for p in pairs], device=values.device) for of in ("target", "margin", "weight")
        )
        return preference_loss(
            values[:n], values[n:], target, margin, weight, centre=settings.center_rewards_coefficient
        )

    return loss


def _prepare(
    members: Members, rows: Sequence[Sequence[Pair]], schedules: Sequence[Schedule], progress: Progress
) -> None:
    """Compute once what lies below the adapters, of the pairs that any member will come to."""
    groups: dict[tuple[tuple[int, ...], ...], tuple[int, int]] = {}
    ids: list[list[int]] = []
    for pairs, schedule in zip(rows, schedules, strict=True):
        steps = range(schedule.steps(len(pairs)))
        wanted = sorted({i for step in steps for i in ranks.share(schedule.rows(step, len(pairs)))})
        for pair in (pairs[i] for i in wanted):
            key = tuple(sorted((tuple(pair.chosen), tuple(pair.rejected))))
            if key not in groups:
                groups[key] = (len(ids), len(ids) + 1)
                ids += [list(side) for side in key]
    members.prepare(ids, list(groups.values()), progress)


def _probe(members: Members, seen: Sequence[Sequence[Preference]], rows: Sequence[Sequence[Pair]]) -> None:
    """Each member's head begins as a linear probe of the pairs that it sees, all with a ridge as strong as suits them together."""
    import numpy as np

    every = list({tuple(side) for pairs in rows for p in pairs for side in (p.chosen, p.rejected)})
    features = members.features([list(ids) for ids in every]).numpy()
    place = {ids: n for n, ids in enumerate(every)}
    strength = None
    for name, pairs, encoded in zip(members.names, seen, rows, strict=True):
        chosen, rejected = (features[[place[tuple(getattr(p, of))] for p in encoded]] for of in ("chosen", "rejected"))
        target, weight = (np.array([getattr(p, of) for p in encoded]) for of in ("target", "weight"))
        found = probe.fit_pairs(chosen, rejected, target, weight, [p.cluster for p in pairs], strength=strength)
        strength = found.strength
        members.set_head(name, found.weight, found.bias)


def _offsets(members: Members, pairs: Sequence[Preference]) -> list[float]:
    """What each member gives on average to both sides of some training pairs."""
    some = sorted(pairs, key=lambda p: hashlib.sha256((p.cluster + p.chosen).encode()).digest())[:OFFSET_PAIRS]
    rows = [encode_pair(members.tokenizer, pair) for pair in some]
    found: list[float] = members.scores([ids for row in rows for ids in row.values()]).mean(1).tolist()
    return found


def _learning_curve(
    train: Sequence[Preference],
    heldout: Sequence[Preference],
    base: Path,
    work: Path,
    settings: RewardSettings,
    device: Device,
) -> list[dict[str, Any]]:
    """Held-out accuracy of a single member on growing shares of the prompt clusters: [{share, n_train, accuracy, …}]."""
    alone = settings.model_copy(update={"members": 1, "combine": "ensemble"})
    found = []
    for share in CURVE:
        part = [p for p in train if int(p.cluster[8:16] or "0", 16) / 2**32 < share]
        if sum(not p.tie for p in part) < MIN_PAIRS:
            found.append({"share": share, "n_train": len(part), "undefined": f"fewer than {MIN_PAIRS} pairs"})
            continue
        members = Members.fresh(base, 1, settings, device)
        _fit_members(members, [part], alone, work / f"{share:g}", "curve", silent)
        figures = evaluate(RewardScorer(members, [0.0], 0.0), part, heldout)
        found.append(
            {"share": share, "n_train": len(part), **{k: figures[k] for k in ("accuracy", "n", "low", "high")}}
        )
    return found


def _fingerprint(settings: RewardSettings, about: str, name: str, rows: Sequence[Pair]) -> str:
    digest = hashlib.sha256(json.dumps([settings.model_dump(), about, name], sort_keys=True).encode())
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
