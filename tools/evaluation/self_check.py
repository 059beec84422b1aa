"""A small generated data set on which two backends of scoring are compared bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from .ground_truth import mask_areas
from .interface import Backend, Curves, Kind, Objects, ToScore

SIDES_PX = ((64, 96), (150, 120), (400, 300))  # objects of these images are small, medium and large
IMAGES, CATEGORIES, WRONG = 30, 3, 20
LIMITS = (100, 10)


def differences(backend: Backend, reference: Backend) -> str:
    """Compare all arrays of two backends.

    The set has boxes and masks (polygons and run lengths), objects of all sizes, crowds, several detections of one
    object, equal scores, wrong categories, images without objects, without detections or with neither, images that are
    not scored, and more detections than are scored.

    Args:
        backend: the backend to check.
        reference: the one that is right.

    Returns:
        What differs, or what failed; empty if every bit is equal.
    """
    for kind in ("bbox", "segm"):
        for limit in LIMITS:
            data = generated(kind, limit)
            expected = reference.curves(data)
            try:
                found = backend.curves(data)
            except BaseException as error:
                # a panic of a Rust library is no Exception
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                return f"it fails with {type(error).__name__}: {error}"
            if different := _first_difference(found, expected):
                return f"{'masks' if kind == 'segm' else 'boxes'}, up to {limit} detections: {different}"
    return ""


def _first_difference(found: Curves, expected: Curves) -> str:
    for name in ("precision", "recall", "scores"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return f"{name} is {ours.dtype} {ours.shape}, not {theirs.dtype} {theirs.shape}"
        if ours.tobytes() != theirs.tobytes():
            different = ours != theirs
            most = float(np.abs(ours - theirs).max())
            return f"{int(different.sum())} of {ours.size} values of {name} differ, by up to {most:.3g}"
    return ""


def generated(kind: Kind, max_detections: int, *, images: int = IMAGES, wrong: int = WRONG, seed: int = 0) -> ToScore:
    """Make the data set.

    Args:
        kind: "bbox" or "segm".
        max_detections: the limit on detections.
        images: number of images.
        wrong: detections of nothing per image, on average; there are about ten of objects.
        seed: random seed.

    Returns:
        What to score.
    """
    rng = np.random.default_rng(seed)
    numbers = np.arange(images)
    sizes = np.array(SIDES_PX)[numbers % len(SIDES_PX)]
    # an image in five has no objects; an object in eight is a crowd
    image_of = np.repeat(numbers, np.where(numbers % 5 == 3, 0, rng.integers(1, 7, images)))
    boxes = _random_boxes(rng, sizes[image_of])
    columns = image_of, rng.integers(0, CATEGORIES, len(boxes)), boxes, boxes[:, 2] * boxes[:, 3]
    crowd = rng.random(len(boxes)) < 1 / 8
    masks = _masks(boxes, crowd, sizes[image_of]) if kind == "segm" else None
    truth = Objects(*columns, crowd, np.ones(len(boxes)), masks)
    scored = np.flatnonzero(numbers % 10 != 9)
    detections = _detections(rng, truth, sizes, wrong * images)
    return ToScore(
        kind, sizes, CATEGORIES, scored, max_detections, truth.of_images(scored), detections.of_images(scored)
    )


def _detections(rng: np.random.Generator, truth: Objects, sizes: np.ndarray, wrong: int) -> Objects:
    """Up to six jittered detections of each object, and some of nothing; an image in seven has none."""
    copied = np.repeat(np.arange(len(truth)), rng.integers(0, 7, len(truth)))
    jitter = 1 + rng.normal(0, 0.08, (len(copied), 4))
    random = rng.integers(0, len(sizes), wrong)
    images = np.concatenate([truth.images[copied], random])
    boxes = np.concatenate([truth.boxes[copied] * jitter, _random_boxes(rng, sizes[random])])
    labels = np.concatenate([truth.categories[copied], rng.integers(0, CATEGORIES, len(random))])
    labels = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, CATEGORIES, len(labels)), labels)
    scores = np.round(rng.random(len(images)), 1)  # many ties
    order = rng.permutation(np.flatnonzero(images % 7 != 2))
    images, boxes, labels, scores = images[order], boxes[order], labels[order], scores[order]
    no_crowd = np.zeros(len(images), bool)
    areas = boxes[:, 2] * boxes[:, 3]
    if truth.masks is None:
        return Objects(images, labels, boxes, areas, no_crowd, scores)
    masks = _masks(boxes, ~no_crowd, sizes[images])
    return Objects(images, labels, boxes, mask_areas(masks), no_crowd, scores, masks)


def _random_boxes(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """Boxes of a tenth to half of the sides of their images; half of them at whole pixels."""
    scale = sizes[:, ::-1]
    sides = rng.uniform(0.1, 0.5, scale.shape) * scale
    boxes = np.concatenate([rng.random(scale.shape) * (scale - sides), sides], axis=1)
    return np.where(rng.random((len(boxes), 1)) < 0.5, np.rint(boxes), boxes)


def _masks(boxes: np.ndarray, as_runs: np.ndarray, sizes: np.ndarray) -> list[Any]:
    """Octagons in boxes, as polygons or as run lengths."""
    from pycocotools import mask as coco_mask  # not at the top: `--help` does not need it

    angle = (np.arange(8) + 0.5) * np.pi / 4
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) / 2 + 0.5  # (8, 2) in a box of side one
    outlines = boxes[:, None, :2] + boxes[:, None, 2:] * circle
    masks: list[Any] = []
    for outline, runs, size in zip(outlines.reshape(-1, 16).tolist(), as_runs.tolist(), sizes.tolist()):
        masks.append(coco_mask.frPyObjects([outline], *size)[0] if runs else [outline])
    return masks
