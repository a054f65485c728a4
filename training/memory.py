"""What training trades for memory: a base in four bits, optimiser states in eight, activations that are computed again.

QLoRA: Dettmers et al. 2023, arXiv:2305.14314; 8-bit optimisers: Dettmers et al. 2021, arXiv:2110.02861; gradient checkpointing:
Chen et al. 2016, arXiv:1604.06174. The first two are bitsandbytes', which runs them on a CPU too (but for paging).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.errors import StageError
from core.settings import TrainingSettings
from training.device import Precision, training_dtype

Quantization = Literal["none", "nf4"]


class Held(NamedTuple):
    """How a frozen base is held in memory."""

    quantization: Quantization = "none"
    precision: Precision = "auto"

    @classmethod
    def by(cls, settings: TrainingSettings) -> "Held":
        """As settings say."""
        return cls(settings.quantization, settings.precision)

    def __str__(self) -> str:
        return self.precision if self.quantization == "none" else f"{self.quantization} ({self.precision})"


AS_USUAL = Held()

FOR_INFERENCE = "support_avx512bf16_for_cpu"
"""Where this is true, bitsandbytes lays weights out anew in the first pass without gradients, for a kernel in bf16 that has no
backward pass: what is trained afterwards would get wrong gradients, and scores would hang on which pass came first."""

TABLE = 256
"""Entries of a table of eight bits."""

HEADS = ["lm_head", "score"]
"""Modules that stay whole where the rest is in four bits."""


def load_base(base: Path, device: Any, held: Held = AS_USUAL, *, classifier: bool = False) -> Any:
    """The base's weights on a device, as a causal LM, or with a new scalar head as a classifier.

    Raises:
        StageError: they cannot be quantised here.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    dtype = training_dtype(device, held.precision)
    more: dict[str, Any] = {"dtype": dtype, **({"num_labels": 1} if classifier else {})}
    if held.quantization == "none":
        return kind.from_pretrained(base, **more).to(device)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=held.quantization, bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=HEADS,
    )  # fmt: skip
    try:
        model = kind.from_pretrained(base, quantization_config=config, device_map={"": device}, **more)
    except (ImportError, ValueError, RuntimeError) as error:
        raise StageError(
            f"the base in {base.name} cannot be held in four bits on {device.type}: {str(error).splitlines()[0]}."
            " Set the stage's QUANTIZATION to none."
        ) from error
    for module in model.modules():
        if hasattr(module, FOR_INFERENCE):
            setattr(module, FOR_INFERENCE, False)
    return model


def trainer_arguments(settings: TrainingSettings, device: Any) -> dict[str, Any]:
    """What transformers' trainers are told of optimiser and checkpointing."""
    _demand_pages(settings.optimizer, device)
    told: dict[str, Any] = {"gradient_checkpointing": settings.gradient_checkpointing}
    if settings.optimizer != "adamw":
        told["optim"] = settings.optimizer
    return told


def make_optimizer(settings: TrainingSettings, parameters: Iterable[Any], device: Any, **more: Any) -> Any:
    """AdamW without weight decay over `parameters`, for our own loops."""
    import torch

    _demand_pages(settings.optimizer, device)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters), weight_decay=0.0, **more)
    from bitsandbytes import optim

    kind: Any = vars(optim)[{"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[settings.optimizer]]
    return kind(list(parameters), weight_decay=0.0, **more)


def optimizer_tensors(optimizer: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Its state of named parameters as tensors by `<name>/<part>`, to be kept in a checkpoint."""
    import torch

    return {
        f"{name}/{part}": _own(value.detach()) if torch.is_tensor(value) else torch.tensor(value)
        for name, parameter in parameters.items()
        for part, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: Any, parameters: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Its state as `optimizer_tensors` gave it."""
    import torch

    whole = isinstance(optimizer, torch.optim.AdamW)
    for name, parameter in parameters.items():
        found = {key.rpartition("/")[2]: value for key, value in tensors.items() if key.rpartition("/")[0] == name}
        optimizer.state[parameter] = {
            part: (value if whole else int(value)) if part == "step" else value.to(parameter.device)
            for part, value in found.items()
        }


def keep_whole(model: Any) -> None:
    """Have what is trained in fp32: TRL puts adapters on a quantised base into bf16, in which small steps are lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def recomputable(model: Any, wanted: bool) -> list[Any]:
    """The blocks of a model that `recomputed` takes; none where it is not wanted.

    Raises:
        StageError: its blocks cannot do that.
    """
    if not wanted:
        return []
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise StageError(
            f"{model.config.model_type} has no blocks whose activations could be computed again; set the stage's"
            " GRADIENT_CHECKPOINTING to false"
        )
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return blocks


@contextmanager
def recomputed(blocks: Sequence[Any]) -> Iterator[None]:
    """A forward pass within keeps no activations of these blocks, where gradients are on.

    Their children stay in evaluation mode, as the whole model is: there is no dropout to draw twice.
    """
    import torch

    on = torch.is_grad_enabled()
    for block in blocks:
        block.training = on
    try:
        yield
    finally:
        for block in blocks:
            block.training = False


def _own(tensor: Any) -> Any:
    """The tensor; a copy where it is one of bitsandbytes' tables, which all parameters share and no file holds twice."""
    import torch

    return tensor.contiguous() if tensor.dtype != torch.float32 or tensor.numel() != TABLE else tensor.clone()


def _demand_pages(optimizer: str, device: Any) -> None:
    if optimizer.startswith("paged") and device.type == "cpu":
        raise StageError(
            "OPTIMIZER=paged_adamw_8bit moves states between a GPU's memory and the host's, so it does not work on a CPU;"
            " take adamw_8bit, or adamw"
        )
