"""What this machine's processor can multiply, in fp32 and in what trainings are held in: the bound that no trainer on it can beat."""

import time
from typing import Any

from training.device import training_dtype

SQUARE = 2048
ROWS = 1024
SECONDS = 3.0


def measure(config: Any) -> dict[str, float]:
    """GFLOP/s (two operations for a multiplication and its addition), the best of many runs of each product.

    Args:
        config: of the base model; `block_gflops` multiplies ROWS tokens with its widest weight.

    Returns:
        `square_gflops`: 2048 x 2048 by 2048 x 2048. `block_gflops`: the model's own widths. `gflops`: the larger one, the limit,
        in the dtype of trainings here. `fp32_gflops`: the same in fp32.
    """
    import torch

    found: dict[str, float] = {}
    for dtype in (torch.float32, training_dtype(torch.device("cpu"))):
        square = _best(SQUARE, SQUARE, SQUARE, dtype)
        block = _best(ROWS, config.hidden_size, config.intermediate_size, dtype)
        found |= {"square_gflops": round(square, 1), "block_gflops": round(block, 1)}
        most = round(max(square, block), 1)
        found |= {"gflops": most} | ({"fp32_gflops": most} if dtype is torch.float32 else {})
    return found


def _best(rows: int, inner: int, columns: int, dtype: Any) -> float:
    import torch

    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    torch.mm(left, right, out=out)
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * inner * columns / best / 1e9
