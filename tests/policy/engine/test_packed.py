from pathlib import Path

import pytest
from torch import nn

from policy.engine.base import load_base
from policy.engine.decoder import Decoder
from policy.engine.packed import PackedLinear, PackedWeights
from tests.policy.conftest import Golden, greedy
from tests.policy.engine.test_decoder import ask, read
from tests.tiny import load_tiny


def weight_bytes(folder: Path) -> int:
    return sum(4 * m.weight.numel() for m in load_tiny(folder).modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_texts_are_the_same_with_nothing_the_base_or_some_adapters_packed(
    artifacts: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    monkeypatch.setattr("policy.engine.decoder.MB", 1)  # the tiny model is smaller than that
    base = load_base(artifacts / "base", "cpu")
    decoder = Decoder(base, packed_mb=copies * weight_bytes(artifacts / "base"))
    for name in ("one", "two", "one"):
        decoder.load(name, artifacts / name)
    packed = [m for m in base.model.modules() if isinstance(m, PackedLinear)]
    assert bool(packed) == (copies > 0)
    merged = max((len(m.variants) for m in packed), default=0)
    assert merged == (1 if copies == 2 else 0)
    for name in ("base", "one", "two", "base"):
        assert read(ask(decoder, "What is bread?", greedy(40), name))[0] == golden(name, "What is bread?", 40)
    decoder.unload("one")
    assert all(not m.variants for m in packed)
    assert read(ask(decoder, "What is bread?", greedy(40), "two"))[0] == golden("two", "What is bread?", 40)
    decoder.close()


def test_a_model_is_packed_once(artifacts: Path) -> None:
    model = load_tiny(artifacts / "base")
    PackedWeights(model, 10**9)
    packed = [m.packed for m in model.modules() if isinstance(m, PackedLinear)]
    PackedWeights(model, 10**9)
    assert all(
        a is m.packed for a, m in zip(packed, [m for m in model.modules() if isinstance(m, PackedLinear)], strict=True)
    )


def test_what_is_not_plain_fp32_is_left_alone(artifacts: Path) -> None:
    model = load_tiny(artifacts / "base").bfloat16()
    weights = PackedWeights(model, 10**9)
    assert not any(isinstance(m, PackedLinear) for m in model.modules())
    assert not weights.activate("any")
