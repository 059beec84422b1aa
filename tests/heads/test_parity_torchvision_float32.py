"""In float32 and at full size, our detections differ from torchvision's only where rounding decides.

Two float32 computations of one detector differ by rounding. Where a decision depends on a smaller difference (a score
at the threshold, two boxes at the IoU of suppression, the last proposal or detection kept, a region between two
levels), they may decide differently. The test checks that every detection that only one of them has is such a case: in
float64, which `test_parity_torchvision.py` shows to equal torchvision, one disturbance of the outputs below `ROUNDING`
must produce the detection and another one must remove it. Detections that both have, with differences above `SAME`,
must both be near float64's. A mask may differ by more than a few pixels only where rounding decides the whole-pixel
frame into which torchvision pastes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes

from heads.detector import RCNN
from heads.images import read_image
from heads.masks import BitMasks
from heads.predictor import Predictor, to_image
from heads.structures import Detections, ImageSize
from tests.heads.torchvision_pairs import batch_of, pair, tensors

FULL_SIZE = {"short_side_px": 800, "long_side_px": 1333}
PROPOSALS = 1000
CLASS_SPREAD = 1.0  # standard deviation of the class logits; above it, float32 rounding moves scores by 1e-4
SAME = (0.01, 1e-4)  # box, pixels, and score: differences of equal detections
NEAR = (0.05, 5e-4)  # differences that rounding can cause
ROUNDING = 2e-4  # in standard deviations of the outputs: the largest error seen in float32 box heads
DRAWS = 12


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The number of threads decides how sums are split and rounded; the limits below hold for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(coco_mini: Path) -> list[np.ndarray]:
    """A landscape and a portrait image."""
    names = ("000000000139", "000000000802")
    return [read_image(coco_mini / "val2017" / f"{name}.jpg") for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("maskrcnn_resnet50_fpn", 2),
        ("maskrcnn_resnet50_fpn_v2", 1),
        ("fasterrcnn_resnet50_fpn", 1),
        ("fasterrcnn_resnet50_fpn_v2", 1),
    ],
)
def test_detections_differ_only_where_rounding_decides(
    name: str, count: int, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, ours = pair(name, PROPOSALS, photos[:1], monkeypatch, FULL_SIZE, CLASS_SPREAD)
    matched = total = 0
    for image in photos[:count]:
        expected, (detections,) = detect(reference, image), Predictor(ours)([image])
        assert len(expected) >= 50 and len(expected.labels.unique()) > 10
        assert float(expected.scores.max() - expected.scores.min()) > 0.1
        same, near = agreement(detections, expected, SAME), agreement(detections, expected, NEAR)
        assert int(same.sum(0).max()) == int(same.sum(1).max()) == 1
        matched, total = matched + int(same.sum()), total + max(len(detections), len(expected))
        different = near & ~same
        if bool(different.any()):
            exact = next(disturbed(ours, image, rounding=0.0))
            for candidates in (detections[different.any(1)], expected[different.any(0)]):
                assert bool(agreement(candidates, exact, NEAR).any(1).all()), candidates
        for unmatched in (detections[~near.any(1)], expected[~near.any(0)]):
            assert bool(undecided_by_rounding(ours, image, unmatched).all()), unmatched
        if isinstance(detections.masks, BitMasks) and isinstance(expected.masks, BitMasks):
            rows = same.nonzero(as_tuple=True)
            bits, expected_bits = (d.masks.bits[kept] for d, kept in zip((detections, expected), rows))
            frames = [expand_boxes(d.boxes[kept], 30 / 28).long() for d, kept in zip((detections, expected), rows)]
            equal_frames = (frames[0] == frames[1]).all(1)
            assert int((~equal_frames).sum()) <= 1
            allowed = (expected_bits.sum(dim=(1, 2)) * 0.001).clamp(min=2)
            assert bool(((bits ^ expected_bits).sum(dim=(1, 2)) <= allowed)[equal_frames].all())
    assert matched >= 0.995 * total


@pytest.mark.slow
def test_only_a_detection_at_the_score_threshold_is_undecided(
    photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests the check itself: a detection far from every threshold must not count as undecided."""
    _, ours = pair("fasterrcnn_resnet50_fpn", PROPOSALS, photos[:1], monkeypatch, FULL_SIZE, CLASS_SPREAD)
    detections = next(disturbed(ours, photos[0], rounding=0.0))[:50]
    ours.box_head.spec = replace(ours.box_head.spec, min_score=float(detections.scores[-1]))
    undecided = undecided_by_rounding(ours, photos[0], detections)
    assert bool(undecided[-1]) and int(undecided.sum()) <= 3


def detect(reference: Any, image: np.ndarray) -> Detections:
    """torchvision's detections in our container."""
    with torch.inference_mode():
        (output,) = reference.eval()(tensors([image], torch.float32))
    masks = BitMasks(output["masks"][:, 0] > 0.5) if "masks" in output else None
    return Detections(output["boxes"], output["scores"], output["labels"] - 1, masks)


def agreement(a: Detections, b: Detections, within: tuple[float, float]) -> Tensor:
    """Which detections agree in label, box and score.

    No detection agrees with two of its label: one of the two would have suppressed the other.

    Args:
        a: R detections.
        b: S detections.
        within: largest differences of box coordinates, pixels, and of scores.

    Returns:
        (R, S) bool.
    """
    near = (a.boxes[:, None] - b.boxes).abs().amax(dim=2) <= within[0]
    return near & ((a.scores[:, None] - b.scores).abs() <= within[1]) & (a.labels[:, None] == b.labels)


def undecided_by_rounding(ours: RCNN, image: np.ndarray, detections: Detections) -> Tensor:
    """(R,) bool: in float64, disturbances below rounding can both produce and remove the detection."""
    present, missing = torch.zeros(2, len(detections), dtype=torch.bool)
    draws = disturbed(ours, image, ROUNDING)
    for _ in range(DRAWS):
        if bool((present & missing).all()):
            break
        matched = agreement(detections, next(draws), NEAR).any(1)
        present, missing = present | matched, missing | ~matched
    return present & missing


@torch.no_grad()
def disturbed(ours: RCNN, image: np.ndarray, rounding: float) -> Iterator[Detections]:
    """Endless float64 detections with uniform noise on the outputs of the RPN and the box head.

    Masks do not affect which detections are kept, and are left out.

    Args:
        ours: the detector, in float32.
        image: (H, W, 3) uint8.
        rounding: largest noise, in standard deviations of an output.
    """
    precise = deepcopy(ours).double().eval()
    batch = batch_of([image], precise.preprocess)
    dense = precise.dense(batch.pixels)
    (stage,) = precise.roi_stages

    def noisy(outputs: Tensor) -> Tensor:
        return outputs + rounding * outputs.std() * torch.empty_like(outputs).uniform_(-1, 1)

    while True:
        logits, deltas = ([noisy(x) for x in outputs] for outputs in (dense.rpn.logits, dense.rpn.deltas))
        rpn = dense.rpn._replace(logits=logits, deltas=deltas)
        proposals = precise.propose(dense._replace(rpn=rpn), batch, (1000, PROPOSALS))
        output = stage(dense.features, [p.boxes for p in proposals])
        for _ in range(4):  # noise on the box head's outputs is cheaper than on the RPN's
            disturbed_output = replace(output, logits=noisy(output.logits), deltas=noisy(output.deltas))
            (detections,) = precise.select([disturbed_output], batch.sizes)
            yield to_image(detections, batch.sizes[0], ImageSize(*image.shape[:2]))
