"""How other projects name and lay out a whole detector's tensors: our state dict -> theirs, and back.

Every source is one function from our key to theirs; a file is read by looking the same table up backwards, so what one
direction places the other finds. Classes: ours are 0..K-1 with the background last, in logits alone; torchvision puts
the background first, and gives it deltas and a mask of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from resnet_backbone.suggest import unknown
from resnet_backbone.weights.formats import body_key_in_detectron2

from .detector import RCNN


def key_in_detectron2(key: str) -> str:
    """Our key -> detectron2's `GeneralizedRCNN`'s, of a detector with a pyramid."""
    part, _, rest = key.partition(".")
    if part == "backbone":
        return "backbone.bottom_up." + body_key_in_detectron2(rest)
    if part == "neck":
        kind, level, *last = rest.split(".")
        return f"backbone.fpn_{kind}{level[1:]}.{_normed(last)}"
    return _heads_in_detectron2(part, rest)


def key_in_detectron2_without_pyramid(key: str) -> str:
    """Our key -> detectron2's, of a C4 or DC5 detector."""
    part, _, rest = key.partition(".")
    if part == "backbone":
        return "backbone." + body_key_in_detectron2(rest)
    if part == "box_regions":
        return "roi_heads.res5." + body_key_in_detectron2(rest.replace("stage", "layer4")).removeprefix("res5.")
    return _heads_in_detectron2(part, rest)


def _heads_in_detectron2(part: str, rest: str) -> str:
    name, _, last = rest.partition(".")
    if part == "rpn":
        head = "proposal_generator.rpn_head."
        if name == "convs":
            index, last = last.split(".")
            return f"{head}conv.conv{index}.{last}"
        return head + {"objectness": "objectness_logits", "deltas": "anchor_deltas"}[name] + "." + last
    if part == "box_head":
        if name in ("logits", "deltas"):
            return f"roi_heads.box_predictor.{'cls_score' if name == 'logits' else 'bbox_pred'}.{last}"
        index, *tail = last.split(".")
        return f"roi_heads.box_head.{'conv' if name == 'convs' else 'fc'}{int(index) + 1}.{_normed(tail)}"
    if name == "convs":
        index, *tail = last.split(".")
        return f"roi_heads.mask_head.mask_fcn{int(index) + 1}.{_normed(tail)}"
    return f"roi_heads.mask_head.{'deconv' if name == 'upsample' else 'predictor'}.{last}"


def _normed(tail: list[str]) -> str:
    """["weight"], or of a `ConvNorm` ["0", "weight"] and ["1", "bias"] -> detectron2's weight, norm.bias."""
    return ".".join(tail[1:] if tail[0] == "0" else ["norm", *tail[1:]] if tail[0] == "1" else tail)


def key_in_mmdetection(key: str) -> str:
    """Our key -> mmdetection 3's `FasterRCNN`'s and `MaskRCNN`'s."""
    part, _, rest = key.partition(".")
    name, _, last = rest.partition(".")
    if part == "backbone":
        return key
    if part == "neck":
        level, *tail = last.split(".")
        tail = ["conv", tail[1]] if tail[0] == "0" else ["bn", tail[1]] if tail[0] == "1" else ["conv", *tail]
        return f"neck.{'lateral' if name == 'lateral' else 'fpn'}_convs.{int(level[1:]) - 2}.{'.'.join(tail)}"
    if part == "rpn":
        names = {"convs.0": "rpn_conv", "objectness": "rpn_cls", "deltas": "rpn_reg"}
        return "rpn_head." + re.sub("|".join(map(re.escape, names)), lambda m: names[m[0]], rest)
    if part == "box_head":
        names = {"logits": "fc_cls", "deltas": "fc_reg", "hidden": "shared_fcs", "convs": "shared_convs"}
        return f"roi_head.bbox_head.{names[name]}.{last}"
    if name == "convs":
        index, tail_of = last.split(".", 1)
        return f"roi_head.mask_head.convs.{index}.conv.{tail_of}"
    return f"roi_head.mask_head.{'upsample' if name == 'upsample' else 'conv_logits'}.{last}"


def key_in_torchvision(key: str) -> str:
    """Our key -> torchvision's `FasterRCNN`'s and `MaskRCNN`'s (0.13 and later; `older_torchvision` for earlier)."""
    part, _, rest = key.partition(".")
    name, _, last = rest.partition(".")
    if part == "backbone":
        return "backbone.body." + rest
    if part == "neck":
        level, *tail = last.split(".")
        kind = "inner_blocks" if name == "lateral" else "layer_blocks"
        return f"backbone.fpn.{kind}.{int(level[1:]) - 2}.{'.'.join(tail if len(tail) > 1 else ['0', *tail])}"
    if part == "rpn":
        if name == "convs":
            index, tail_of = last.split(".")
            return f"rpn.head.conv.{index}.0.{tail_of}"
        return f"rpn.head.{'cls_logits' if name == 'objectness' else 'bbox_pred'}.{last}"
    if part == "box_head":
        if name in ("logits", "deltas"):
            return f"roi_heads.box_predictor.{'cls_score' if name == 'logits' else 'bbox_pred'}.{last}"
        index, tail_of = last.split(".", 1)
        # v2's box head is one sequence: convolutions, flattening, a hidden layer and its ReLU
        return f"roi_heads.box_head.{f'fc{int(index) + 6}' if name == 'hidden' else index}.{tail_of}"
    if name == "convs":
        index, *tail = last.split(".")
        return f"roi_heads.mask_head.{index}.{'.'.join(tail if len(tail) > 1 else ['0', *tail])}"
    return f"roi_heads.mask_predictor.{'conv5_mask' if name == 'upsample' else 'mask_fcn_logits'}.{last}"


def older_torchvision(key: str) -> str:
    """torchvision's key -> the one it had before 0.13, when these layers were bare convolutions."""
    key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    key = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", key)
    return re.sub(r"^roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.", key)


SOURCES: tuple[str, ...] = ("detectron2", "mmdetection", "torchvision")


def names_in(detector: RCNN, source: str) -> dict[str, str]:
    """Our keys -> the source's, for every tensor of this detector. Raises ValueError for an unknown source."""
    if source not in SOURCES:
        raise ValueError(f"no detector's layout is called {source!r}: {unknown(source, SOURCES)}")
    keys = [key for key in detector.state_dict() if not key.endswith("num_batches_tracked")]
    convs = sum(key.startswith("box_head.convs") and key.endswith("0.weight") for key in keys)
    deep_rpn = any(key.startswith("rpn.convs.1.") for key in keys)
    pyramid = any(key.startswith("neck.") for key in keys)
    rename: Callable[[str], str] = {
        "detectron2": key_in_detectron2 if pyramid else key_in_detectron2_without_pyramid,
        "mmdetection": key_in_mmdetection,
        "torchvision": key_in_torchvision,
    }[source]
    names = {key: rename(key) for key in keys}
    for key in keys:
        if source == "detectron2" and not deep_rpn:
            names[key] = names[key].replace("rpn_head.conv.conv0.", "rpn_head.conv.")
        if source == "torchvision" and convs and key.startswith("box_head.hidden.0."):
            names[key] = f"roi_heads.box_head.{convs + 1}.{key.rpartition('.')[2]}"
    return names


def from_source(detector: RCNN, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A source's state dict under our keys and in our layout; keys without a place keep their names, so that strict
    loading names them as they stand in the file."""
    names = names_in(detector, source)
    if source == "torchvision" and not any(key.startswith("rpn.head.conv.0.0.") for key in state):
        names = {ours: older_torchvision(theirs) for ours, theirs in names.items()}
    back = {theirs: ours for ours, theirs in names.items()}
    ours = {back.get(key, key): value for key, value in state.items()}
    if source == "torchvision":
        for key, move in _TORCHVISION_CLASSES.items():
            if key in ours:
                ours[key] = move(ours[key])
    return ours


def _background_last(rows: Tensor) -> Tensor:
    return torch.cat([rows[1:], rows[:1]])


_TORCHVISION_CLASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "box_head.logits.weight": _background_last,
    "box_head.logits.bias": _background_last,
    "box_head.deltas.weight": lambda rows: rows[4:],
    "box_head.deltas.bias": lambda rows: rows[4:],
    "mask_head.logits.weight": lambda rows: rows[1:],
    "mask_head.logits.bias": lambda rows: rows[1:],
}
