"""Which device and dtype this machine trains and serves with."""

from typing import TYPE_CHECKING, Literal

from core.errors import SettingsError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]


def find_device(wanted: Device) -> "torch.device":
    """The device of this process: CUDA where there is one and it is not turned down.

    Raises:
        SettingsError: CUDA was demanded and is not there.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError("DUNNOCK_DEVICE=cuda, but torch sees no CUDA device; install the CUDA build or use auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def find_dtype(device: "torch.device") -> "torch.dtype":
    """bf16 on a GPU that has it, else fp32: bf16 matmul without AVX512 is a tenth as fast as fp32 on a CPU."""
    import torch

    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def describe(device: "torch.device") -> dict[str, str]:
    """What a record says of a device: its kind, its name where it has one, and the dtype that models have on it."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {"device": str(device), "device_name": name, "dtype": str(find_dtype(device)).removeprefix("torch.")}
