"""The one client of whatever engine speaks for the policy: the embedded one, or a vLLM server by URL.

    client = EngineClient(settings.engine_base_url)
    reply = client.complete(ChatRequest(model="base", messages=[Message(role="user", content="Hello")]))

Thread-safe: one pooled client per process is enough. It never reads the database or the environment.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from core.artifacts import verify_folder
from core.errors import ArtifactError, InvalidInput, NotFound
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest, StreamEvent, read_event, read_reply, refusal, unreachable
from policy.shapes import CHAT, Shape

CONNECT_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 256
# A kept connection can end just as a request takes it: the engine closes an idle one, or another thread finds it stale.
LOST_CONNECTION = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


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
        answer = self._call("POST", f"{self.base_url}{request.shape.path}", request.wire())
        return read_reply(answer, time.monotonic() - start, request)

    def stream(self, request: ChatRequest) -> "CompletionStream":
        """Ask for a streamed completion. Errors as of `complete`, raised before the first event."""
        body = {**request.wire(), "stream": True, "stream_options": {"include_usage": True}}
        try:
            response = self._send("POST", f"{self.base_url}{request.shape.path}", body, stream=True)
            if response.status_code != 200:
                response.read()
                response.close()
                raise refusal(response.status_code, response.text)
        except httpx.HTTPError as error:
            raise unreachable(self.base_url, error) from error
        return CompletionStream(response, self.base_url, request.shape)

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

    def count_tokens(self, request: ChatRequest) -> int | None:
        """Prompt tokens of a request by the engine's own template; None where it cannot say."""
        body = request.tokenize_wire()
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
        """Send a request, and once more when its connection was lost before an answer.

        A completion only to an engine on loopback: another may have begun with it, and it would be paid for twice.
        """
        request = self._http.build_request(method, url, json=body)
        try:
            return self._http.send(request, stream=stream)
        except LOST_CONNECTION:
            if url.endswith("/completions") and not is_loopback(url):
                raise
            return self._http.send(request, stream=stream)

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._send(method, url, body)
        except httpx.HTTPError as error:
            raise unreachable(self.base_url, error) from error
        if response.status_code != 200:
            raise refusal(response.status_code, response.text)
        try:
            return response.json()
        except ValueError:
            return response.text  # vLLM answers its admin calls in plain words


class CompletionStream(Iterator[StreamEvent]):
    """The events of one streamed completion; closing it ends the request at the engine."""

    def __init__(self, response: httpx.Response, base_url: str, shape: Shape = CHAT) -> None:
        self._response = response
        self._shape = shape
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
                return read_event(json.loads(payload), self._shape)
        except (httpx.HTTPError, ValueError) as error:
            self.close()
            raise unreachable(self._base_url, error) from error
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


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


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
