"""Rows of inference: whole detectors, and their dense part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.detector import RCNN
from heads.inference import CannotCompile
from heads.masks import BitMasks
from heads.predictor import Predictor
from heads.structures import Detections

from . import others
from .contenders import BF16, NOT_INSTALLED, Comparison, Contender, as_work, for_each
from .equality import equal_detections, largest_difference, partners, said
from .limit import count_flops
from .models import Pair, as_tensors, compiled_copy, our_batch, pair, their_detections
from .setting import Setting

TORCHVISION, TORCHVISION_BEST = "torchvision", "torchvision, channels_last"
COMPILED_BF16 = "for_inference(bf16, compile=True)"
DETECTRON2, DETECTRON2_BEST, MAYAKU = "detectron2", "detectron2, channels_last", "mayaku"
OTHER_WEIGHTS = "its conventions differ from torchvision's, so its detections differ a little"
Pictures = Sequence[np.ndarray]


def our_work(detector: RCNN, pictures: Pictures, batch_size: int = 1) -> Callable[[], None]:
    """From pictures to bitmaps of their size.

    Args:
        detector: a detector, or a copy for inference.
        pictures: (H, W, 3) uint8 RGB.
        batch_size: pictures that are detected at once.

    Returns:
        The work.
    """
    predictor = Predictor(detector, batch_size=batch_size)

    def work() -> None:
        for found in predictor(pictures):
            if isinstance(found.masks, BitMasks):
                _ = found.masks.bits  # pastes the masks, as the others do

    return work


def their_output(model: Any, picture: np.ndarray, device: str, low: bool = False) -> dict[str, Tensor]:
    """Torchvision's detections in one picture, with pasted masks.

    Args:
        model: the detector.
        picture: (H, W, 3) uint8 RGB.
        device: where it is.
        low: whether to use bf16 autocast.

    Returns:
        Its output.
    """
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=low):
        (output,) = model([tensor.to(device) for tensor in as_tensors([picture])])
    return {name: value.cpu() for name, value in output.items()}


def their_work(model: Any, pictures: Pictures, device: str, low: bool = False) -> Callable[[], None]:
    """The same work by torchvision; arguments as for `their_output`."""

    def work() -> None:
        for picture in pictures:
            output = their_output(model, picture, device, low)
            _ = output["masks"] > 0.5

    return work


def channels_last(model: Any) -> Any:
    """A copy with weights in channels_last memory."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def inference(setting: Setting) -> Iterator[Comparison]:
    """Mask R-CNN R50-FPN, from a picture to bitmaps of its size, one picture at a time.

    Args:
        setting: how to run.

    Yields:
        One comparison.
    """
    both, pictures = pair(setting), setting.pictures
    best = channels_last(both.theirs)
    fast = both.ours.for_inference()
    contenders = [
        Contender(TORCHVISION, their_work(both.theirs, pictures, setting.device)),
        Contender(TORCHVISION_BEST, their_work(best, pictures, setting.device)),
        Contender("detector", our_work(both.ours, pictures), ours=True),
        Contender("for_inference()", our_work(fast, pictures), ours=True),
    ]
    expected = [their_detections(their_output(both.theirs, picture, setting.device)) for picture in pictures]
    found = _detections(fast, pictures)
    same = "detections within 0.01 px and 1e-4 of torchvision's"
    equal = [f"for_inference(): {said(same, *equal_detections(found, expected))}"]
    compiled, contender = _compiled(both.ours, partial(our_work, pictures=pictures))
    contenders.append(contender)
    if compiled is not None:
        equal.append(f"compiled: {said(same, *equal_detections(_detections(compiled, pictures), expected))}")
    contenders += _other_projects(both, setting)
    low, sentences = _bf16(both, best, setting, found)
    flops = sum(count_flops(partial(_detect, both.ours, [picture], setting)) for picture in pictures)
    yield Comparison(
        "inference",
        f"Mask R-CNN R50-FPN, {len(pictures)} pictures one at a time, short side {setting.sizes.short_side_px} px",
        [*contenders, *low],
        reference=TORCHVISION,
        flops=flops,
        items=(len(pictures), "images"),
        equal=[*equal, *sentences],
    )


def _detections(detector: RCNN, pictures: Pictures) -> list[Detections]:
    """Detections in pixels of the pictures, without masks."""
    found = Predictor(detector)(pictures)
    return [Detections(d.boxes.float(), d.scores.float(), d.labels) for d in found]


def _detect(detector: RCNN, pictures: Pictures, setting: Setting) -> object:
    return detector.detect(our_batch(pictures, detector, setting.device))


def _compiled(
    detector: RCNN, work_of: Callable[[RCNN], Callable[[], None]], dtype: torch.dtype | None = None
) -> tuple[RCNN | None, Contender]:
    """The compiled copy, and the contender that does its work; it is missing where nothing can be compiled."""
    low = dtype is not None
    name = COMPILED_BF16 if low else "for_inference(compile=True)"
    precision = BF16 if low else "fp32"
    try:
        compiled = compiled_copy(detector, dtype)
    except CannotCompile as error:
        return None, Contender.absent(name, f"not measurable: {error}", ours=True, dtype=precision)
    return compiled, Contender(name, work_of(compiled), ours=True, dtype=precision, compile_s=compiled.compile_s)


def _bf16(both: Pair, best: Any, setting: Setting, full: Sequence[Detections]) -> tuple[list[Contender], list[str]]:
    names = ("torchvision, channels_last, bf16 autocast", "for_inference(bf16)")
    if setting.no_bf16:
        missing = [Contender.absent(name, setting.no_bf16, ours=True, dtype=BF16) for name in (names[1], COMPILED_BF16)]
        return [Contender.absent(names[0], setting.no_bf16, dtype=BF16), *missing], []
    pictures = setting.pictures
    fast = both.ours.for_inference(dtype=torch.bfloat16)
    compiled, contender = _compiled(both.ours, partial(our_work, pictures=pictures), torch.bfloat16)
    contenders = [
        Contender(names[0], their_work(best, pictures, setting.device, low=True), dtype=BF16),
        Contender(names[1], our_work(fast, pictures), ours=True, dtype=BF16),
        contender,
    ]
    what = "fp32 detections of score 0.3 or more have a partner"
    low = _detections(compiled if compiled is not None else fast, pictures)
    return contenders, [f"bf16: {said(what, *partners(low, full))}"]


def _other_projects(both: Pair, setting: Setting) -> Iterator[Contender]:
    """detectron2 and mayaku with the same weights, where they are installed."""
    pictures, sizes, device = setting.pictures, setting.sizes, setting.device
    if others.installed("detectron2"):
        model = others.detectron2_detector(both.ours, sizes, device)
        for name, one in ((DETECTRON2, model), (DETECTRON2_BEST, channels_last(model))):
            yield Contender(name, for_each(others.detectron2_run(one, sizes), pictures), note=OTHER_WEIGHTS)
    else:
        yield Contender.absent(DETECTRON2, NOT_INSTALLED)
    if others.installed("mayaku"):
        yield Contender(MAYAKU, for_each(others.mayaku_run(both.ours, sizes, device), pictures), note=OTHER_WEIGHTS)
    else:
        yield Contender.absent(MAYAKU, NOT_INSTALLED)


def dense(setting: Setting) -> Iterator[Comparison]:
    """Backbone, pyramid and RPN head on one image.

    Args:
        setting: how to run.

    Yields:
        One comparison.
    """
    both = pair(setting)
    pixels = our_batch(setting.pictures[:1], both.ours, setting.device).pixels
    plain = pixels.contiguous()
    fast = both.ours.for_inference()

    def theirs(model: Any, inputs: Tensor, low: bool = False) -> Any:
        with torch.inference_mode(), torch.autocast(setting.device, torch.bfloat16, enabled=low):
            features = model.backbone(inputs)
            return list(features.values()), *model.rpn.head(list(features.values()))

    def ours(detector: RCNN, inputs: Tensor) -> Any:
        with torch.inference_mode():
            return detector.dense(inputs)

    def ours_for(detector: RCNN, inputs: Tensor) -> Callable[[], None]:
        return as_work(ours, detector, inputs)

    best = channels_last(both.theirs)
    contenders = [
        Contender(TORCHVISION, as_work(theirs, both.theirs, plain)),
        Contender(TORCHVISION_BEST, as_work(theirs, best, pixels)),
        Contender("detector", as_work(ours, both.ours, pixels), ours=True),
        Contender("for_inference()", as_work(ours, fast, pixels), ours=True),
    ]
    expected = theirs(both.theirs, plain)[0]
    difference = largest_difference(list(ours(fast, pixels).features.values()), expected)
    equal = [f"for_inference(): features within {difference:.1e} of each level's largest value of torchvision's"]
    for dtype in (None,) if setting.no_bf16 else (None, torch.bfloat16):
        inputs = pixels if dtype is None else pixels.to(dtype)
        compiled, contender = _compiled(both.ours, partial(ours_for, inputs=inputs), dtype)
        contenders.append(contender)
        if compiled is not None:
            difference = largest_difference(list(ours(compiled, inputs).features.values()), expected)
            equal.append(f"compiled, {contender.dtype}: within {difference:.1e}")
    low = "torchvision, bf16 autocast"
    if setting.no_bf16:
        contenders.append(Contender.absent(COMPILED_BF16, setting.no_bf16, ours=True, dtype=BF16))
        contenders.append(Contender.absent(low, setting.no_bf16, dtype=BF16))
    else:
        contenders.append(Contender(low, as_work(theirs, best, pixels, True), dtype=BF16))
    openvino, sentences = _openvino(fast, pixels, expected, setting)
    yield Comparison(
        "dense",
        f"backbone, FPN and RPN head, one image of {pixels.shape[-2]}x{pixels.shape[-1]} px",
        [*contenders, *openvino],
        reference=TORCHVISION,
        flops=count_flops(partial(both.ours.dense, pixels)),
        items=(1, "images"),
        equal=[*equal, *sentences],
    )


def _openvino(
    fast: RCNN, pixels: Tensor, expected: Sequence[Tensor], setting: Setting
) -> tuple[list[Contender], list[str]]:
    contenders, equal = [], []
    for dtype in ("fp32", BF16):
        name = f"OpenVINO, {dtype}"
        why = "" if others.installed("openvino") else NOT_INSTALLED
        why = why or ("not measurable: OpenVINO has no CUDA" if setting.on_cuda else "")
        why = why or (setting.no_bf16 if dtype == BF16 else "")
        if why:
            contenders.append(Contender.absent(name, why, dtype=dtype))
            continue
        run, seconds = others.openvino_dense(fast, pixels.contiguous(), dtype)
        contenders.append(
            Contender(name, as_work(run), dtype=dtype, compile_s=seconds, note="compiled for this one size")
        )
        features = [torch.from_numpy(array) for array in run()[: len(expected)]]
        equal.append(f"{name}: within {largest_difference(features, expected):.1e}")
    return contenders, equal
