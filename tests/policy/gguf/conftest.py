"""The tiny base as GGUF, in fp32 and without the shortcuts of attention, so that tokens can be held to transformers' own."""

from pathlib import Path

import pytest

from policy.gguf.base import GgufBase, load_gguf_base
from policy.gguf.llama import LlamaSettings
from tests.tiny import CONTEXT_TOKENS

EXACT = LlamaSettings(slots=8, slot_tokens=CONTEXT_TOKENS, threads=1, exact=True)


@pytest.fixture(scope="module")
def gguf_base(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> GgufBase:
    return load_gguf_base(artifacts / "base", tmp_path_factory.mktemp("cache"), "f32", CONTEXT_TOKENS)
