"""Shared by the tests of golden files: builds our detector for a file, runs it and compares its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heads.box_head import BoxHeadSpec
from heads.build import assemble
from heads.detector import RCNN
from heads.keymaps import keys_in
from heads.mask_head import MaskHeadSpec
from heads.predictor import to_image
from heads.recipes import DETECTORS, NECKS, DetectorRecipe
from heads.rpn import RPNSpec
from heads.structures import Detections, ImageBatch, ImageSize, Proposals
from resnet_backbone import ResNetBackbone, load_weights

EVERYTHING = 1_000_000
WIDTHS = (16, 32, 64, 128)  # a quarter of ResNet-50's


def narrow_recipe(name: str, *, keep: tuple[int, int], hidden: int = 64, **changes: Any) -> DetectorRecipe:
    """The named recipe at the files' widths, with all anchors and regions sampled.

    Args:
        name: key of DETECTORS.
        keep: number of proposals before and after non-maximum suppression.
        hidden: channels of the box head's hidden layers.
        changes: further fields of the recipe to replace.
    """
    recipe = DETECTORS[name]
    rpn: RPNSpec = replace(
        recipe.rpn,
        samples_per_image=EVERYTHING,
        positive_fraction=1.0,
        keep_before_nms_train=keep[0],
        keep_after_nms_train=keep[1],
        keep_before_nms_test=keep[0],
        keep_after_nms_test=keep[1],
    )
    box: BoxHeadSpec = replace(recipe.box, hidden=hidden, samples_per_image=EVERYTHING, positive_fraction=1.0)
    mask: MaskHeadSpec | None = recipe.mask and replace(recipe.mask, channels=32)
    return replace(recipe, pyramid_channels=32, rpn=rpn, box=box, mask=mask, **changes)


def build(recipe: DetectorRecipe, state: Mapping[str, Tensor], source: str) -> RCNN:
    """Build the recipe on a narrow ResNet-50 and load the file's weights strictly."""
    backbone = ResNetBackbone(
        replace(recipe.spec, widths=WIDTHS),
        norm=recipe.norm,
        norm_eps=recipe.conventions.norm_eps,
        out_levels=NECKS[recipe.neck],
        frozen_stages=recipe.frozen_stages,
    )
    detector = assemble(recipe, 80, backbone)
    report = load_weights(detector, state, source=source)
    assert report.complete and not report.kept_initial
    return detector


def to_double(detector: RCNN) -> RCNN:
    """Convert the detector to float64, except its anchors.

    The float32 rounding of the anchors decides which of them tie as the best of a ground-truth box.
    """
    detector.double().rpn.anchors.float()
    return detector


@torch.inference_mode()
def check_features(file: Mapping[str, Any], detector: RCNN, tolerance: float) -> None:
    """Check all levels of the neck, in their first channels; tolerance is relative to the largest value of a level."""
    levels = detector.neck(detector.backbone(batch_of(file, detector).pixels))
    expected_levels = {name.replace("res", "c"): value for name, value in file["features"].items()}
    assert list(levels) == list(expected_levels)
    for level, expected in expected_levels.items():
        actual = levels[level][:, : expected.shape[1]]
        assert float((actual - expected).abs().max() / expected.abs().max()) < tolerance, level


@torch.inference_mode()
def proposals_of(file: Mapping[str, Any], detector: RCNN) -> list[Proposals]:
    """Our proposals for the file's images."""
    batch = batch_of(file, detector)
    return detector.propose(detector.dense(batch.pixels), batch, detector.rpn.spec.keep_test)


@torch.inference_mode()
def check_detections(
    file: Mapping[str, Any], detector: RCNN, *, boxes_px: float, scores: float
) -> Iterator[tuple[Detections, Detections, Mapping[str, Any]]]:
    """Check labels, boxes (tolerance in pixels) and scores of all detections against the file.

    Yields:
        For each image: our detections in pixels of the network's input, the same in pixels of the image, and the
        detections of the file.
    """
    batch = batch_of(file, detector)
    detections = detector.eval().detect(batch)
    for in_network, network_size, (height, width), expected in zip(
        detections, batch.sizes, file["image_sizes"], file["detections"], strict=True
    ):
        in_image = to_image(in_network, network_size, ImageSize(height=height, width=width))
        assert torch.equal(in_image.labels, expected["labels"])
        torch.testing.assert_close(in_image.boxes, expected["boxes"].to(in_image.boxes), rtol=0, atol=boxes_px)
        torch.testing.assert_close(in_image.scores, expected["scores"].to(in_image.boxes), rtol=0, atol=scores)
        yield in_network, in_image, expected


def batch_of(file: Mapping[str, Any], detector: RCNN) -> ImageBatch:
    """The file's images as a normalised batch of the detector's dtype."""
    batch = ImageBatch.from_images([image.flip(0) for image in file["inputs_bgr"]], detector.preprocess)
    return ImageBatch(batch.pixels.to(next(detector.parameters()).dtype), batch.sizes)


def gradient_norms(detector: RCNN, layout: str) -> dict[str, float]:
    """The gradient norms of all trainable parameters, by their names in the layout."""
    names = keys_in(detector.state_dict(), layout)
    return {
        names[key]: float(parameter.grad.double().norm()) if parameter.grad is not None else 0.0
        for key, parameter in detector.named_parameters()
        if parameter.requires_grad
    }
