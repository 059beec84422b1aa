"""torchvision's own detectors, live, in float32 and at full size: nothing but rounding tells ours from them.

Two float32 computations of one detector differ by rounding, and where a decision hangs on less than that (a score at
the threshold, a pair at the overlap of suppression, the last proposal or detection that is kept, a region between two
levels) they may decide it differently. Every detection that only one of them has must be such a case. Float64, which
`test_parity_torchvision.py` shows to be torchvision's, is asked: a disturbance of its outputs by less than `ROUNDING`
must make the detection come, and another one must make it go. What both have, a little further apart, must be as near
to float64's. A mask differs by more than a few pixels only where torchvision's whole-pixel frame, into which it pastes,
hangs on rounding too.
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
from heads.rpn import RPNOutput
from heads.structures import Detections, ImageSize
from tests.heads.torchvision_pairs import batch_of, pair, tensors

FULL_SIZE = {"short_side_px": 800, "long_side_px": 1333}
PROPOSALS = 1000
CLASS_SPREAD = 1.0  # of the logits: with more of it, float32's error alone moves scores by 1e-4
SAME = (0.01, 1e-4)  # px and score
NEAR = (0.05, 5e-4)  # what rounding makes of one detection
ROUNDING = 2e-4  # of the outputs' standard deviation: so far off float64 the float32 box heads' were seen
DRAWS = 12


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Sums are split among threads: their number decides on the rounding, and the counts below are those of two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(coco_mini: Path) -> list[np.ndarray]:
    """Lying and upright ones in turn."""
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
    theirs, ours = pair(name, PROPOSALS, photos[:1], monkeypatch, FULL_SIZE, CLASS_SPREAD)
    matched = total = 0
    for image in photos[:count]:
        wanted, (found,) = detect(theirs, image), Predictor(ours)([image])
        assert len(wanted) >= 50 and len(wanted.labels.unique()) > 10
        assert float(wanted.scores.max() - wanted.scores.min()) > 0.1
        same, near = are_same(found, wanted, SAME), are_same(found, wanted, NEAR)
        assert int(same.sum(0).max()) == int(same.sum(1).max()) == 1
        matched, total = matched + int(same.sum()), total + max(len(found), len(wanted))
        apart = near & ~same
        if bool(apart.any()):
            exact = next(disturbed(ours, image, rounding=0.0))
            for both in (found[apart.any(1)], wanted[apart.any(0)]):
                assert bool(are_same(both, exact, NEAR).any(1).all()), both
        for lonely in (found[~near.any(1)], wanted[~near.any(0)]):
            assert bool(come_and_go(ours, image, lonely).all()), lonely
        if isinstance(found.masks, BitMasks) and isinstance(wanted.masks, BitMasks):
            rows = same.nonzero(as_tuple=True)
            mine, its = (d.masks.bits[kept] for d, kept in zip((found, wanted), rows))
            frames = [expand_boxes(d.boxes[kept], 30 / 28).long() for d, kept in zip((found, wanted), rows)]
            framed_alike = (frames[0] == frames[1]).all(1)
            assert int((~framed_alike).sum()) <= 1
            allowed = (its.sum(dim=(1, 2)) * 0.001).clamp(min=2)
            assert bool(((mine ^ its).sum(dim=(1, 2)) <= allowed)[framed_alike].all())
    assert matched >= 0.995 * total


@pytest.mark.slow
def test_a_detection_at_the_threshold_comes_and_goes_and_others_do_not(
    photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself: it must not take every detection for undecided."""
    _, ours = pair("fasterrcnn_resnet50_fpn", PROPOSALS, photos[:1], monkeypatch, FULL_SIZE, CLASS_SPREAD)
    plain = next(disturbed(ours, photos[0], rounding=0.0))[:50]
    ours.box_head.spec = replace(ours.box_head.spec, min_score=float(plain.scores[-1]))
    undecided = come_and_go(ours, photos[0], plain)
    assert bool(undecided[-1]) and int(undecided.sum()) <= 3


def detect(theirs: Any, image: np.ndarray) -> Detections:
    """torchvision's detections in our terms."""
    with torch.inference_mode():
        (found,) = theirs.eval()(tensors([image], torch.float32))
    masks = BitMasks(found["masks"][:, 0] > 0.5) if "masks" in found else None
    return Detections(found["boxes"], found["scores"], found["labels"] - 1, masks)


def are_same(a: Detections, b: Detections, within: tuple[float, float]) -> Tensor:
    """(R, S) bool: the same label, box within so many px, and score. No detection is so near two of its label: one
    would have suppressed the other."""
    near = (a.boxes[:, None] - b.boxes).abs().amax(dim=2) <= within[0]
    return near & ((a.scores[:, None] - b.scores).abs() <= within[1]) & (a.labels[:, None] == b.labels)


def come_and_go(ours: RCNN, image: np.ndarray, lonely: Detections) -> Tensor:
    """(R,) bool: in float64 the detection is there with one disturbance below rounding and missing with another."""
    came, went = torch.zeros(2, len(lonely), dtype=torch.bool)
    draws = disturbed(ours, image, ROUNDING)
    for _ in range(DRAWS):
        if bool((came & went).all()):
            break
        there = are_same(lonely, next(draws), NEAR).any(1)
        came, went = came | there, went | ~there
    return came & went


@torch.no_grad()
def disturbed(ours: RCNN, image: np.ndarray, rounding: float) -> Iterator[Detections]:
    """Float64's detections, again and again, with uniform noise up to rounding (in standard deviations) on all that
    the RPN and the box head put out. Masks decide nothing and are left out."""
    precise = deepcopy(ours).double().eval()
    batch = batch_of([image], precise.preprocess)
    dense = precise.dense(batch.pixels)
    (stage,) = precise.roi_stages

    def noisy(outputs: Tensor) -> Tensor:
        return outputs + rounding * outputs.std() * torch.empty_like(outputs).uniform_(-1, 1)

    while True:
        rpn = RPNOutput(*([noisy(x) for x in outputs] for outputs in dense.rpn))
        proposals = precise.propose(dense._replace(rpn=rpn), batch, (1000, PROPOSALS))
        output = stage(dense.features, [p.boxes for p in proposals])
        for _ in range(4):  # a disturbance of the box head's outputs is the cheaper one
            disturbed_output = replace(output, logits=noisy(output.logits), deltas=noisy(output.deltas))
            (found,) = precise.select([disturbed_output], batch.sizes)
            yield to_image(found, batch.sizes[0], ImageSize(*image.shape[:2]))
