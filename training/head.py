"""Log-probabilities of completion tokens only, for trainers on a CPU.

TRL's fused LM head scores every position on devices without Triton, prompts and padding included, and
walks the vocabulary several times for metrics. Measured here it took more than half of a DPO step on a CPU.
This one projects only the positions that have a label. On a GPU TRL's own head already does that and stays.
"""

from typing import Any

POSITIONS = 1024
"""Positions per chunk: 1024 × a vocabulary of 49k in fp32 are 200 MB of logits."""


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
        logps, top1, squares = label_logps(hidden[mask], target[mask], base.get_output_embeddings(), sum_sq=sum_sq)
        empty = hidden.new_zeros(mask.shape, dtype=logps.dtype)
        unknown = torch.full_like(empty, float("nan"))
        return FusedCausalLMOutput(
            loss=-logps.mean(),
            log_probs=empty.masked_scatter(mask, logps),
            entropy=unknown,
            log_sum_sq_probs=None if squares is None else empty.masked_scatter(mask, squares),
            mean_logits=unknown,
            is_top1=torch.zeros_like(mask).masked_scatter(mask, top1),
        )

    base.forward = forward
    return True


def label_logps(hidden: Any, labels: Any, head: Any, *, sum_sq: bool = False) -> tuple[Any, Any, Any]:
    """(M, H) states and (M,) token ids → what the head says of each.

    Returns:
        (M,) log p(token) in nats; (M,) whether it was the likeliest; with `sum_sq`, (M,) log of the sum of all tokens'
        squared probabilities, without gradients, else None.
    """
    import torch

    logps, top1, squares = [], [], []
    for states, ids in zip(hidden.split(POSITIONS), labels.split(POSITIONS), strict=True):
        logits = head(states).float()
        logps.append(-torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
        with torch.no_grad():
            top1.append(logits.argmax(-1) == ids)
            if sum_sq:
                squares.append((2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1))
    return torch.cat(logps), torch.cat(top1), torch.cat(squares) if sum_sq else None


def _is_scaled(config: Any) -> bool:
    """Whether this architecture changes its logits after the head (soft caps, scales): TRL's own head knows how."""
    names = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    return any(getattr(config.get_text_config(), name, None) is not None for name in names)
