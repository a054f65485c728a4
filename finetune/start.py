"""Where an update begins and what it is held to: at the base with a fresh adapter, or at the incumbent's, trained further.

Fresh is the default: the snapshot is cumulative, so nothing that was judged is lost, and what an earlier round got wrong is. The
reference is the base with adapters off unless the incumbent is asked for: held to the base, all rounds together stay within
the distance that one may go, which is what the gate's budget measures too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.settings import UpdateSettings

BASE = "base, adapters off"
REFERENCE = "ref"
"""The adapter that holds a reference beside the one in training; TRL looks for this name."""

IN_TRAINING = "default"
WHY = {
    "fresh": "the adapter is fresh, so the base is where it begins",
    "base": "all rounds together are held to one distance from the base",
    "incumbent": "each round is held to a distance from the one before, as DUNNOCK_UPDATE__REFERENCE asks",
    "nothing": "no adapter is active that could be continued, so it begins at the base",
}


@dataclass(frozen=True)
class Parent:
    """The version whose adapter an update continues.

    Attributes:
        folder: its adapter, the hash checked.
        sha256: that hash.
    """

    name: str
    folder: Path
    sha256: str


@dataclass(frozen=True)
class Start:
    """Where an update begins.

    Attributes:
        parent: None for a fresh adapter.
        held_to_parent: whether the parent is the reference too; else the base is.
        why: why the reference is what it is.
    """

    parent: Parent | None = None
    held_to_parent: bool = False
    why: str = WHY["fresh"]

    @classmethod
    def of(cls, settings: UpdateSettings, parent: Parent | None) -> "Start":
        """By the settings; `parent` is the incumbent where it has an adapter."""
        if settings.adapter == "fresh":
            return cls()
        if parent is None:
            return cls(why=WHY["nothing"])
        return cls(parent, settings.reference == "incumbent", WHY[settings.reference])

    @property
    def reference(self) -> str:
        """What the reference is called in records."""
        return f"the incumbent, {self.parent.name}" if self.parent and self.held_to_parent else BASE

    def facts(self) -> dict[str, Any]:
        """What the record of a run says of it."""
        return {
            "adapter": "continued" if self.parent else "fresh",
            "parent": self.parent.name if self.parent else None,
            "parent_sha256": self.parent.sha256 if self.parent else None,
            "reference": self.reference,
            "reference_why": self.why,
        }

    def work(self, folder: Path) -> Path:
        """The folder of checkpoints below `folder`: those of another parent are not gone on from."""
        return folder / f"from-{self.parent.sha256[:12]}" if self.parent else folder

    def put_on(self, model: Any) -> None:
        """Give a PEFT model whose adapter in training is fresh the parent's weights, and the reference beside it where it is one.

        Raises:
            StageError: the parent's adapter does not fit that one, or the base.
        """
        if self.parent is None:
            return
        take_over(model, self.parent, IN_TRAINING)
        if self.held_to_parent:
            model.add_adapter(REFERENCE, model.peft_config[IN_TRAINING])
            take_over(model, self.parent, REFERENCE)
            for name, parameter in model.named_parameters():
                if f".{REFERENCE}." in name:
                    parameter.requires_grad_(False)


def take_over(model: Any, parent: Parent, adapter: str) -> None:
    """Put the parent's weights into an adapter of a PEFT model, which must be of the same form.

    Raises:
        StageError: rank, scale, layers or the base differ.
    """
    import torch
    from peft import PeftConfig
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    theirs, ours = PeftConfig.from_pretrained(str(parent.folder)), model.peft_config[adapter]
    for what, setting in (
        ("r", "LORA_RANK"),
        ("lora_alpha", "LORA_RANK"),
        ("layers_to_transform", "LORA_TOP_LAYERS"),
        ("target_modules", "LORA_TOP_LAYERS"),
    ):
        was, is_now = _comparable(getattr(theirs, what, None)), _comparable(getattr(ours, what, None))
        if was != is_now:
            raise StageError(
                f"the adapter of {parent.name} cannot be continued: its {what} is {was}, and this update's {is_now}. Set"
                f" {setting} of the stage to what {parent.name} was trained with, or DUNNOCK_UPDATE__ADAPTER=fresh."
            )
    state = load_file(parent.folder / "adapter_model.safetensors")
    wanted = get_peft_model_state_dict(model, adapter_name=adapter)
    odd = [name for name in state.keys() | wanted.keys() if _shape(state.get(name)) != _shape(wanted.get(name))]
    if odd:
        name = min(odd)
        raise StageError(
            f"the adapter of {parent.name} does not fit this base: {name} is {_shape(state.get(name))} there and"
            f" {_shape(wanted.get(name))} here. Use the base that it was trained on, or DUNNOCK_UPDATE__ADAPTER=fresh."
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise StageError(
            f"the adapter of {parent.name} holds values that are no numbers; set DUNNOCK_UPDATE__ADAPTER=fresh"
        )
    set_peft_model_state_dict(model, state, adapter_name=adapter)


def _shape(value: Any) -> str:
    return "missing" if value is None else " × ".join(str(n) for n in value.shape)


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list | tuple) else value
