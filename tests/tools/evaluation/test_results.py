"""Detections become COCO results with exact boxes and their own masks; files are written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from heads import BitMasks, RoiMasks
from heads.structures import Detections
from tools.evaluation.results import coco_results, write_results


def make_detections(*, labels: list[int], masks: BitMasks | None = None) -> Detections:
    boxes = torch.tensor([[1.25, 2.0, 11.5, 7.0], [0.1, 0.2, 30.7, 39.9], [5.0, 5.0, 6.0, 6.0]])
    scores = torch.tensor([0.9, 0.1, 0.5])
    count = len(labels)
    return Detections(boxes=boxes[:count], scores=scores[:count], labels=torch.tensor(labels), masks=masks)


def test_labels_become_category_ids_and_corners_become_sides() -> None:
    results = coco_results(139, make_detections(labels=[2, 0]), [1, None, 90])
    assert [(r["image_id"], r["category_id"]) for r in results] == [(139, 90), (139, 1)]
    assert results[0]["bbox"] == [1.25, 2.0, 10.25, 5.0]
    assert results[0]["score"] == pytest.approx(0.9, abs=1e-7)
    assert "segmentation" not in results[0]


def test_corners_can_be_computed_exactly_from_results() -> None:
    detections = make_detections(labels=[0, 0, 0])
    bboxes = torch.tensor([r["bbox"] for r in coco_results(1, detections, [1])], dtype=torch.float64)
    assert torch.equal((bboxes[:, :2] + bboxes[:, 2:]).float(), detections.boxes[:, 2:])


def test_classes_that_the_data_set_lacks_are_left_out() -> None:
    results = coco_results(1, make_detections(labels=[0, 1, 0]), [3, None])
    assert [r["score"] for r in results] == pytest.approx([0.9, 0.5])


def test_each_result_has_the_mask_of_its_detection() -> None:
    bits = torch.zeros((3, 40, 50), dtype=torch.bool)
    bits[0, 2:7, 1:11] = True
    bits[1, 0:40, 0:31] = True
    bits[2, 5, 5] = True
    results = coco_results(1, make_detections(labels=[0, 1, 0], masks=BitMasks(bits)), [3, None])
    for result, mask in zip(results, (bits[0], bits[2]), strict=True):
        assert np.array_equal(coco_mask.decode(result["segmentation"]).astype(bool), mask.numpy())
    assert json.loads(json.dumps(results)) == results


def test_masks_that_are_not_pasted_are_errors() -> None:
    boxes, scores, labels = (
        torch.tensor([[0.0, 0.0, 5.0, 5.0]]),
        torch.ones(1),
        torch.zeros(1, dtype=torch.int64),
    )
    unpasted = Detections(boxes, scores, labels, masks=RoiMasks(torch.ones(1, 28, 28)))
    with pytest.raises(ValueError, match=r"masks are RoiMasks, but must be BitMasks.*paste"):
        coco_results(1, unpasted, [1])


def test_no_detections_give_no_results() -> None:
    empty = Detections(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64), masks=None)
    assert coco_results(1, empty, [1]) == []


def test_a_label_without_a_category_id_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"image 4: labels \[2\] are outside 0\.\.1.*one entry"):
        coco_results(4, make_detections(labels=[0, 2]), [1, 2])


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_values_that_are_not_finite_are_errors(field: str) -> None:
    detections = make_detections(labels=[0, 0])
    getattr(detections, field)[1] = float("nan")  # after construction, which may check its arguments
    with pytest.raises(ValueError, match=rf"image 4: {field} of detections \[1\] are not finite"):
        coco_results(4, detections, [1])


def test_a_written_file_can_be_read(tmp_path: Path) -> None:
    results = coco_results(1, make_detections(labels=[0, 0]), [1])
    path = tmp_path / "new" / "results.json"
    write_results(path, results)
    assert json.loads(path.read_text()) == results
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [{"score": 1.0}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [{"score": float("inf")}])
    assert json.loads(path.read_text()) == [{"score": 1.0}]
    assert list(tmp_path.iterdir()) == [path]
