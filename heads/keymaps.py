"""How other projects name and lay out a whole detector's tensors.

Every project has one table from native keys to its own. A file is read by looking the same table up backwards, so
whatever one direction writes the other direction reads. Classes: native labels are 0..K-1 with the background last, in
the logits alone; torchvision puts the background first, with deltas and a mask of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_backbone.errors import InvalidValue, did_you_mean
from resnet_backbone.weights.keymaps import DETECTRON2, KeyMap, Renamed


@dataclass(frozen=True)
class Structure:
    """What of a detector's structure the names of a layout depend on.

    Attributes:
        pyramid: whether it has a feature pyramid.
        rpn_convs: number of convolutions in the RPN head.
        box_convs: number of convolutions in the box head.
    """

    pyramid: bool
    rpn_convs: int
    box_convs: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Structure:
        """Read the structure from a detector's native keys."""

        def count(prefix: str) -> int:
            return len({key.split(".")[2] for key in state if key.startswith(prefix)})

        pyramid = any(key.startswith("neck.") for key in state)
        return cls(pyramid, count("rpn.convs."), count("box_head.convs."))


def detectron2_keys(structure: Structure) -> KeyMap:
    """Table for detectron2's `GeneralizedRCNN`."""
    body = "backbone.bottom_up.{body}" if structure.pyramid else "backbone.{body}"
    rpn_conv = "conv.conv{i}" if structure.rpn_convs > 1 else "conv"
    rpn, box, mask = "proposal_generator.rpn_head.", "roi_heads.box_head.", "roi_heads.mask_head."
    return KeyMap(
        [
            ("backbone.{body}", body, DETECTRON2),
            ("box_regions.stage.{body}", "roi_heads.{body}", lambda body: DETECTRON2(f"layer4.{body}")),
            ("neck.{path}.c{n}.0.{tensor}", "backbone.fpn_{path}{n}.{tensor}"),
            ("neck.{path}.c{n}.1.{tensor}", "backbone.fpn_{path}{n}.norm.{tensor}"),
            ("neck.{path}.c{n}.{tensor}", "backbone.fpn_{path}{n}.{tensor}"),
            ("rpn.convs.{i}.{tensor}", rpn + rpn_conv + ".{tensor}"),
            ("rpn.objectness.{tensor}", rpn + "objectness_logits.{tensor}"),
            ("rpn.deltas.{tensor}", rpn + "anchor_deltas.{tensor}"),
            ("box_head.convs.{i}.0.{tensor}", box + "conv{i+1}.{tensor}"),
            ("box_head.convs.{i}.1.{tensor}", box + "conv{i+1}.norm.{tensor}"),
            ("box_head.convs.{i}.{tensor}", box + "conv{i+1}.{tensor}"),
            ("box_head.hidden.{i}.{tensor}", box + "fc{i+1}.{tensor}"),
            ("box_head.logits.{tensor}", "roi_heads.box_predictor.cls_score.{tensor}"),
            ("box_head.deltas.{tensor}", "roi_heads.box_predictor.bbox_pred.{tensor}"),
            ("mask_head.convs.{i}.0.{tensor}", mask + "mask_fcn{i+1}.{tensor}"),
            ("mask_head.convs.{i}.1.{tensor}", mask + "mask_fcn{i+1}.norm.{tensor}"),
            ("mask_head.convs.{i}.{tensor}", mask + "mask_fcn{i+1}.{tensor}"),
            ("mask_head.upsample.{tensor}", mask + "deconv.{tensor}"),
            ("mask_head.logits.{tensor}", mask + "predictor.{tensor}"),
        ]
    )


def mmdetection_keys(structure: Structure) -> KeyMap:
    """Table for mmdetection 3's `FasterRCNN` and `MaskRCNN` with a pyramid."""
    several = structure.rpn_convs > 1
    box, mask = "roi_head.bbox_head.", "roi_head.mask_head."
    return KeyMap(
        [
            ("backbone.{body}", "backbone.{body}"),
            ("neck.lateral.c{n}.0.{tensor}", "neck.lateral_convs.{n-2}.conv.{tensor}"),
            ("neck.lateral.c{n}.1.{tensor}", "neck.lateral_convs.{n-2}.bn.{tensor}"),
            ("neck.lateral.c{n}.{tensor}", "neck.lateral_convs.{n-2}.conv.{tensor}"),
            ("neck.output.c{n}.0.{tensor}", "neck.fpn_convs.{n-2}.conv.{tensor}"),
            ("neck.output.c{n}.1.{tensor}", "neck.fpn_convs.{n-2}.bn.{tensor}"),
            ("neck.output.c{n}.{tensor}", "neck.fpn_convs.{n-2}.conv.{tensor}"),
            ("rpn.convs.{i}.{tensor}", "rpn_head.rpn_conv." + ("{i}.conv.{tensor}" if several else "{tensor}")),
            ("rpn.objectness.{tensor}", "rpn_head.rpn_cls.{tensor}"),
            ("rpn.deltas.{tensor}", "rpn_head.rpn_reg.{tensor}"),
            ("box_head.convs.{i}.0.{tensor}", box + "shared_convs.{i}.conv.{tensor}"),
            ("box_head.convs.{i}.1.{tensor}", box + "shared_convs.{i}.bn.{tensor}"),
            ("box_head.convs.{i}.{tensor}", box + "shared_convs.{i}.conv.{tensor}"),
            ("box_head.hidden.{i}.{tensor}", box + "shared_fcs.{i}.{tensor}"),
            ("box_head.logits.{tensor}", box + "fc_cls.{tensor}"),
            ("box_head.deltas.{tensor}", box + "fc_reg.{tensor}"),
            ("mask_head.convs.{i}.0.{tensor}", mask + "convs.{i}.conv.{tensor}"),
            ("mask_head.convs.{i}.1.{tensor}", mask + "convs.{i}.bn.{tensor}"),
            ("mask_head.convs.{i}.{tensor}", mask + "convs.{i}.conv.{tensor}"),
            ("mask_head.upsample.{tensor}", mask + "upsample.{tensor}"),
            ("mask_head.logits.{tensor}", mask + "conv_logits.{tensor}"),
        ]
    )


def torchvision_keys(structure: Structure) -> KeyMap:
    """Table for torchvision's `FasterRCNN` and `MaskRCNN` since 0.13 (`older_torchvision` gives the earlier names)."""
    fpn, box, mask = "backbone.fpn.", "roi_heads.box_head.", "roi_heads.mask_head."
    # v2's box head is one sequence: convolutions, flattening, then pairs of a hidden layer and its ReLU
    in_sequence = [
        (f"box_head.hidden.{i}.{{tensor}}", box + f"{structure.box_convs + 1 + 2 * i}.{{tensor}}") for i in (0, 1)
    ]
    return KeyMap(
        [
            ("backbone.{body}", "backbone.body.{body}"),
            ("neck.lateral.c{n}.0.{tensor}", fpn + "inner_blocks.{n-2}.0.{tensor}"),
            ("neck.lateral.c{n}.1.{tensor}", fpn + "inner_blocks.{n-2}.1.{tensor}"),
            ("neck.lateral.c{n}.{tensor}", fpn + "inner_blocks.{n-2}.0.{tensor}"),
            ("neck.output.c{n}.0.{tensor}", fpn + "layer_blocks.{n-2}.0.{tensor}"),
            ("neck.output.c{n}.1.{tensor}", fpn + "layer_blocks.{n-2}.1.{tensor}"),
            ("neck.output.c{n}.{tensor}", fpn + "layer_blocks.{n-2}.0.{tensor}"),
            ("rpn.convs.{i}.{tensor}", "rpn.head.conv.{i}.0.{tensor}"),
            ("rpn.objectness.{tensor}", "rpn.head.cls_logits.{tensor}"),
            ("rpn.deltas.{tensor}", "rpn.head.bbox_pred.{tensor}"),
            ("box_head.convs.{i}.0.{tensor}", box + "{i}.0.{tensor}"),
            ("box_head.convs.{i}.1.{tensor}", box + "{i}.1.{tensor}"),
            ("box_head.convs.{i}.{tensor}", box + "{i}.0.{tensor}"),
            *(in_sequence if structure.box_convs else [("box_head.hidden.{i}.{tensor}", box + "fc{i+6}.{tensor}")]),
            ("box_head.logits.{tensor}", "roi_heads.box_predictor.cls_score.{tensor}"),
            ("box_head.deltas.{tensor}", "roi_heads.box_predictor.bbox_pred.{tensor}"),
            ("mask_head.convs.{i}.0.{tensor}", mask + "{i}.0.{tensor}"),
            ("mask_head.convs.{i}.1.{tensor}", mask + "{i}.1.{tensor}"),
            ("mask_head.convs.{i}.{tensor}", mask + "{i}.0.{tensor}"),
            ("mask_head.upsample.{tensor}", "roi_heads.mask_predictor.conv5_mask.{tensor}"),
            ("mask_head.logits.{tensor}", "roi_heads.mask_predictor.mask_fcn_logits.{tensor}"),
        ]
    )


# torchvision's keys since 0.13 -> the earlier ones, when these layers were bare convolutions
older_torchvision = KeyMap(
    [
        ("backbone.fpn.inner_blocks.{i}.0.{tensor}", "backbone.fpn.inner_blocks.{i}.{tensor}"),
        ("backbone.fpn.layer_blocks.{i}.0.{tensor}", "backbone.fpn.layer_blocks.{i}.{tensor}"),
        ("rpn.head.conv.0.0.{tensor}", "rpn.head.conv.{tensor}"),
        ("roi_heads.mask_head.{i}.0.{tensor}", "roi_heads.mask_head.mask_fcn{i+1}.{tensor}"),
    ]
)


@dataclass(frozen=True)
class DetectorLayout:
    """How one project names a detector's tensors.

    Attributes:
        table: makes the table from native keys to the layout's, for a structure.
        signature: a key that every such file has.
        candidates: the sources (keys of `SOURCES`) that write so.
        without_pyramid: whether it has names for C4 and DC5 detectors.
        unused: pattern of keys that older files hold beside their weights.
    """

    table: Callable[[Structure], KeyMap]
    signature: str
    candidates: tuple[str, ...]
    without_pyramid: bool = False
    unused: str = "(?!)"


# detectron2 comes first: its files have torchvision's signature too
LAYOUTS: dict[str, DetectorLayout] = {
    "detectron2": DetectorLayout(
        detectron2_keys,
        "proposal_generator.rpn_head.objectness_logits.weight",
        ("detectron2", "detectron2_rgb"),
        without_pyramid=True,
        unused=r"pixel_(mean|std)$|.*anchor_generator\.cell_anchors\.",
    ),
    "mmdetection": DetectorLayout(
        mmdetection_keys, "roi_head.bbox_head.fc_cls.weight", ("mmdetection", "mmdetection_caffe")
    ),
    "torchvision": DetectorLayout(
        torchvision_keys, "roi_heads.box_predictor.cls_score.weight", ("torchvision", "torchvision_coco_v1")
    ),
}


def layout_of(state: Mapping[str, Tensor]) -> str | None:
    """Tell which project named a detector's tensors.

    Args:
        state: the tensors of a file.

    Returns:
        A key of `LAYOUTS`, or None for native keys and for anything that is no detector.
    """
    return next((name for name, layout in LAYOUTS.items() if layout.signature in state), None)


def candidates_of(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The sources (keys of `SOURCES`) that a detector's file may be from; empty for native keys."""
    layout = layout_of(state)
    if layout is None:
        return ()
    if "backbone.fpn.inner_blocks.0.1.weight" in state:  # torchvision published v2 after it had corrected its epsilon
        return ("torchvision",)
    return LAYOUTS[layout].candidates


def keys_in(state: Mapping[str, Tensor], layout: str) -> dict[str, str]:
    """Rename every key of a detector.

    Args:
        state: a detector's state dict with native keys.
        layout: a key of `LAYOUTS`.

    Returns:
        Native key -> the layout's key.

    Raises:
        InvalidValue: an unknown layout, or one that has no such detector.
    """
    if layout not in LAYOUTS:
        raise InvalidValue(f"no detector's layout is called {layout!r}: {did_you_mean(layout, LAYOUTS)}")
    structure = Structure.of(state)
    if not structure.pyramid and not LAYOUTS[layout].without_pyramid:
        raise InvalidValue(f"{layout} has no names for C4 and DC5 detectors: use layout='detectron2'")
    table = LAYOUTS[layout].table(structure)
    return {key: table(key) for key in state}


def from_layout(detector_state: Mapping[str, Tensor], state: Mapping[str, Tensor], layout: str) -> Renamed:
    """Bring another project's tensors to native keys and to the native order of classes.

    Args:
        detector_state: the state dict of the detector that will be loaded.
        state: the tensors of the file.
        layout: the layout of the file, a key of `LAYOUTS`.

    Returns:
        The tensors. A key without a place keeps its name, so that strict loading reports it as it is in the file.
    """
    keys = keys_in(detector_state, layout)
    if layout == "torchvision" and not any(key.startswith("rpn.head.conv.0.0.") for key in state):
        keys = {native: older_torchvision(key) for native, key in keys.items()}
    to_native = {key: native for native, key in keys.items()}
    unused = tuple(key for key in state if re.match(LAYOUTS[layout].unused, key))
    renamed = {to_native.get(key, key): value for key, value in state.items() if key not in unused}
    background: dict[str, Tensor] = {}
    if layout == "torchvision":
        for key, rows in _BACKGROUND_ROWS.items():
            if key in _MOVED and key in renamed:
                renamed[key] = torch.cat([renamed[key][rows:], renamed[key][:rows]])
            elif key in renamed:
                background[key], renamed[key] = renamed[key][:rows].clone(), renamed[key][rows:]
    return Renamed(renamed, candidates_of(state), unused, layout, background)


def to_layout(detector_state: Mapping[str, Tensor], layout: str, background: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write a detector's tensors with another project's keys and in its order of classes.

    Args:
        detector_state: a detector's state dict with native keys.
        layout: a key of `LAYOUTS`.
        background: the rows of torchvision's background class that `from_layout` returned as `export_only`, by native
            key. Zeros take the place of rows that are missing: no decision reads them.

    Returns:
        The layout's key -> tensor.

    Raises:
        InvalidValue: as for `keys_in`.
    """
    state = dict(detector_state)
    if layout == "torchvision":
        for key, rows in _BACKGROUND_ROWS.items():
            if key not in state:
                continue
            if key in _MOVED:
                state[key] = torch.cat([state[key][-rows:], state[key][:-rows]])
            else:
                first = background.get(key, torch.zeros_like(state[key][:rows]))
                state[key] = torch.cat([first.to(state[key]), state[key]])
    return {key: state[native] for native, key in keys_in(detector_state, layout).items()}


# torchvision's background class comes first and has this many rows. In the logits the native background is the last
# row; deltas and masks have none.
_MOVED = ("box_head.logits.weight", "box_head.logits.bias")
_BACKGROUND_ROWS = {
    **dict.fromkeys(_MOVED, 1),
    "box_head.deltas.weight": 4,
    "box_head.deltas.bias": 4,
    "mask_head.logits.weight": 1,
    "mask_head.logits.bias": 1,
}
