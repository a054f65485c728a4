"""A tiny base, an adapter that changes it, and probers of both."""

from pathlib import Path

import pytest
import torch

from evals.prober import Prober
from tests.tiny import make_tiny_adapter, make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def prober(base: Path, adapter: Path) -> Prober:
    return Prober(base, adapter, "cpu", torch.float32)


@pytest.fixture(scope="module")
def alone(base: Path) -> Prober:
    """The base beside itself."""
    return Prober(base, None, "cpu", torch.float32)
