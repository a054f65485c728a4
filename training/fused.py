"""LoRA layers and norms with one step of autograd each, where PEFT and transformers take many.

The arithmetic is theirs: y = x Wᵀ + s (x Aᵀ) Bᵀ, and RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467). What is saved is memory
traffic, which on a CPU costs as much as the matmuls: PEFT casts the input to the adapter's fp32, and makes three
intermediate results of the size of the output, each of them kept for the backward pass. Here the small matmuls add onto the large one's
result, in the base's dtype, and only x and x Aᵀ are kept. Gradients of A and B come out in their own dtype. Exact in fp32
up to the order of additions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse(model: Any) -> None:
    """Give the LoRA layers and RMSNorms of a PEFT-wrapped model their fused forms, in place.

    A layer that does more than plain LoRA (dropout, a variant, a quantised base, weights cut into pieces by FSDP or DeepSpeed)
    keeps PEFT's forward; so does a norm whose weight is trained.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear and not module.fan_in_fan_out:
            module.forward = _LoraForward(module)
        elif type(module).__name__ in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"):
            module.forward = _NormForward(module)


class _LoraForward:
    """In place of a layer's forward: the fused form where one plain adapter is on, else PEFT's."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.plain = layer, layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
        if args or kwargs or layer.disable_adapters or layer.merged or name not in layer.lora_A:
            found: Tensor = self.plain(x, *args, **kwargs)
            return found
        a, b, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
        whole = type(a) is nn.Linear and type(b) is nn.Linear and a.weight.ndim == b.weight.ndim == 2
        if (
            not whole
            or b.bias is not None
            or name in layer.lora_variant
            or type(layer.lora_dropout[name]) is not nn.Identity
        ):
            return self.plain(x)  # type: ignore[no-any-return]
        return _Lora.apply(x, base.weight, base.bias, a.weight, b.weight, layer.scaling[name])  # type: ignore[no-any-return, no-untyped-call]


class _Lora(torch.autograd.Function):
    """x: (…, I); weight: (O, I), frozen; a: (r, I); b: (O, r) → (…, O), all products in the weight's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        inner = rows @ a.to(weight.dtype).T  # (M, r)
        out = nn.functional.linear(rows, weight, bias)
        out.addmm_(inner, b.to(weight.dtype).T, alpha=s)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.s, ctx.given = s, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, inner, weight, a, b = ctx.saved_tensors
        grad2 = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)
        within = grad2 @ b.to(weight.dtype)  # (M, r)
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = grad2 @ weight
            dx.addmm_(within, a.to(weight.dtype), alpha=ctx.s)
            dx = dx.view(*grad.shape[:-1], -1).to(ctx.given)
        if ctx.needs_input_grad[3]:
            da = (within.T @ rows).to(a.dtype).mul_(ctx.s)
        if ctx.needs_input_grad[4]:
            db = (grad2.T @ inner).to(b.dtype).mul_(ctx.s)
        return dx, None, None, da, db, None


class _NormForward:
    """In place of a norm's forward: the fused form while its weight is frozen."""

    def __init__(self, norm: Any) -> None:
        self.norm, self.plain = norm, norm.forward

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.norm.weight
        if weight.requires_grad:
            return self.plain(x)  # type: ignore[no-any-return]
        return _RmsNorm.apply(x, weight, self.norm.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    """x: (…, H) → x / rms(x) · weight, the root mean square in fp32; keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, inverse, weight)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, inverse, weight = ctx.saved_tensors
        normed, up = x.float() * inverse, (grad * weight).float()
        up.addcmul_(normed, (normed * up).mean(-1, keepdim=True), value=-1.0)
        return up.mul_(inverse).to(x.dtype), None, None
