"""The loop itself: a tabular policy that must reach the optimum that is known in closed form, and what stops a run.

The tables are models as the trainer's protocol wants them, with real gradients; rewards, clipping, advantages and steps
are the trainer's own.
"""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import StageError
from core.settings import PpoSettings
from finetune.ppo.rollouts import Prompt, Rollout
from finetune.ppo.trainer import PpoTrainer, prompts_of_step

TOKENS = 3
PROMPT = Prompt((("user", "which two?"),), (0,))
TEXTS = list(itertools.product(range(TOKENS), repeat=2))
REWARDS = dict(zip(TEXTS, [0.0, 1.0, -1.0, 0.5, 2.0, 0.0, 1.5, -0.5, 1.0], strict=True))
SETTINGS = PpoSettings(
    steps=120, prompts_per_step=1, samples_per_prompt=256, epochs=2, minibatch_size=128, microbatch_size=128,
    learning_rate=0.1, value_learning_rate=0.1, gae_lambda=1.0, whiten_advantages=False, value_clip=100.0, kl_target=0.0,
    kl_coefficient=0.5, kl_limit=0.0, step_kl_limit=0.0, missing_eos_penalty=0.0, save_steps=1000,
)  # fmt: skip


class Tables:
    """A policy of two tokens: a table of logits before the first token, and one after each first token."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.reference = torch.randn(1 + TOKENS, TOKENS, generator=generator, dtype=torch.float64)
        self.policy = {"logits": torch.nn.Parameter(self.reference.clone())}
        self.value = {"values": torch.nn.Parameter(torch.zeros(1 + TOKENS, dtype=torch.float64))}

    @staticmethod
    def _places(rows: Sequence[Rollout]) -> tuple[list[int], list[int]]:
        states = [place for row in rows for place in (0, 1 + row.ids[0])[: len(row.ids)]]
        return states, [token for row in rows for token in row.ids]

    def reference_logps(self, rows: Sequence[Rollout]) -> Tensor:
        return self.reference.log_softmax(-1)[self._places(rows)]

    def policy_logps(self, rows: Sequence[Rollout], *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        logps = self.policy["logits"].log_softmax(-1)
        states, tokens = self._places(rows)
        return logps[states, tokens], -(logps.exp() * logps).sum(-1)[states] if entropy else None

    def values(self, rows: Sequence[Rollout]) -> Tensor:
        return self.value["values"][self._places(rows)[0]]

    def forget(self) -> None:
        pass

    def text_logps(self, logits: Tensor) -> Tensor:
        """log p of each text of `TEXTS`."""
        logps = logits.detach().log_softmax(-1)
        return torch.stack([logps[0, a] + logps[1 + a, b] for a, b in TEXTS])


class TableSampler:
    """Draws from the tables; `told` makes the log-probabilities that it tells from the true ones."""

    name = "tables"

    def __init__(
        self, tables: Tables, told: Callable[[float], float] = lambda value: value, ended: bool = True
    ) -> None:
        self.tables, self.told, self.ended, self.counts = tables, told, ended, Counter[str]()

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Rollout]:
        shares = self.tables.text_logps(self.tables.policy["logits"]).exp().tolist()
        rows = [
            Rollout(prompt, random.Random(seed).choices(TEXTS, shares)[0], self.ended, "", ())
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        told = [self.told(value) for value in self.tables.policy_logps(rows)[0].tolist()]
        return [replace(row, logps=tuple(told[2 * i : 2 * i + 2])) for i, row in enumerate(rows)]


def rewards(rows: Sequence[Rollout]) -> list[float]:
    return [REWARDS[row.ids] for row in rows]  # type: ignore[index]


def trainer(tables: Tables, work: Path, score: Any = rewards, sampler: Any = None, **changes: Any) -> PpoTrainer:
    settings = SETTINGS.model_copy(update=changes)
    return PpoTrainer(tables, sampler or TableSampler(tables), score, [PROMPT], settings, work=work)


def distance(tables: Tables, beta: float) -> float:
    """Total variation between the policy and the optimum, π* ∝ π_ref exp(r / β) (Korbak et al. 2022, arXiv:2205.11275)."""
    optimum = (tables.text_logps(tables.reference) + torch.tensor(list(REWARDS.values())) / beta).softmax(-1)
    return float((tables.text_logps(tables.policy["logits"]).exp() - optimum).abs().sum()) / 2


# --- what is learnt


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_tabular_policy_reaches_the_optimum_of_reward_and_kl(tmp_path: Path, beta: float) -> None:
    tables = Tables()
    before = distance(tables, beta)
    log = trainer(tables, tmp_path, kl_coefficient=beta).run()
    assert before > 0.3
    assert distance(tables, beta) < 0.03
    assert log[-1]["objective"] > log[0]["objective"] + 0.2
    assert log[-1]["explained_variance"] > log[0]["explained_variance"]


def test_without_kl_the_best_text_is_all_that_is_left(tmp_path: Path) -> None:
    tables = Tables()
    log = trainer(tables, tmp_path, kl_coefficient=0.0, whiten_advantages=True, steps=60).run()
    assert tables.text_logps(tables.policy["logits"]).argmax() == TEXTS.index((1, 1))
    assert log[-1]["reward"] > 1.9
    assert log[-1]["entropy"] < 0.3 < log[0]["entropy"]


def test_the_weight_of_the_kl_is_led_until_the_kl_is_at_its_target(tmp_path: Path) -> None:
    tables = Tables()
    log = trainer(
        tables, tmp_path, kl_coefficient=0.05, kl_target=0.3, kl_gain=0.3, steps=150, learning_rate=0.05
    ).run()
    last = [row["kl"] for row in log[-20:]]
    assert sum(last) / 20 == pytest.approx(0.3, abs=0.06)
    assert max(row["kl"] for row in log) > 0.5  # 0.05 alone would have let it go
    assert log[-1]["beta"] > 0.2


def test_a_sampler_with_other_numerics_is_corrected_for(tmp_path: Path) -> None:
    """It says that each token was twice as likely as the trainer finds: weights of a half; a hundredth: held to the cap."""
    tables = Tables()
    row = trainer(tables, tmp_path, sampler=TableSampler(tables, lambda v: v + math.log(2))).step()
    assert row["importance_mean"] == pytest.approx(0.5, abs=1e-5)
    assert row["sampler_gap"] == pytest.approx(math.log(2), abs=1e-5)
    assert row["importance_capped"] == 0.0
    row = trainer(tables, tmp_path, sampler=TableSampler(tables, lambda v: v - math.log(100))).step()
    assert (row["importance_max"], row["importance_capped"]) == (2.0, 1.0)
    row = trainer(tables, tmp_path, sampler=TableSampler(tables, lambda v: math.nan)).step()
    assert (row["importance_mean"], row["sampler_gap"]) == (1.0, 0.0)


# --- rewards


@pytest.mark.parametrize(("ended", "expected"), [(True, 2.0), (False, 0.75)])
def test_the_reward_of_a_text_is_its_score_less_what_a_missing_end_costs(
    tmp_path: Path, ended: bool, expected: float
) -> None:
    """Without KL, discount and values, every return is the reward at the last token; padding has none."""
    tables = Tables()
    made = trainer(tables, tmp_path, lambda rows: [2.0] * len(rows), missing_eos_penalty=1.25, kl_coefficient=0.0)
    rows = [Rollout(PROMPT, ids, ended, "", (0.0,) * len(ids)) for ids in ((1, 2), (2,))]
    experience, facts = made._experience(rows, [2.0, 2.0])
    assert experience.returns.tolist() == [[expected, expected], [expected, 0.0]]
    assert facts["missing_eos"] == float(not ended)
    assert facts["completion_tokens"] == 1.5


def test_what_is_undefined_is_none_in_the_log(tmp_path: Path) -> None:
    """Returns that are all alike have no variance to explain; a database of JSON takes no NaN."""
    tables = Tables()
    row = trainer(tables, tmp_path, lambda rows: [1.0] * len(rows), kl_coefficient=0.0).step()
    assert row["explained_variance"] is None
    json.dumps(row, allow_nan=False)


def test_facts_of_a_step_by_hand(tmp_path: Path) -> None:
    tables = Tables()
    with torch.no_grad():
        tables.policy["logits"][0, 1] += 1.0
    rows = TableSampler(tables).sample([PROMPT] * 8, list(range(8)))
    _, facts = trainer(tables, tmp_path, kl_coefficient=0.5)._experience(rows, rewards(rows))
    logps, reference = tables.policy_logps(rows)[0].detach(), tables.reference_logps(rows)
    kl = float((logps - reference).sum()) / 8
    assert facts["kl"] == pytest.approx(kl, abs=1e-5)
    assert facts["kl_per_token"] == pytest.approx(kl / 2, abs=1e-5)
    assert facts["objective"] == pytest.approx(sum(rewards(rows)) / 8 - 0.5 * kl, abs=1e-5)
    assert facts["reward"] == sum(rewards(rows)) / 8


# --- steps


@pytest.mark.parametrize("size", [1, 3, 8])
def test_how_a_minibatch_is_cut_changes_nothing(tmp_path: Path, size: int) -> None:
    """Gradients of 8 rows of different lengths are means over all tokens, at once or one row at a time."""
    found = []
    for microbatch in (8, size):
        tables = Tables()
        made = trainer(tables, tmp_path, microbatch_size=microbatch)
        rows = TableSampler(tables).sample([PROMPT] * 8, list(range(8)))
        rows = [Rollout(r.prompt, r.ids[: 1 + i % 2], True, "", r.logps[: 1 + i % 2]) for i, r in enumerate(rows)]
        experience, _ = made._experience(rows, [float(i) for i in range(8)])
        told = made._gradients(experience, list(range(8)))
        found.append((tables.policy["logits"].grad, tables.value["values"].grad, told))
    for whole, cut in zip(found[0][:2], found[1][:2], strict=True):
        assert torch.allclose(whole, cut, atol=1e-6)
        assert whole.abs().max() > 1e-3
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-6)


def test_every_row_is_learnt_from_once_an_epoch_and_prompts_stay_together(tmp_path: Path) -> None:
    others = [Prompt((), (number,)) for number in range(5)]
    rows = [Rollout(prompt, (0, 1), True, "", (0.0, 0.0)) for prompt in others for _ in range(4)]
    tables = Tables()
    made = trainer(tables, tmp_path, minibatch_size=8)
    experience, _ = made._experience(rows, [0.0] * 20)
    cuts = list(made._minibatches(experience, "a"))
    assert sorted(i for cut in cuts for i in cut) == list(range(20))
    assert [len(cut) for cut in cuts] == [8, 8, 4]
    assert all(len({rows[i].prompt for i in cut}) == len(cut) // 4 for cut in cuts)
    assert cuts != list(made._minibatches(experience, "b"))


def test_all_prompts_take_turns() -> None:
    settings = SETTINGS.model_copy(update={"prompts_per_step": 2})
    asked = [i for step in range(5) for i in prompts_of_step(5, settings, step)]
    assert sorted(asked[:5]) == sorted(asked[5:]) == [0, 1, 2, 3, 4]
    assert asked[:5] != asked[5:]
    assert prompts_of_step(1, settings, 3) == [0, 0]


def test_a_policy_that_moves_too_far_ends_its_epochs(tmp_path: Path) -> None:
    free = trainer(Tables(), tmp_path, epochs=8, learning_rate=1.0).step()
    held = trainer(Tables(), tmp_path, epochs=8, learning_rate=1.0, step_kl_limit=0.05).step()
    assert (free["updates"], free["ended_early"]) == (16, False)
    assert held["ended_early"]
    assert 1 <= held["updates"] < 16


def test_a_run_ends_where_the_kl_is_over_its_limit(tmp_path: Path) -> None:
    made = trainer(Tables(), tmp_path, kl_coefficient=0.0, kl_limit=0.4)
    log = made.run()
    assert 1 < len(log) < SETTINGS.steps
    assert log[-1]["kl"] > 0.4 >= log[-2]["kl"]
    assert made.stopped.startswith("the KL to the reference")
    again = trainer(Tables(), tmp_path, kl_coefficient=0.0, kl_limit=0.4)
    assert again.run() == json.loads(json.dumps(log))  # it does not go on
    assert again.stopped == made.stopped


def test_learning_slows_down_to_nothing(tmp_path: Path) -> None:
    log = trainer(Tables(), tmp_path, steps=4).run()
    assert [row["learning_rate"] for row in log] == pytest.approx([0.1, 0.075, 0.05, 0.025])


# --- what stops a run


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_stops_the_run(tmp_path: Path, bad: float) -> None:
    tables = Tables()
    before = tables.policy["logits"].detach().clone()
    made = trainer(tables, tmp_path, lambda rows: [bad, *[0.0] * (len(rows) - 1)])
    with pytest.raises(StageError, match="256 rewards, 1 of which are no finite.*nothing is registered"):
        made.run()
    assert torch.equal(tables.policy["logits"], before)


def test_rewards_for_other_completions_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="256 completions got 1 rewards"):
        trainer(Tables(), tmp_path, lambda rows: [0.0]).run()


@pytest.mark.parametrize(("which", "name"), [("policy", "policy_loss"), ("value", "value_loss")])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, which: str, name: str) -> None:
    """The first step is sound; then a weight is lost."""
    tables = Tables()
    made = trainer(tables, tmp_path)
    made.log.append(made.step())
    rows = TableSampler(tables).sample([PROMPT] * 8, list(range(8)))
    experience, _ = made._experience(rows, rewards(rows))
    with torch.no_grad():
        next(iter(getattr(tables, which).values())).fill_(math.nan)
    with pytest.raises(StageError, match=f"{name} is nan.* at step 2; the run is stopped and nothing is registered"):
        made._learn(experience, 1)


# --- checkpoints


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trainer(Tables(), tmp_path, steps=1, save_steps=1).run()
    with pytest.raises(StageError, match="made with other settings than this run's; remove"):
        trainer(Tables(), tmp_path, steps=2, save_steps=1).run()


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    trainer(Tables(), tmp_path, steps=1, save_steps=1).run()
    other = Tables()
    other.policy["more"] = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(StageError, match="holds other parameters than this run trains"):
        trainer(other, tmp_path, steps=1, save_steps=1).run()


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer(Tables(), tmp_path, steps=5, save_steps=2).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    trainer(Tables(), tmp_path / "all", steps=3, save_steps=1).run()
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["checkpoint-2", "checkpoint-3"]
