"""Which dtype this machine trains in, and what trainings in bf16 come to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_tiny_base
from tests.training.test_memory import each_kind, run
from training.device import describe, measuring_dtype, training_dtype

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("able", "told", "expected"),
    [
        ({"avx512_bf16": True}, "AVX512", torch.bfloat16),
        ({"amx_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx512_f": True}, "AVX512", torch.float32),  # it would be emulated
        ({"avx512_bf16": True}, "AVX2", torch.float32),
        ({}, "DEFAULT", torch.float32),
    ],
)
def test_a_cpu_trains_in_bf16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], told: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: told)
    assert training_dtype(CPU) is expected
    assert training_dtype(CPU, "float32") is torch.float32
    assert training_dtype(CPU, "bfloat16") is torch.bfloat16
    assert measuring_dtype(CPU) is torch.float32
    assert describe(CPU)["dtype"] == str(expected).removeprefix("torch.")


@each_kind
def test_on_a_base_in_bf16_adapters_learn_in_fp32_nearly_as_on_one_in_fp32(
    base: Path, tmp_path: Path, kind: str
) -> None:
    """Each kind of training; what is recorded says so, and the first steps' losses are nearly those of fp32."""
    import json

    facts, adapter = run(kind, base, tmp_path, precision="bfloat16")
    record: dict[str, Any] = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["dtype"] == "bfloat16"
    assert record["settings"]["precision"] == "bfloat16"
    assert all(value.dtype == torch.float32 for value in adapter.values())
    assert min(float(value.abs().max()) for name, value in adapter.items() if "lora_B" in name) > 1e-3
    if kind in ("reward", "rules", "dpo"):  # the others' first texts are drawn, from probabilities that differ a little
        whole, _ = run(kind, base, tmp_path / "whole", precision="float32")
        assert facts["log"][0]["loss"] == pytest.approx(whole["log"][0]["loss"], rel=0.02)
        assert facts["log"][-1]["loss"] == pytest.approx(whole["log"][-1]["loss"], rel=0.1)
        assert facts["log"][-1]["loss"] < facts["log"][0]["loss"]
