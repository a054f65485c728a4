"""PPO with the real 135M base: its sampler and its shared passes say what the plain model says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.messages import user
from core.settings import PpoSettings, Settings
from finetune.ppo.model import LoraActorCritic
from finetune.ppo.rollouts import Ask, Prompt, TrainerSampler
from policy.base import fetch_base
from policy.engine.base import as_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUESTIONS = ("How do I keep a dunnock safe in winter?", "What is bread?")


@pytest.fixture(scope="module")
def real() -> Path:
    return fetch_base(Settings(_env_file=None))


def test_log_probabilities_are_those_of_the_plain_model(real: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real)
    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32)
    models = LoraActorCritic(model, PpoSettings())
    prompts = [Prompt.encode(tokenizer, user(question)) for question in QUESTIONS for _ in range(3)]
    sampler = TrainerSampler(as_base(model, tokenizer), models.decoding, Ask(max_tokens=12, temperature=1.0))
    rows = sampler.sample(prompts, list(range(6)))
    found = models.reference_logps(rows)
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*row.prompt.ids, *row.ids]])).logits[
                0, len(row.prompt.ids) - 1 : -1
            ]
        expected.append(logits.log_softmax(-1)[torch.arange(len(row.ids)), torch.tensor(row.ids)])
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)
    told = torch.tensor([value for row in rows for value in row.logps])
    assert torch.allclose(told, found, atol=1e-3)
