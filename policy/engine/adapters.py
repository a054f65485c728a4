"""LoRA adapters of one base model: checked before they are loaded, switched in microseconds.

Not thread-safe: PEFT's active adapter is global state of the model, so the decode thread alone calls it.
"""

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from core.errors import ArtifactError, Conflict
from policy.engine.names import BASE, read_lora_config, unknown_model
from policy.engine.packed import PackedWeights


@dataclass(frozen=True)
class _Loaded:
    path: Path
    key: str  # PEFT keeps adapters in module dicts, whose keys may hold no dot


class AdapterShelf:
    """The adapters that are loaded, by name; "base" is none of them and always there."""

    def __init__(self, model: Any, packed: PackedWeights) -> None:
        self._model = model
        self._packed = packed
        self._peft: PeftModel | None = None
        self._loaded: dict[str, _Loaded] = {}
        self._layers: list[Any] = []
        self._active: str | None = BASE
        self._numbers = itertools.count(1)

    def paths(self) -> dict[str, Path]:
        """Names and folders, in order of loading."""
        return {name: loaded.path for name, loaded in self._loaded.items()}

    def load(self, name: str, path: Path) -> None:
        """Load a checked adapter; the same name and path again changes nothing.

        Raises:
            Conflict: the name is taken by another path.
            ArtifactError: the folder does not hold a LoRA adapter of this base.
        """
        path = path.resolve()
        known = self._loaded.get(name)
        if known is not None:
            if known.path == path:
                return
            raise Conflict(f"adapter {name} is loaded from {known.path}; unload it before loading {path}")
        check_adapter(self._model, path)
        key = f"adapter{next(self._numbers)}"
        options = {"is_trainable": False, "autocast_adapter_dtype": False, "low_cpu_mem_usage": True}
        try:
            if self._peft is None:
                self._peft = _wrapped(self._model, path, key, options)
            else:
                self._peft.load_adapter(str(path), adapter_name=key, **options)
        finally:
            self._refresh()
        self._packed.merge(key, [layer for layer in self._layers if key in layer.lora_A])
        self._loaded[name] = _Loaded(path, key)

    def unload(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            NotFound: it is not loaded.
        """
        if name not in self._loaded or self._peft is None:
            raise unknown_model(name)
        self._apply([], disabled=True)  # PEFT warns when the active one goes
        key = self._loaded.pop(name).key
        self._packed.drop(key)
        self._peft.delete_adapter(key)
        self._refresh()

    def activate(self, name: str) -> None:
        """Make the model speak as `name`; cheap when it already does.

        PEFT's own set_adapter walks every module and sets gradients, 19 ms for 135M parameters; per step and
        adapter that is too much, so the two attributes that its layers read are set here.
        """
        if name == self._active:
            return
        key = "" if name == BASE else self._loaded[name].key
        if self._packed.activate(key) or name == BASE:
            self._apply([], disabled=True)
        else:
            self._apply([key], disabled=False)
        self._active = name

    def _apply(self, keys: list[str], *, disabled: bool) -> None:
        for layer in self._layers:
            layer._active_adapter = keys
            layer._disable_adapters = disabled

    def _refresh(self) -> None:
        self._layers = [m for m in self._model.modules() if isinstance(m, LoraLayer)]
        self._active = None
        self.activate(BASE)


def check_adapter(model: Any, path: Path) -> None:
    """Raise ArtifactError unless `path` holds a plain LoRA adapter whose shapes fit `model`."""
    read_lora_config(path)
    try:
        with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{path} holds no readable PEFT adapter in safetensors: {error}") from error
    weights = {_plain(name): tuple(p.shape) for name, p in model.named_parameters()}
    for key, shape in shapes.items():
        module, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
        target = weights.get(f"{module}.weight")
        dimension = None if target is None else target[1] if side.startswith("A") else target[0]
        if dimension is None or dimension != (shape[1] if side.startswith("A") else shape[0]):
            raise ArtifactError(f"{path}: {key} {shape} does not fit this base model ({target}); wrong base?")


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _wrapped(model: Any, path: Path, key: str, options: dict[str, Any]) -> PeftModel:
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 for a property that it deprecates
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(model, str(path), adapter_name=key, **options)
