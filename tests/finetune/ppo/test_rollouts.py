"""Both samplers with a tiny model: the tokens, their log-probabilities, and what an engine may do otherwise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import NotFound, StageError
from core.messages import user
from finetune.ppo.model import LoraActorCritic
from finetune.ppo.rollouts import Ask, EngineSampler, Prompt, TrainerSampler
from policy.client import EngineClient
from policy.engine.base import as_base
from policy.protocol import ChatReply, ChatRequest
from tests.policy.engine.live import LiveEngine
from tests.tiny import make_tiny_adapter

ASK = Ask(max_tokens=12, temperature=0.8)
SEEDS = list(range(100, 112))


@pytest.fixture
def models(build: Callable[..., LoraActorCritic]) -> LoraActorCritic:
    return build(0.2, temperature=ASK.temperature, lora_top_layers=0)


@pytest.fixture
def asked(prompts: list[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts for _ in range(4)]


def trainer_sampler(models: LoraActorCritic, tokenizer: Any, ask: Ask = ASK) -> TrainerSampler:
    return TrainerSampler(as_base(models.base, tokenizer), models.decoding, ask)


# --- by the model in training


def test_the_sampler_tells_the_log_probabilities_that_the_trainer_finds(
    models: LoraActorCritic, tokenizer: Any, asked: list[Prompt]
) -> None:
    rows = trainer_sampler(models, tokenizer).sample(asked, SEEDS)
    assert [row.prompt for row in rows] == asked
    told = torch.tensor([value for row in rows for value in row.logps])
    assert torch.allclose(told, models.policy_logps(rows)[0], atol=1e-4)
    assert len({row.ids for row in rows}) == 12


def test_a_row_has_its_end_of_turn_or_was_cut(models: LoraActorCritic, tokenizer: Any, asked: list[Prompt]) -> None:
    eos = tokenizer.eos_token_id
    with torch.no_grad():  # make the end of turn likely: else a random model hardly comes to it
        models.base.get_output_embeddings().weight[eos] *= 2.5
    rows = trainer_sampler(models, tokenizer).sample(asked * 4, list(range(48)))
    assert {row.ended for row in rows} == {True, False}
    for row in rows:
        assert row.ended == (row.ids[-1] == eos)
        assert eos not in row.ids[:-1]
        assert len(row.ids) == 12 or row.ended
        assert tokenizer.decode(row.ids, skip_special_tokens=True) == row.text


def test_equal_seeds_give_equal_tokens_whoever_else_is_asked(
    models: LoraActorCritic, tokenizer: Any, asked: list[Prompt]
) -> None:
    sampler = trainer_sampler(models, tokenizer)
    together = sampler.sample(asked, SEEDS)
    assert [row.ids for row in sampler.sample(asked, SEEDS)] == [row.ids for row in together]
    alone = [sampler.sample([prompt], [seed])[0].ids for prompt, seed in zip(asked, SEEDS, strict=True)]
    assert alone == [row.ids for row in together]
    assert [row.ids for row in sampler.sample(asked, [s + 1 for s in SEEDS])] != [row.ids for row in together]


def test_tokens_come_as_often_as_the_policy_says(
    models: LoraActorCritic, tokenizer: Any, prompts: list[Prompt]
) -> None:
    """Of 2,000 first tokens: each share lies within five standard errors of its probability."""
    n = 2000
    sampler = trainer_sampler(models, tokenizer, Ask(max_tokens=1, temperature=ASK.temperature))
    rows = sampler.sample(prompts[:1] * n, list(range(n)))
    logps = {row.ids[0]: row.logps[0] for row in rows}
    for token, logp in logps.items():
        p = float(torch.tensor(logp).exp())
        share = sum(row.ids[0] == token for row in rows) / n
        assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1 / n
    assert sum(float(torch.tensor(value).exp()) for value in logps.values()) == pytest.approx(1, abs=0.1)


# --- by an engine


@pytest.fixture
def engine(base: Path, tmp_path: Path) -> Iterator[LiveEngine]:
    engine = LiveEngine(base, tmp_path / "artifacts").start()
    yield engine
    engine.stop()


@pytest.fixture
def client(engine: LiveEngine) -> Iterator[EngineClient]:
    client = EngineClient(engine.url)
    yield client
    client.close()


def engine_sampler(client: Any, models: LoraActorCritic, tokenizer: Any, folder: Path) -> EngineSampler:
    return EngineSampler(
        client, tokenizer, models.save_policy, ASK,
        prefix="v7-ppo", folder=folder, eos_ids=[tokenizer.eos_token_id], concurrency=8,
    )  # fmt: skip


def test_an_engine_writes_what_the_model_in_training_would_and_keeps_nothing(
    client: EngineClient, models: LoraActorCritic, tokenizer: Any, asked: list[Prompt], tmp_path: Path
) -> None:
    folder = tmp_path / "artifacts" / "rollouts"
    sampler = engine_sampler(client, models, tokenizer, folder)
    seen: list[str] = []
    real = client.load_adapter
    client.load_adapter = lambda name, path: (seen.append(name), real(name, path))[1]  # type: ignore[method-assign]
    found = sampler.sample(asked, SEEDS)
    expected = trainer_sampler(models, tokenizer).sample(asked, SEEDS)
    assert [(row.ids, row.ended, row.text) for row in found] == [(row.ids, row.ended, row.text) for row in expected]
    told = torch.tensor([value for row in found for value in row.logps])
    assert torch.allclose(told, models.policy_logps(found)[0], atol=1e-4)
    assert not any(sampler.counts.values())

    with torch.no_grad():
        next(iter(models.policy.values())).add_(0.5)
    moved = sampler.sample(asked, SEEDS)
    assert [row.ids for row in moved] != [row.ids for row in found]
    assert len(set(seen)) == 2  # no name is used twice
    assert all(name.startswith("v7-ppo-") for name in seen)
    assert client.models() == ["base"]
    assert list(folder.iterdir()) == []


def test_names_of_a_killed_run_are_unloaded_and_no_others(
    base: Path, client: EngineClient, models: LoraActorCritic, tokenizer: Any, tmp_path: Path
) -> None:
    for name in ("v7-ppo-old", "v7"):
        client.load_adapter(name, make_tiny_adapter(base, tmp_path / "artifacts" / name))
    engine_sampler(client, models, tokenizer, tmp_path / "artifacts" / "rollouts")
    assert client.models() == ["base", "v7"]


def test_an_adapter_is_unloaded_though_sampling_failed(
    client: EngineClient, models: LoraActorCritic, tokenizer: Any, asked: list[Prompt], tmp_path: Path
) -> None:
    sampler = engine_sampler(client, models, tokenizer, tmp_path / "artifacts" / "rollouts")
    sampler._request = lambda name, prompt, seed: ChatRequest(
        model="gone", messages=({"role": "user", "content": "a"},)
    )  # type: ignore[method-assign, arg-type, assignment]
    with pytest.raises(NotFound):
        sampler.sample(asked, SEEDS)
    assert client.models() == ["base"]


class Otherwise:
    """A real engine whose answers are changed on the way, as other engines answer."""

    def __init__(self, client: EngineClient, change: Callable[[ChatReply], ChatReply]) -> None:
        self.client, self.change = client, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def complete_many(self, requests: Sequence[ChatRequest], concurrency: int) -> list[ChatReply]:
        return [self.change(reply) for reply in self.client.complete_many(requests, concurrency)]


def test_an_engine_that_tells_only_text_has_it_encoded_again_and_counted(
    client: EngineClient, models: LoraActorCritic, tokenizer: Any, asked: list[Prompt], tmp_path: Path
) -> None:
    told = Otherwise(client, lambda r: replace(r, token_ids=None, logprobs=None, prompt_token_ids=None))
    sampler = engine_sampler(told, models, tokenizer, tmp_path / "artifacts" / "rollouts")
    expected = trainer_sampler(models, tokenizer).sample(asked, SEEDS)
    rows = sampler.sample(asked, SEEDS)
    assert [row.text for row in rows] == [row.text for row in expected]
    assert sampler.counts["encoded_again"] == sampler.counts["logps_not_told"] == 12
    assert all(value != value for row in rows for value in row.logps)  # noqa: PLR0124 (NaN)
    otherwise = sum(len(a.ids) != len(b.ids) for a, b in zip(rows, expected, strict=True))
    assert sampler.counts["encoded_otherwise"] == otherwise > 0  # a random model's tokens are not the text's shortest


def test_an_engine_that_leaves_the_end_of_turn_out_has_it_added(
    client: EngineClient, models: LoraActorCritic, tokenizer: Any, asked: list[Prompt], tmp_path: Path
) -> None:
    def cut(reply: ChatReply) -> ChatReply:
        assert reply.token_ids is not None
        assert reply.logprobs is not None
        return replace(reply, token_ids=reply.token_ids[:-1], logprobs=reply.logprobs[:-1], finish_reason="stop")

    sampler = engine_sampler(Otherwise(client, cut), models, tokenizer, tmp_path / "artifacts" / "rollouts")
    for row in sampler.sample(asked, SEEDS):
        assert row.ended
        assert row.ids[-1] == tokenizer.eos_token_id
        assert len(row.logps) == len(row.ids)
        assert torch.tensor(row.logps).isnan().tolist() == [False] * (len(row.ids) - 1) + [True]


def test_an_engine_with_another_template_stops_the_run(
    client: EngineClient, models: LoraActorCritic, tokenizer: Any, asked: list[Prompt], tmp_path: Path
) -> None:
    sampler = engine_sampler(client, models, tokenizer, tmp_path / "artifacts" / "rollouts")
    other = replace(asked[0], ids=asked[0].ids[1:])
    with pytest.raises(
        StageError, match=f"reads a prompt as {len(asked[0].ids)} tokens and the trainer as {len(other.ids)}"
    ):
        sampler.sample([other], [1])
    swapped = replace(asked[0], ids=(*asked[0].ids[:-1], 7))
    with pytest.raises(StageError, match="as\n? other ones"):
        sampler.sample([swapped], [1])


def test_a_prompt_is_encoded_as_everywhere(tokenizer: Any) -> None:
    from training.encode import encode_prompt

    messages = [{"role": "system", "content": "Be kind."}, *user("Hello")]
    prompt = Prompt.encode(tokenizer, messages)
    assert list(prompt.ids) == encode_prompt(tokenizer, messages)
    assert prompt.messages == (("system", "Be kind."), ("user", "Hello"))
