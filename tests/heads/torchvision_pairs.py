"""Shared by the parity tests with torchvision: one of its detectors, and ours with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.ops import FrozenBatchNorm2d

from heads.build import assemble, empty_backbone
from heads.detector import RCNN
from heads.images import resize, resized_size
from heads.recipes import DETECTORS, DetectorRecipe
from heads.structures import ImageBatch, ImageSize
from resnet_backbone import Preprocess, load_weights
from tools.jobs.benchmarks.models import SPREAD, calibrate

EVERYTHING = 1_000_000
NAMES = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2")
LIMITS = {"short_side_px": 256, "long_side_px": 400}


def recipe_of(name: str, proposals: int) -> DetectorRecipe:
    """Our recipe for a builder of torchvision, with all anchors and regions sampled and this number of proposals."""
    recipe = DETECTORS[name]
    rpn = replace(
        recipe.rpn,
        samples_per_image=EVERYTHING,
        positive_fraction=1.0,
        keep_after_nms_train=proposals,
        keep_after_nms_test=proposals,
    )
    head_norm = "frozen_bn" if recipe.pyramid_norm == "bn" else "none"  # the norms of v2's heads, frozen as in `pair`
    box = replace(recipe.box, samples_per_image=EVERYTHING, positive_fraction=1.0, norm=head_norm)
    mask = recipe.mask and replace(recipe.mask, norm=head_norm)
    return replace(recipe, norm="frozen_bn", pyramid_norm=head_norm, rpn=rpn, box=box, mask=mask)


def pair(
    name: str,
    proposals: int,
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, int] = LIMITS,
    class_spread: float = 2.0,
) -> tuple[Any, RCNN]:
    """torchvision's detector with calibrated random weights and ours with the same weights, in float32.

    Args:
        name: builder in `torchvision.models.detection`.
        proposals: number of proposals after non-maximum suppression.
        images: (H, W, 3) uint8, for the calibration.
        monkeypatch: replaces BatchNorm2d while torchvision's detector is built.
        limits: short and long side of the resized images, pixels.
        class_spread: standard deviation of the class logits.
    """
    torch.manual_seed(1)
    # without weights torchvision builds BatchNorm2d, which would use batch statistics; the keys are the same
    with monkeypatch.context() as patch:
        patch.setattr(nn, "BatchNorm2d", FrozenBatchNorm2d)
        reference: Any = getattr(tv, name)(
            weights=None,
            weights_backbone=None,
            num_classes=91,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            rpn_batch_size_per_image=EVERYTHING,
            rpn_positive_fraction=1.0,
            box_batch_size_per_image=EVERYTHING,
            box_positive_fraction=1.0,
            min_size=limits["short_side_px"],
            max_size=limits["long_side_px"],
        )
    for key, parameter in reference.backbone.body.named_parameters():
        parameter.requires_grad_(key.startswith(("layer2", "layer3", "layer4")))
    calibrate(reference, tensors(images, torch.float32), {**SPREAD, "box_predictor.cls_score": class_spread})
    recipe = recipe_of(name, proposals)
    ours = assemble(recipe, 90, empty_backbone(recipe))
    assert load_weights(ours, reference.state_dict(), source="torchvision").complete
    ours.preprocess = replace(ours.preprocess, **limits)
    return reference, ours


def in_double(reference: Any, ours: RCNN, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, RCNN]:
    """Convert both to float64, and replace two steps of torchvision that compute in float32.

    These are the labels of the RPN, which make its loss float32, and the ratio that scales boxes to the image.
    """
    assign = reference.rpn.assign_targets_to_anchors

    def assign_in_double(*args: Any) -> Any:
        labels, boxes = assign(*args)
        return [label.double() for label in labels], boxes

    reference.rpn.assign_targets_to_anchors = assign_in_double

    def resize_boxes(boxes: Tensor, size_before: Any, size_after: Any) -> Tensor:
        return boxes * boxes.new_tensor([size_after[1] / size_before[1], size_after[0] / size_before[0]] * 2)

    for module in (tv.transform, tv.generalized_rcnn, tv.roi_heads):
        if hasattr(module, "resize_boxes"):
            monkeypatch.setattr(module, "resize_boxes", resize_boxes)
    return reference.double(), ours.double()


def tensors(images: list[np.ndarray], dtype: torch.dtype) -> list[Tensor]:
    """The inputs of torchvision's detectors: (3, H, W) with values from 0 to 1."""
    return [torch.tensor(image).permute(2, 0, 1).to(dtype) / 255 for image in images]


def batch_of(images: list[np.ndarray], preprocess: Preprocess) -> ImageBatch:
    """Our float64 batch of the images, resized and normalised as in `Predictor`."""
    limits, planes = {"short_side_px": preprocess.short_side_px, "long_side_px": preprocess.long_side_px}, []
    for image in images:
        size = resized_size(ImageSize(*image.shape[:2]), **limits, how="torch")
        planes.append(torch.tensor(resize(image, size, how="torch", precise=True)).permute(2, 0, 1))
    return ImageBatch.from_images(planes, preprocess)
