"""What the golden files' tests share: a detector of ours built as a file's configuration says, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from heads.box_head import BoxHeadSpec
from heads.build import DETECTORS, DetectorRecipe, assemble
from heads.detector import RCNN
from heads.formats import from_source, names_in
from heads.mask_head import MaskHeadSpec
from heads.rpn import RPNSpec
from heads.structures import ImageBatch
from resnet_backbone import Preprocess, ResNetBackbone, ResNetSpec, load_weights
from resnet_backbone.blocks import Bottleneck

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


def build(recipe: DetectorRecipe, state: Mapping[str, Tensor], source: str, preprocess: Preprocess) -> RCNN:
    """The recipe around a narrow ResNet-50, with the file's weights loaded strictly."""
    spec = ResNetSpec(
        Bottleneck,
        depths=(3, 4, 6, 3),
        widths=WIDTHS,
        stride_on=recipe.stride_on,
        c5_dilation=2 if recipe.neck == "dc5" else 1,
    )
    backbone = ResNetBackbone(
        spec,
        norm=recipe.norm,
        norm_eps=recipe.conventions.norm_eps,
        out_levels={"fpn": ("c2", "c3", "c4", "c5"), "c4": ("c4", "c5"), "dc5": ("c5",)}[recipe.neck],
        frozen_stages=recipe.frozen_stages,
    )
    detector = assemble(recipe, 80, backbone)
    report = load_weights(detector, from_source(detector, state, source))
    assert report.complete and not report.kept_initial
    detector.preprocess = preprocess
    return detector


def batch_of(file: Mapping[str, Any], detector: RCNN) -> ImageBatch:
    batch = ImageBatch.from_images([image.flip(0) for image in file["inputs_bgr"]], detector.preprocess)
    return ImageBatch(batch.pixels.to(next(detector.parameters()).dtype), batch.sizes)


def gradient_norms(detector: RCNN, source: str) -> dict[str, float]:
    """By the source's names, of every trainable parameter."""
    names = names_in(detector, source)
    return {
        names[key]: float(parameter.grad.double().norm()) if parameter.grad is not None else 0.0
        for key, parameter in detector.named_parameters()
        if parameter.requires_grad
    }
