"""Files of detectors: the weights, and how to build the detector again."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from resnet_backbone.build import open_weights
from resnet_backbone.errors import InvalidValue, MissingFile
from resnet_backbone.plain import from_plain, to_plain
from resnet_backbone.weights.certificate import CertificateMismatch, certify, describe
from resnet_backbone.weights.read import WeightFile, save_atomically

from .build import assemble, empty_backbone, load_certified
from .conventions import CONVENTIONS, Conventions
from .detector import RCNN
from .fingerprint import detector_fingerprint, rebuildable_body
from .recipes import DetectorRecipe
from .weights import BACKGROUND


def detector_content(detector: RCNN, recipe: DetectorRecipe, *, source: str = "trained here") -> dict[str, Any]:
    """The content of a file without a certificate, such as a checkpoint.

    Args:
        detector: the detector, around a `ResNetBackbone`.
        recipe: the recipe that it was built from.
        source: where the weights come from, a key of `SOURCES` or a description.

    Returns:
        {"model": tensors, "meta": recipe, class names and pixel format as plain values}.

    Raises:
        InvalidType: another backbone, which no recipe can build again.
    """
    body = rebuildable_body(detector)
    state = detector.state_dict() | {f"{BACKGROUND}{key}": rows for key, rows in detector.background.items()}
    meta = describe(
        detector.preprocess,
        kind="detector",
        source=source,
        project=_project_of(recipe.conventions),
        net=body.describe(),
        recipe=to_plain(recipe),
        class_names=list(detector.class_names),
    )
    return {"model": state, "meta": meta}


def _project_of(conventions: Conventions) -> str:
    same = (name for name, row in CONVENTIONS.items() if replace(row, norm_eps=conventions.norm_eps) == conventions)
    return next(same, "none of the known")


def save_detector(detector: RCNN, recipe: DetectorRecipe, path: str | PathLike[str], *, source: str) -> None:
    """Write a certified file.

    Args:
        detector: the detector, around a `ResNetBackbone`. It runs once, for its fingerprint.
        recipe: the recipe that it was built from.
        path: the file, `.pth` or `.safetensors`.
        source: where the weights come from, a key of `SOURCES` or a description.

    Raises:
        InvalidType: another backbone, which no recipe can build again.
    """
    content = detector_content(detector, recipe, source=source)
    meta = certify(content["meta"], content["model"], detector_fingerprint(detector))
    save_atomically({**content, "meta": meta}, Path(path))


def read_detector(path: str | PathLike[str] | WeightFile) -> WeightFile:
    """Read a file of this project that holds a detector, without building it.

    Args:
        path: a file that tools/train_det.py or tools/convert_weights.py wrote, or the folder of a run.

    Returns:
        The content of the file. A `WeightFile` is checked and returned as it is.

    Raises:
        MissingFile: there is no such file.
        InvalidValue: the file is damaged, or holds no detector of this project.
    """
    if not isinstance(path, WeightFile) and not Path(path).exists():
        raise MissingFile(f"no detector at {path}: give the folder of a training run or a file that it wrote")
    file = open_weights(path)
    if file.meta is None or file.meta["kind"] != "detector":
        raise InvalidValue(
            f"{file} holds no detector of this project: train_det.py writes such files, and tools/convert_weights.py "
            "makes them from the detectors of other projects"
        )
    return file


def load_detector(path: str | PathLike[str] | WeightFile) -> tuple[RCNN, DetectorRecipe]:
    """Build the detector that a file of this project holds.

    A certified file is checked: the hash of every tensor and the outputs of every stage. The checkpoint of a run has no
    certificate (`WeightFile.certified`).

    Args:
        path: as for `read_detector`, or what it returned.

    Returns:
        The detector and its recipe.

    Raises:
        MissingFile: there is no such file.
        InvalidValue: the file is damaged, or holds no detector of this project.
        CertificateMismatch: a tensor or the output of a stage does not match the certificate.
        WeightMismatch: the tensors do not fit the recipe.
    """
    file = read_detector(path)
    assert file.meta is not None
    recipe = from_plain(DetectorRecipe, file.meta["recipe"])
    _check_consistent(recipe, file)
    detector = assemble(recipe, len(file.meta["class_names"]), empty_backbone(recipe))
    load_certified(detector, file)
    return detector, recipe


def _check_consistent(recipe: DetectorRecipe, file: WeightFile) -> None:
    """Compare the two descriptions of the backbone in a detector's metadata: as a net and in the recipe."""
    assert file.meta is not None
    net = file.meta["net"]
    recorded = {**net["spec"], "norm_eps": net["norm_eps"]}
    expected = {**to_plain(recipe.spec), "norm_eps": recipe.conventions.norm_eps}
    for name, value in expected.items():
        if to_plain(recorded.get(name)) != value:
            raise CertificateMismatch(
                f"{file}: {name} is {recorded.get(name)!r} for its net and {value!r} in its recipe: the "
                "file was edited; make or copy it again"
            )
