"""Log-probabilities of completion tokens only, for trainers on a CPU.

TRL's fused LM head scores every position on devices without Triton, prompts and padding included, and
walks the vocabulary several times for metrics. Measured here it took more than half of a DPO step on a CPU.
This one projects only the positions that have a label. On a GPU TRL's own head already does that and stays.
"""

from typing import Any

POSITIONS = 1024
"""Positions per chunk: 1024 × a vocabulary of 49k in fp32 are 200 MB of logits."""


def score_labels_only(model: Any) -> bool:
    """Replace the fused head of a model that TRL's trainer has wrapped; False where it is left as it is.

    The per-token fields `entropy` and `mean_logits`, which only feed metrics, become NaN: they were not computed.
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
        logps, top1 = label_logps(hidden[mask], target[mask], base.get_output_embeddings())
        empty = hidden.new_zeros(mask.shape)
        unknown = torch.full_like(empty, float("nan"))
        return FusedCausalLMOutput(
            loss=-logps.mean(),
            log_probs=empty.masked_scatter(mask, logps),
            entropy=unknown,
            mean_logits=unknown,
            is_top1=torch.zeros_like(mask).masked_scatter(mask, top1),
        )

    base.forward = forward
    return True


def label_logps(hidden: Any, labels: Any, head: Any) -> tuple[Any, Any]:
    """(M, H) states and (M,) token ids → (M,) log p(token) in nats, and (M,) whether it was the likeliest."""
    import torch

    logps, top1 = [], []
    for states, ids in zip(hidden.split(POSITIONS), labels.split(POSITIONS), strict=True):
        logits = head(states).float()
        logps.append(-torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
        with torch.no_grad():
            top1.append(logits.argmax(-1) == ids)
    return torch.cat(logps), torch.cat(top1)


def _is_scaled(config: Any) -> bool:
    """Whether this architecture changes its logits after the head (soft caps, scales): TRL's own head knows how."""
    names = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    return any(getattr(config.get_text_config(), name, None) is not None for name in names)
