"""Linear layers of a CPU model over weights that are laid out once for oneDNN, the base's and merged adapters'.

PyTorch gives a plain fp32 linear to MKL, which on AMD cores reaches a third of what oneDNN does on packed
weights at 8 to 128 rows (about 23 against 70 GFLOPS at 32 rows on two Zen 4 cores); that is most of a step.
An adapter's weights are added to the base's before packing, so a step with it costs what the base's does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

ROWS = 32  # the layout is chosen for so many; others run on it too
BYTES_PER_WEIGHT = 4


class PackedLinear(nn.Linear):
    """A linear layer that multiplies with `variants[active]`, or with its own packed weight where that has none."""

    packed: torch.Tensor
    variants: dict[str, torch.Tensor]
    active: str

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.variants.get(self.active, self.packed)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, self.bias, "none", [], "")
        return result


class PackedWeights:
    """What is packed of one model; on other devices, in other precisions or without oneDNN that is nothing.

    Args:
        model: its linear layers are changed in place as far as the budget goes, and keep their plain weights.
        budget_bytes: most memory for packed weights of base and adapters together.
    """

    def __init__(self, model: nn.Module, budget_bytes: int) -> None:
        self._left = budget_bytes
        self._names: dict[str, int] = {}  # merged adapters and their bytes
        for module in model.modules() if _can_pack() else ():
            if type(module) is nn.Linear and _is_plain(module.weight) and _bytes(module) <= self._left:
                _pack(module, module.weight)
                self._left -= _bytes(module)
        self._layers = [module for module in model.modules() if isinstance(module, PackedLinear)]

    def merge(self, name: str, adapted: list[Any]) -> bool:
        """Keep an adapter's weights added to the base's; returns whether they could be.

        Args:
            adapted: PEFT's LoRA layers that have an adapter of this name.
        """
        bases = [layer.get_base_layer() for layer in adapted]
        if not all(isinstance(base, PackedLinear) for base in bases):
            return False
        needed = sum(_bytes(base) for base in bases)
        if needed > self._left:
            return False
        with torch.no_grad():
            for layer, base in zip(adapted, bases, strict=True):
                base.variants[name] = _packed(base.weight + layer.get_delta_weight(name))
        self._left -= needed
        self._names[name] = needed
        return True

    def drop(self, name: str) -> None:
        """Give a merged adapter's memory back; nothing happens where it was not merged."""
        for layer in self._layers:
            layer.variants.pop(name, None)
        self._left += self._names.pop(name, 0)

    def activate(self, name: str) -> bool:
        """Multiply with this adapter's weights from now on; False, and the base's, where it is not merged."""
        merged = name in self._names
        for layer in self._layers:
            layer.active = name if merged else ""
        return merged


@contextmanager
def packed_with(model: nn.Module, adapted: Sequence[Any], name: str) -> Iterator[bool]:
    """While the block runs, `model` multiplies with packed weights that have an adapter merged in; nothing else changes.

    For decoding with a model that is in training: its own weights are only read, and the copy is given back at the end.

    Args:
        adapted: PEFT's LoRA layers that have an adapter of this name; the caller turns adapters off.

    Yields:
        False where nothing could be packed (another device or precision, no oneDNN) and all is as it was.
    """
    layers = {id(layer.get_base_layer()): layer for layer in adapted}
    linears = [
        module
        for path, module in model.named_modules()
        if type(module) is nn.Linear and ".lora_" not in path and _is_plain(module.weight)
    ]
    if not _can_pack() or not set(layers) <= {id(m) for m in linears}:
        yield False
        return
    try:
        with torch.no_grad():
            for module in linears:
                layer = layers.get(id(module))
                _pack(module, module.weight if layer is None else module.weight + layer.get_delta_weight(name))
        yield True
    finally:
        for module in linears:
            if isinstance(module, PackedLinear):
                module.__class__ = nn.Linear  # type: ignore[assignment]
                del module.packed, module.variants, module.active


def _can_pack() -> bool:
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _pack(module: nn.Linear, weight: torch.Tensor) -> None:
    module.__class__ = PackedLinear
    assert isinstance(module, PackedLinear)
    module.packed, module.variants, module.active = _packed(weight), {}, ""


def _is_plain(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _bytes(layer: nn.Linear) -> int:
    return layer.weight.numel() * BYTES_PER_WEIGHT


def _packed(weight: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return result
