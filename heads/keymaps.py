"""How other projects name and lay out a whole detector's tensors: our state dict -> theirs, and back.

Every layout is one function from our key to theirs; a file is read by looking the same table up backwards, so what one
direction places the other finds. Classes: ours are 0..K-1 with the background last, in logits alone; torchvision puts
the background first, and gives it deltas and a mask of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_backbone.errors import did_you_mean
from resnet_backbone.weights.keymaps import Renamed, body_key_in_detectron2


@dataclass(frozen=True)
class Structure:
    """What of a detector's structure a layout's names hang on."""

    pyramid: bool
    rpn_convs: int
    box_convs: int

    @classmethod
    def of(cls, keys: Mapping[str, Tensor]) -> Structure:
        def count(layers: str) -> int:
            return len({key.split(".")[2] for key in keys if key.startswith(layers)})

        return cls(any(key.startswith("neck.") for key in keys), count("rpn.convs."), count("box_head.convs."))


Split = tuple[str, str, str]  # part, name, the rest: "box_head", "convs", "0.1.weight"


def _split(key: str) -> Split:
    part, _, rest = key.partition(".")
    name, _, last = rest.partition(".")
    return part, name, last


def _layer(last: str, *, bare: str, conv: str, norm: str) -> str:
    """The tensor's name below a layer: of "0.0.weight" (layer 0's convolution) and "0.1.bias" (its norm) behind `conv`
    and `norm`, of "0.weight" (a layer without a norm) behind `bare`."""
    _, *tail = last.split(".")
    inside = {1: bare, 2: conv if tail[0] == "0" else norm}[len(tail)]
    return f"{inside}{tail[-1]}"


def key_in_detectron2(key: str, shape: Structure) -> str:
    """Our key -> detectron2's `GeneralizedRCNN`'s."""
    part, name, last = _split(key)
    layer = _layer(last, bare="", conv="", norm="norm.") if name in ("lateral", "output", "convs", "hidden") else ""
    number = int(last.split(".")[0]) + 1 if name in ("convs", "hidden") else 0
    if part == "backbone":
        return f"backbone.{'bottom_up.' if shape.pyramid else ''}{body_key_in_detectron2(f'{name}.{last}')}"
    if part == "box_regions":  # a C4 detector's fifth stage
        return "roi_heads." + body_key_in_detectron2(f"layer4.{last}")
    if part == "neck":
        return f"backbone.fpn_{name}{last[1]}.{layer}"
    if part == "rpn":
        conv = f"conv.conv{number - 1}" if shape.rpn_convs > 1 else "conv"
        names = {
            "convs": f"{conv}.{layer}",
            "objectness": f"objectness_logits.{last}",
            "deltas": f"anchor_deltas.{last}",
        }
        return f"proposal_generator.rpn_head.{names[name]}"
    if part == "box_head" and name in ("logits", "deltas"):
        return f"roi_heads.box_predictor.{'cls_score' if name == 'logits' else 'bbox_pred'}.{last}"
    if part == "box_head":
        return f"roi_heads.box_head.{'conv' if name == 'convs' else 'fc'}{number}.{layer}"
    names = {"convs": f"mask_fcn{number}.{layer}", "upsample": f"deconv.{last}", "logits": f"predictor.{last}"}
    return f"roi_heads.mask_head.{names[name]}"


def key_in_mmdetection(key: str, shape: Structure) -> str:
    """Our key -> mmdetection 3's `FasterRCNN`'s and `MaskRCNN`'s, with a pyramid."""
    part, name, last = _split(key)
    number = last.split(".")[0]
    layer = _layer(last, bare="conv.", conv="conv.", norm="bn.") if name in ("lateral", "output", "convs") else ""
    if part == "backbone":
        return key
    if part == "neck":
        return f"neck.{'lateral' if name == 'lateral' else 'fpn'}_convs.{int(number[1:]) - 2}.{layer}"
    if part == "rpn":
        conv = f"rpn_conv.{number}.{layer}" if shape.rpn_convs > 1 else f"rpn_conv.{last.rpartition('.')[2]}"
        return "rpn_head." + {"convs": conv, "objectness": f"rpn_cls.{last}", "deltas": f"rpn_reg.{last}"}[name]
    if part == "box_head":
        names = {"logits": f"fc_cls.{last}", "deltas": f"fc_reg.{last}", "hidden": f"shared_fcs.{last}"}
        return "roi_head.bbox_head." + (f"shared_convs.{number}.{layer}" if name == "convs" else names[name])
    names = {"convs": f"convs.{number}.{layer}", "upsample": f"upsample.{last}", "logits": f"conv_logits.{last}"}
    return f"roi_head.mask_head.{names[name]}"


def key_in_torchvision(key: str, shape: Structure) -> str:
    """Our key -> torchvision's `FasterRCNN`'s and `MaskRCNN`'s (0.13 and later; `older_torchvision` for earlier)."""
    part, name, last = _split(key)
    number = last.split(".")[0]
    layer = _layer(last, bare="0.", conv="0.", norm="1.") if name in ("lateral", "output", "convs") else ""
    if part == "backbone":
        return f"backbone.body.{name}.{last}"
    if part == "neck":
        return f"backbone.fpn.{'inner' if name == 'lateral' else 'layer'}_blocks.{int(number[1:]) - 2}.{layer}"
    if part == "rpn":
        names = {"convs": f"conv.{number}.{layer}", "objectness": f"cls_logits.{last}", "deltas": f"bbox_pred.{last}"}
        return f"rpn.head.{names[name]}"
    if part == "box_head" and name in ("logits", "deltas"):
        return f"roi_heads.box_predictor.{'cls_score' if name == 'logits' else 'bbox_pred'}.{last}"
    if part == "box_head":
        # v2's box head is one sequence: convolutions, flattening, a hidden layer and its ReLU
        hidden = shape.box_convs + 1 + 2 * int(number) if shape.box_convs else f"fc{int(number) + 6}"
        return "roi_heads.box_head." + (
            f"{number}.{layer}" if name == "convs" else f"{hidden}.{last.rpartition('.')[2]}"
        )
    if name == "convs":
        return f"roi_heads.mask_head.{number}.{layer}"
    return f"roi_heads.mask_predictor.{'conv5_mask' if name == 'upsample' else 'mask_fcn_logits'}.{last}"


def older_torchvision(key: str) -> str:
    """torchvision's key -> the one it had before 0.13, when these layers were bare convolutions."""
    key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    key = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", key)
    return re.sub(r"^roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.", key)


@dataclass(frozen=True)
class DetectorLayout:
    """rename: our key -> the layout's; sign: a key that every such file has; candidates: the sources that write so;
    without_pyramid: it has names for C4 and DC5 too; unused: what older files hold beside their weights."""

    rename: Callable[[str, Structure], str]
    sign: str
    candidates: tuple[str, ...]
    without_pyramid: bool = False
    unused: str = "(?!)"


LAYOUTS: dict[str, DetectorLayout] = {
    "detectron2": DetectorLayout(
        key_in_detectron2,
        "proposal_generator.rpn_head.objectness_logits.weight",
        ("detectron2", "detectron2_rgb"),
        without_pyramid=True,
        unused=r"pixel_(mean|std)$|.*anchor_generator\.cell_anchors\.",
    ),
    "mmdetection": DetectorLayout(
        key_in_mmdetection, "roi_head.bbox_head.fc_cls.weight", ("mmdetection", "mmdetection_caffe")
    ),
    "torchvision": DetectorLayout(
        key_in_torchvision, "roi_heads.box_predictor.cls_score.weight", ("torchvision", "torchvision_coco_v1")
    ),
}
# detectron2's files have torchvision's sign too: theirs is looked for first


def layout_of(state: Mapping[str, Tensor]) -> str | None:
    """Whose names a detector's state dict has: a key of `LAYOUTS`, or None where they are ours or nobody's."""
    return next((name for name, layout in LAYOUTS.items() if layout.sign in state), None)


def candidates_of(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The sources (keys of `weights.sources.SOURCES`) that a detector's file may be from; none for our own names."""
    layout = layout_of(state)
    if layout is None:
        return ()
    if "backbone.fpn.inner_blocks.0.1.weight" in state:  # torchvision's v2 came after its epsilon was mended
        return ("torchvision",)
    return LAYOUTS[layout].candidates


def names_in(state: Mapping[str, Tensor], layout: str) -> dict[str, str]:
    """Our keys -> the layout's, for every tensor of a detector's state dict of ours.

    Raises ValueError for an unknown layout, or one that has no such detector.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no detector's layout is called {layout!r}: {did_you_mean(layout, LAYOUTS)}")
    shape = Structure.of(state)
    if not shape.pyramid and not LAYOUTS[layout].without_pyramid:
        raise ValueError(f"{layout} has no names for C4 and DC5 detectors: use detectron2's")
    return {key: LAYOUTS[layout].rename(key, shape) for key in state}


def from_layout(own: Mapping[str, Tensor], state: Mapping[str, Tensor], layout: str) -> Renamed:
    """A layout's state dict under our keys and with our order of classes. own: the detector's own state dict.

    Keys without a place keep their names, so that strict loading names them as they stand in the file.
    """
    names, rules = names_in(own, layout), LAYOUTS[layout]
    if layout == "torchvision" and not any(key.startswith("rpn.head.conv.0.0.") for key in state):
        names = {ours: older_torchvision(theirs) for ours, theirs in names.items()}
    back = {theirs: ours for ours, theirs in names.items()}
    unused = tuple(key for key in state if re.match(rules.unused, key))
    ours = {back.get(key, key): value for key, value in state.items() if key not in unused}
    background: dict[str, Tensor] = {}
    if layout == "torchvision":
        for key, rows in _BACKGROUND_ROWS.items():
            if key in _MOVED and key in ours:
                ours[key] = torch.cat([ours[key][rows:], ours[key][:rows]])
            elif key in ours:
                background[key], ours[key] = ours[key][:rows].clone(), ours[key][rows:]
    return Renamed(ours, candidates_of(state), unused, layout, background)


def to_layout(own: Mapping[str, Tensor], layout: str, background: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our detector's state dict under a layout's names and with its order of classes; background: the rows that
    `from_layout` gave as `extra`, by our keys; zeros without them: no decision reads these rows."""
    state = dict(own)
    if layout == "torchvision":
        for key, rows in _BACKGROUND_ROWS.items():
            if key not in state:
                continue
            if key in _MOVED:
                state[key] = torch.cat([state[key][-rows:], state[key][:-rows]])
            else:
                first = background.get(key, torch.zeros_like(state[key][:rows]))
                state[key] = torch.cat([first.to(state[key]), state[key]])
    return {theirs: state[ours] for ours, theirs in names_in(own, layout).items()}


# how many rows torchvision's background has, first of all: in logits ours is the last, the others ours has not
_MOVED = ("box_head.logits.weight", "box_head.logits.bias")
_BACKGROUND_ROWS = {
    **dict.fromkeys(_MOVED, 1),
    "box_head.deltas.weight": 4,
    "box_head.deltas.bias": 4,
    "mask_head.logits.weight": 1,
    "mask_head.logits.bias": 1,
}
