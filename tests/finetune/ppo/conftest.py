"""A tiny real base, and the models of PPO on it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.messages import user
from core.settings import PpoSettings
from finetune.ppo.model import LoraActorCritic
from finetune.ppo.rollouts import Prompt, Rollout
from tests.tiny import load_tiny, make_tiny_base

SMALL = PpoSettings(
    steps=3, prompts_per_step=2, samples_per_prompt=4, max_completion_tokens=6, max_length_tokens=128, epochs=2,
    minibatch_size=8, microbatch_size=8, learning_rate=1e-2, value_learning_rate=1e-2, lora_rank=4, value_top_layers=1,
    save_steps=1, rollouts="trainer", step_kl_limit=0.0,
)  # fmt: skip
QUESTIONS = ("How do I keep a dunnock safe?", "What is bread?", "Please write three short sentences about winter.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    return [Prompt.encode(tokenizer, user(question)) for question in QUESTIONS]


@pytest.fixture
def build(base: Path) -> Callable[..., LoraActorCritic]:
    """A function that makes the models; with `scale`, both adapters and the head are far from where they begin."""

    def build(scale: float = 0.0, **changes: Any) -> LoraActorCritic:
        models = LoraActorCritic(load_tiny(base), SMALL.model_copy(update=changes))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in (*models.policy.values(), *models.value.values()) if scale else ():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        return models

    return build


def rollouts(prompts: Sequence[Prompt], lengths: Sequence[int], seed: int = 3) -> list[Rollout]:
    """Random completions of these lengths; the prompts take turns in runs of two."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, length in enumerate(lengths):
        ids = tuple(torch.randint(5, 300, (length,), generator=generator).tolist())
        found.append(Rollout(prompts[i // 2 % len(prompts)], ids, True, "", (float("nan"),) * length))
    return found
