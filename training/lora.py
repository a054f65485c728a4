"""LoRA on the linear layers of a causal LM's blocks. Source: Hu et al. 2021, arXiv:2106.09685."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig

BLOCK_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora_config(model: Any, *, rank: int, top_layers: int, task: str, save: list[str] | None = None) -> "LoraConfig":
    """LoRA settings for `model`: alpha = 2·rank, no dropout, all block linears of the last `top_layers` blocks.

    Args:
        top_layers: adapt only the last n blocks; 0 means all. Fewer cost less backward time and keep more of the base.
        task: PEFT task type, CAUSAL_LM or SEQ_CLS.
        save: modules trained and saved whole, e.g. a reward model's `score` head.
    """
    from peft import LoraConfig

    n_layers = model.config.num_hidden_layers
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    known = [name for name in BLOCK_LINEARS if name in names]
    first = first_block(model, top_layers) if known else 0
    return LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=known or "all-linear",
        layers_to_transform=list(range(first, n_layers)) if first else None,
        modules_to_save=save,
    )


def first_block(model: Any, top_layers: int) -> int:
    """Index of the first block that `lora_config` adapts."""
    n_layers = int(model.config.num_hidden_layers)
    return n_layers - top_layers if 0 < top_layers < n_layers else 0
