"""Masks that are pasted when they are used: equal to the pasted bitmaps, and small for a large photograph."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from torch import Tensor
from torch.utils import _pytree as pytree

from heads import BitMasks, RoiMasks, rle, roi_masks
from heads.rle import columns_of, encode_columns
from heads.roi_masks import PastedMasks

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 47, 61
RULES: tuple[Literal["exact", "integer"], ...] = ("exact", "integer")


def pasted(rule: Literal["exact", "integer"], count: int = 30) -> PastedMasks:
    """Boxes inside, across and outside the edges of the image."""
    corner = torch.rand(count, 2) * torch.tensor([WIDTH + 40.0, HEIGHT + 40.0]) - 20
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * 50 + 0.1], dim=1)
    boxes[0] = torch.tensor([-5.0, -5, WIDTH + 5, HEIGHT + 5])
    masks = RoiMasks(torch.rand(count, 14, 14), rule)
    return masks.paste(boxes, HEIGHT, WIDTH)


def rle_of(plane: np.ndarray) -> dict[str, object]:
    """Run lengths of a whole bitmap by pycocotools."""
    counts = coco.encode(np.asfortranarray(plane.astype(np.uint8)))["counts"].decode()
    return {"size": list(plane.shape), "counts": counts}


def pasted_one_by_one(masks: PastedMasks) -> np.ndarray:
    """The straightforward way, (R, H, W): every mask sampled at all pixels of the image."""
    planes = np.zeros((len(masks), masks.height, masks.width), dtype=bool)
    for plane, mask, box in zip(planes, masks.masks.probabilities, masks.boxes):
        side = mask.shape[-1]
        if masks.masks.paste_rule == "exact":
            weights = []
            for low, high, length in ((box[1], box[3], masks.height), (box[0], box[2], masks.width)):
                position = (torch.arange(length) + 0.5 - low) / (high - low) * side - 0.5
                weights.append((1 - (position[:, None] - torch.arange(side)).abs()).clamp(min=0))
            plane[:] = (weights[0] @ mask @ weights[1].T >= masks.threshold).numpy()
            continue
        half, centre = (box[2:] - box[:2]) * 0.5 * ((side + 2) / side), (box[2:] + box[:2]) * 0.5
        left, top, right, bottom = torch.cat([centre - half, centre + half]).to(torch.int64).tolist()
        size = max(bottom - top + 1, 1), max(right - left + 1, 1)
        padded = F.pad(mask, (1, 1, 1, 1))[None, None]
        large = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)[0, 0] > masks.threshold
        y0, y1, x0, x1 = max(top, 0), min(bottom + 1, masks.height), max(left, 0), min(right + 1, masks.width)
        if y1 > y0 and x1 > x0:
            plane[y0:y1, x0:x1] = large[y0 - top : y1 - top, x0 - left : x1 - left].numpy()
    return planes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lines", [1, 100, 2**16])
def test_run_lengths_equal_those_of_masks_pasted_one_by_one(
    rule: Literal["exact", "integer"], lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_masks, "_LINES", lines)
    monkeypatch.setattr(rle, "_MANY_CHANGES", lines)
    masks = pasted(rule, count=40)
    masks.boxes[5:9] = torch.tensor([[5.0, 5, 5, 40], [9.5, 9.5, 9.5, 9.5], [-50, -50, -9, -9], [60.5, 46.5, 61, 47]])
    assert masks.to_rle() == [rle_of(plane) for plane in pasted_one_by_one(masks)]
    assert masks[5:9].to_rle() == masks.to_rle()[5:9]


@settings(max_examples=100, deadline=None)
@given(
    planes=st.lists(arrays(bool, (6, 5)) | st.just(np.ones((6, 5), bool)) | st.just(np.zeros((6, 5), bool)), max_size=5)
)
def test_run_lengths_of_many_masks_equal_those_of_each(planes: list[np.ndarray]) -> None:
    assert encode_columns([columns_of(plane, 0, 0) for plane in planes], 6, 5) == [rle_of(plane) for plane in planes]


def test_long_runs_are_written_with_all_their_digits() -> None:
    """Differences of both signs and of up to 25 bits."""
    corners = torch.tensor([[0, 0, 1], [5999, 7999, 1], [3000, 10, 2], [0, 7999, 1]])
    plane = np.zeros((6000, 8000), dtype=bool)
    for y, x, size in corners.tolist():
        plane[y : y + size, x : x + size] = True
    plane[:, 4000:4002] = plane[2:5990, 5000:5003] = True
    assert encode_columns([columns_of(plane, 0, 0)], 6000, 8000) == [rle_of(plane)]


@pytest.mark.parametrize("rule", RULES)
def test_windows_hold_all_of_a_mask(rule: Literal["exact", "integer"]) -> None:
    masks = pasted(rule)
    for index, plane in enumerate(masks.bits):
        window, left, top = masks.window(index)
        expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        expected[top : top + window.shape[0], left : left + window.shape[1]] = window
        assert window.dtype == torch.bool and torch.equal(expected, plane)
    assert masks.bits.any(dim=(1, 2)).sum() > 10 and not masks.bits.any(dim=(1, 2)).all()


@pytest.mark.parametrize("rule", RULES)
def test_run_lengths_equal_those_of_the_bitmaps_without_computing_these(rule: Literal["exact", "integer"]) -> None:
    masks = pasted(rule)
    rles = masks.to_rle()
    assert "bits" not in vars(masks)
    expected = coco.encode(np.asfortranarray(masks.bits.numpy().transpose(1, 2, 0).astype(np.uint8)))
    assert rles == [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in expected]
    assert rles == BitMasks(masks.bits).to_rle() == json.loads(json.dumps(rles))


@settings(max_examples=300, deadline=None)
@given(window=arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7)), data=st.data())
def test_run_lengths_of_a_window_equal_pycocotools(window: np.ndarray, data: st.DataObject) -> None:
    left, top, right, bottom = (data.draw(st.integers(0, 3)) for _ in range(4))
    plane = np.pad(window, ((top, bottom), (left, right)))
    if plane.size == 0:
        return
    assert encode_columns([columns_of(window, left, top)], *plane.shape) == [rle_of(plane)]


@pytest.mark.parametrize(
    "index", [slice(3, 9), torch.arange(30) % 3 == 1, torch.tensor([7, 2, 2])], ids=["slice", "mask", "indices"]
)
def test_pasted_masks_behave_as_bitmaps(index: Tensor | slice) -> None:
    masks = pasted("exact")
    bits = BitMasks(masks.bits)
    assert isinstance(masks, BitMasks) and len(masks) == 30 and masks.image_size == bits.image_size == (HEIGHT, WIDTH)
    assert torch.equal(masks[index].bits, bits[index].bits) and len(masks[index]) == len(bits[index])
    assert torch.equal(masks.crop_to(masks.boxes, 9), bits.crop_to(masks.boxes, 9))
    assert masks.to("meta").boxes.device.type == masks.to("meta").masks.probabilities.device.type == "meta"
    for copy in (pickle.loads(pickle.dumps(masks)), masks.to("cpu"), pytree.tree_map(torch.clone, masks)):
        assert isinstance(copy, PastedMasks) and torch.equal(copy.bits, masks.bits)


def test_no_masks_can_be_pasted() -> None:
    masks = RoiMasks(torch.zeros(0, 28, 28)).paste(torch.zeros(0, 4), HEIGHT, WIDTH)
    assert masks.bits.shape == (0, HEIGHT, WIDTH) and masks.to_rle() == []


LARGE = """
import resource, torch, numpy as np
from heads import Detections, ImageSize, RoiMasks
from heads.predictor import to_image
from tools.report.draw import draw_instances
torch.manual_seed(0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = np.full((5300, 7800, 3), 99, np.uint8)
before = peak()
corner = torch.rand(100, 2) * torch.tensor([180.0, 120.0])
boxes = torch.cat([corner, corner + 5], dim=1)
found = Detections(boxes, torch.rand(100), torch.zeros(100, dtype=torch.int64), RoiMasks(torch.rand(100, 28, 28)))
found = to_image(found, ImageSize(height=136, width=200), ImageSize(height=5300, width=7800))
assert len(found.masks.to_rle()) == 100
draw_instances(image, found.boxes.numpy(), ["a"] * 100, masks=found.masks)
print((peak() - before) / 2**20)
"""


def test_100_masks_of_41_megapixels_are_pasted_encoded_and_drawn_within_2_gib() -> None:
    output = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert float(output) < 2
