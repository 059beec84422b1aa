"""Help texts for the settings of a detector's recipe (`model.*` in a configuration)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from heads.conventions import CONVENTIONS
from heads.recipes import DETECTORS, NECKS
from heads.settings import HEAD_NORMS
from resnet_backbone.norm import NORMS
from resnet_backbone.plain import to_plain

EXAMPLE = "mask_rcnn_r50_fpn"  # the recipe that the defaults in the help are those of
_HEAD_NORM = f"one of {', '.join(HEAD_NORMS)}; none: biases"

DESCRIPTIONS: dict[str, str] = {
    "backbone": "ResNet with C2..C5: resnet18, resnet34, resnet50, resnet101 or resnet152",
    "stride_on": "convolution of a bottleneck that has the stride: 3x3 (torchvision) or 1x1 (the paper, MSRA)",
    "norm": f"norm of the backbone, one of {', '.join(NORMS)}",
    "frozen_stages": "stages of the backbone that do not train: 0 none, 1 the stem, 2 also C2, ... 5 all",
    "neck": f"what RPN and heads read, one of {', '.join(NECKS)}",
    "pyramid_channels": "channels of every level of the pyramid",
    "pyramid_norm": f"norm after the convolutions of the pyramid, {_HEAD_NORM}",
    "rpn": "region proposal network, a mapping of the settings below",
    "rpn.anchor_sizes_px": "px; side lengths of the anchors, a list per level, finest level first",
    "rpn.anchor_ratios": "height / width of the anchors",
    "rpn.convs": "3x3 convolutions before the predictors",
    "rpn.samples_per_image": "anchors per image that the losses are computed for",
    "rpn.positive_fraction": "largest fraction of positive anchors among them",
    "rpn.positive_iou": "IoU with a ground-truth box from which an anchor is positive",
    "rpn.negative_iou": "IoU with every ground-truth box below which an anchor is negative",
    "rpn.nms_iou": "IoU above which NMS removes a proposal",
    "rpn.keep_before_nms_train": "training: proposals per level before NMS",
    "rpn.keep_after_nms_train": "training: proposals per image after NMS",
    "rpn.keep_before_nms_test": "inference: proposals per level before NMS",
    "rpn.keep_after_nms_test": "inference: proposals per image after NMS",
    "box": "box head, a mapping of the settings below",
    "box.pool_size": "RoIAlign output size, bins per side",
    "box.convs": "3x3 convolutions before the hidden layers",
    "box.conv_channels": "their channels",
    "box.norm": f"norm after them, {_HEAD_NORM}",
    "box.hidden_layers": "linear layers; 0: average pooling instead",
    "box.hidden": "their width",
    "box.samples_per_image": "proposals per image that the losses are computed for",
    "box.positive_fraction": "largest fraction of positive proposals among them",
    "box.positive_iou": "IoU with a ground-truth box from which a proposal is positive",
    "box.keep_best": "with conventions.best_anchor_switches: assign the best proposal of a ground-truth box to it, "
    "even if it overlaps another box more (mmdetection's Mask R-CNN)",
    "box.min_score": "detections with a lower score are dropped, 0..1",
    "box.nms_iou": "IoU above which NMS removes a detection of the same class",
    "box.max_detections": "detections per image",
    "mask": "mask head: null for a detector of boxes only, or a mapping of the settings below",
    "mask.pool_size": "RoIAlign output size, bins per side; masks have twice as many",
    "mask.convs": "3x3 convolutions before the upsampling",
    "mask.channels": "their channels",
    "mask.norm": f"norm after them, {_HEAD_NORM}",
    "conventions": f"what the projects do differently: {', '.join(CONVENTIONS)}, or a mapping of the settings below",
    "conventions.round_anchors": "round anchors to whole pixels (torchvision)",
    "conventions.anchor_stride": "level: stride of the level; grid: padded image size // feature size (torchvision)",
    "conventions.best_anchor_min_iou": "IoU from which the best anchor of a ground-truth box is positive in any case",
    "conventions.best_anchor_switches": "assign that anchor to the box even if it overlaps another one more",
    "conventions.own_padding_px": "px; leave out anchors beyond the image's own size, rounded up to a multiple of "
    "this; 0: leave out none",
    "conventions.rpn_divisor": "divide RPN losses by samples_per_image (configured) or by the number drawn (sampled)",
    "conventions.rpn_smooth_l1_beta": "beta of the smooth L1 loss of the RPN; 0: L1",
    "conventions.min_proposal_px": "px; proposals with a side of this length or less are dropped",
    "conventions.bound_shrinking": "bound the log size deltas below as well as above",
    "conventions.level_ratio_eps": "added to sqrt(area) / 224 px when a pyramid level is chosen for a region",
    "conventions.level_log_eps": "added to the logarithm of that",
    "conventions.roi_aligned": "shift RoIAlign by half a pixel (`aligned=True`)",
    "conventions.roi_samples": "RoIAlign samples per bin and axis; 0: adaptive",
    "conventions.box_smooth_l1_beta": "beta of the smooth L1 loss of the box head; 0: L1",
    "conventions.min_detection_px": "px; detections with a side of this length or less are dropped before NMS",
    "conventions.soft_bitmap_targets": "bitmap mask targets: fractions from unaligned RoIAlign instead of a cut at 0.5",
    "conventions.mask_paste": "paste masks into the box (exact), or into whole pixels around it (integer)",
    "conventions.norm_eps": "epsilon of the norms of the backbone",
}


def recipe_settings() -> Iterator[tuple[str, str]]:
    """List the settings of a recipe, for `--help` and error messages.

    Yields:
        Dotted name under `model`, and "default in the example recipe; description".
    """
    yield (
        "model.recipe",
        f"required; name of the recipe that the other settings of model start from, one of {', '.join(DETECTORS)}. "
        f"Recipes have different defaults, those of {EXAMPLE} are shown",
    )
    yield from _rows(to_plain(DETECTORS[EXAMPLE]), "")


def _rows(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield f"model.{name}", f"see below; {DESCRIPTIONS[name]}"
            yield from _rows(value, f"{name}.")
        else:
            yield f"model.{name}", f"{value} in {EXAMPLE}; {DESCRIPTIONS[name]}"
