"""A detector made ready for inference: folded norms, memory layout, precision, compilation."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resnet_backbone.errors import InvalidValue, UserError
from resnet_backbone.fold import fold_norms

from .box_head import BoxHead
from .boxes import HALF
from .roi_pool import RegionPooler

if TYPE_CHECKING:
    from .detector import RCNN, DenseOutput

MAX_GRAPHS = 200  # of all compiled detectors of a process
DTYPES = (torch.float32, torch.float64, *HALF)


class CannotCompile(UserError, RuntimeError):
    """torch.compile does not work on this machine."""


def prepare(detector: RCNN, dtype: torch.dtype | None, *, compiled: bool) -> RCNN:
    """Make a copy for inference; see `RCNN.for_inference`.

    Args:
        detector: the detector.
        dtype: precision of weights and features; None keeps it.
        compiled: whether to compile `RCNN.dense`.

    Returns:
        The copy.

    Raises:
        InvalidValue: another dtype than a floating-point one.
        CannotCompile: there is no C++ compiler, for example.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InvalidValue(f"dtype={dtype} is not supported: give one of {', '.join(map(str, DTYPES))}, or None")
    before, detector.compiled_dense = detector.compiled_dense, None  # it belongs to the weights of the original
    try:
        ready = copy.deepcopy(detector).eval().requires_grad_(False)
    finally:
        detector.compiled_dense = before
    fold_norms(ready)
    dtype = dtype or next(ready.parameters()).dtype
    for module in ready.modules():
        if isinstance(module, BoxHead):
            module.read_channels_last()
        if isinstance(module, RegionPooler):
            module.keep_half = dtype in HALF
    # both at once would leave tensors that need no conversion in their layout
    ready.to(dtype=dtype).to(memory_format=torch.channels_last)
    ready.is_copy_for_inference = True
    if compiled:
        compile_dense(ready)
    return ready


def compile_for_training(detector: RCNN) -> None:
    """Let a detector compile `RCNN.dense` in its next training step, for images of any size.

    Args:
        detector: the detector, on its device; `compiled_dense` is set. Set it to None to undo this.

    Raises:
        CannotCompile: there is no C++ compiler, for example.
    """
    device = next(detector.parameters()).device
    try:
        torch.compile(lambda x: x + 1, dynamic=True)(torch.zeros(3, device=device))
    except Exception as error:
        raise _cannot(error) from error
    detector.compiled_dense = torch.compile(detector.plain_dense, dynamic=True)


def _cannot(error: Exception) -> CannotCompile:
    reason = (str(error).splitlines() or [""])[0]
    return CannotCompile(
        f"the detector cannot be compiled here ({type(error).__name__}: {reason}): install a C++ compiler (g++ or "
        "clang), or run it without compile (train.compile and eval.compile in a configuration)"
    )


def compile_dense(detector: RCNN) -> None:
    """Compile `RCNN.dense` for images of any size, and run it; `RCNN.compile_s` says how long that took.

    Args:
        detector: a copy for inference.

    Raises:
        CannotCompile: there is no C++ compiler, for example.
    """
    import torch._inductor.config  # not at the top: it takes a second

    began = time.perf_counter()
    traced = torch.compile(detector.plain_dense, dynamic=True)
    # torch counts the graphs of all detectors of a process together, and at its limit of 8 goes on without compiling
    name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    graphs = {name: MAX_GRAPHS}

    def compiled(pixels: Tensor) -> DenseOutput:
        # Freezing makes the weights constants, which inductor lays out as its kernels read them. It must be set while
        # dense is traced, which happens in a call: as an option of torch.compile it comes too late, and does nothing.
        with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(graphs):
            output: DenseOutput = traced(pixels)
        return output

    parameter, preprocess = next(detector.parameters()), detector.preprocess
    multiple = preprocess.pad_to_multiple_px
    short, long = (
        -(-side // multiple) * multiple for side in (preprocess.short_side_px, 4 * preprocess.short_side_px // 3)
    )
    try:
        with torch.inference_mode():
            # sizes as they will come: torch chooses other kernels for much smaller images, and would compile again
            for size in ((short, long), (long, short)):
                pixels = torch.zeros(1, 3, *size).to(parameter)
                compiled(pixels.contiguous(memory_format=torch.channels_last))
    except Exception as error:
        raise _cannot(error) from error
    detector.compiled_dense, detector.compile_s = compiled, time.perf_counter() - began
