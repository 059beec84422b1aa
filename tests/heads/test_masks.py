"""Masks: targets from polygons and bitmaps, pasting as in detectron2 and torchvision, COCO's run lengths."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from heads import BitMasks, ImageSize, PolygonMasks, RoiMasks, clip
from heads.masks import decode_segmentation, polygons_from

HEIGHT, WIDTH = 90, 120


def blob(centre: tuple[float, float], radius: float, vertices: int = 30) -> np.ndarray:
    """A star-shaped polygon (V, 2)."""
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    radii = radius * (0.8 + 0.2 * np.cos(3 * angle))
    return np.stack([centre[0] + radii * np.cos(angle), centre[1] + radii * np.sin(angle)], axis=1)


BLOBS = PolygonMasks(((blob((40.3, 45.7), 30),), (blob((80, 40), 25),), (blob((20, 20), 12), blob((95, 70), 14))))
BOXES = torch.tensor([[9.7, 15.2, 71.1, 76.4], [54.0, 14.5, 106.2, 65.0], [7.0, 7.0, 110.0, 85.0]])


def rasterised(masks: PolygonMasks) -> BitMasks:
    """The polygons as bitmaps, drawn by pycocotools."""
    planes = [decode_segmentation([p.reshape(-1).tolist() for p in ps], HEIGHT, WIDTH) for ps in masks.polygons]
    return BitMasks(torch.from_numpy(np.stack(planes)))


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1)


def test_polygons_and_their_bitmaps_give_the_same_targets() -> None:
    from_polygons, from_bitmaps = BLOBS.crop_to(BOXES, 28), rasterised(BLOBS).crop_to(BOXES, 28)
    assert (
        from_polygons.shape == from_bitmaps.shape == (3, 28, 28)
        and from_polygons.dtype == from_bitmaps.dtype == torch.bool
    )
    assert mask_iou(from_polygons, from_bitmaps).min() > 0.9


@pytest.mark.parametrize("kind", ["polygons", "bits"])
def test_target_of_a_rectangle_is_exact(kind: str) -> None:
    """A rectangle of x 20..60 and y 30..50 in a box of x 0..80 and y 10..70.

    The target covers 1/4 to 3/4 of the width and 1/3 to 2/3 of the height.
    """
    corners = np.array([[20.0, 30], [60, 30], [60, 50], [20, 50]])
    bits = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    bits[0, 30:50, 20:60] = True
    masks = PolygonMasks(((corners,),)) if kind == "polygons" else BitMasks(bits)
    expected = torch.zeros(24, 24, dtype=torch.bool)
    expected[8:16, 6:18] = True
    assert torch.equal(masks.crop_to(torch.tensor([[0.0, 10, 80, 70]]), 24)[0], expected)


@pytest.mark.parametrize("masks", [BLOBS, rasterised(BLOBS)], ids=["polygons", "bits"])
def test_target_is_empty_beside_the_mask_and_full_inside_it(masks: PolygonMasks | BitMasks) -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [75.0, 35.0, 85.0, 45.0], [200.0, 200.0, 300.0, 300.0]])
    targets = masks.crop_to(boxes, 14).flatten(1)
    assert not targets[0].any() and targets[1].all() and not targets[2].any()


def test_a_box_without_area_gives_a_target() -> None:
    boxes = torch.tensor([[40.0, 40.0, 40.0, 40.0]] * 3)
    for masks in (BLOBS, rasterised(BLOBS)):
        assert masks.crop_to(boxes, 28).shape == (3, 28, 28)


@pytest.mark.parametrize("masks", [PolygonMasks(()), BitMasks(torch.zeros(0, 9, 9, dtype=torch.bool))])
def test_no_instances_give_no_targets(masks: PolygonMasks | BitMasks) -> None:
    assert masks.crop_to(torch.zeros(0, 4), 28).shape == (0, 28, 28)


def detectron2_paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """`_do_paste_mask`: the mask sampled at the pixel centres, which are normalised to the box."""
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
    y = (torch.arange(height).to(boxes) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width).to(boxes) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    return F.grid_sample(masks[:, None].to(boxes), grid, align_corners=False)[:, 0]


@pytest.mark.parametrize("side", [1, 2, 28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pasting_equals_detectron2_also_partly_outside_the_image(side: int, dtype: torch.dtype) -> None:
    corner = torch.rand(40, 2, dtype=dtype) * torch.tensor([180.0, 150.0]) - 40
    boxes = torch.cat([corner, corner + torch.rand(40, 2, dtype=dtype) * 90 + 0.3], dim=1)
    masks = torch.rand(40, side, side)
    expected = detectron2_paste(masks, boxes, HEIGHT, WIDTH)
    pasted = RoiMasks(masks).paste(boxes, HEIGHT, WIDTH).bits
    # in float32, the coordinates of grid_sample are accurate to about 1e-5 of a mask cell
    decided = (expected - 0.5).abs() > (1e-6 if dtype == torch.float64 else 1e-5)
    assert torch.equal(pasted[decided], (expected >= 0.5)[decided])
    assert decided.float().mean() > 0.999 and pasted.flatten(1).any(1).sum() > 5


@pytest.mark.parametrize("side", [1, 28])
def test_integer_pasting_equals_torchvision(side: int) -> None:
    """Boxes are clipped, as those of detections: torchvision fails for a box outside the image."""
    corner = torch.rand(60, 2, dtype=torch.float64) * torch.tensor([WIDTH - 2.0, HEIGHT - 2.0])
    boxes = torch.cat([corner, corner + torch.rand(60, 2, dtype=torch.float64) * 90 + 0.3], dim=1)
    boxes = clip(boxes, ImageSize(height=HEIGHT, width=WIDTH))
    masks = torch.rand(60, side, side, dtype=torch.float64)
    expected = paste_masks_in_image(masks[:, None], boxes, (HEIGHT, WIDTH))[:, 0] > 0.5
    pasted = RoiMasks(masks, "integer").paste(boxes, HEIGHT, WIDTH).bits
    assert torch.equal(pasted, expected) and pasted.flatten(1).any(1).sum() > 5


def test_soft_targets_equal_torchvision_and_default_ones_are_binary() -> None:
    bits = torch.rand(3, HEIGHT, WIDTH) > 0.5
    boxes, rows = torch.tensor([[3.2, 4.7, 40.1, 50.3], [0, 0, 90, 70], [20.5, 30.5, 22, 33]]), torch.tensor([2, 0, 1])
    expected = project_masks_on_boxes(bits.to(torch.uint8), boxes, rows, 28)
    soft = BitMasks(bits)[rows].crop_to(boxes, 28, soft_bitmaps=True)
    torch.testing.assert_close(soft, expected)
    assert ((soft > 0) & (soft < 1)).any()
    assert BitMasks(bits)[rows].crop_to(boxes, 28).dtype == torch.bool


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_pasting_applies_its_threshold(threshold: float) -> None:
    boxes, masks = torch.tensor([[10.0, 12.0, 70.0, 61.0]]), torch.rand(1, 28, 28)
    expected = detectron2_paste(masks, boxes, HEIGHT, WIDTH)
    pasted = RoiMasks(masks).paste(boxes, HEIGHT, WIDTH, threshold=threshold).bits
    decided = (expected - threshold).abs() > 1e-5
    assert torch.equal(pasted[decided], (expected >= threshold)[decided])


@pytest.mark.parametrize("box", [[-50.0, -50, -10, -10], [200.0, 10, 300, 50], [5.0, 5, 5, 40], [5.0, 5, 5, 5]])
def test_boxes_outside_the_image_or_without_area_give_empty_masks(box: list[float]) -> None:
    pasted = RoiMasks(torch.ones(1, 28, 28)).paste(torch.tensor([box]), HEIGHT, WIDTH)
    assert pasted.bits.shape == (1, HEIGHT, WIDTH) and not pasted.bits.any()


def test_pasting_a_target_restores_the_mask() -> None:
    """Pasting is the inverse of cropping, up to the resolution of the grid."""
    pasted = RoiMasks(BLOBS.crop_to(BOXES, 112).float()).paste(BOXES, HEIGHT, WIDTH)
    assert mask_iou(pasted.bits, rasterised(BLOBS).bits).min() > 0.95


def test_run_lengths_survive_json_and_pycocotools() -> None:
    bits = rasterised(BLOBS)
    rles = json.loads(json.dumps(bits.to_rle()))
    assert np.array_equal(coco.decode(rles).transpose(2, 0, 1).astype(bool), bits.bits.numpy())
    assert [rle["size"] for rle in rles] == [[HEIGHT, WIDTH]] * 3
    assert BitMasks(torch.zeros(0, 4, 4, dtype=torch.bool)).to_rle() == []


def test_polygons_compressed_and_uncompressed_run_lengths_decode_equally() -> None:
    polygons = [blob((40, 45), 30).reshape(-1).tolist()]
    bits = decode_segmentation(polygons, HEIGHT, WIDTH)
    (compressed,) = BitMasks(torch.from_numpy(bits)[None]).to_rle()
    # run lengths in column-major order
    counts = np.diff(np.flatnonzero(np.diff(np.r_[2, bits.T.reshape(-1), 2]))).tolist()
    counts = counts if not bits[0, 0] else [0, *counts]
    for segmentation in (compressed, {"size": [HEIGHT, WIDTH], "counts": counts}):
        assert np.array_equal(decode_segmentation(segmentation, HEIGHT, WIDTH), bits)
    assert bits.shape == (HEIGHT, WIDTH) and bits.dtype == bool


@pytest.mark.parametrize("invalid", [None, [], {}, "polygon", 3])
def test_an_invalid_segmentation_is_refused(invalid: object) -> None:
    with pytest.raises(ValueError, match="segmentation must be polygons or RLE, got"):
        decode_segmentation(invalid, 4, 4)


@pytest.mark.parametrize("flat", [[], [1.0, 2, 3, 4], [1.0, 2, 3, 4, 5, 6, 7]])
def test_a_polygon_of_fewer_than_three_points_is_refused(flat: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least three x y pairs, got {len(flat)} numbers"):
        polygons_from([flat])


def test_decoded_areas_of_coco_annotations_match_the_annotated_ones(coco_mini: Path) -> None:
    """All polygons and crowd regions of coco-mini's validation images."""
    content = json.loads(next((coco_mini / "annotations").glob("*val2017.json")).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    ratios = []
    for annotation in content["annotations"]:
        bits = decode_segmentation(annotation["segmentation"], *sizes[annotation["image_id"]])
        assert bits.shape == sizes[annotation["image_id"]]
        if annotation["area"] > 400:  # in smaller ones, most pixels are on the border
            ratios.append(bits.sum() / annotation["area"])
    assert len(ratios) > 500 and np.percentile(np.abs(np.array(ratios) - 1), 95) < 0.05


@pytest.mark.parametrize(
    "index", [slice(1, None), torch.tensor([False, True, True]), torch.tensor([1, 2])], ids=["slice", "mask", "indices"]
)
def test_every_kind_of_mask_supports_every_kind_of_index(index: Tensor | slice) -> None:
    bits, probabilities = rasterised(BLOBS), RoiMasks(torch.rand(3, 28, 28))
    assert BLOBS[index].polygons == BLOBS.polygons[1:]
    assert torch.equal(bits[index].bits, bits.bits[1:])
    assert torch.equal(probabilities[index].probabilities, probabilities.probabilities[1:])
    assert len(BLOBS[index]) == len(bits[index]) == len(probabilities[index]) == 2


def test_indices_reorder_and_repeat() -> None:
    order = torch.tensor([2, 0, 0])
    assert BLOBS[order].polygons == (BLOBS.polygons[2], BLOBS.polygons[0], BLOBS.polygons[0])


def test_bitmaps_of_other_shapes_or_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BitMasks takes \(R, H, W\) bool, got \(4, 4\) torch.bool"):
        BitMasks(torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="got .* torch.uint8"):
        BitMasks(torch.zeros(1, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("triangle", "expected"),
    [
        ([[-4000.0, -4000.0], [9000.0, -4000.0], [-4000.0, 9000.0]], 1.0),  # covers the box
        ([[-4000.0, 50.0], [9000.0, 50.0], [2500.0, 9000.0]], 0.5),  # its lower half
        ([[-4000.0, -4000.0], [9000.0, -4000.0], [2500.0, -10.0]], 0.0),  # above it
    ],
)
def test_an_outline_far_larger_than_its_box_is_drawn_without_filling_the_memory(
    triangle: list[list[float]], expected: float
) -> None:
    masks = PolygonMasks(((np.array(triangle),),))
    box = torch.tensor([[49.95, 49.95, 50.05, 50.05]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cells = masks.crop_to(box, 28)
    assert float(cells.float().mean()) == pytest.approx(expected, abs=0.04)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB: 256 MiB
