"""The one client of whatever engine speaks for the policy: the embedded one, or a vLLM server by URL.

    client = EngineClient(settings.engine_base_url)
    reply = client.complete(ChatRequest(model="base", messages=[Message(role="user", content="Hello")]))

Thread-safe: one pooled client per process is enough. It never reads the database or the environment.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from core.artifacts import verify_folder
from core.errors import ArtifactError, DunnockError, EngineError, InvalidInput, NotFound, PromptTooLong
from core.messages import Message
from policy.models import PolicyVersion

CONNECT_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 256
# A kept connection can end just as a request takes it: the engine closes an idle one, or another thread finds it stale.
LOST_CONNECTION = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


class ChatRequest(BaseModel):
    """One request for a completion, in the words of the OpenAI chat API."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logprobs: bool = False
    return_token_ids: bool = False  # vLLM's name for it

    def wire(self) -> dict[str, Any]:
        """The body of the call; what is not asked for is not named, since not every engine knows it."""
        left_out = {name for name in ("logprobs", "return_token_ids") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=left_out)


@dataclass(frozen=True)
class ChatReply:
    """A whole completion; `latency_s` is wall-clock time from request to last byte.

    Attributes:
        prompt_token_ids: as the engine encoded the prompt; None where it was not asked or does not say.
        token_ids: the tokens of the completion, as far as the engine tells them.
        tokens: their texts, where log-probabilities were asked for.
        logprobs: nats of each of them.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    tokens: tuple[str, ...] | None = None
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class StreamEvent:
    """A piece of a streamed completion; the fields beside `text` come near the end."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class EngineClient:
    """Talks to an engine.

    Args:
        base_url: the engine's `/v1` URL.
        api_key: sent as Bearer token when not empty.
        timeout_s: longest wait for the next byte.
    """

    def __init__(self, base_url: str, api_key: str = "", timeout_s: float = 120.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._root = self.base_url.removesuffix("/v1")  # /health and /tokenize lie beside /v1, as at vLLM
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_CONNECTIONS,
                keepalive_expiry=None,  # a timer may close a connection that a thread has just been given
            ),
            trust_env=False,  # an engine on loopback is never behind the machine's proxy
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def complete(self, request: ChatRequest) -> ChatReply:
        """Ask for a whole completion.

        Raises:
            NotFound: the engine does not have the model.
            PromptTooLong: more prompt tokens than it takes.
            InvalidInput: it refuses the request for another reason.
            EngineError: it cannot be reached, is overloaded or failed.
        """
        start = time.monotonic()
        answer = self._call("POST", f"{self.base_url}/chat/completions", request.wire())
        try:
            choice, usage = answer["choices"][0], answer["usage"]
            logprobs = (choice.get("logprobs") or {}).get("content")
            return ChatReply(
                text=choice["message"]["content"] or "",
                finish_reason=choice["finish_reason"],
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                latency_s=time.monotonic() - start,
                prompt_token_ids=_tuple(answer.get("prompt_token_ids")),
                token_ids=_tuple(choice.get("token_ids")),
                tokens=None if logprobs is None else tuple(str(token["token"]) for token in logprobs),
                logprobs=None if logprobs is None else tuple(float(token["logprob"]) for token in logprobs),
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(f"the engine's answer is not a chat completion: {error!r} is missing") from error

    def stream(self, request: ChatRequest) -> "CompletionStream":
        """Ask for a streamed completion. Errors as of `complete`, raised before the first event."""
        body = {**request.wire(), "stream": True, "stream_options": {"include_usage": True}}
        try:
            response = self._send("POST", f"{self.base_url}/chat/completions", body, stream=True)
            if response.status_code != 200:
                response.read()
                response.close()
                raise _refusal(response)
        except httpx.HTTPError as error:
            raise _unreachable(self.base_url, error) from error
        return CompletionStream(response, self.base_url)

    def complete_many(
        self,
        requests: Sequence[ChatRequest],
        concurrency: int,
        on_done: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """Complete all requests, so many at a time; replies in the order of the requests.

        Args:
            on_done: called in this thread with index and reply, as they come in.

        Raises:
            DunnockError: the first failure; requests that have not begun are dropped.
        """
        replies: dict[int, ChatReply] = {}
        with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
            futures = {pool.submit(self.complete, request): index for index, request in enumerate(requests)}
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    replies[index] = future.result()
                    if on_done is not None:
                        on_done(index, replies[index])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [replies[index] for index in range(len(requests))]

    def models(self) -> list[str]:
        """Names that the engine answers to."""
        return [str(model["id"]) for model in self._call("GET", f"{self.base_url}/models")["data"]]

    def load_adapter(self, name: str, path: Path | str) -> None:
        """Load an adapter under an immutable name; the engine must see the same path.

        Raises:
            InvalidInput: the engine refuses it, e.g. because the name is taken.
            ArtifactError: the folder is not an adapter of the engine's base.
        """
        body = {"lora_name": name, "lora_path": str(path)}
        self._call("POST", f"{self.base_url}/load_lora_adapter", body)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; the embedded engine lets its open requests end first."""
        self._call("POST", f"{self.base_url}/unload_lora_adapter", {"lora_name": name})

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Prompt tokens of a conversation by the engine's own template; None where it cannot say."""
        body = {"messages": [m.model_dump() for m in messages], "add_generation_prompt": True}
        try:
            return int(self._call("POST", f"{self._root}/tokenize", body)["count"])
        except (NotFound, KeyError):
            return None

    def healthy(self) -> bool:
        """Whether the engine says that it is well."""
        try:
            return self._http.get(f"{self._root}/health", timeout=HEALTH_TIMEOUT_S).status_code == 200
        except httpx.HTTPError:
            return False

    def _send(self, method: str, url: str, body: dict[str, Any] | None, stream: bool = False) -> httpx.Response:
        """Send a request, and once more when its connection was lost before an answer; no request harms by coming twice."""
        request = self._http.build_request(method, url, json=body)
        try:
            return self._http.send(request, stream=stream)
        except LOST_CONNECTION:
            return self._http.send(request, stream=stream)

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._send(method, url, body)
        except httpx.HTTPError as error:
            raise _unreachable(self.base_url, error) from error
        if response.status_code != 200:
            raise _refusal(response)
        try:
            return response.json()
        except ValueError:
            return response.text  # vLLM answers its admin calls in plain words


class CompletionStream(Iterator[StreamEvent]):
    """The events of one streamed completion; closing it ends the request at the engine."""

    def __init__(self, response: httpx.Response, base_url: str) -> None:
        self._response = response
        self._base_url = base_url
        self._lines = response.iter_lines()

    def __next__(self) -> StreamEvent:
        try:
            for line in self._lines:
                if not line.startswith("data:"):
                    continue
                payload = line.removeprefix("data:").strip()
                if payload == "[DONE]":
                    break
                return _event(json.loads(payload))
        except (httpx.HTTPError, ValueError) as error:
            self.close()
            raise _unreachable(self._base_url, error) from error
        self.close()
        raise StopIteration

    def close(self) -> None:
        """End the request; safe to call twice."""
        self._response.close()

    def __enter__(self) -> "CompletionStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ensure_loaded(client: EngineClient, version: PolicyVersion, artifact_dir: Path) -> None:
    """Have the engine know a policy version: verify its folder and load it when it is not there.

    Raises:
        ArtifactError: the adapter is missing, damaged or not one of the engine's base.
        EngineError: the engine cannot be reached.
    """
    if version.adapter_path is None or version.name in client.models():
        return
    folder = verify_adapter(version, artifact_dir)
    assert folder is not None  # it has an adapter path
    try:
        client.load_adapter(version.name, folder)
    except InvalidInput:
        if version.name not in client.models():  # otherwise another thread or process was faster
            raise


def verify_adapter(version: PolicyVersion, artifact_dir: Path) -> Path | None:
    """The adapter's folder, its hash checked; None for the base itself.

    Raises:
        ArtifactError: it is missing, damaged, or lies outside the artifact folder.
    """
    if version.adapter_path is None:
        return None
    folder = (artifact_dir / version.adapter_path).resolve()
    if not folder.is_relative_to(artifact_dir.resolve()) or not version.adapter_sha256:
        raise ArtifactError(f"policy version {version.name}: {version.adapter_path!r} is no recorded artifact")
    verify_folder(folder, version.adapter_sha256)
    return folder


def _event(chunk: dict[str, Any]) -> StreamEvent:
    if "error" in chunk:
        raise EngineError(f"the engine failed in mid-stream: {chunk['error'].get('message', chunk['error'])}")
    choice = (chunk.get("choices") or [{}])[0]
    usage = chunk.get("usage") or {}
    return StreamEvent(
        text=(choice.get("delta") or {}).get("content") or "",
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _tuple(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)


def _unreachable(url: str, error: Exception) -> EngineError:
    return EngineError(f"the engine at {url} cannot be reached ({type(error).__name__}: {error}); is it running?")


def _refusal(response: httpx.Response) -> DunnockError:
    """The error that a refusing answer means, whoever wrote it."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    message = str(error.get("message") or response.text[:200])
    code, status = error.get("code"), response.status_code
    if code == "context_length_exceeded" or "maximum context length" in message:
        return PromptTooLong(message, param="messages")
    if code == ArtifactError.code:
        return ArtifactError(message)
    if status == 404:
        return NotFound(message, code="model_not_found", param="model")
    if status in (400, 409, 422):
        return InvalidInput(message, param=error.get("param"))
    return EngineError(f"the engine answered {status}: {message}")
