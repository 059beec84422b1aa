"""From names and files to nets, and from nets to files: the only module that handles both nets and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .backbone import ResNetBackbone, ResNetBody
from .blocks import Bottleneck
from .classifier import ResNetClassifier
from .errors import InvalidValue, MissingFile
from .plain import from_plain
from .specs import RESNETS, ResNetSpec, find_spec
from .weights.certificate import (
    CertificateMismatch,
    Fingerprint,
    certify,
    check_fingerprint,
    check_hashes,
    describe,
    generated_pixels,
    inference_copy,
    preprocess_of,
    sample_outputs,
)
from .weights.load import WeightReport, load_file, source_of
from .weights.read import WeightFile, Weights, read_weights, save_atomically
from .weights.shards import INDEX_SUFFIX

RUN_FILES = ("model.safetensors", "checkpoints/last.pt")
# what else a folder with weights may hold: the files of transformers' save_pretrained()
SAVED_FILES = (f"model.safetensors{INDEX_SUFFIX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX_SUFFIX}")


def build_backbone(
    name: str | ResNetSpec,
    *,
    weights: Weights | None = None,
    source: str | None = None,
    norm: str = "frozen_bn",
    out_levels: Sequence[str] = ("c2", "c3", "c4", "c5"),
    frozen_stages: int = 2,
) -> ResNetBackbone:
    """Build a backbone and load its weights strictly.

    Args:
        name: a row of `RESNETS` ("resnet50"), which takes stride placement and epsilon from the weights, or a spec,
            which is built as it is.
        weights: a published name ("imagenet1k_v1", "imagenet1k_v2"), a file (.pth, .safetensors, or a .pkl of arrays)
            in the layout of any project in `SOURCES`, the folder of a run, or a state dict. None: initial values.
        source: where the weights come from (a key of `SOURCES`), if the file does not identify it.
        norm: "frozen_bn", "bn", "bn_eval" (fixed statistics), "sync_bn" or "gn".
        out_levels: the levels that `forward` returns.
        frozen_stages: 0 nothing, 1 the stem, 2 the stem and C2, ... 5 everything.

    Returns:
        The backbone. Its `preprocess` is that of the weights.

    Raises:
        InvalidValue: an unknown name, or norms or stages that would be frozen at initial values.
        MissingFile: there are no such weights.
        WeightMismatch: the weights do not fit the net; as for `load_weights`.
    """
    spec = find_spec(name)
    check_frozen_has_weights(weights is not None, norm=norm, frozen_stages=frozen_stages)
    settings: dict[str, Any] = {"norm": norm, "out_levels": out_levels, "frozen_stages": frozen_stages}
    if weights is None:
        return ResNetBackbone(spec, **settings)
    file = open_weights(weights, net=name if isinstance(name, str) else None)
    norm_eps = 1e-5
    if isinstance(name, str):
        with torch.device("meta"):
            layout = ResNetBackbone(spec, norm=norm, out_levels=out_levels)
        weight_source = source_of(file, layout.to_native_keys(file.state), source)
        if weight_source is not None:
            norm_eps = weight_source.norm_eps
            if issubclass(spec.block, Bottleneck):
                spec = replace(spec, stride_on=weight_source.stride_on)
    backbone = ResNetBackbone(spec, norm_eps=norm_eps, **settings)
    load_weights(backbone, file, source=source)
    return backbone


def build_classifier(
    name: str | ResNetSpec,
    *,
    num_classes: int = 1000,
    weights: Weights | None = None,
    source: str | None = None,
    norm: str = "bn",
    frozen_stages: int = 0,
) -> ResNetClassifier:
    """Build a classifier and load its weights strictly.

    Args:
        name: a row of `RESNETS` or a spec.
        num_classes: number of classes.
        weights: as for `build_backbone`.
        source: where the weights come from (a key of `SOURCES`), if the file does not identify it.
        norm: as for `build_backbone`.
        frozen_stages: as for `build_backbone`.

    Returns:
        The classifier. Its `preprocess` is that of the weights.

    Raises:
        InvalidValue: an unknown name, or norms or stages that would be frozen at initial values.
        MissingFile: there are no such weights.
        WeightMismatch: the weights do not fit the net; as for `load_weights`.
    """
    check_frozen_has_weights(weights is not None, norm=norm, frozen_stages=frozen_stages)
    net = ResNetClassifier(name, num_classes=num_classes, norm=norm, frozen_stages=frozen_stages)
    if weights is not None:
        load_weights(net, weights, source=source)
    return net


def check_frozen_has_weights(has_weights: bool, *, norm: str, frozen_stages: int) -> None:
    """Refuse to freeze initial values.

    Args:
        has_weights: whether pretrained weights will be loaded.
        norm: the norm of the net.
        frozen_stages: how many of its stages are frozen.

    Raises:
        InvalidValue: norms or stages would be frozen without weights.
    """
    fixed = norm in ("frozen_bn", "bn_eval")
    if has_weights or not (fixed or frozen_stages):
        return
    what = f"norm={norm!r}" if fixed else f"frozen_stages={frozen_stages}"
    raise InvalidValue(
        f"{what} without weights would freeze initial values: give weights=... (a file or 'imagenet1k_v1'; "
        "backbone_weights or weights in a configuration), or train from scratch with norm='bn' or 'gn' and "
        "frozen_stages=0"
    )


def load_weights(
    model: nn.Module,
    weights: Weights,
    *,
    source: str | None = None,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
) -> WeightReport:
    """Copy weights into a model and report what happened to every key.

    Args:
        model: a `ResNetBackbone`, a `ResNetClassifier`, an `RCNN`, or any module that has the keys of the file. Its
            `preprocess` becomes that of the weights.
        weights: a file (torch's, .safetensors, or a .pkl of arrays), the index or the folder of a sharded model, the
            folder of a run, a published name ("imagenet1k_v1"), or a state dict, with the keys of any project in
            `SOURCES`. Wrappers (`{"state_dict": ...}`) and prefixes that all keys share (`module.`, `_orig_mod.`,
            `model.`) are removed, and averaged weights (EMA) are taken where a file has both: `WeightReport.notes`
            says so, and `open_weights(..., part=...)` reads the others.
        source: where the weights come from (a key of `SOURCES`), if neither keys, metadata nor a published hash
            identify it. A state dict with native keys needs none.
        strict: raise unless every tensor of the model is loaded and every tensor of the file has a place or is unused
            by design. False loads what fits; read the report.
        allow_missing: patterns ("box_head.*") of keys that may be absent or of another shape. They keep their initial
            values and are listed in `kept_initial`.

    Returns:
        The report.

    Raises:
        MissingFile: there are no such weights.
        WeightMismatch: the weights do not fit; the message names the first keys and the fix.
        CertificateMismatch: a certified file does not match its certificate.
        AmbiguousWeights: the source cannot be identified.
        InvalidValue: the file is damaged or no weight file, tensors hold no finite floating-point numbers, or the model
            was built with another stride placement or epsilon. The model is unchanged after every error.
    """
    file = open_weights(weights, net=_row_of(model))
    verify(file)
    return load_file(model, file, source=source, strict=strict, allow_missing=allow_missing)


def open_weights(weights: Weights, *, net: str | None = None, part: str | None = None) -> WeightFile:
    """Read weights: as `read_weights`, and the folder of a run or of a model that transformers saved.

    Args:
        weights: as for `load_weights`.
        net: the net (a row of `RESNETS`) for which a published name is read.
        part: the entry of the file that holds the weights ("state_dict"). None finds it; averaged weights (EMA) are
            taken where there are any, which `WeightFile.notes` says.

    Returns:
        The content of the file. `load_weights` takes it in place of a file.

    Raises:
        MissingFile: there are no such weights, or the run has not saved any.
        InvalidValue: as for `read_weights`.
    """
    if isinstance(weights, (str, PathLike)) and Path(weights).is_dir():
        weights = file_of_run(Path(weights))
    return read_weights(weights, net=net, part=part)


def file_of_run(run: Path) -> Path:
    """Find the weights in a folder.

    Args:
        run: a folder that tools/train_det.py, tools/train_cls.py or transformers' `save_pretrained()` wrote.

    Returns:
        The certified `model.safetensors` of a finished run, otherwise its last checkpoint; the index of a sharded
        model.

    Raises:
        MissingFile: the folder has none of them.
        InvalidValue: the folder is an unpacked torch file or a distributed checkpoint.
    """
    for name in (*RUN_FILES, *SAVED_FILES):
        if (run / name).is_file():
            return run / name
    if (run / "data.pkl").is_file() and (run / "data").is_dir():
        raise InvalidValue(
            f"{run} is a torch file that was unpacked: pack its folder again (`zip -0 -r {run.name}.pth {run.name}` in "
            f"{run.parent}), or download the file without unpacking it"
        )
    if (run / ".metadata").is_file():
        raise InvalidValue(
            f"{run} is a distributed checkpoint of torch: convert it to one file (python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {run} weights.pth)"
        )
    raise MissingFile(
        f"{run} has no {' and no '.join((*RUN_FILES, *SAVED_FILES))}: name the folder of a run that has saved a "
        "checkpoint, or a file"
    )


def verify(file: WeightFile) -> None:
    """Check a certified file: the hash of every tensor, and the outputs of its backbone for a generated image.

    Args:
        file: what `open_weights` returned. A file without a certificate has nothing to check.

    Raises:
        CertificateMismatch: the file does not match its certificate.
    """
    if file.meta is None or not file.certified:
        return
    check_hashes(file.state, file.meta["tensors"], str(file))
    state = {key.removeprefix("backbone."): value for key, value in file.state.items()}
    try:
        with torch.device("meta"):  # initial values would be overwritten at once
            body = from_metadata(file.meta)
        body.to_empty(device="cpu")
        body.load_state_dict({k: state[k] for k in body.state_dict() if "num_batches" not in k}, strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CertificateMismatch(
            f"{file}: its certificate describes no net of these tensors ({error}): make the file again"
        ) from error
    body.preprocess = preprocess_of(file.meta)
    fingerprint = _fingerprint(body.eval())
    certified = file.meta["fingerprint"]
    if file.meta["kind"] == "detector":  # it also has the stages of the heads, which `load_detector` checks
        certified = {stage: values for stage, values in certified.items() if stage in fingerprint}
    check_fingerprint(fingerprint, certified, str(file))


def from_metadata(
    meta: Mapping[str, Any], *, norm: str | None = None, num_classes: int | None = None
) -> ResNetBackbone | ResNetClassifier:
    """Build the net that a file of this project describes, at initial values.

    Args:
        meta: the metadata of the file (`WeightFile.meta`).
        norm: the norm to build it with; None for that of the file.
        num_classes: build a classifier of so many classes; None builds the backbone alone.

    Returns:
        The net.

    Raises:
        InvalidValue: the metadata describes no net.
    """
    net = meta["net"]
    spec = from_plain(ResNetSpec, net["spec"])
    settings = {"norm": norm or net["norm"], "norm_eps": net["norm_eps"]}
    frozen_stages = 0 if norm else net["frozen_stages"]  # another norm applies to every stage
    if num_classes is not None:
        return ResNetClassifier(spec, num_classes=num_classes, frozen_stages=frozen_stages, **settings)
    return ResNetBackbone(spec, out_levels=net["out_levels"], frozen_stages=frozen_stages, **settings)


def save_weights(body: ResNetBody, path: str | PathLike[str], *, source: str) -> None:
    """Write a certified file of a backbone or a classifier.

    Args:
        body: the net.
        path: the file, `.pth` or `.safetensors`.
        source: where the weights come from, a key of `SOURCES` or a description.
    """
    save_atomically(certified_content(body, source=source), Path(path))


def net_content(
    body: ResNetBody, *, source: str, project: str = "detectron2", kind: str = "backbone", **facts: Any
) -> dict[str, Any]:
    """The content of a file without a certificate: tensors, and how to build the net again.

    Args:
        body: the net.
        source: where the weights come from, a key of `SOURCES` or a description.
        project: the project that sets the conventions of detectors.
        kind: "backbone" or "classifier".
        **facts: what else travels with the weights, as plain values, such as `class_names`.

    Returns:
        {"model": tensors, "meta": metadata}.
    """
    meta = describe(body.preprocess, kind=kind, source=source, project=project, net=body.describe(), **facts)
    return {"model": body.state_dict(), "meta": meta}


def certified_content(body: ResNetBody, **facts: Any) -> dict[str, Any]:
    """As `net_content`, with a certificate; the net runs once.

    Args:
        body: the net.
        **facts: the arguments of `net_content`.

    Returns:
        {"model": tensors, "meta": metadata with hashes and fingerprint}.
    """
    content = net_content(body, **facts)
    return {**content, "meta": certify(content["meta"], content["model"], _fingerprint(inference_copy(body)))}


def _fingerprint(body: ResNetBody) -> Fingerprint:
    """Outputs of the stem and every stage; the body is on the CPU, in float32 and in inference mode."""
    with torch.inference_mode():
        return sample_outputs(body.all_levels(generated_pixels(body.preprocess)))


def _row_of(model: nn.Module) -> str | None:
    """The row of `RESNETS` that has the weights of the model; the dilation of C5 may differ."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ResNetSpec):
        return None
    same = ("block", "depths", "widths", "stem", "shortcut", "stride_on")
    return next((n for n, row in RESNETS.items() if all(getattr(row, f) == getattr(spec, f) for f in same)), None)
