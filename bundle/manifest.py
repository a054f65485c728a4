"""What a bundle says of itself: what it holds, what it needs, how large it is and how near it comes to the full version.

The canonical bytes of a manifest (JSON, keys sorted, no white space) are what is signed; they name every file with its hash.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import BundleRefused

MANIFEST = "manifest.json"
RULES = "rules.json"
PROMPTS = "system_prompts.json"
SETTINGS = "settings.json"
ADAPTER = "adapter"
MODEL = "model"
GGUF = f"{MODEL}/model.gguf"
GUARD = "guard"
ENCODER = "encoder"

Form = Literal["gguf", "adapter"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MOST_PATH = 100
"""Characters of a file's path: what a tar header holds without more headers."""


def _inside(path: str) -> str:
    if len(path) > MOST_PATH or not all(_SEGMENT.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"{path!r} is no plain path below the bundle's folder")
    return path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BundleFile(_Part):
    """A file of the bundle."""

    path: Annotated[str, AfterValidator(_inside)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Policy(_Part):
    """The policy version, as the house's database has it.

    Attributes:
        snapshot_sha256: of the data that trained it; None for the base itself.
        gate_passed: whether a gate let it pass; None where none was asked.
    """

    name: Annotated[str, Field(min_length=1, max_length=60)]
    base_model: str
    base_sha256: Sha256
    adapter_sha256: Sha256 | None
    snapshot_sha256: Sha256 | None
    gate_passed: bool | None


class NeededBase(_Part):
    """A base model that has to be on the device already: it is not in the bundle.

    Attributes:
        files: sha256 of configuration and tokenizer, by name.
    """

    name: str
    weights_sha256: Sha256
    files: dict[str, Sha256]


class GuardPart(_Part):
    """The guard's model in the bundle; `model_sha256` is None where there is none, and `why` says so."""

    model_sha256: Sha256 | None
    encoder_sha256: Sha256 | None
    snapshot_sha256: Sha256 | None
    why: str


class Manifest(_Part):
    """A bundle's manifest; see the module. `format` stands for the keys of `sizes` and `quality` too."""

    format: Literal[1]
    form: Form
    quantisation: str | None
    made_at: str
    tenant: str | None
    policy: Policy
    needs: NeededBase | None
    guard: GuardPart
    versions: dict[str, str]
    files: tuple[BundleFile, ...]
    sizes: dict[str, Any]
    quality: dict[str, Any]

    @model_validator(mode="after")
    def _files_are_apart(self) -> "Manifest":
        paths = [file.path for file in self.files]
        folded = [path.casefold() for path in paths]
        inside = {parent for path in folded for parent in _parents(path)}
        if paths != sorted(paths) or len(set(folded)) != len(folded) or inside & set(folded):
            raise ValueError("its files are not in order, or two of them have one place")
        if {MANIFEST, "manifest.sig"} & set(folded):
            raise ValueError("it names itself among its files")
        return self

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        told = self.model_dump(mode="json")
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_manifest(data: bytes) -> Manifest:
    """A manifest from its canonical bytes.

    Raises:
        BundleRefused: it is none of this format, or its bytes are not the canonical ones.
    """
    try:
        found = Manifest.model_validate(json.loads(data))
    except (ValueError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BundleRefused(f"the manifest is none of format 1, which this Dunnock reads: {why}") from error
    if found.canonical() != data:
        raise BundleRefused("the manifest is not in its canonical form")
    return found


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
