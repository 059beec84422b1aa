"""The libraries that match detections with ground truth, behind one interface.

pycocotools is the reference: the figures in papers come from it. hotcoco is faster by two orders of magnitude; it is
used only after a self-check, in which all of its arrays equal those of pycocotools bit for bit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from importlib.metadata import version
from typing import Any

import numpy as np

from resnet_backbone.errors import InvalidValue, MissingPackage
from tools.config.detection import ScoringBackend

from .interface import Backend, Curves, Objects, ToScore
from .self_check import differences

SUPPORTED = "hotcoco>=1.3,<2"
INSTALL = f'pip install "{SUPPORTED}"'


class Pycocotools:
    """COCO's own evaluation, in Python."""

    @property
    def label(self) -> str:
        """Name and version."""
        return f"pycocotools {version('pycocotools')}"

    def curves(self, data: ToScore) -> Curves:
        """As for `Backend.curves`."""
        # not at the top: `--help` does not need it
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        def indexed(objects: Objects) -> Any:
            coco = COCO()
            coco.dataset = {**_frame(data), "annotations": _annotations(objects)}
            coco.createIndex()
            return coco

        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(indexed(data.truth), indexed(data.detections), data.kind)
            evaluation.params.imgIds = data.images.tolist()
            evaluation.params.maxDets = [1, 10, data.max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return Curves(*(evaluation.eval[name] for name in ("precision", "recall", "scores")))


class Hotcoco:
    """hotcoco, a port of COCOeval to Rust. It takes columns, without a dict per object."""

    @property
    def label(self) -> str:
        """Name and version."""
        return f"hotcoco {version('hotcoco')}"

    def curves(self, data: ToScore) -> Curves:
        """As for `Backend.curves`."""
        # not at the top: it may not be installed
        from hotcoco import COCO, COCOeval

        truth, found, frame = data.truth, data.detections, _frame(data)
        ground_truth = COCO.from_arrays(
            frame["images"],
            frame["categories"],
            truth.images,
            truth.categories,
            truth.boxes,
            area=truth.areas,
            iscrowd=truth.crowd,
            segmentation=truth.masks,
        )
        rows = np.column_stack([found.images, found.boxes, found.scores, found.categories])
        results = ground_truth.load_res(rows, segmentation=found.masks)
        if len(found):  # it takes the areas of the boxes
            results.update_anns(ids=np.arange(1, len(found) + 1), area=found.areas)
        evaluation = COCOeval(ground_truth, results, data.kind)
        evaluation.params.imgIds = data.images.tolist()
        evaluation.params.maxDets = [1, 10, data.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        found_curves: Any = evaluation.eval
        return Curves(*(np.asarray(found_curves[name]) for name in ("precision", "recall", "scores")))


def choose_backend(setting: ScoringBackend, *, final: bool) -> tuple[Backend, str]:
    """Choose the library that scores.

    Args:
        setting: `eval.backend`. "auto" takes hotcoco for scores during training if it is installed and the self-check
            agrees, and pycocotools for all others.
        final: whether the scores are those of a run, or of `eval_det`, and not those during training.

    Returns:
        The backend, and a sentence that says why.

    Raises:
        MissingPackage: "hotcoco" is asked for and not installed in a supported version.
        InvalidValue: "hotcoco" is asked for and the self-check does not agree.
    """
    reference = Pycocotools()
    if setting == "pycocotools":
        return reference, "eval.backend=pycocotools"
    if setting == "auto" and final:
        return reference, "the reference, for final scores"
    lacking = _lacking()
    if lacking and setting == "hotcoco":
        raise MissingPackage(f"eval.backend=hotcoco, but {lacking}: {INSTALL}, or set eval.backend=auto")
    if lacking:
        return reference, f"{lacking} (much faster: {INSTALL})"
    backend = Hotcoco()
    found = differences(backend, reference)
    if not found:
        return backend, f"its arrays equal those of {reference.label} in the self-check"
    if setting == "hotcoco":
        raise InvalidValue(
            f"eval.backend=hotcoco, but {backend.label} does not score as {reference.label} does in the self-check: "
            f"{found}: set eval.backend=auto or eval.backend=pycocotools"
        )
    return reference, f"{backend.label} does not agree with it in the self-check: {found}"


def _lacking() -> str:
    """Why hotcoco cannot be imported; empty if it can."""
    if importlib.util.find_spec("hotcoco") is None:
        return "hotcoco is not installed"
    installed = version("hotcoco")
    major, minor = (int(part) for part in installed.split(".")[:2])
    return "" if (major, minor) >= (1, 3) and major < 2 else f"hotcoco {installed} is installed, not {SUPPORTED}"


def _frame(data: ToScore) -> dict[str, list[dict[str, Any]]]:
    """Images and categories in COCO's form; their ids are the indices."""
    images = [
        {"id": i, "file_name": "", "height": height, "width": width}
        for i, (height, width) in enumerate(data.sizes.tolist())
    ]
    return {"images": images, "categories": [{"id": k, "name": str(k)} for k in range(data.num_categories)]}


def _annotations(objects: Objects) -> list[dict[str, Any]]:
    """Annotations or results in COCO's form. COCOeval writes into them, and takes a match with id 0 for no match."""
    columns = (objects.images, objects.categories, objects.boxes, objects.areas, objects.crowd, objects.scores)
    names = ("image_id", "category_id", "bbox", "area", "iscrowd", "score")
    rows = zip(*(column.tolist() for column in columns))
    annotations: list[dict[str, Any]] = [{"id": i, **dict(zip(names, row))} for i, row in enumerate(rows, start=1)]
    for annotation, mask in zip(annotations, objects.masks or ()):
        annotation["segmentation"] = mask
    return annotations
