"""Rollouts: completions by the policy as it is now, with the tokens it chose.

One interface, two implementations. `TrainerSampler` decodes with the model in training, in this process, with the
engine's own batching (`policy.engine.lane`): prompts asked for several times are read once, rows of different lengths lie
side by side without padding. `EngineSampler` hands the adapter to an engine under a name that is never used twice, and
holds many requests open. Log-probabilities of the sampler are told where it knows them; the trainer computes its own in
any case and corrects for the difference (`loss.importance_weights`).
"""

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.artifacts import hash_folder, new_folder
from core.errors import InvalidInput, StageError
from core.messages import Message
from policy.client import EngineClient
from policy.protocol import ChatReply, ChatRequest
from training.encode import encode_completion, encode_prompt

MAX_ROWS = 96
"""Rows that the model in training decodes together."""

NOT_TOLD = float("nan")


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where the assistant speaks, and its token ids."""

    messages: tuple[tuple[str, str], ...]  # role, content
    ids: tuple[int, ...]

    @classmethod
    def encode(cls, tokenizer: Any, messages: Sequence[dict[str, str]]) -> "Prompt":
        """A prompt by the base's chat template."""
        told = tuple((m["role"], m["content"]) for m in messages)
        return cls(told, tuple(encode_prompt(tokenizer, list(messages))))


@dataclass(frozen=True)
class Rollout:
    """A completion that the policy chose.

    Attributes:
        ids: its tokens, at least one; the last one is the end of turn where it came to that.
        ended: whether it did, and was not cut at the token limit.
        logps: nats of each token as the sampler computed them; NaN where it does not tell.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    ended: bool
    text: str
    logps: tuple[float, ...]


@dataclass(frozen=True)
class Ask:
    """How completions are sampled: from the whole distribution, since PPO's ratios are of that."""

    max_tokens: int
    temperature: float


class Sampler(Protocol):
    """Writes completions with the policy's weights of now.

    Attributes:
        name: what it is called in records.
        counts: what went other than planned, by its name.
    """

    name: str
    counts: Counter[str]

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Rollout]:
        """One rollout per prompt, in order; equal prompts should be neighbours. Equal seeds and weights, equal tokens."""


class TrainerSampler:
    """Decodes with the model in training.

    Args:
        decoding: a context in which the model speaks as the policy; see `model.LoraActorCritic.decoding`.
        base: the model and its tokenizer as `policy.engine.base.as_base` gives them.
    """

    name = "trainer"

    def __init__(self, base: Any, decoding: Callable[[], Any], ask: Ask) -> None:
        self.base, self.decoding, self.ask = base, decoding, ask
        self.counts: Counter[str] = Counter()

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Rollout]:
        """See `Sampler`."""
        import torch

        from policy.engine.generation import Generation, Sampling
        from policy.engine.lane import Lane, Row
        from policy.engine.sampling import Chooser
        from policy.engine.text import TextStream

        rollouts: list[Rollout] = []
        with torch.no_grad(), self.decoding():
            for start in range(0, len(prompts), MAX_ROWS):
                lane, generations = Lane(self.base), []
                for prompt, seed in zip(
                    prompts[start : start + MAX_ROWS], seeds[start : start + MAX_ROWS], strict=True
                ):
                    room = self.base.context_tokens - len(prompt.ids)
                    sampling = Sampling(self.ask.max_tokens, self.ask.temperature, seed=seed, logprobs=True)
                    generation = Generation(list(prompt.ids), min(self.ask.max_tokens, room), pieces=False)
                    lane.add(Row(generation, TextStream(self.base.tokenizer), Chooser(sampling)))
                    generations.append((prompt, generation))
                while lane.rows:
                    lane.step()
                rollouts += [self._rollout(prompt, generation) for prompt, generation in generations]
        return rollouts

    def _rollout(self, prompt: Prompt, generation: Any) -> Rollout:
        *pieces, end = generation
        return Rollout(
            prompt, end.token_ids, end.reason == "stop", "".join(piece.text for piece in pieces), end.logprobs
        )


class EngineSampler:
    """Asks an engine, which is given the adapter anew for each call.

    Args:
        prefix: begins the names of adapters; names of an earlier, killed run are unloaded.
        folder: where adapters are put for the engine to read; below the artifact folder, and removed after use.
        save: writes the policy's adapter into an empty folder.
        eos_ids: tokens that end a turn; the first one is the tokenizer's.
    """

    name = "engine"

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Any,
        save: Callable[[Path], None],
        ask: Ask,
        *,
        prefix: str,
        folder: Path,
        eos_ids: Sequence[int],
        concurrency: int,
    ) -> None:
        self.client, self.tokenizer, self.save, self.ask = client, tokenizer, save, ask
        self.prefix, self.folder, self.eos_ids, self.concurrency = prefix, folder, list(eos_ids), concurrency
        self.counts: Counter[str] = Counter()
        self._encoding = threading.Lock()
        for name in client.models():
            if name.startswith(f"{prefix}-"):
                client.unload_adapter(name)
        shutil.rmtree(folder, ignore_errors=True)

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Rollout]:
        """See `Sampler`.

        Raises:
            StageError: the engine encodes prompts in another way than the trainer.
            EngineError: it cannot be reached or failed.
        """
        with new_folder(self.folder / "new") as made:
            self.save(made)
        name = f"{self.prefix}-{hash_folder(self.folder / 'new')[:12]}"
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        (self.folder / "new").rename(path)
        try:
            self._load(name, path)
            requests = [self._request(name, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
            replies = self.client.complete_many(requests, self.concurrency)
        finally:
            self._forget(name, path)
        return [self._rollout(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]

    def _load(self, name: str, path: Path) -> None:
        try:
            self.client.load_adapter(name, path)
        except InvalidInput:
            if name not in self.client.models():  # a connection that was lost after the engine had loaded it
                raise

    def _forget(self, name: str, path: Path) -> None:
        if name in self.client.models():
            self.client.unload_adapter(name)
        shutil.rmtree(path, ignore_errors=True)

    def _request(self, name: str, prompt: Prompt, seed: int) -> ChatRequest:
        return ChatRequest(
            model=name,
            messages=tuple(Message(role=role, content=content) for role, content in prompt.messages),
            max_tokens=self.ask.max_tokens,
            temperature=self.ask.temperature,
            seed=seed,
            logprobs=True,
            return_token_ids=True,
        )

    def _rollout(self, prompt: Prompt, reply: ChatReply) -> Rollout:
        """The tokens that the engine chose; where it tells only text, that text encoded again, and counted."""
        if reply.prompt_tokens != len(prompt.ids) or reply.prompt_token_ids not in (None, prompt.ids):
            raise StageError(
                f"the engine reads a prompt as {reply.prompt_tokens} tokens and the trainer as {len(prompt.ids)}, or as"
                " other ones; both must have the same base model with the same chat template"
            )
        ended = reply.finish_reason == "stop"
        if reply.token_ids is None:
            self.counts["encoded_again"] += 1
            ids = tuple(encode_completion(self.tokenizer, reply.text, complete=ended))
            self.counts["encoded_otherwise"] += len(ids) != reply.completion_tokens
            logps = (NOT_TOLD,) * len(ids)
        else:
            ids = reply.token_ids
            logps = reply.logprobs if reply.logprobs and len(reply.logprobs) == len(ids) else (NOT_TOLD,) * len(ids)
            if ended and (not ids or ids[-1] not in self.eos_ids):  # some engines leave the end of turn out
                ids, logps = (*ids, self.eos_ids[0]), (*logps, NOT_TOLD)
        if not ids:
            raise StageError(
                "the engine gave a completion without a token; it should end with the end of turn at least"
            )
        self.counts["logps_not_told"] += any(value != value for value in logps)  # noqa: PLR0124 (NaN)
        return Rollout(prompt, ids, ended, reply.text, logps)
