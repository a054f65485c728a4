"""Log-probabilities of completion tokens only, for trainers on a CPU.

TRL's fused LM head scores every position on devices without Triton, prompts and padding included, and
walks the vocabulary several times for metrics. Measured here it took more than half of a DPO step on a CPU.
This one projects only the positions that have a label. On a GPU TRL's own head already does that and stays.
"""

from functools import cache
from typing import Any, NamedTuple

ROWS = 512
"""Tokens whose logits are at hand at once: with a vocabulary of 49k, in fp32, 100 MB."""


def score_labels_only(model: Any, *, sum_sq: bool = False) -> bool:
    """Replace the fused head of a model that TRL's trainer has wrapped; False where it is left as it is.

    The per-token fields `entropy` and `mean_logits`, which only feed metrics, become NaN: they were not computed.

    Args:
        sum_sq: give `log_sum_sq_probs` too, which WPO weights with.
    """
    base = model.get_base_model()
    if base.device.type != "cpu" or _is_scaled(base.config):
        return False
    from trl.trainer.utils import FusedCausalLMOutput

    fused = base.forward

    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None or "shift_labels" in kwargs:
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        import torch

        kwargs["use_cache"] = False
        hidden = base.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (B, T-1, H)
        target = labels[:, 1:]
        mask = target != -100
        said = token_logps(hidden[mask], target[mask], base.get_output_embeddings(), top1=True, squares=sum_sq)
        empty = hidden.new_zeros(mask.shape, dtype=said.logps.dtype)
        unknown = torch.full_like(empty, float("nan"))
        return FusedCausalLMOutput(
            loss=-said.logps.mean(),
            log_probs=empty.masked_scatter(mask, said.logps),
            entropy=unknown,
            log_sum_sq_probs=None if said.squares is None else empty.masked_scatter(mask, said.squares),
            mean_logits=unknown,
            is_top1=torch.zeros_like(mask).masked_scatter(mask, said.top1),
        )

    base.forward = forward
    return True


class Said(NamedTuple):
    """What a head says of M tokens, each (M,); but for `logps` without gradients, and None where it was not asked for.

    Attributes:
        logps: log p(token) in nats.
        entropy: of the distribution before the token, in nats.
        top1: whether it was the likeliest.
        squares: log of the sum of all tokens' squared probabilities.
    """

    logps: Any
    entropy: Any = None
    top1: Any = None
    squares: Any = None


def token_logps(
    states: Any,
    ids: Any,
    head: Any,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    top1: bool = False,
    squares: bool = False,
) -> Said:
    """What a frozen head says of tokens `ids`, (M,), after states, (M, H); more than log p only where it is asked for."""
    asked = {"entropy": entropy, "top1": top1, "squares": squares}
    told = _token_logps().apply(states, ids, head.weight, head.bias, temperature, asked)
    return Said(
        told[0], **{name: value for (name, wanted), value in zip(asked.items(), told[1:], strict=True) if wanted}
    )


@cache
def _token_logps() -> Any:
    import torch
    from torch import nn

    class TokenLogps(torch.autograd.Function):
        """log softmax(W h / T)[id], its gradient taken in the forward pass, while the logits of a few rows are at hand.

        The gradient of a token's log p by its state is (W[id] - sum over v of p(v) W[v]) / T: as many numbers as the state has,
        where autograd would keep the softmax over the vocabulary, twice. The head is frozen and gets none.
        """

        @staticmethod
        def forward(ctx: Any, states: Any, ids: Any, weight: Any, bias: Any, t: float, asked: dict[str, bool]) -> Any:
            found: dict[str, list[Any]] = {name: [] for name in Said._fields}
            gradients = []
            for some, wanted in zip(states.split(ROWS), ids.split(ROWS), strict=True):
                logits = nn.functional.linear(some.to(weight.dtype), weight, bias).float()
                if t != 1.0:
                    logits /= t
                total, at = logits.logsumexp(-1, keepdim=True), wanted[:, None]
                found["logps"].append((logits.gather(1, at) - total)[:, 0])
                if asked["entropy"]:
                    found["entropy"].append(total[:, 0] - ((logits - total).exp_() * logits).sum(-1))
                if asked["top1"]:
                    found["top1"].append(logits.argmax(-1) == wanted)
                if asked["squares"]:
                    found["squares"].append((2 * logits).logsumexp(-1) - 2 * total[:, 0])
                if ctx.needs_input_grad[0]:
                    shares = logits.sub_(total).exp_()
                    shares.scatter_add_(1, at, torch.full_like(total, -1.0))
                    gradients.append(shares.to(weight.dtype) @ weight / -t)
            if gradients:
                ctx.save_for_backward(torch.cat(gradients))
            ctx.given = states.dtype
            told = [torch.cat(parts) if parts else states.new_zeros(0) for parts in found.values()]
            ctx.mark_non_differentiable(*told[1:])
            return tuple(told)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            (gradients,) = ctx.saved_tensors
            return (grads[0][:, None].to(gradients.dtype) * gradients).to(ctx.given), None, None, None, None, None

    return TokenLogps


def _is_scaled(config: Any) -> bool:
    """Whether this architecture changes its logits after the head (soft caps, scales): TRL's own head knows how."""
    names = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    return any(getattr(config.get_text_config(), name, None) is not None for name in names)
