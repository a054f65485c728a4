"""The scoring process with a tiny reward model: what it says is what the model says, and it holds one model, verified."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.artifacts import hash_folder
from core.settings import Settings
from reward.score_server import MOST_COMPLETIONS, Scoring, create_score_app
from reward.scoring import RewardScorer
from tests.reward.test_preference import SMALL, clustered, toy
from tests.reward.test_service import train_reward
from tests.tiny import make_tiny_base

PROMPT = [{"role": "user", "content": "How do I keep a wren safe?"}]
TEXTS = ["Hang a feeder low.", "HELP!!!", ""]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scoring")
    make_tiny_base(root / "base")
    (root / "artifacts" / "pairs").mkdir(parents=True)
    two = SMALL.model_copy(update={"members": 2, "epochs": 1.0})
    train_reward(
        clustered(toy(0, 24)), toy(100, 4), root / "base", root / "w", root / "artifacts" / "pairs", two, device="cpu"
    )
    return root


@pytest.fixture
def scoring(house: Path) -> Scoring:
    return Scoring(Settings(var_dir=house, device="cpu"), house / "base")


@pytest.fixture
def client(scoring: Scoring) -> Iterator[TestClient]:
    with TestClient(create_score_app(scoring)) as client:
        yield client


def load(client: TestClient, house: Path, **more: Any) -> Any:
    body = {"path": "pairs", "sha256": hash_folder(house / "artifacts" / "pairs"), **more}
    return client.post("/load", json=body)


def test_it_says_what_the_model_says(client: TestClient, house: Path) -> None:
    model = load(client, house).json()["model"]
    body = {"model": model, "messages": PROMPT, "completions": TEXTS}
    found = client.post("/score", json=body).json()["scores"]
    direct = RewardScorer.load(house / "artifacts" / "pairs", house / "base", "cpu")
    assert [each["value"] for each in found] == pytest.approx(direct.score([(PROMPT, t) for t in TEXTS]), abs=1e-4)
    assert all(each["sd"] >= 0 for each in found)
    assert client.get("/health").json()["model"] == model


def test_it_loads_nothing_that_it_should_not(client: TestClient, house: Path) -> None:
    (house / "elsewhere").mkdir(exist_ok=True)
    for more, code in (
        ({"path": "../elsewhere"}, "invalid_request"),
        ({"path": str(house / "elsewhere")}, "invalid_request"),
        ({"path": "."}, "invalid_request"),
        ({"sha256": "0" * 64}, "artifact_error"),
        ({"path": "none"}, "artifact_error"),
    ):
        answer = load(client, house, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert client.get("/health").json()["model"] is None


def test_what_is_not_loaded_is_not_asked(client: TestClient, house: Path) -> None:
    body = {"model": "reward-0", "messages": PROMPT, "completions": TEXTS}
    assert client.post("/score", json=body).status_code == 404
    load(client, house)
    assert client.post("/score", json=body).status_code == 404


@pytest.mark.parametrize(
    "more", [{"completions": []}, {"completions": ["x"] * (MOST_COMPLETIONS + 1)}, {"messages": []}, {"messages": "x"}]
)
def test_bodies_of_another_shape(client: TestClient, more: dict[str, Any]) -> None:
    answer = client.post("/score", json={"model": "m", "messages": PROMPT, "completions": TEXTS, **more})
    assert answer.status_code == 400


def test_a_queue_that_is_full_says_so(client: TestClient, scoring: Scoring) -> None:
    scoring.waiting = 10_000
    answer = client.post("/score", json={"model": "m", "messages": PROMPT, "completions": TEXTS})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "score_full")
