"""The trial's split: held-out seed topics take the frozen part's place, and nothing frozen comes near."""

import json
from pathlib import Path

import pytest

from commands.demo import OVERRIDES
from commands.trial import _seed_name, _split_seed, overrides_of, with_reward
from core.errors import InvalidInput, SettingsError
from core.settings import get_settings
from evals.suites import benign, capability, frozen_texts, harmful


def test_the_split_is_by_topic_and_holds_seed_rows_only(tmp_path: Path) -> None:
    frozen = set(frozen_texts())
    seed = {p.text for p in [*harmful("seed"), *benign("seed")]}
    _split_seed(tmp_path)
    texts = set()
    for name in ("harmful", "benign"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        parts = {(r["category"], r["topic"]): set() for r in rows}
        for row in rows:
            parts[(row["category"], row["topic"])].add(row["part"])
            texts.add(row["text"])
        assert all(len(found) == 1 for found in parts.values())
        held = sum(r["part"] == "frozen" for r in rows) / len(rows)
        assert 0.2 < held < 0.5
    assert texts == seed
    assert not texts & frozen


def test_other_seed_prompts_have_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _seed_name()
    assert _seed_name() == ours
    _split_seed(tmp_path)
    monkeypatch.setenv("DUNNOCK_SUITES_DIR", str(tmp_path))
    get_settings.cache_clear()
    try:
        assert _seed_name() != ours
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


def test_suites_are_read_from_the_folder_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _split_seed(tmp_path)
    ours = {item.question for item in capability()}
    monkeypatch.setenv("DUNNOCK_SUITES_DIR", str(tmp_path))
    get_settings.cache_clear()
    try:
        assert 0 < len(harmful("frozen")) < len(harmful("seed"))
        assert not ours & {item.question for item in capability()}
        (tmp_path / "capability.jsonl").write_text("{")
        monkeypatch.setenv("DUNNOCK_SUITES_DIR", str(tmp_path / "nowhere"))
        get_settings.cache_clear()
        with pytest.raises(SettingsError, match="DUNNOCK_SUITES_DIR"):
            capability()
        short = tmp_path / "short"
        short.mkdir()
        (short / "benign.jsonl").write_text('{"id": "1", "text": "Hi", "category": "none"}\n')
        monkeypatch.setenv("DUNNOCK_SUITES_DIR", str(short))
        get_settings.cache_clear()
        with pytest.raises(SettingsError, match=r"lacks kind, part in line 1"):
            benign("seed")
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


def test_words_become_settings_on_top_of_the_demos() -> None:
    found = overrides_of(["update.beta=0.2", "snapshot.heldout_frac=0.1", "update.loss=sigmoid"])
    assert found["update"] == OVERRIDES["update"] | {"beta": 0.2, "loss": "sigmoid"}
    assert found["snapshot"]["heldout_frac"] == 0.1
    assert found["snapshot"]["include_simulated"] is True


@pytest.mark.parametrize("word", ["update.beta", "update.betta=1", "beta=1", "nothing.beta=1", "lease_s.x=1", ""])
def test_a_word_that_names_no_setting_is_refused(word: str) -> None:
    with pytest.raises(InvalidInput, match="names no setting of a stage"):
        overrides_of([word])


def test_a_reward_model_comes_before_the_update() -> None:
    assert with_reward(("snapshot", "update", "gate"), True) == ("snapshot", "reward", "update", "gate")
    assert with_reward(("snapshot", "update", "gate"), False) == ("snapshot", "update", "gate")
    assert with_reward(("snapshot", "reward"), True) == ("snapshot", "reward")
