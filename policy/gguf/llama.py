"""One llama.cpp server in this process, with a fixed set of adapters; the only module that knows xllamacpp.

llama.cpp takes adapters when a server starts and never after, so a new adapter is a new `Llama` (see
`policy.gguf.decoder`). Its own HTTP socket cannot be left out: it lies in a folder that only this user may enter.
"""

import math
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError, EngineError, InvalidInput
from policy.engine.generation import Sampling

SEEDS = 2**32 - 1  # llama.cpp takes this very number as "draw one"
FORCE = 1e6
"""Added to a logit so that no other is chosen."""
SOCKET_CHARS = 100  # of a Unix socket's path, where 107 fit


@dataclass(frozen=True)
class LlamaSettings:
    """How a server is laid out.

    Attributes:
        slots: requests decoded together.
        slot_tokens: prompt and completion of one.
        threads: of each batch.
        exact: keep keys and values in fp32 and attend without the fused kernel, for comparisons; slower.
    """

    slots: int
    slot_tokens: int
    threads: int
    exact: bool = False


@dataclass(frozen=True)
class Token:
    """A token that llama.cpp chose; its log-probability in nats where it was asked for."""

    id: int
    logprob: float | None


class Llama:
    """A running server.

    Args:
        adapters: GGUF files; a request names one by its place in this list.

    Raises:
        ArtifactError: llama.cpp refuses the model or an adapter.
    """

    def __init__(self, model: Path, adapters: list[Path], settings: LlamaSettings) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_parallel = settings.slots
        params.n_ctx = settings.slots * settings.slot_tokens
        params.kv_unified = False  # each slot its own share, so that no request can take another's room
        params.ctx_shift = False
        params.fit_params = False
        params.cache_ram_mib = 0  # prompts are kept in their slots alone: a store of them all takes up to 8 GB
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # spinning threads starve who computes beside them
        params.verbosity = -1
        params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        params.lora_init_without_apply = True
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
        if settings.exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._adapters = len(adapters)
        self._room = tempfile.TemporaryDirectory(prefix="dunnock-llama-")  # rights 0700; a name anew each time, since
        socket = f"{self._room.name}/http.sock"  # a socket that is left over keeps the next server from starting
        params.hostnames = [socket] if len(socket) < SOCKET_CHARS else ["127.0.0.1"]
        params.port, params.api_keys = 0, [secrets.token_urlsafe(32)]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            self._room.cleanup()
            raise ArtifactError(f"llama.cpp cannot load {model} with {[p.name for p in adapters]}: {error}") from error

    def complete(
        self, prompt_ids: list[int], adapter: int | None, sampling: Sampling, max_tokens: int,
        take: Callable[[Token], bool],
    ) -> bool:  # fmt: skip
        """Complete a prompt; blocks until the text ends or `take` returns True, which ends it at once.

        Args:
            adapter: place in the list of adapters; None: the base.
            take: given each token as it comes.

        Returns:
            Whether llama.cpp ended the text by itself before `max_tokens`, as at the end of a grammar.

        Raises:
            InvalidInput: it refuses the request.
            EngineError: it failed.
        """
        return self._ask(prompt_ids, adapter, sampling, max_tokens, take)

    def _ask(
        self, prompt_ids: list[int], adapter: int | None, sampling: Sampling, max_tokens: int,
        take: Callable[[Token], bool], forced: int | None = None,
    ) -> bool:  # fmt: skip
        failures: list[BaseException] = []
        stopped = False

        def chunk(value: Any) -> bool:
            """What is raised in here would be swallowed, and decoding would go on."""
            nonlocal stopped
            try:
                tokens = _tokens(value)
                stopped = stopped or (value["choices"][0]["finish_reason"] == "stop")
                return any(take(token) for token in tokens)
            except BaseException as error:  # noqa: BLE001 (raised again below)
                failures.append(error)
                return True

        body = _body(prompt_ids, sampling, max_tokens, adapter, self._adapters)
        if forced is not None:
            body["logit_bias"] = [[forced, FORCE]]
        self._server.handle_completions(body, chunk)
        if failures:
            raise failures[0]
        return stopped

    def logps(self, prompt_ids: list[int], ids: list[int]) -> list[float]:
        """log p, in nats, of each of `ids` after the prompt and those before it: the base's own, whatever it would have written.

        Each token is asked for by itself and forced: llama.cpp tells what it was given before anything forced it.

        Raises:
            InvalidInput, EngineError: it refuses or fails.
        """
        found: list[float] = []

        def take(token: Token) -> bool:
            assert token.logprob is not None  # it was asked for
            found.append(token.logprob)
            return True

        for at, wanted in enumerate(ids):
            self._ask([*prompt_ids, *ids[:at]], None, Sampling(1, temperature=0.0, logprobs=True), 1, take, wanted)
        return found

    def close(self) -> None:
        """End the server's thread and free its memory; no request may be open."""
        del self._server
        self._room.cleanup()


def require_told_logprobs(sampling: Sampling) -> None:
    """Raise InvalidInput where llama.cpp does not tell the log-probability that engines of ours promise.

    It knows the raw distribution, and the one that is left after all samplers; the promised one is after penalties and
    temperature, over the whole vocabulary.
    """
    if sampling.logprobs and not _raw_is_meant(sampling) and not _last_is_meant(sampling):
        raise InvalidInput(
            "this engine tells log-probabilities at temperature 0 or 1 without penalties, or with top_p 1; this request"
            " has neither",
            param="logprobs",
        )


def _raw_is_meant(sampling: Sampling) -> bool:
    return sampling.temperature in (0, 1) and not (sampling.presence_penalty or sampling.frequency_penalty)


def _last_is_meant(sampling: Sampling) -> bool:
    return sampling.temperature > 0 and sampling.top_p >= 1 and sampling.json_schema is None


def _body(
    prompt_ids: list[int], sampling: Sampling, max_tokens: int, adapter: int | None, adapters: int
) -> dict[str, Any]:
    """The request in llama.cpp's words. All its own samplers are off; ours come in our order."""
    body: dict[str, Any] = {
        "prompt": prompt_ids, "stream": True, "n_predict": max_tokens, "cache_prompt": True,
        "verbose": True, "return_tokens": True,  # token ids are told in the verbose part
        "samplers": ["penalties", "temperature", "top_p"],
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0, "min_p": 0.0,
        "repeat_penalty": 1.0, "repeat_last_n": max(len(prompt_ids) + max_tokens, 1),
        "presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty,
        "seed": -1 if sampling.seed is None else sampling.seed % SEEDS,
        # all named: an empty list would mean the scales that the server began with
        "lora": [{"id": i, "scale": 1.0 if i == adapter else 0.0} for i in range(adapters)],
    }  # fmt: skip
    if sampling.logprobs:
        body |= {"n_probs": 1, "post_sampling_probs": not _raw_is_meant(sampling)}
    if sampling.json_schema is not None:
        body["json_schema"] = sampling.json_schema
    return body


def _tokens(value: Any) -> list[Token]:
    """The tokens of one chunk, mostly one.

    Raises:
        InvalidInput, EngineError: the chunk is a refusal or tells of a failure.
    """
    if "error" in value:
        message, status = value["error"].get("message", value["error"]), value["error"].get("code", 500)
        kind = InvalidInput if status == 400 else EngineError
        raise kind(f"llama.cpp: {message}")
    ids = value["__verbose"]["tokens"]
    told = (value["choices"][0].get("logprobs") or {}).get("content") or [{}] * len(ids)
    logprobs = [t["logprob"] if "logprob" in t else math.log(t["prob"]) if t.get("prob") else None for t in told]
    return [Token(int(i), logprob) for i, logprob in zip(ids, logprobs, strict=True)]
