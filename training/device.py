"""Which device and dtype this machine trains and serves with."""

from typing import TYPE_CHECKING, Literal

from core.errors import SettingsError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


def find_device(wanted: Device) -> "torch.device":
    """The device of this process: CUDA where there is one and it is not turned down.

    Raises:
        SettingsError: CUDA was demanded and is not there.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError("DUNNOCK_DEVICE=cuda, but torch sees no CUDA device; install the CUDA build or use auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def measuring_dtype(device: "torch.device") -> "torch.dtype":
    """What a model is measured in: bf16 on a GPU that has it, which is what it is served in there, and fp32 on a CPU."""
    import torch

    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def training_dtype(device: "torch.device", precision: Precision = "auto") -> "torch.dtype":
    """What a frozen base is held in while adapters in fp32 are trained on it, and while a trained reward model scores.

    Args:
        precision: `auto` is bf16 where the device multiplies it faster than fp32: most GPUs, and CPUs with AVX512-BF16 or AMX
            (2.1 times as fast on the CPU of docs/training.md). Elsewhere a CPU would take ten times as long.
    """
    import torch

    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _multiplies_bf16() else measuring_dtype(device)


def _multiplies_bf16() -> bool:
    """Whether this CPU has instructions for it, and torch is not told to do without (ATEN_CPU_CAPABILITY=avx2)."""
    import torch

    able = torch.cpu.get_capabilities()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def describe(device: "torch.device", precision: Precision = "auto") -> dict[str, str]:
    """What a record says of a device: its kind, its name where it has one, and the dtype that a base was held in."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    dtype = str(training_dtype(device, precision)).removeprefix("torch.")
    return {"device": str(device), "device_name": name, "dtype": dtype}
