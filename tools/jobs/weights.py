"""Weight files: described, and converted between projects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from heads.build import build_detector, detector_source, resolve_recipe
from heads.conventions import Conventions
from heads.detector import RCNN
from heads.files import load_detector, save_detector
from heads.keymaps import LAYOUTS as DETECTOR_LAYOUTS
from heads.keymaps import candidates_of, layout_of, to_layout
from heads.recipes import DETECTORS, DetectorRecipe
from heads.weights import MASK_KEYS, num_classes_in
from resnet_backbone import RESNETS, Preprocess, ResNetBackbone, ResNetClassifier, load_weights
from resnet_backbone.build import certified_content, from_metadata, open_weights
from resnet_backbone.errors import InvalidValue
from resnet_backbone.weights.keymaps import body_in_layout, rename_body
from resnet_backbone.weights.load import source_of
from resnet_backbone.weights.read import WeightFile, Weights, save_atomically
from resnet_backbone.weights.sources import SOURCES, AmbiguousWeights, WeightSource, resolve_source

from .runs import NOT_CHECKED, note_missing_certificate

# the projects that a net without heads can be written for, and the layout of the keys of each
NET_LAYOUTS = {
    "torchvision": "torchvision",
    "timm": "torchvision",
    "detectron2": "detectron2",
    "transformers": "transformers",
}
LAYOUTS = ("ours", *dict.fromkeys((*NET_LAYOUTS, *DETECTOR_LAYOUTS)))
SUFFIXES = (".pth", ".safetensors")


def convert(
    weights: Weights,
    out: str | PathLike[str],
    *,
    to: str = "ours",
    recipe: str | None = None,
    source: str | None = None,
    net: str | None = None,
) -> str:
    """Write weights with the keys of another project, or as a certified file of this project.

    Args:
        weights: as for `load_weights`: a net's or a whole detector's.
        out: the file to write, `.pth` or `.safetensors`.
        to: one of `LAYOUTS`; "ours" writes a certified file.
        recipe: for a detector of another project: the name of its recipe in `DETECTORS`.
        source: the source of the weights, a key of `SOURCES`; None to resolve it from the file.
        net: for a published name: the net, such as "resnet50".

    Returns:
        What was written, and the settings with which the other project must use it.

    Raises:
        InvalidValue: an unknown layout, recipe or net, or a layout without keys for these weights.
        MissingFile: there are no such weights.
        AmbiguousWeights: the source cannot be identified.
        WeightMismatch: the weights do not fit the recipe.
        CertificateMismatch: a certified file was changed.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise InvalidValue(f"{path}: the file to write must end in {' or '.join(SUFFIXES)}")
    file = open_weights(weights, net=net)
    note_missing_certificate(file)
    is_detector = file.meta["kind"] == "detector" if file.meta else layout_of(file.state) is not None
    done = _convert_detector(file, path, to, recipe, source) if is_detector else _convert_net(file, path, to, source)
    return "\n".join([done, *(f"note: {note}" for note in _reading_notes(file))])


def _reading_notes(file: WeightFile) -> list[str]:
    """What was chosen while a file was read, one sentence each."""
    return [*file.notes, *([f"prefix {file.prefix!r} removed from all keys"] if file.prefix else [])]


def _convert_detector(file: WeightFile, out: Path, to: str, name: str | None, source: str | None) -> str:
    if to not in ("ours", *DETECTOR_LAYOUTS):
        raise InvalidValue(f"{to} has no detectors: give ours or {', '.join(DETECTOR_LAYOUTS)} as the layout (--to)")
    if file.meta is not None:
        detector, recipe = load_detector(file)
        source_name = str(file.meta["source"])
    else:
        detector, recipe = _build_foreign_detector(file, name, source)
        source_name = _source_name(detector_source(file, source))
    if to == "ours":
        save_detector(detector, recipe, out, source=source_name)
        return f"{out}: certified file, {len(detector.class_names)} classes, source {source_name}"
    state = to_layout(detector.state_dict(), to, detector.background)
    save_atomically(_wrap(state, to, out), out)
    settings = (
        f"{_pixel_settings(detector.preprocess)}, stride on a bottleneck's {recipe.stride_on}, "
        f"norms with an epsilon of {recipe.conventions.norm_eps:g}"
    )
    return f"{out}: {len(state)} tensors with {to}'s keys\nuse it with {settings}"


def _build_foreign_detector(file: WeightFile, name: str | None, source: str | None) -> tuple[RCNN, DetectorRecipe]:
    """The detector of another project, and the recipe with the conventions of its weights."""
    if name is None:
        raise InvalidValue(f"{file} is a whole detector: give its recipe (--recipe), one of {', '.join(DETECTORS)}")
    recipe = resolve_recipe(name, file, source=source)
    masks = [key for key in file.state if MASK_KEYS.match(key)]
    if masks and recipe.mask is None:
        suggested = name.replace("faster", "mask")
        raise InvalidValue(
            f"{file} has a mask head ({len(masks)} tensors, first {masks[0]}), which {name} would leave out: give "
            f"--recipe {suggested}"
        )
    num_classes = num_classes_in(file)
    if num_classes is None:
        raise InvalidValue(f"{file} has no box predictor: give the weights of a whole detector")
    return build_detector(recipe, num_classes=num_classes, weights=file, source=source), recipe


def _convert_net(file: WeightFile, out: Path, to: str, source: str | None) -> str:
    if to not in ("ours", *NET_LAYOUTS):
        raise InvalidValue(
            f"{to} has no keys for a net without heads: give ours or {', '.join(NET_LAYOUTS)} as the layout (--to)"
        )
    net = _described_net(file) if file.meta is not None else recognise(file.state)
    weight_source = source_of(file, net.to_native_keys(file.state), source)
    has_bottlenecks = net.spec.block.expansion > 1
    if weight_source is not None and has_bottlenecks and weight_source.stride_on != net.spec.stride_on:
        net = recognise(file.state, stride_on=weight_source.stride_on)
    report = load_weights(net, file, source=source)
    source_name = _source_name(weight_source) if file.meta is None else str(file.meta["source"])
    if to == "ours":
        facts = {name: file.meta[name] for name in ("kind", "class_names") if name in file.meta} if file.meta else {}
        save_atomically(certified_content(net, source=source_name, **facts), out)
        return f"{out}: certified file, {len(report.loaded)} tensors, source {source_name}"
    state = body_in_layout(net.state_dict(), NET_LAYOUTS[to])
    save_atomically(_wrap(state, to, out), out)
    settings = f"{_pixel_settings(net.preprocess)}, stride on a bottleneck's {net.spec.stride_on}"
    return f"{out}: {len(state)} tensors with {to}'s keys\nuse it with {settings}"


def _described_net(file: WeightFile) -> ResNetBackbone | ResNetClassifier:
    """The net that a file of this project describes, with norms that keep every tensor."""
    assert file.meta is not None
    norm = "gn" if file.meta["net"]["norm"] == "gn" else "bn"
    num_classes = len(file.state["fc.weight"]) if "fc.weight" in file.state else None
    return from_metadata(file.meta, norm=norm, num_classes=num_classes)


def recognise(
    state: Mapping[str, Tensor], *, stride_on: Literal["3x3", "1x1"] = "3x3"
) -> ResNetBackbone | ResNetClassifier:
    """Find the net that a state dict belongs to.

    A plain net has the tensors of the residual net with shortcut A, and is taken for that.

    Args:
        state: the tensors, with the keys of any project.
        stride_on: the convolution of a bottleneck that carries the stride; the tensors are the same either way.

    Returns:
        The net of `RESNETS`, at initial values, with batch norms; a classifier if the tensors have its linear layer.

    Raises:
        InvalidValue: no net has these tensors.
    """
    for name, spec in RESNETS.items():
        with torch.device("meta"):
            net = ResNetClassifier(name)
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        native = rename_body(state, shapes).state
        if _body_shapes({key: tuple(value.shape) for key, value in native.items()}) != _body_shapes(shapes):
            continue
        if spec.block.expansion > 1:
            spec = replace(spec, stride_on=stride_on)
        if "fc.weight" in native:
            return ResNetClassifier(spec, num_classes=len(native["fc.weight"]))
        return ResNetBackbone(spec, norm="bn", out_levels=[stage.level for stage in spec.stages])
    raise InvalidValue(f"these tensors belong to no known net ({', '.join(RESNETS)}) and to no detector")


def recognise_body(file: WeightFile) -> tuple[str, list[str]]:
    """Find the net and the sources that the weights of a backbone or classifier fit.

    Args:
        file: what `open_weights` returned.

    Returns:
        The row of `RESNETS`; the sources (keys of `SOURCES`) that the keys fit, torchvision first if it is one. One
        source if the file tells it, none for a file of this project.

    Raises:
        InvalidValue: the file is another project's detector, or belongs to no known net.
    """
    layout = layout_of(file.state) if file.meta is None else None
    if layout is not None:
        raise InvalidValue(
            f"{file} is a detector with {layout}'s keys: convert it with tools/convert_weights.py, and give the result"
        )
    net = recognise(file.state)
    rows = {name: row.depths for name, row in RESNETS.items() if row.block is net.spec.block}
    name = next(name for name, depths in rows.items() if depths == net.spec.depths and name.startswith("resnet"))
    if file.meta is not None:
        return name, []
    candidates = net.to_native_keys(file.state).candidates
    if not candidates:
        return name, []
    try:
        return name, [resolve_source(candidates, source=None, content=file.content, path=file.path)]
    except AmbiguousWeights:
        return name, sorted(candidates, key=lambda source: source != "torchvision")


def _body_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes without those of the linear layer and the counters of batch norms."""
    return {k: shape for k, shape in shapes.items() if not k.startswith("fc.") and "num_batches_tracked" not in k}


def _source_name(source: WeightSource | None) -> str:
    if source is None:
        return "unknown"
    return next((name for name, row in SOURCES.items() if row == source), str(source))


def _wrap(state: dict[str, Tensor], to: str, out: Path) -> dict[str, object]:
    """detectron2 reads a dict with "model", mmdetection one with "state_dict", the others the state dict itself."""
    if out.suffix == ".safetensors" or to == "detectron2":
        return {"model": state, "__author__": "resnet-backbone"}
    return {"state_dict": state} if to == "mmdetection" else dict(state)


def _pixel_settings(preprocess: Preprocess) -> str:
    values = vars(preprocess)
    return ", ".join(f"{name} {values[name]}" for name in ("channel_order", "value_range", "mean", "std"))


def describe_file(file: WeightFile) -> dict[str, str]:
    """Collect what is known of a weight file from its metadata, or from its keys.

    Args:
        file: what `open_weights` returned.

    Returns:
        Name -> text: the number of tensors, what was chosen while reading, kind, source, certificate, and for a file of
        this project how the model is built.

    Raises:
        InvalidValue: the tensors belong to no known net and to no detector.
    """
    count = sum(value.numel() for value in file.state.values())
    facts = {"tensors": f"{len(file.state)}, {count / 1e6:.1f} million values"}
    if notes := _reading_notes(file):
        facts["read"] = "; ".join(notes)
    return facts | (_foreign_facts(file) if file.meta is None else _own_facts(file.meta, file.certified))


def _foreign_facts(file: WeightFile) -> dict[str, str]:
    layout = layout_of(file.state)
    if layout is None:
        candidates = recognise(file.state).to_native_keys(file.state).candidates
    else:
        candidates = candidates_of(file.state)
    try:
        name = resolve_source(candidates, source=None, content=file.content, path=file.path) if candidates else ""
        source = f"{name}: {SOURCES[name]}" if name else "unknown"
    except AmbiguousWeights:
        choices = (f"{name} ({SOURCES[name]})" for name in candidates)
        source = f"ambiguous, give source=: {'; '.join(choices)}"
    return {
        "kind": "a net without heads" if layout is None else f"a detector with {layout}'s keys",
        "certificate": "none: not a file of this project (tools/convert_weights.py writes a certified one)",
        "source": source,
    }


def _own_facts(meta: Mapping[str, Any], certified: bool) -> dict[str, str]:
    net, recipe = meta["net"], meta.get("recipe")
    facts = {
        "kind": str(meta["kind"]),
        "source": str(meta["source"]),
        "certificate": "checked below" if certified else f"none: {NOT_CHECKED}",
        "net": ", ".join(f"{name} {value}" for name, value in net["spec"].items()),
        "norms": f"{net['norm']}, epsilon {net['norm_eps']:g}",
        "preprocess": ", ".join(f"{name} {value}" for name, value in meta["preprocess"].items()),
    }
    if recipe is not None:
        heads = "boxes" if recipe["mask"] is None else "boxes and masks"
        facts["recipe"] = f"{recipe['backbone']}, {recipe['neck']}, {heads}"
        defaults = vars(Conventions())
        other = [f"{name} {value}" for name, value in recipe["conventions"].items() if value != defaults.get(name)]
        facts["conventions"] = f"{meta['project']}'s: {', '.join(other) or 'the defaults'}"
    if "class_names" in meta:
        facts["classes"] = f"{len(meta['class_names'])}: {', '.join(meta['class_names'])}"
    return facts
