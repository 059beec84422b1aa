"""The arithmetic limit: how many operations the processor does in a large matrix product, and how many a row needs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from .contenders import BF16, FP32
from .setting import Setting

DTYPES = {FP32: torch.float32, BF16: torch.bfloat16}


def limits(setting: Setting, repeats: int = 5) -> dict[str, float]:
    """Measure a large matrix product per dtype.

    Args:
        setting: device and size of the matrices.
        repeats: number of products; the fastest counts, because it is a limit.

    Returns:
        dtype -> floating-point operations per second; bf16 is left out where it is not measurable.
    """
    found = {}
    for name, dtype in DTYPES.items():
        if name == BF16 and setting.no_bf16:
            continue
        side = setting.sizes.matrix
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        times = []
        for _ in range(repeats + 1):
            setting.synchronise()
            began = time.perf_counter()
            a @ b
            setting.synchronise()
            times.append(time.perf_counter() - began)
        found[name] = 2 * side**3 / min(times[1:])
    return found


def count_flops(function: Callable[[], object], *, gradients: bool = False) -> int:
    """Count the floating-point operations of convolutions and matrix products.

    Args:
        function: the work; it is run once.
        gradients: whether it computes gradients.

    Returns:
        Operations; a multiplication and an addition are two.
    """
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def share(flops: int | None, seconds: float | None, limit: float | None) -> float | None:
    """The share of the arithmetic limit that was reached.

    Args:
        flops: operations of the work.
        seconds: the time that it took.
        limit: operations per second of the processor.

    Returns:
        A fraction; None if one of them is unknown.
    """
    return flops / seconds / limit if flops and seconds and limit else None
