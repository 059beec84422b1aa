"""How the files of each source are wrapped, and how they name a net's tensors.

A file is either the state dict itself or a dict around it; keys may carry DistributedDataParallel's `module.`.
Renaming is written once, from our keys (torchvision's) to the source's: reading a file is the same table looked up
backwards, so that what one direction places the other direction finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# where trainers put the state dict: ours and detectron2 "model", most others "state_dict", Caffe2 "blobs"
WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")


def unwrap(content: object) -> dict[str, Tensor]:
    """The state dict inside a loaded file. Raises ValueError where there is none."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return unwrap(content[key])
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state and len(state) == len(content):
            if all(key.startswith("module.") for key in state):
                return {key.removeprefix("module."): value for key, value in state.items()}
            return state
        found = ", ".join(map(str, list(content)[:5])) or "nothing"
    else:
        found = type(content).__name__
    raise ValueError(f"no state dict in this file (it holds {found}): it must be one, or hold one under {WRAPPERS}")


def body_key_in_detectron2(key: str) -> str:
    """Our key of a net's body (`layer1.0.bn2.weight`) -> detectron2's (`res2.0.conv2.norm.weight`)."""
    key = re.sub(r"^(conv1|bn1|fc)\.", r"stem.\1.", key)
    key = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
    return key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def body_key_in_caffe2(key: str) -> str:
    """-> Caffe2's, as in MSRA's and Detectron's pickles (`res2_0_branch2b_bn_s`)."""
    *path, kind = key.split(".")
    norm = path[-1].startswith("bn") or path[-2:] == ["downsample", "1"]
    ending = {"weight": "s" if norm else "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}.get(kind, kind)
    if len(path) == 1:
        return {"conv1": "conv1_", "bn1": "res_conv1_bn_", "fc": "fc1000_"}[path[0]] + ending
    branch = "1" if path[2] == "downsample" else "2" + "abc"[int(path[2][-1]) - 1]
    return f"res{int(path[0][-1]) + 1}_{path[1]}_branch{branch}_{'bn_' if norm else ''}{ending}"


def body_key_in_transformers(key: str) -> str:
    """-> that of transformers' `ResNetModel`."""
    *path, kind = key.split(".")
    if path == ["fc"]:
        return f"classifier.1.{kind}"
    norm = path[-1].startswith("bn") or path[-2:] == ["downsample", "1"]
    part = f"{'normalization' if norm else 'convolution'}.{kind}"
    if len(path) == 1:
        return f"embedder.embedder.{part}"
    where = "shortcut" if path[2] == "downsample" else f"layer.{int(path[2][-1]) - 1}"
    return f"encoder.stages.{int(path[0][-1]) - 1}.layers.{path[1]}.{where}.{part}"


@dataclass(frozen=True)
class BodyLayout:
    """rename: our key -> the layout's; sign: keys that every such file has (one of them); prefixes: what may stand
    before its keys -> the sources that write so."""

    rename: Callable[[str], str]
    sign: tuple[str, ...]
    prefixes: Mapping[str, tuple[str, ...]]


_DETECTRON2 = ("detectron2", "detectron2_rgb")
LAYOUTS: dict[str, BodyLayout] = {
    "torchvision": BodyLayout(
        lambda key: key,
        ("conv1.weight", "conv1.0.weight"),
        {
            "": ("torchvision", "timm", "mmdetection_caffe"),
            "backbone.body.": ("torchvision", "torchvision_coco_v1"),
            "backbone.": ("mmdetection", "mmdetection_caffe"),
        },
    ),
    "detectron2": BodyLayout(
        body_key_in_detectron2,
        ("stem.conv1.weight",),
        {"": _DETECTRON2, "backbone.bottom_up.": _DETECTRON2, "backbone.": _DETECTRON2},
    ),
    "caffe2": BodyLayout(body_key_in_caffe2, ("conv1_w",), {"": ("detectron2",)}),
    "transformers": BodyLayout(
        body_key_in_transformers,
        ("embedder.embedder.convolution.weight",),
        {"": ("transformers",), "resnet.": ("transformers",)},
    ),
}


@dataclass(frozen=True)
class Renamed:
    """A state dict under our names. candidates: the sources that use the names it had, none where they are ours alone;
    unused: what the file holds beside it and nobody asked for; extra: what only a way back needs, by our keys."""

    state: dict[str, Tensor]
    candidates: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    layout: str = ""
    extra: Mapping[str, Tensor] = field(default_factory=dict)


def rename_body(state: Mapping[str, Tensor], keys: Mapping[str, tuple[int, ...]]) -> Renamed:
    """A net's body under our names, wherever it stands in a file; keys: all of ours -> their shapes.

    Keys without a place keep their names. Of a whole detector's file only the backbone is taken.
    """
    # CIFAR's published nets call their classifier so
    state = {("fc" + key.removeprefix("linear") if key.startswith("linear.") else key): v for key, v in state.items()}
    for name, layout in LAYOUTS.items():
        for prefix, candidates in layout.prefixes.items():
            if not any(prefix + sign in state for sign in layout.sign):
                continue
            back = {layout.rename(key): key for key in keys}
            body = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if prefix == "resnet.":  # the classifier's linear layer stands outside
                body |= {key: value for key, value in state.items() if key.startswith("classifier.")}
            outside = [key for key in state if not key.startswith(prefix) and key not in body]
            if name == "caffe2":
                # the first convolution's bias, which detectron2 leaves out too, and a trainer's momenta
                outside += [key for key in body if key == "conv1_b" or key.endswith("_momentum")]
                body = {_caffe2_spelling(key): value for key, value in body.items() if key not in outside}
            ours = {back.get(key, key): value for key, value in body.items()}
            if name == "caffe2":
                ours = _fill_statistics(ours, keys)
            if "conv1.0.weight" in ours:  # of these names only timm has nets with a deep stem
                candidates = ("timm",)
            return Renamed(ours, candidates, tuple(outside), name)
    return Renamed(dict(state))


_CAFFE2_TWINS = {"gamma": "s", "beta": "b", "running_mean": "rm", "running_var": "riv"}


def _caffe2_spelling(key: str) -> str:
    """Detectron2's copies of MSRA's files spell a norm's four tensors out, Detectron's have `bn_s` and `bn_b` alone."""
    return re.sub(r"_bn_(gamma|beta|running_mean|running_var)$", lambda m: f"_bn_{_CAFFE2_TWINS[m[1]]}", key)


def _fill_statistics(state: dict[str, Tensor], keys: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Detectron's norms are affine, their statistics taken into scale and shift: a mean of zero and a variance of one
    stand in, as when detectron2 reads such a file."""
    filled = dict(state)
    for key, shape in keys.items():
        norm, _, kind = key.rpartition(".")
        if f"{norm}.weight" in state and kind in ("running_mean", "running_var"):
            filled.setdefault(key, torch.zeros(shape) if kind == "running_mean" else torch.ones(shape))
    return filled


def body_in_layout(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A body's state dict under a layout's names (a key of `LAYOUTS`). Raises ValueError for Caffe2's."""
    if layout == "caffe2":
        raise ValueError("Caffe2's names have no place for a norm's statistics: export to detectron2's")
    return {LAYOUTS[layout].rename(key): value for key, value in state.items()}
