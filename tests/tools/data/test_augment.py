"""Augmented boxes and masks lie on the augmented pixels of their objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.transforms import v2

from heads import BitMasks, ImageSize, PolygonMasks, Targets
from heads.masks import polygons_from
from tools.annotations.reader import ReadOptions
from tools.data.augment import Augment
from tools.data.coco import ImageRecord, load_coco
from tools.data.loader import read_checked

Box = tuple[int, int, int, int]
RESIZES = ["pillow", "opencv", "torch"]


def polygon(box: Box) -> list[list[float]]:
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def rle(box: Box, height: int, width: int) -> dict[str, Any]:
    bits = np.zeros((height, width), np.uint8, order="F")
    bits[box[1] : box[3], box[0] : box[2]] = 1
    return coco_mask.encode(bits)


def scene(
    boxes: list[Box], height: int, width: int, kind: str = "polygon", segmentations: list[Any] | None = None
) -> tuple[np.ndarray, ImageRecord]:
    """A black image with filled boxes, each in its own channel, and its record.

    Args:
        boxes: at most three boxes, in pixels.
        height: height of the image, pixels.
        width: width of the image, pixels.
        kind: segmentation of the objects, "polygon" or "rle".
        segmentations: segmentations that replace those of the boxes.
    """
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, channel] = 255
    if segmentations is None:
        segmentations = [polygon(b) if kind == "polygon" else rle(b, height, width) for b in boxes]
    record = ImageRecord(
        image_id=1,
        path=Path("scene.png"),
        size=ImageSize(height=height, width=width),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.arange(len(boxes)),
        segmentations=tuple(polygons_from(s) if isinstance(s, list) else s for s in segmentations),
        object_ids=tuple(range(len(segmentations))),
        crowds=0,
    )
    return image, record


def extent(plane: torch.Tensor) -> list[int]:
    """Bounding box x1 y1 x2 y2 of the True pixels of (H, W)."""
    rows, columns = plane.any(1).nonzero().flatten(), plane.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def max_difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).max(initial=0.0))


def outline_bounds(masks: PolygonMasks) -> list[list[float]]:
    vertices = [np.concatenate(polygons) for polygons in masks.polygons]
    return [[*v.min(axis=0).tolist(), *v.max(axis=0).tolist()] for v in vertices]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Box], int, int]:
    height, width = draw(st.integers(40, 120)), draw(st.integers(40, 120))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        x1, y1 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
        boxes.append((x1, y1, draw(st.integers(x1 + 12, width)), draw(st.integers(y1 + 12, height))))
    return boxes, height, width


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scenes(), st.integers(40, 160), st.booleans(), st.sampled_from(["polygon", "rle"]))
def test_boxes_and_masks_stay_on_the_pixels_of_their_object(
    layout: tuple[list[Box], int, int], short_side_px: int, flip: bool, kind: str
) -> None:
    image, record = scene(*layout, kind)
    augment = Augment((short_side_px,), 400, float(flip), masks=True)
    pixels, targets = augment(image, record, seed=0)
    assert targets.labels.tolist() == record.labels.tolist()
    for channel, box in enumerate(targets.boxes.tolist()):
        assert max_difference(extent(pixels[channel] >= 128), box) <= 1
    if kind == "polygon":
        assert isinstance(targets.masks, PolygonMasks)
        assert max_difference(outline_bounds(targets.masks), targets.boxes) <= 1e-3
    else:
        assert isinstance(targets.masks, BitMasks)
        assert targets.masks.bits.shape[1:] == pixels.shape[1:]
        for bits, box in zip(targets.masks.bits, targets.boxes.tolist()):
            assert max_difference(extent(bits), box) <= 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(scenes(), st.sampled_from(["polygon", "rle"]))
def test_a_flip_without_a_resize_is_exact(layout: tuple[list[Box], int, int], kind: str) -> None:
    boxes, height, width = layout
    image, record = scene(boxes, height, width, kind)
    pixels, targets = Augment((min(height, width),), 400, 1.0, masks=True)(image, record, seed=0)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image[:, ::-1])
    expected = [[width - x2, y1, width - x1, y2] for x1, y1, x2, y2 in boxes]
    assert max_difference(targets.boxes, expected) <= 1e-4
    assert isinstance(targets.masks, (PolygonMasks, BitMasks))
    bits = targets.masks if isinstance(targets.masks, BitMasks) else targets.masks.rasterise(height, width)
    for channel, plane in enumerate(bits.bits):
        assert extent(plane) == expected[channel]
        assert bool((plane == (pixels[channel] == 255)).all())


def test_objects_of_several_polygons_keep_their_polygons(tmp_path: Path) -> None:
    boxes: list[Box] = [(10, 10, 40, 40), (50, 20, 90, 50)]
    parts = [[10, 10, 20, 10, 20, 20], [30, 30, 40, 30, 40, 40, 35, 40]], [[50, 20, 90, 20, 90, 50]]
    image, record = scene(boxes, 60, 100, segmentations=list(parts))
    _, targets = Augment((60,), 400, 1.0, masks=True)(image, record, seed=0)
    assert isinstance(targets.masks, PolygonMasks)
    for polygons, originals in zip(targets.masks.polygons, parts, strict=True):
        for moved, flat in zip(polygons, originals, strict=True):
            points = np.array(flat, dtype=np.float64).reshape(-1, 2)
            assert max_difference(moved, np.stack([100 - points[:, 0], points[:, 1]], axis=1)) <= 1e-4


def test_the_short_side_is_drawn_from_the_list_and_the_long_side_is_limited() -> None:
    image, record = scene([(10, 10, 60, 60)], 100, 300)
    augment = Augment((64, 80, 128), 256, 0.0, masks=True)
    sizes = {tuple(augment(image, record, seed)[0].shape[1:]) for seed in range(40)}
    # a short side of 128 gives a long side of 384; the limit of 256 reduces the short side to 85
    assert sizes == {(64, 192), (80, 240), (85, 256)}


def same(a: tuple[torch.Tensor, Targets], b: tuple[torch.Tensor, Targets]) -> bool:
    return a[0].shape == b[0].shape and torch.equal(a[0], b[0]) and torch.equal(a[1].boxes, b[1].boxes)


def test_the_result_depends_on_the_seed_only() -> None:
    image, record = scene([(10, 10, 60, 60)], 100, 140)
    augment = Augment((64, 80, 96, 112), 400, 0.5, masks=True)
    first = [augment(image, record, seed) for seed in range(12)]
    np.random.seed(5)
    torch.manual_seed(5)
    again = [Augment((64, 80, 96, 112), 400, 0.5, masks=True)(image, record, seed) for seed in reversed(range(12))]
    assert all(same(a, b) for a, b in zip(first, reversed(again)))
    assert sum(not same(first[0], other) for other in first[1:]) >= 8


def test_flips_have_the_requested_probability() -> None:
    image, record = scene([(0, 0, 20, 20)], 64, 64)
    augment = Augment((64,), 64, 0.25, masks=False)
    flipped = sum(float(augment(image, record, seed)[1].boxes[0, 0]) > 32 for seed in range(160))
    assert 21 <= flipped <= 59  # 40 +- 3.5 standard deviations


def test_polygons_and_rle_in_one_image_become_bitmaps() -> None:
    boxes: list[Box] = [(10, 10, 40, 30), (50, 20, 90, 50)]
    image, record = scene(boxes, 60, 100, segmentations=[polygon(boxes[0]), rle(boxes[1], 60, 100)])
    _, targets = Augment((120,), 400, 1.0, masks=True)(image, record, seed=0)
    assert isinstance(targets.masks, BitMasks) and tuple(targets.masks.bits.shape) == (2, 120, 200)
    for bits, box in zip(targets.masks.bits, targets.boxes.tolist()):
        assert max_difference(extent(bits), box) <= 1


@pytest.mark.parametrize("masks", [True, False])
def test_an_image_without_boxes_gives_empty_targets(masks: bool) -> None:
    image, record = scene([], 60, 100)
    pixels, targets = Augment((30,), 400, 1.0, masks=masks)(image, record, seed=0)
    assert tuple(pixels.shape) == (3, 30, 50)
    assert tuple(targets.boxes.shape) == (0, 4) and tuple(targets.labels.shape) == (0,)
    assert (targets.masks is None) is not masks


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_targets_have_no_masks_unless_requested(kind: str) -> None:
    image, record = scene([(10, 10, 40, 30)], 60, 100, kind)
    _, targets = Augment((60,), 400, 0.5, masks=False)(image, record, seed=0)
    assert targets.masks is None and len(targets) == 1


def test_the_smallest_objects_are_kept() -> None:
    image, record = scene([], 400, 600)
    boxes = np.array([[10.2, 10.2, 10.7, 10.9], [0, 0, 600, 400], [599.5, 399.5, 600, 400]])
    outlines = [polygons_from([[x1, y1, x2, y1, x2, y2]]) for x1, y1, x2, y2 in boxes.tolist()]
    record = ImageRecord(1, record.path, record.size, boxes, np.array([2, 0, 1]), tuple(outlines), (1, 2, 3), 0)
    for flip in (0.0, 1.0):
        _, targets = Augment((100,), 400, flip, masks=True)(image, record, seed=0)
        assert targets.labels.tolist() == [2, 0, 1]
        expected = boxes / 4
        if flip:
            expected = np.stack([150 - expected[:, 2], expected[:, 1], 150 - expected[:, 0], expected[:, 3]], axis=1)
        assert max_difference(targets.boxes, expected) <= 1e-3


@pytest.mark.parametrize("flip", [False, True])
def test_real_images_agree_with_torchvisions_transforms(flip: bool, coco_mini: Path) -> None:
    data = load_coco(
        coco_mini / "val2017", coco_mini / "annotations" / "instances_val2017.json", ReadOptions(masks=True)
    )
    augment = Augment((200,), 300, float(flip), masks=True)
    polygon_images = 0
    for record in data.records[:10]:
        pixels, targets = augment(read_checked(record), record, seed=0)
        canvas = record.size.height, record.size.width
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(record.boxes), format="XYXY", canvas_size=canvas)
        boxes = v2.functional.resize(boxes, list(pixels.shape[1:]))
        boxes = v2.functional.horizontal_flip(boxes) if flip else boxes
        assert max_difference(targets.boxes, boxes.as_subclass(torch.Tensor)) <= 1e-3
        if isinstance(targets.masks, PolygonMasks) and len(targets):
            polygon_images += 1
            scale = np.array([pixels.shape[2] / record.size.width, pixels.shape[1] / record.size.height])
            for polygons, originals in zip(targets.masks.polygons, record.segmentations, strict=True):
                for moved, original in zip(polygons, originals, strict=True):
                    points = original * scale
                    points[:, 0] = pixels.shape[2] - points[:, 0] if flip else points[:, 0]
                    assert max_difference(moved, points) <= 1e-3
    assert polygon_images >= 6


def test_the_size_is_independent_of_the_flip() -> None:
    """albumentations seeds `py_random` of every transform alike: a size drawn from it would depend on the flip."""
    boxes: list[Box] = [(4, 10, 20, 30)]
    image, record = scene(boxes, 40, 60)
    augment = Augment((64, 96), 400, 0.5, masks=False)
    samples = [augment(image, record, seed) for seed in range(200)]
    large = [float(t.boxes[0, 0]) > p.shape[2] / 2 for p, t in samples if p.shape[1] == 96]
    small = [float(t.boxes[0, 0]) > p.shape[2] / 2 for p, t in samples if p.shape[1] == 64]
    for flipped in (large, small):
        assert 0.3 < sum(flipped) / len(flipped) < 0.7  # one half +- 4 standard deviations


def exactly_equal(a: tuple[torch.Tensor, Targets], b: tuple[torch.Tensor, Targets]) -> bool:
    masks, others = a[1].masks, b[1].masks
    if isinstance(masks, PolygonMasks) and isinstance(others, PolygonMasks):
        pairs = zip(masks.polygons, others.polygons, strict=True)
        same_masks = all(np.array_equal(p, q) for ps, qs in pairs for p, q in zip(ps, qs, strict=True))
    elif isinstance(masks, BitMasks) and isinstance(others, BitMasks):
        same_masks = torch.equal(masks.bits, others.bits)
    else:
        same_masks = masks is others is None
    types = [(t.boxes.dtype, t.labels.dtype, p.dtype) for p, t in (a, b)]
    return same_masks and same(a, b) and torch.equal(a[1].labels, b[1].labels) and types[0] == types[1]


@st.composite
def fractional_boxes(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """At most four boxes of any size, some of almost no area, at any place within an image."""
    height, width = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    places = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-8, 1 - 1e-8]), min_size=8, max_size=8)
    corners = np.array([draw(places) for _ in range(draw(st.integers(0, 2)))]).reshape(-1, 2, 2)
    return np.sort(corners, axis=1).reshape(-1, 4) * [width, height, width, height], height, width


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fractional_boxes(), st.integers(0, 99), st.sampled_from(["polygon", "rle", "none"]), st.sampled_from(RESIZES))
def test_images_boxes_and_masks_equal_those_of_albumentations(
    layout: tuple[np.ndarray, int, int], seed: int, kind: str, resize: str
) -> None:
    """The short way equals the pipeline of albumentations bit for bit, or leaves the image to it."""
    boxes, height, width = layout
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = [(int(x1), int(y1), int(x2) + 1, int(y2) + 1) for x1, y1, x2, y2 in boxes.tolist()]
    outlines = [polygon(box) if kind == "polygon" else rle(box, height, width) for box in whole]
    _, record = scene([], height, width, segmentations=outlines)
    record = replace(record, boxes=boxes, labels=np.arange(len(boxes)))
    augment = Augment((30, 45, 60, 110), 140, 0.5, masks=kind != "none", resize=resize)
    direct = augment._direct(image, record, seed)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(initial=1)
    assert direct is not None or sides < 0.3
    assert direct is None or exactly_equal(direct, augment._by_albumentations(image, record, seed))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_photographs_equal_those_of_albumentations(flip: float, coco_mini: Path) -> None:
    data = load_coco(
        coco_mini / "val2017", coco_mini / "annotations" / "instances_val2017.json", ReadOptions(masks=True)
    )
    augment = Augment((160, 200), 300, flip, masks=True)
    for record in data.records[:12]:
        image = read_checked(record)
        direct = augment._direct(image, record, seed=record.image_id)
        assert direct is not None and exactly_equal(
            direct, augment._by_albumentations(image, record, seed=record.image_id)
        )


@pytest.mark.parametrize(
    "box", [[5.0, 5, 5, 9], [5, 5, 5.00000001, 9], [-3, 5, 9, 9], [5, 5, 200, 9], [float("nan"), 5, 9, 9]]
)
def test_boxes_that_albumentations_may_refuse_or_drop_are_left_to_it(box: list[float]) -> None:
    image, record = scene([(1, 1, 2, 2)], 60, 100)
    record = replace(record, boxes=np.array([box], dtype=np.float64))
    assert Augment((60,), 400, 0.5, masks=True)._direct(image, record, seed=0) is None


def test_a_bitmap_of_another_size_than_its_image_is_refused() -> None:
    image, record = scene([(1, 1, 9, 9)], 60, 100, segmentations=[rle((1, 1, 9, 9), 50, 100)])
    with pytest.raises(ValueError, match="[Hh]eight and [Ww]idth"):
        Augment((60,), 400, 0.5, masks=True)(image, record, seed=0)
