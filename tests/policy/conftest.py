"""A tiny real base with two adapters, and a decoder over it. What the texts must be comes from `generate`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from core.messages import user
from policy.engine.base import LoadedBase, load_base
from policy.engine.decoder import Decoder
from policy.engine.generation import Sampling
from tests.tiny import load_tiny, make_tiny_adapter, make_tiny_base

ADAPTERS = {"one": 1, "two": 2}  # names and seeds
Golden = Callable[[str, str, int], str]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, and adapters `one` and `two`."""
    folder = tmp_path_factory.mktemp("artifacts")
    make_tiny_base(folder / "base")
    for name, seed in ADAPTERS.items():
        make_tiny_adapter(folder / "base", folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def base(artifacts: Path) -> LoadedBase:
    return load_base(artifacts / "base", "cpu")


@pytest.fixture(scope="module")
def decoder(artifacts: Path) -> Iterator[Decoder]:
    """A decoder with both adapters loaded."""
    fresh = load_base(artifacts / "base", "cpu")  # PEFT changes the model that it wraps
    decoder = Decoder(fresh, max_rows=16)
    for name in ADAPTERS:
        decoder.load(name, artifacts / name)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def golden(artifacts: Path, base: LoadedBase) -> Golden:
    """(adapter, prompt, max tokens) -> what transformers' own greedy `generate` writes for it alone."""
    models = {"base": base.model, **{name: load_tiny(artifacts / "base", artifacts / name) for name in ADAPTERS}}

    def text(name: str, prompt: str, max_tokens: int) -> str:
        ids = torch.tensor([base.encode(user(prompt))])
        with torch.inference_mode():
            out = models[name].generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens
            )
        return base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return text


def greedy(max_tokens: int, stop: tuple[str, ...] = ()) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0.0, stop=stop)
