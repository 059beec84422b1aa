"""How each project names a ResNet's tensors.

Every project has one table from native keys (torchvision's, which `ResNetBackbone` uses) to its own. A file is read by
looking the same table up backwards, so whatever one direction writes the other direction reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InvalidValue

Row = tuple[str, str] | tuple[str, str, Callable[[str], str]]


class KeyMap:
    """A table of key patterns; the first row that matches a key renames it.

    A row is (pattern, replacement), or (pattern, replacement, what renames the field `{body}`). In a pattern a field of
    one letter, `{s}`, stands for a number, and any other field, `{tensor}`, for the rest of the key. In a replacement
    `{s+1}` and `{s-1}` are that number plus or minus one. A key that no row matches keeps its name.

    Args:
        rows: the table, read from top to bottom.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = [(_compiled(row[0]), row[1], row[2] if len(row) == 3 else None) for row in rows]

    def __call__(self, key: str) -> str:
        """Rename one native key."""
        for pattern, replacement, body_map in self.rows:
            if match := pattern.fullmatch(key):
                fields = match.groupdict()
                if body_map is not None:
                    fields["body"] = body_map(fields["body"])
                return _fill(replacement, fields)
        return key


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    groups = [f"(?P<{name}>{r'[0-9]+' if len(name) == 1 else '.+'})" for name in parts[1::2]]
    text = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(a + b for a, b in zip(text, [*groups, ""])))


def _fill(replacement: str, fields: Mapping[str, str]) -> str:
    def value(field: re.Match[str]) -> str:
        text, offset = fields[field[1]], field[2]
        return text if offset is None else str(int(text) + int(offset))

    return re.sub(r"\{(\w+)([+-]\d+)?\}", value, replacement)


# detectron2's `ResNet`. A stage's number is that of its level: layer1 gives C2, res2.
DETECTRON2 = KeyMap(
    [
        ("conv1.{tensor}", "stem.conv1.{tensor}"),
        ("bn1.{tensor}", "stem.conv1.norm.{tensor}"),
        ("fc.{tensor}", "stem.fc.{tensor}"),
        ("layer{s}.{b}.conv{c}.{tensor}", "res{s+1}.{b}.conv{c}.{tensor}"),
        ("layer{s}.{b}.bn{c}.{tensor}", "res{s+1}.{b}.conv{c}.norm.{tensor}"),
        ("layer{s}.{b}.downsample.0.{tensor}", "res{s+1}.{b}.shortcut.{tensor}"),
        ("layer{s}.{b}.downsample.1.{tensor}", "res{s+1}.{b}.shortcut.norm.{tensor}"),
        ("layer{s}.{rest}", "res{s+1}.{rest}"),
    ]
)

# Caffe2's blobs, as in the pickles of MSRA and Detectron: branch1 is the shortcut, branch2a to 2c the convolutions.
_CAFFE2_LAYERS = (
    # convolution, its norm, Caffe2's name
    ("conv1", "bn1", "conv1", "res_conv1_bn"),
    ("layer{s}.{b}.conv1", "layer{s}.{b}.bn1", "res{s+1}_{b}_branch2a", "res{s+1}_{b}_branch2a_bn"),
    ("layer{s}.{b}.conv2", "layer{s}.{b}.bn2", "res{s+1}_{b}_branch2b", "res{s+1}_{b}_branch2b_bn"),
    ("layer{s}.{b}.conv3", "layer{s}.{b}.bn3", "res{s+1}_{b}_branch2c", "res{s+1}_{b}_branch2c_bn"),
    ("layer{s}.{b}.downsample.0", "layer{s}.{b}.downsample.1", "res{s+1}_{b}_branch1", "res{s+1}_{b}_branch1_bn"),
)
_CAFFE2_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
CAFFE2 = KeyMap(
    [
        ("fc.weight", "fc1000_w"),
        ("fc.bias", "fc1000_b"),
        *((f"{conv}.weight", f"{blob}_w") for conv, _, blob, _ in _CAFFE2_LAYERS),
        *((f"{conv}.bias", f"{blob}_b") for conv, _, blob, _ in _CAFFE2_LAYERS),
        *(
            (f"{norm}.{tensor}", f"{blob}_{ending}")
            for _, norm, _, blob in _CAFFE2_LAYERS
            for tensor, ending in _CAFFE2_NORM.items()
        ),
    ]
)

# transformers' `ResNetModel`. Stages, blocks and layers are counted from 0.
_HF_BLOCK = "encoder.stages.{s-1}.layers.{b}"
TRANSFORMERS = KeyMap(
    [
        ("conv1.{tensor}", "embedder.embedder.convolution.{tensor}"),
        ("bn1.{tensor}", "embedder.embedder.normalization.{tensor}"),
        ("fc.{tensor}", "classifier.1.{tensor}"),
        ("layer{s}.{b}.conv{c}.{tensor}", _HF_BLOCK + ".layer.{c-1}.convolution.{tensor}"),
        ("layer{s}.{b}.bn{c}.{tensor}", _HF_BLOCK + ".layer.{c-1}.normalization.{tensor}"),
        ("layer{s}.{b}.downsample.0.{tensor}", _HF_BLOCK + ".shortcut.convolution.{tensor}"),
        ("layer{s}.{b}.downsample.1.{tensor}", _HF_BLOCK + ".shortcut.normalization.{tensor}"),
    ]
)


@dataclass(frozen=True)
class BodyLayout:
    """How one family of files names a ResNet's tensors.

    Attributes:
        rename: table from native keys to the layout's.
        signature: keys of which every such file has one.
        prefixes: what may stand before the keys -> the sources (keys of `SOURCES`) that write it so.
    """

    rename: KeyMap
    signature: tuple[str, ...]
    prefixes: Mapping[str, tuple[str, ...]]


_PLAIN_SOURCES = ("torchvision", "timm", "mmdetection_caffe")
# parts of mmdetection's detectors; without them, `backbone.` may as well be a module of the user's own net
_MMDETECTION_PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.")
_DETECTRON2_SOURCES = ("detectron2", "detectron2_rgb")
LAYOUTS: dict[str, BodyLayout] = {
    "torchvision": BodyLayout(
        KeyMap([]),
        ("conv1.weight", "conv1.0.weight"),
        {
            "": _PLAIN_SOURCES,
            "backbone.body.": ("torchvision", "torchvision_coco_v1"),
            "backbone.": ("mmdetection", "mmdetection_caffe"),
            "encoder.": _PLAIN_SOURCES,
            "encoder.model.": _PLAIN_SOURCES,
        },
    ),
    "detectron2": BodyLayout(
        DETECTRON2,
        ("stem.conv1.weight",),
        {"": _DETECTRON2_SOURCES, "backbone.bottom_up.": _DETECTRON2_SOURCES, "backbone.": _DETECTRON2_SOURCES},
    ),
    "caffe2": BodyLayout(CAFFE2, ("conv1_w",), {"": ("detectron2",)}),
    "transformers": BodyLayout(
        TRANSFORMERS,
        ("embedder.embedder.convolution.weight",),
        {"": ("transformers",), "resnet.": ("transformers",)},
    ),
}


@dataclass(frozen=True)
class Renamed:
    """A state dict under native keys.

    Attributes:
        state: native key -> tensor. A key that the layout does not have keeps its name.
        candidates: the sources (keys of `SOURCES`) that use the names which the file had; empty if they were native
            keys already and no other project uses them.
        unused: keys of the file that are not needed, such as the heads in a detector's file.
        layout: the layout (a key of `LAYOUTS`), "" for native keys.
        prefix: what the file has before the keys of the net.
        export_only: tensors without a place in the model that are needed to write the layout again, by native key.
    """

    state: dict[str, Tensor]
    candidates: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    layout: str = ""
    export_only: Mapping[str, Tensor] = field(default_factory=dict)
    prefix: str = ""


def rename_body(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Renamed:
    """Bring a ResNet's tensors to native keys, whichever project wrote them.

    Args:
        state: the tensors of a file. Of a detector's file only the backbone is taken.
        shapes: every native key of the net -> its shape.

    Returns:
        The tensors under native keys; a key that the layout does not have keeps its name.
    """
    # the published CIFAR nets call their classifier "linear"
    state = {("fc" + key.removeprefix("linear") if key.startswith("linear.") else key): v for key, v in state.items()}
    found = [(name, prefix) for name, prefix in _nets_in(state) if not _is_half_prefixed(state, name, prefix, shapes)]
    if len({prefix for _, prefix in found}) != 1:  # none, or several nets: strict loading reports the keys
        return Renamed(dict(state))
    name, prefix = found[0]
    layout = LAYOUTS[name]
    candidates = layout.prefixes[prefix]
    body, unused = _split_body(state, name, prefix)
    to_native = {layout.rename(key): key for key in shapes}
    native = {to_native.get(key, key): value for key, value in body.items()}
    if name == "caffe2":
        native = _fill_statistics(native, shapes)
    if "conv1.0.weight" in native:  # of the projects with these names, only timm has a deep stem
        candidates = ("timm",)
    elif (name, prefix) == ("torchvision", "backbone.") and not any(k.startswith(_MMDETECTION_PARTS) for k in unused):
        candidates = tuple(dict.fromkeys((*candidates, *_PLAIN_SOURCES)))
    return Renamed(native, candidates, tuple(unused), name, prefix=prefix)


def _nets_in(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Every (layout, prefix) under which the tensors have a ResNet; those without a prefix hide the others."""
    found = [
        (name, prefix)
        for name, layout in LAYOUTS.items()
        for prefix in layout.prefixes
        if any(prefix + key in state for key in layout.signature)
    ]
    return [(name, prefix) for name, prefix in found if not prefix] or found


def nets_in(state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which a state dict holds ResNets, "" for one without a prefix."""
    return list(dict.fromkeys(prefix for _, prefix in _nets_in(state)))


def _is_half_prefixed(
    state: Mapping[str, Tensor], layout: str, prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether keys of the net's own are also there without the prefix; the linear layer is a head."""
    rename = LAYOUTS[layout].rename
    return bool(prefix) and any(rename(key) in state for key in shapes if not key.startswith("fc."))


def _split_body(state: Mapping[str, Tensor], layout: str, prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the net without their prefix, and the keys of everything else."""
    body = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if prefix == "resnet.":  # transformers keeps the classifier's linear layer outside the net
        body |= {key: value for key, value in state.items() if key.startswith("classifier.")}
    if layout == "torchvision" and prefix in ("backbone.", "encoder."):  # a linear layer beside the net
        body |= {key: value for key, value in state.items() if key.startswith("fc.") and key not in body}
    unused = [key for key in state if not key.startswith(prefix) and key not in body]
    if layout == "caffe2":
        # the first convolution's bias, which detectron2 does not use either, and the optimiser's momenta
        unused += [key for key in body if key == "conv1_b" or key.endswith("_momentum")]
        body = {_caffe2_spelling(key): value for key, value in body.items() if key not in unused}
    return body, unused


_CAFFE2_LONG_NAMES = {"gamma": "s", "beta": "b", "running_mean": "rm", "running_var": "riv"}


def _caffe2_spelling(key: str) -> str:
    """Shorten the names of a norm's tensors: detectron2's copies of MSRA's files spell them out."""
    return re.sub(r"_bn_(gamma|beta|running_mean|running_var)$", lambda m: f"_bn_{_CAFFE2_LONG_NAMES[m[1]]}", key)


def _fill_statistics(state: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Add a mean of 0 and a variance of 1 to norms without statistics.

    Detectron folded the statistics into scale and shift. detectron2 reads such files the same way.
    """
    filled = dict(state)
    for key, shape in shapes.items():
        norm, _, tensor = key.rpartition(".")
        if f"{norm}.weight" in state and tensor in ("running_mean", "running_var"):
            filled.setdefault(key, torch.zeros(shape) if tensor == "running_mean" else torch.ones(shape))
    return filled


def body_in_layout(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename a ResNet's state dict to another project's keys.

    Args:
        state: native key -> tensor.
        layout: a key of `LAYOUTS`.

    Returns:
        The layout's key -> tensor.

    Raises:
        InvalidValue: for "caffe2", which has no place for a norm's statistics.
    """
    if layout == "caffe2":
        raise InvalidValue("Caffe2's names have no place for a norm's statistics: use layout='detectron2'")
    return {LAYOUTS[layout].rename(key): value for key, value in state.items()}
