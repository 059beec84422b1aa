"""What the golden files' tests share: a detector of ours built as a file's configuration says, and its weights."""

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
WIDTHS = (16, 32, 64, 128)  # the files' nets are a quarter as wide as ResNet-50


def shrunken(name: str, *, keep: tuple[int, int], hidden: int = 64, **changes: Any) -> DetectorRecipe:
    """The named recipe at the files' widths, with every anchor and region sampled, and `keep` proposals before and
    after suppression."""
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
    """The recipe around a narrow ResNet-50, with the file's weights loaded strictly."""
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


def exact(detector: RCNN) -> RCNN:
    """In float64; anchors stay in float32, because which of them tie for a truth's best hangs on their rounding."""
    detector.double().rpn.anchors.float()
    return detector


@torch.inference_mode()
def check_features(file: Mapping[str, Any], detector: RCNN, tolerance: float) -> None:
    """Every level of the neck, its first channels, within a part of its largest value."""
    levels = detector.neck(detector.backbone(batch_of(file, detector).pixels))
    wanted = {name.replace("res", "c"): value for name, value in file["features"].items()}
    assert list(levels) == list(wanted)
    for level, want in wanted.items():
        found = levels[level][:, : want.shape[1]]
        assert float((found - want).abs().max() / want.abs().max()) < tolerance, level


@torch.inference_mode()
def proposals_of(file: Mapping[str, Any], detector: RCNN) -> list[Proposals]:
    batch = batch_of(file, detector)
    return detector.propose(detector.dense(batch.pixels), batch, detector.rpn.spec.keep_test)


@torch.inference_mode()
def check_detections(
    file: Mapping[str, Any], detector: RCNN, *, boxes_px: float, scores: float
) -> Iterator[tuple[Detections, Detections, Mapping[str, Any]]]:
    """Of every image: the detections at network scale and in the image's own pixels, whose labels are the file's and
    whose boxes and scores are within the tolerances of its, and the file's."""
    batch = batch_of(file, detector)
    found = detector.eval().detect(batch)
    for here, network, (height, width), want in zip(
        found, batch.sizes, file["image_sizes"], file["detections"], strict=True
    ):
        there = to_image(here, network, ImageSize(height=height, width=width))
        assert torch.equal(there.labels, want["labels"])
        torch.testing.assert_close(there.boxes, want["boxes"].to(there.boxes), rtol=0, atol=boxes_px)
        torch.testing.assert_close(there.scores, want["scores"].to(there.boxes), rtol=0, atol=scores)
        yield here, there, want


def batch_of(file: Mapping[str, Any], detector: RCNN) -> ImageBatch:
    batch = ImageBatch.from_images([image.flip(0) for image in file["inputs_bgr"]], detector.preprocess)
    return ImageBatch(batch.pixels.to(next(detector.parameters()).dtype), batch.sizes)


def gradient_norms(detector: RCNN, layout: str) -> dict[str, float]:
    """By the layout's names, of every trainable parameter."""
    names = keys_in(detector.state_dict(), layout)
    return {
        names[key]: float(parameter.grad.double().norm()) if parameter.grad is not None else 0.0
        for key, parameter in detector.named_parameters()
        if parameter.requires_grad
    }
