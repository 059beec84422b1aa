"""Training steps on the pretend device. Prints one line of JSON per case; `test_pretend.py` reads them.

The argument is a neck, or "waits". Every case runs on the CPU too, with the same random numbers.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heads import DETECTORS, RCNN, BitMasks, DetectorRecipe, MaskHeadSpec, PolygonMasks, Targets
from heads.build import assemble, empty_backbone
from heads.conventions import CONVENTIONS
from tests.tools.pretend.device import DEVICE, waits
from tools.data.loader import Batch
from tools.engine.tasks import Detection

CPU = torch.device("cpu")
CASES = list(
    itertools.product(("fpn", "c4", "dc5"), CONVENTIONS, ("polygons", "bitmaps"), (False, True), ("bn", "frozen_bn"))
)


def make_detector(neck: str = "fpn", conventions: str = "detectron2", norm: str = "gn") -> tuple[RCNN, DetectorRecipe]:
    """A small Mask R-CNN around a ResNet-18."""
    recipe = DETECTORS[f"mask_rcnn_r50_{neck}"]
    recipe = replace(
        recipe,
        backbone="resnet18",
        norm=norm,
        frozen_stages=0,
        pyramid_channels=16,
        conventions=CONVENTIONS[conventions],
        rpn=replace(recipe.rpn, samples_per_image=32, keep_after_nms_train=40, keep_after_nms_test=40),
        box=replace(recipe.box, hidden=32, samples_per_image=32),
        mask=replace(recipe.mask or MaskHeadSpec(), channels=16),
    )
    torch.manual_seed(0)
    return assemble(recipe, 3, empty_backbone(recipe)), recipe


def make_batch(count: int, masks: str = "polygons", *, empty: bool = False) -> Batch:
    """Images with two objects each; with `empty`, the last one has none."""
    images, targets = [], []
    for index in range(count):
        images.append(torch.randint(0, 256, (3, 64, 80 - 16 * (index % 2)), dtype=torch.uint8))
        boxes = [[4.0, 6.0, 40.0, 44.0], [20.0, 10.0, 60.0, 60.0]][: 0 if empty and index == count - 1 else 2]
        targets.append(
            Targets(
                torch.tensor(boxes).reshape(-1, 4),
                torch.arange(len(boxes)),
                _masks(boxes, images[-1].shape[1:], masks),
            )
        )
    return Batch(images, targets, list(range(count)), [])


def _masks(boxes: Sequence[Sequence[float]], size: Sequence[int], kind: str) -> PolygonMasks | BitMasks:
    if kind == "polygons":
        return PolygonMasks(tuple((np.array([[x1, y1], [x2, y1], [x2, y2]]),) for x1, y1, x2, y2 in boxes))
    bits = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for plane, (x1, y1, x2, y2) in zip(bits, boxes):
        plane[int(y1) : int(y2), int(x1) : int(x2)] = True
    return BitMasks(bits)


def step(model: nn.Module, recipe: DetectorRecipe, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Forward and backward pass; the losses."""
    assert isinstance(model, RCNN)
    torch.manual_seed(1)
    outcome = Detection(recipe, model.preprocess, 3).outcome(model, batch, device)
    torch.stack(list(outcome.losses.values())).sum().backward()
    return dict(outcome.losses)


def gradient_norm(model: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def compared(neck: str, conventions: str, masks: str, empty: bool, norm: str) -> dict[str, Any]:
    """Losses and the norm of the gradient on the device and on the CPU."""
    detector, recipe = make_detector(neck, conventions, norm)
    batch = make_batch(2, masks, empty=empty)
    results = {}
    for device in (DEVICE, CPU):
        model = copy.deepcopy(detector).to(device).train()
        losses = step(model, recipe, batch.pin_memory(), device)
        losses["gradient"] = gradient_norm(model)
        results[device.type] = {name: value.item() for name, value in losses.items()}
    return {"case": [neck, conventions, masks, empty, norm], **results}


def waits_of_step(count: int, masks: str) -> dict[str, int]:
    """Where the host waits in a training step of `count` images: "what at line" -> how often."""
    detector, recipe = make_detector()
    model = detector.to(DEVICE).train()
    batch = make_batch(count, masks).pin_memory()
    with waits() as counted:
        step(model, recipe, batch, DEVICE)
    return {f"{what} at {line}": number for (what, line), number in counted.items()}


if __name__ == "__main__":
    if sys.argv[1] == "waits":
        for masks in ("polygons", "bitmaps"):
            for count in (1, 3):
                print(json.dumps({"waits": waits_of_step(count, masks), "images": count, "masks": masks}), flush=True)
    for case in CASES:
        if case[0] == sys.argv[1]:
            print(json.dumps(compared(*case)), flush=True)
