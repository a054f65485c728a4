"""The guard's process with a tiny encoder, over real connections: together as alone, an end to the queue, flips without a gap."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from core.artifacts import hash_folder
from core.errors import EngineError, TooManyRequests
from reward.asgi import MOST_BYTES
from reward.guard.batching import Batcher
from reward.guard.encoder import Encoder, Tokens
from reward.guard.student import Student
from reward.guard_server import HOST, MOST_MODELS, Guard, create_guard_app
from tests.commands.test_processes import free_port
from tests.reward.conftest import RULES, Trained, texts

CONTEXT = "user: How do I keep the wren safe?"
ASKED = [{"name": rule.name, "text": rule.text} for rule in RULES]


@contextmanager
def serving(guard: Guard) -> Iterator[str]:
    """The app under uvicorn in a thread; its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_guard_app(guard), HOST, port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = True
        thread.join()
        guard.batcher.close()


@pytest.fixture
def guard(trained: Trained, encoder: Encoder) -> Guard:
    return Guard(encoder, trained.artifact_dir, max_batch=16, max_waiting=64)


@pytest.fixture
def client(guard: Guard) -> Iterator[httpx.Client]:
    with serving(guard) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def load(client: httpx.Client, folder: Path) -> httpx.Response:
    return client.post("/load", json={"path": str(folder), "sha256": hash_folder(folder)})


def item(text: str, context: str = CONTEXT) -> dict[str, Any]:
    return {"context": context, "text": text, "rules": ASKED}


def score(client: httpx.Client, model: str, *items: dict[str, Any], **more: Any) -> httpx.Response:
    return client.post("/v1/score", json={"model": model, "items": items, **more})


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class Gate:
    """Holds an encoder's batches back until it is opened, and tells how large they were."""

    def __init__(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.began = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        states = encoder.states

        def held(asked: list[Tokens]) -> Any:
            self.began.set()
            self.opened.wait(30)
            self.sizes.append(len(asked))
            return states(asked)

        monkeypatch.setattr(encoder, "states", held)


def test_it_says_what_the_model_says(client: httpx.Client, trained: Trained, encoder: Encoder) -> None:
    loaded = load(client, trained.folder)
    assert loaded.status_code == 200, loaded.text
    told = loaded.json()
    assert told["threshold"] == trained.facts["thresholds"]["common"]
    assert set(told["thresholds"]) == {rule.name for rule in RULES}
    said = [t.completion for t in texts(0, 24, heldout=False)]
    found = score(client, told["model"], *map(item, said))
    assert found.status_code == 200, found.text
    student = Student.load(trained.folder, encoder)
    wanted = student.p_broken([(CONTEXT, text) for text in said], [r.text for r in RULES])
    for row, p in zip(found.json()["items"], wanted, strict=True):
        assert row["broken"] == pytest.approx(dict(zip([r.name for r in RULES], p, strict=True)), abs=1e-5)
        assert row["hits"] == [r.name for r, v in zip(RULES, p, strict=True) if v >= student.thresholds.of(r)]
    assert any(row["hits"] for row in found.json()["items"])


def test_all_of_a_long_text_is_read_but_what_was_asked_before(
    client: httpx.Client, trained: Trained, encoder: Encoder
) -> None:
    model = load(client, trained.folder).json()["model"]
    student = Student.load(trained.folder, encoder)
    said = [t.completion for t in texts(0, 40, heldout=False)]
    for k in range(len(said)):  # until what breaks most does not stand at the end
        text = " ".join([*said[k:], *said[:k]])
        windows = encoder.windows(CONTEXT, text, 0)
        of_each = student.from_states(encoder.states(windows), [r.text for r in RULES])
        highest = [max(column) for column in zip(*of_each, strict=True)]
        if highest != list(of_each[0]):
            break
    assert len(windows) > 2
    found = score(client, model, item(text), {**item(text), "start": len(text) - 9}).json()["items"]
    assert list(found[0]["broken"].values()) == pytest.approx(highest, abs=1e-5)
    assert list(found[1]["broken"].values()) == pytest.approx(of_each[0], abs=1e-5)
    assert found[0]["broken"] != found[1]["broken"]


def test_connections_share_batches_and_are_told_what_they_are_told_alone(
    client: httpx.Client,
    trained: Trained,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load(client, trained.folder).json()["model"]
    said = [t.completion * (1 + i % 4) for i, t in enumerate(texts(0, 12, heldout=False))]
    alone = [score(client, model, item(text)).json()["items"][0]["broken"] for text in said]
    gate = Gate(encoder, monkeypatch)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(score, client, model, item(said[0]))]
        assert gate.began.wait(30)
        asked += [pool.submit(score, client, model, item(text)) for text in said[1:]]
        while client.get("/health").json()["waiting"] < 11:
            time.sleep(0.01)
        gate.opened.set()
        together = [a.result().json()["items"][0]["broken"] for a in asked]
    assert gate.sizes == [1, 11]
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_over_the_limit_is_refused_at_once_and_the_rest_is_answered(
    trained: Trained,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Guard(encoder, trained.artifact_dir, max_batch=2, max_waiting=3)
    with serving(guard) as url, httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        model = load(client, trained.folder).json()["model"]
        gate = Gate(encoder, monkeypatch)
        first = pool.submit(score, client, model, item("the wren."))
        assert gate.began.wait(30)
        rest = pool.submit(score, client, model, *[item("the wren.")] * 3)
        while client.get("/health").json()["waiting"] < 3:
            time.sleep(0.01)
        assert code_of(score(client, model, item("the wren."))) == (503, "guard_full")  # though the gate is shut
        assert code_of(score(client, model, *[item("the wren.")] * 4)) == (503, "guard_full")
        gate.opened.set()
        assert [first.result().status_code, rest.result().status_code] == [200, 200]
        assert client.get("/health").json()["refused"] == 5
        assert score(client, model, item("the wren.")).status_code == 200


def test_whose_deadline_has_passed_is_not_computed(
    client: httpx.Client,
    trained: Trained,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load(client, trained.folder).json()["model"]
    gate = Gate(encoder, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(score, client, model, item("the wren."))
        assert gate.began.wait(30)
        late = pool.submit(score, client, model, item("the rook."), deadline_ms=1)
        while client.get("/health").json()["waiting"] < 1:
            time.sleep(0.01)
        time.sleep(0.01)
        gate.opened.set()
        assert code_of(late.result()) == (503, "guard_late")
        assert first.result().status_code == 200
    assert gate.sizes == [1]
    assert client.get("/health").json()["late"] == 1


# --- models


def test_only_what_lies_in_the_artifact_folder_is_loaded(
    client: httpx.Client, trained: Trained, tmp_path: Path
) -> None:
    outside = tmp_path / "guard"
    shutil.copytree(trained.folder, outside)
    assert code_of(load(client, outside)) == (400, "invalid_request")
    (trained.artifact_dir / "link").symlink_to(outside)
    sha256 = hash_folder(outside)
    for path in ("link", "../" + outside.name, "rewards/../../x", "", "."):
        assert client.post("/load", json={"path": path, "sha256": sha256}).status_code == 400, path
    (trained.artifact_dir / "link").unlink()
    assert client.get("/health").json()["models"] == {}


def test_a_damaged_folder_is_refused(client: httpx.Client, trained: Trained) -> None:
    copy = trained.artifact_dir / "damaged"
    shutil.copytree(trained.folder, copy)
    sha256 = hash_folder(copy)
    with (copy / "head.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    assert code_of(client.post("/load", json={"path": "damaged", "sha256": sha256})) == (400, "artifact_error")
    assert code_of(client.post("/load", json={"path": "nowhere", "sha256": sha256})) == (400, "artifact_error")
    shutil.rmtree(copy)


def test_loading_twice_is_once_and_an_unloaded_one_is_gone_in_a_while(
    client: httpx.Client,
    guard: Guard,
    trained: Trained,
) -> None:
    one, again = (load(client, trained.folder).json() for _ in range(2))
    assert one == again
    assert list(client.get("/health").json()["models"]) == [one["model"]]
    assert client.post("/unload", json={"model": one["model"]}).json()["unloaded"]
    assert not client.post("/unload", json={"model": one["model"]}).json()["unloaded"]
    assert score(client, one["model"], item("the wren.")).status_code == 200  # other web workers may not have flipped
    guard._leaving[one["model"]] = time.monotonic() - 1
    assert code_of(score(client, one["model"], item("the wren."))) == (404, "not_found")
    assert load(client, trained.folder).json() == one
    assert score(client, one["model"], item("the wren.")).status_code == 200


def another(trained: Trained, name: str) -> Path:
    """The same model in a folder that hashes otherwise."""
    folder = trained.artifact_dir / name
    shutil.copytree(trained.folder, folder)
    (folder / "note").write_text(name)
    return folder


def test_no_more_models_than_may_be(client: httpx.Client, trained: Trained) -> None:
    folders = [another(trained, f"more-{k}") for k in range(MOST_MODELS + 1)]
    assert [load(client, f).status_code for f in folders] == [200] * MOST_MODELS + [409]
    names = list(client.get("/health").json()["models"])
    client.post("/unload", json={"model": names[3]})
    assert load(client, folders[-1]).status_code == 200
    assert set(names) - set(client.get("/health").json()["models"]) == {names[3]}
    for folder in folders:
        shutil.rmtree(folder)


def test_a_flip_while_eight_ask_is_noticed_by_nobody(client: httpx.Client, trained: Trained) -> None:
    current = load(client, trained.folder).json()["model"]
    first, ended = current, threading.Event()
    asked_by: list[str] = []

    def ask() -> list[int]:
        found = []
        while not ended.is_set():
            model = current
            asked_by.append(model)
            found.append(score(client, model, item("the wren and bread."), item("the rook.")).status_code)
        return found

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(ask) for _ in range(8)]
        while len(asked_by) < 24:
            time.sleep(0.01)
        new = another(trained, "flip")
        current = load(client, new).json()["model"]
        until = len(asked_by) + 24
        while len(asked_by) < until:
            time.sleep(0.01)
        client.post("/unload", json={"model": first})  # nobody asks by it any more
        ended.set()
        statuses = [status for caller in callers for status in caller.result()]
    assert set(statuses) == {200}
    assert set(asked_by) == {first, current} != {first}
    shutil.rmtree(new)


# --- what is sent


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", '{"model": "x", "items": []}', '{"model": "x", "items": [{"text": 3, "rules": []}]}', "\xff"],
)
def test_a_body_of_another_shape(client: httpx.Client, body: str) -> None:
    assert code_of(client.post("/v1/score", content=body.encode("latin-1"))) == (400, "invalid_request")


def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    assert client.post("/v1/score", content=b"x" * (MOST_BYTES + 1)).status_code == 413


def test_odd_texts_are_answered(client: httpx.Client, trained: Trained) -> None:
    model = load(client, trained.folder).json()["model"]
    odd = ["", "\0", "🐦" * 9000, "x" * 200_000, "é\u0301\u202e", " \n\t"]
    found = score(client, model, *[{**item(t, context=t[:50_000]), "start": len(t)} for t in odd])
    assert found.status_code == 200, found.text
    assert all(0 <= p <= 1 for row in found.json()["items"] for p in row["broken"].values())
    bare = score(client, model, {"text": "the wren.", "rules": []})
    assert bare.json()["items"] == [{"broken": {}, "hits": []}]


# --- the process


def test_a_killed_process_is_noticed_and_a_new_one_is_told_again(trained: Trained, encoder_folder: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "DUNNOCK_GUARD__PORT": str(port), "DUNNOCK_GUARD__ENCODER": str(encoder_folder), "DUNNOCK_DEVICE": "cpu",
        "DUNNOCK_VAR_DIR": str(trained.artifact_dir.parent / "var"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    var = trained.artifact_dir.parent / "var"
    shutil.copytree(trained.artifact_dir, var / "artifacts")
    folder = var / "artifacts" / "rewards" / "cycle-1-guard"
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=60) as client:
        process = begin(environment, client)
        model = load(client, folder).json()["model"]
        assert score(client, model, item("the wren.")).status_code == 200
        process.kill()
        process.wait()
        began = time.monotonic()
        with pytest.raises(httpx.TransportError):
            score(client, model, item("the wren."))
        assert time.monotonic() - began < 10  # a closed connection, not a timeout
        process = begin(environment, client)
        assert code_of(score(client, model, item("the wren."))) == (404, "not_found")
        assert load(client, folder).json()["model"] == model
        assert score(client, model, item("the wren.")).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


def begin(environment: dict[str, str], client: httpx.Client) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-m", "reward.guard_server"], env=environment)
    while True:
        assert process.poll() is None, "the guard ended"
        try:
            if client.get("/health").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.1)


# --- batching alone


def test_a_batch_that_fails_fails_alone() -> None:
    def run(items: list[int]) -> list[int]:
        if 0 in items:
            raise ZeroDivisionError
        return [10 // i for i in items]

    batcher = Batcher(run, most_batch=1, most_waiting=10)  # type: ignore[arg-type]
    bad, good = batcher.submit([0]), batcher.submit([5])
    with pytest.raises(ZeroDivisionError):
        bad[0].result(30)
    assert good[0].result(30) == 2
    assert (batcher.counts.failed, batcher.counts.items) == (1, 1)
    with pytest.raises(TooManyRequests):
        batcher.submit(list(range(1, 12)))
    batcher.close()
    assert not batcher.alive()
    with pytest.raises(EngineError, match="does not run"):
        batcher.submit([1])


def test_what_waits_when_it_is_closed_is_told() -> None:
    go, began = threading.Event(), threading.Event()

    def run(items: list[int]) -> list[int]:
        began.set()
        go.wait(30)
        return items

    batcher = Batcher(run, most_batch=1, most_waiting=10)  # type: ignore[arg-type]
    first, second = batcher.submit([1, 2])
    assert began.wait(30)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while batcher.alive():
        time.sleep(0.01)
    go.set()
    closing.join()
    assert first.result(30) == 1
    with pytest.raises(EngineError, match="was ended"):
        second.result(30)


# --- sentences


def test_a_sentence_is_embedded_whole_or_not_at_all(client: httpx.Client, encoder: Encoder) -> None:
    words = "keep the wren safe "
    asked = ["How do I keep the wren safe?", words * 300, "", "How do I keep the wren safe?"]
    answer = client.post("/embed", json={"texts": asked})
    assert answer.status_code == 200, answer.text
    first, long, empty, again = answer.json()["embeddings"]
    assert answer.json()["encoder_sha256"] == encoder.sha256
    assert long is None
    assert first == again
    assert len(first) == len(empty) == encoder.width
    for found in (first, empty):
        assert sum(value * value for value in found) == pytest.approx(1, abs=1e-5)
    alone = client.post("/embed", json={"texts": [asked[0]]}).json()["embeddings"]
    assert alone == [first]  # the same in whatever company


def test_the_last_word_of_a_sentence_counts(client: httpx.Client, encoder: Encoder) -> None:
    n = next(n for n in range(1, 400) if encoder.sentences(["wren " * (n + 1)]) == [None])
    one, other, longer = client.post(
        "/embed", json={"texts": ["wren " * n, "wren " * (n - 1) + "safe", "wren " * (n + 1)]}
    ).json()["embeddings"]
    assert one != other
    assert longer is None


@pytest.mark.parametrize("body", [{}, {"texts": []}, {"texts": ["a"] * 65}, {"texts": [7]}, {"texts": "a"}])
def test_what_cannot_be_embedded_is_refused(client: httpx.Client, body: Any) -> None:
    assert client.post("/embed", json=body).status_code == 400
