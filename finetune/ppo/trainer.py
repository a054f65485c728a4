"""The loop of PPO: sample completions, score them, learn from them for some epochs; again, for so many steps.

Source: Schulman et al. 2017, arXiv:1707.06347, with a KL to a reference in the reward as in Ziegler et al. 2019,
arXiv:1909.08593, and the details of Huang et al. 2024, arXiv:2403.17031. What is random hangs on the seed and the step
alone, so a run that is taken up from a checkpoint goes on as if it had not been broken.

The trainer knows neither transformers nor PEFT: it drives any models, sampler and score that keep to the protocols here
and in `rollouts`. Not covered: several processes.
"""

import hashlib
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.artifacts import new_folder, write_json
from core.errors import StageError
from core.settings import PpoSettings
from finetune.ppo.advantages import AdaptiveKl, explained_variance, gae, token_kl, token_rewards, whiten
from finetune.ppo.loss import importance_weights, policy_loss, step_kl, value_loss
from finetune.ppo.rollouts import Prompt, Rollout, Sampler
from training.memory import make_optimizer, optimizer_tensors, restore_optimizer
from training.run import Progress, last_checkpoint, silent

Score = Callable[[Sequence[Rollout]], Sequence[float]]
"""The rewards of completions, without what the trainer itself adds: KL and the penalty of a missing end of turn."""

KEPT_CHECKPOINTS = 2


class ActorCritic(Protocol):
    """Policy, value model and reference. Results are flat over the rows' tokens, (M,); see `model.LoraActorCritic`."""

    policy: dict[str, Any]
    value: dict[str, Any]

    def reference_logps(self, rows: Sequence[Rollout]) -> Tensor: ...

    def policy_logps(self, rows: Sequence[Rollout], *, entropy: bool = False) -> tuple[Tensor, Tensor | None]: ...

    def values(self, rows: Sequence[Rollout]) -> Tensor: ...

    def forget(self) -> None: ...


@dataclass(frozen=True)
class Experience:
    """The rollouts of a step and what is learnt from them; (N, T) as in `advantages`."""

    rows: list[Rollout]
    mask: Tensor
    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor  # importance weights

    def of(self, chosen: Sequence[int], name: str) -> Tensor:
        """One of the fields, flat over the tokens of some rows."""
        at = torch.tensor(chosen, device=self.mask.device)
        field: Tensor = getattr(self, name)
        return field[at][self.mask[at]]


class PpoTrainer:
    """Trains the policy of `models` towards what `score` likes.

    Args:
        prompts: at least one.
        work: folder of checkpoints; a run that finds one goes on from it.
    """

    def __init__(
        self,
        models: ActorCritic,
        sampler: Sampler,
        score: Score,
        prompts: Sequence[Prompt],
        settings: PpoSettings,
        *,
        work: Path,
        progress: Progress = silent,
    ) -> None:
        self.models, self.sampler, self.score, self.prompts = models, sampler, score, list(prompts)
        self.settings, self.work, self.progress = settings, work, progress
        self.optimizers = {
            name: make_optimizer(settings, parameters.values(), next(iter(parameters.values())).device)
            for name, parameters in (("policy", models.policy), ("value", models.value))
        }
        self.kl = AdaptiveKl(settings.kl_coefficient, settings.kl_target, settings.kl_gain)
        self.log: list[dict[str, Any]] = []
        self.stopped = ""

    def run(self) -> list[dict[str, Any]]:
        """Train to the end and return the log, a row per step.

        Raises:
            StageError: a loss or reward that is no number, or checkpoints of another run.
        """
        self._resume()
        if self.log:
            self.progress(len(self.log) / self.settings.steps, f"step {len(self.log)}/{self.settings.steps}", self.log)
        while len(self.log) < self.settings.steps and not self.stopped:
            row = self.step()
            self.log.append(row)
            if self.settings.kl_limit and row["kl"] > self.settings.kl_limit:
                self.stopped = (
                    f"the KL to the reference, {row['kl']:.2f} nats, is over its limit {self.settings.kl_limit:g}"
                )
            if len(self.log) % self.settings.save_steps == 0 or self.stopped:
                self._save()
            told = f"step {len(self.log)}/{self.settings.steps}, reward {row['reward']:.3f}, KL {row['kl']:.2f}"
            self.progress(1.0 if self.stopped else len(self.log) / self.settings.steps, told, [row])
        return self.log

    def step(self) -> dict[str, Any]:
        """Sample, score, learn once; returns the step's row of the log."""
        clock, number = [time.monotonic()], len(self.log)
        left = 1 - number / self.settings.steps
        for name, rate in (("policy", self.settings.learning_rate), ("value", self.settings.value_learning_rate)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * left
        self.models.forget()
        asked = prompts_of_step(len(self.prompts), self.settings, number)
        prompts = [self.prompts[i] for i in asked for _ in range(self.settings.samples_per_prompt)]
        rows = self.sampler.sample(prompts, [_seed(self.settings.seed, number, i) for i in range(len(prompts))])
        clock.append(time.monotonic())
        scores = finite_scores(self.score, rows)
        clock.append(time.monotonic())
        experience, facts = self._experience(rows, scores)
        facts |= self._learn(experience, number)
        clock.append(time.monotonic())
        self.models.forget()
        spans = [after - before for before, after in itertools.pairwise(clock)]
        return {
            "step": number + 1,
            **{name: value if math.isfinite(value) else None for name, value in facts.items()},  # JSON has no NaN
            "learning_rate": self.settings.learning_rate * left,
            **dict(zip(("sampling_s", "scoring_s", "learning_s"), spans, strict=True)),
            "samples_per_s": len(rows) / max(clock[-1] - clock[0], 1e-9),
        }

    # --- experience

    def _experience(self, rows: list[Rollout], scores: list[float]) -> tuple[Experience, dict[str, Any]]:
        """What is computed of a step's rollouts before anything is learnt, and what it says."""
        settings = self.settings
        flat: dict[str, list[Tensor]] = {"reference": [], "policy": [], "entropy": [], "value": []}
        with torch.no_grad():
            for some in _cut(range(len(rows)), settings.microbatch_size):
                near = [rows[i] for i in some]
                flat["reference"].append(self.models.reference_logps(near))
                logps, entropy = self.models.policy_logps(near, entropy=True)
                assert entropy is not None  # it was asked for
                flat["policy"].append(logps)
                flat["entropy"].append(entropy)
                flat["value"].append(self.models.values(near))
        found = {name: torch.cat(parts) for name, parts in flat.items()}
        device = found["policy"].device
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]

        def padded(values: Tensor) -> Tensor:
            return torch.zeros(mask.shape, device=device).masked_scatter(mask, values.float())

        old_logps, old_values = padded(found["policy"]), padded(found["value"])
        told = torch.tensor([value for row in rows for value in row.logps], device=device)
        weights = importance_weights(found["policy"].float(), told, settings.importance_cap)
        missing = torch.tensor([not row.ended for row in rows], device=device)
        rewarded = torch.tensor(scores, device=device) - settings.missing_eos_penalty * missing
        kl = token_kl(old_logps, padded(found["reference"]))
        rewards = token_rewards(rewarded, kl, mask, self.kl.beta)
        advantages, returns = gae(rewards, old_values, mask, settings.gamma, settings.gae_lambda)
        plain_kl = (found["policy"] - found["reference"]).sum().item()
        facts = {
            "reward": sum(scores) / len(scores),
            "reward_sd": float(torch.tensor(scores).std(unbiased=False)),
            "objective": float(rewards.sum()) / len(rows),
            "kl": plain_kl / len(rows),
            "kl_per_token": plain_kl / int(lengths.sum()),
            "beta": self.kl.beta,
            "entropy": float(found["entropy"].mean()),
            "explained_variance": explained_variance(old_values[mask], returns[mask]),
            "missing_eos": float(missing.float().mean()),
            "completion_tokens": float(lengths.float().mean()),
            "importance_mean": float(weights.mean()),
            "importance_max": float(weights.max()),
            "importance_capped": float((weights >= settings.importance_cap).float().mean()),
            "sampler_gap": float((found["policy"] - told).abs().nanmean().nan_to_num(0.0)),
        }
        self.kl.update(facts["kl"])
        if settings.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Experience(rows, mask, old_logps, old_values, advantages, returns, padded(weights)), facts

    # --- learning

    def _learn(self, experience: Experience, number: int) -> dict[str, Any]:
        """The epochs of a step; they end early where the policy moves further than it may."""
        told: list[dict[str, float]] = []
        ended = False
        for epoch in range(self.settings.epochs):
            for chosen in self._minibatches(experience, f"{self.settings.seed}/{number}/{epoch}"):
                row = self._gradients(experience, chosen)
                told.append(row)
                _check(row, number)
                ended = bool(self.settings.step_kl_limit) and row["step_kl"] > self.settings.step_kl_limit
                if ended:
                    break
                self._move(row, number)
            if ended:
                break
        means = {name: sum(row[name] for row in told) / len(told) for name in told[0] if not name.endswith("_norm")}
        moved = [row for row in told if "policy_norm" in row]
        norms = {f"{name}_norm": _mean([row[f"{name}_norm"] for row in moved]) for name in ("policy", "value")}
        return {**means, **norms, "loss": means["policy_loss"], "updates": len(moved), "ended_early": ended}

    def _minibatches(self, experience: Experience, order: str) -> Iterator[list[int]]:
        """Row numbers of each minibatch; rows of one prompt stay together as far as they fit."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(experience.rows):
            groups.setdefault(row.prompt.ids, []).append(i)
        shuffled = list(groups.values())
        random.Random(order).shuffle(shuffled)
        yield from _cut([i for group in shuffled for i in group], self.settings.minibatch_size)

    def _gradients(self, experience: Experience, chosen: Sequence[int]) -> dict[str, float]:
        """Gradients of both losses over a minibatch, means over its tokens; the graph of a microbatch at a time."""
        settings, tokens = self.settings, int(experience.mask[list(chosen)].sum())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        sums = dict.fromkeys(("policy_loss", "value_loss", "clip_frac", "value_clip_frac", "step_kl"), 0.0)
        for some in _cut(chosen, settings.microbatch_size):
            rows = [experience.rows[i] for i in some]
            old_logps, weights = experience.of(some, "old_logps"), experience.of(some, "weights")
            logps, _ = self.models.policy_logps(rows)
            losses, held = policy_loss(logps, old_logps, experience.of(some, "advantages"), settings.clip, weights)
            (losses.sum() / tokens).backward()  # type: ignore[no-untyped-call]
            values = self.models.values(rows)
            errors, value_held = value_loss(
                values, experience.of(some, "old_values"), experience.of(some, "returns"), settings.value_clip
            )
            (errors.sum() / tokens).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                parts = (losses.sum(), errors.sum(), held.sum(), value_held.sum(), step_kl(logps, old_logps))
            for name, part in zip(sums, parts, strict=True):
                sums[name] += float(part) / tokens
        return sums

    def _move(self, row: dict[str, float], number: int) -> None:
        """Clip the gradients, whose norms are added to `row`, and step."""
        for name in ("policy", "value"):
            parameters = list(getattr(self.models, name).values())
            row[f"{name}_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm))
        _check(row, number)
        for optimizer in self.optimizers.values():
            optimizer.step()

    # --- checkpoints

    def _save(self) -> None:
        """Write a checkpoint, all or nothing, and drop those before the last two."""
        with new_folder(self.work / f"checkpoint-{len(self.log)}") as folder:
            save_file({name: tensor.contiguous() for name, tensor in self._tensors()}, folder / "state.safetensors")
            state = {
                "settings": self.settings.model_dump(), "beta": self.kl.beta, "log": self.log, "stopped": self.stopped,
                "counts": dict(self.sampler.counts),
            }  # fmt: skip
            write_json(folder / "trainer_state.json", state)
        old = sorted(self.work.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))[:-KEPT_CHECKPOINTS]
        for folder in old:
            shutil.rmtree(folder)

    def _resume(self) -> None:
        found = last_checkpoint(self.work)
        if found is None:
            return
        state = json.loads((Path(found) / "trainer_state.json").read_text())
        if state["settings"] != self.settings.model_dump():
            raise StageError(f"{found} was made with other settings than this run's; remove {self.work} to begin anew")
        tensors = load_file(Path(found) / "state.safetensors")
        for name, optimizer in self.optimizers.items():
            parameters = getattr(self.models, name)
            weights, adam = _below(tensors, f"{name}/weights/"), _below(tensors, f"{name}/adam/")
            if parameters.keys() != weights.keys():
                raise StageError(
                    f"{found} holds other parameters than this run trains; remove {self.work} to begin anew"
                )
            for key, parameter in parameters.items():
                with torch.no_grad():
                    parameter.copy_(weights[key])
            restore_optimizer(optimizer, parameters, adam)
        self.kl.beta, self.log, self.stopped = state["beta"], state["log"], state["stopped"]
        self.sampler.counts.update(state["counts"])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and Adam's moments by name."""
        for name, optimizer in self.optimizers.items():
            parameters = getattr(self.models, name)
            yield from ((f"{name}/weights/{key}", parameter.detach()) for key, parameter in parameters.items())
            told = optimizer_tensors(optimizer, parameters)
            yield from ((f"{name}/adam/{key}", value) for key, value in told.items())


def prompts_of_step(n: int, settings: PpoSettings, step: int) -> list[int]:
    """Which of `n` prompts a step asks, from 0: all in turns, each turn in an order of its own."""
    count = settings.prompts_per_step
    places = range(step * count, (step + 1) * count)
    orders = {turn: list(range(n)) for turn in {place // n for place in places}}
    for turn, order in orders.items():
        random.Random(f"{settings.seed}/{turn}").shuffle(order)
    return [orders[place // n][place % n] for place in places]


def finite_scores(score: Score, rows: Sequence[Rollout]) -> list[float]:
    """The rewards of rollouts.

    Raises:
        StageError: one is no finite number, or there are not as many as rollouts.
    """
    scores = [float(value) for value in score(rows)]
    bad = [value for value in scores if not math.isfinite(value)]
    if bad or len(scores) != len(rows):
        raise StageError(
            f"{len(rows)} completions got {len(scores)} rewards, {len(bad)} of which are no finite numbers; the run is"
            " stopped and nothing is registered. Look at the reward model."
        )
    return scores


def _check(row: dict[str, float], number: int) -> None:
    """Raise StageError where something of an optimiser step is no finite number."""
    bad = {name: value for name, value in row.items() if not math.isfinite(value)}
    if bad:
        raise StageError(
            f"{', '.join(f'{name} is {value}' for name, value in bad.items())} at step {number + 1}; the run is stopped and"
            " nothing is registered. Lower the learning rate or look at the reward model."
        )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _cut(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _seed(*parts: int) -> int:
    """A seed of 31 bits that hangs on all its parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1
