"""Scores are those of faster-coco-eval, and wrong input gives clear errors."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask

from tools.evaluation.ground_truth import to_rle
from tools.evaluation.scores import FIGURES, score_coco

COCO_MINI_VAL = Path(__file__).resolve().parents[3].parent / "shared/data/coco-mini/annotations/instances_val2017.json"
needs_coco_mini = pytest.mark.skipif(not COCO_MINI_VAL.is_file(), reason=f"{COCO_MINI_VAL} does not exist")
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def coco_mini() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(COCO_MINI_VAL.read_text())
    return content


def jittered(ground_truth: dict[str, Any], seed: int) -> Results:
    """Results with each annotation up to twice, moved and resized, some with a wrong label, and random scores."""
    rng = np.random.default_rng(seed)
    images = {image["id"]: image for image in ground_truth["images"]}
    ids = [category["id"] for category in ground_truth["categories"]]
    results = []
    for annotation in ground_truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = annotation["bbox"]
            noise = rng.normal(0, 0.08, 4) * [w, h, w, h]
            bits = coco_mask.decode(to_rle(annotation["segmentation"], images[annotation["image_id"]]))
            shift = rng.normal(0, 0.05, 2) * [h, w]
            shifted = np.roll(bits, np.rint(shift).astype(int), axis=(0, 1))
            rle = coco_mask.encode(np.asfortranarray(shifted))
            is_wrong = rng.random() < 0.1
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(ids)) if is_wrong else annotation["category_id"],
                    "bbox": [x + noise[0], y + noise[1], max(1, w + noise[2]), max(1, h + noise[3])],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "score": float(rng.random()),
                }
            )
    return results


def reference(ground_truth: dict[str, Any], results: Results, kind: str, image_ids: list[int]) -> list[float]:
    """The figures of faster-coco-eval."""
    results = copy.deepcopy(results)
    for result in results:
        result.pop("bbox" if kind == "segm" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(copy.deepcopy(ground_truth))
        evaluation = COCOeval_faster(coco, coco.loadRes(results), kind)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:12]]


def toy_ground_truth(num_images: int = 2) -> dict[str, Any]:
    """A 20x20 cat in the first image, and the categories cat and dog."""
    polygon = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    cat = {"image_id": 1, "category_id": 3, "bbox": [10.0, 10.0, 20.0, 20.0], "segmentation": polygon}
    return {
        "images": [{"id": i + 1, "height": 200, "width": 200} for i in range(num_images)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [cat],
    }


def toy_result(**changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "bbox": [10.0, 10.0, 20.0, 20.0], "score": 0.5, **changes}


def square(side: int) -> dict[str, Any]:
    bits = np.zeros((200, 200), np.uint8, order="F")
    bits[10 : 10 + side, 10 : 10 + side] = 1
    rle = coco_mask.encode(bits)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@needs_coco_mini
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("every", [1, 3], ids=["all images", "every third"])
def test_figures_equal_those_of_faster_coco_eval(coco_mini: dict[str, Any], kind: str, every: int) -> None:
    results = jittered(coco_mini, seed=7)
    image_ids = sorted(image["id"] for image in coco_mini["images"])[::every]
    figures = score_coco(coco_mini, results, kinds=(kind,), image_ids=image_ids).kinds[kind].figures
    expected = dict(zip(FIGURES, reference(coco_mini, results, kind, image_ids), strict=True))
    assert 0.05 < expected["AP"] < 0.95  # neither trivially bad nor trivially good
    assert figures == pytest.approx(expected, abs=1e-9)


@needs_coco_mini
def test_the_ground_truth_as_results_scores_one_and_arguments_are_not_changed(coco_mini: dict[str, Any]) -> None:
    images = {image["id"]: image for image in coco_mini["images"]}
    results = [
        {
            **{field: annotation[field] for field in ("image_id", "category_id", "bbox")},
            "segmentation": to_rle(annotation["segmentation"], images[annotation["image_id"]]),
            "score": 1.0,
        }
        for annotation in coco_mini["annotations"]
        if not annotation["iscrowd"]
    ]
    before = copy.deepcopy((coco_mini, results))
    scores = score_coco(COCO_MINI_VAL, results, kinds=("bbox", "segm"))
    assert score_coco(coco_mini, results, kinds=("bbox", "segm")) == scores
    assert (coco_mini, results) == before
    for kind in scores.kinds.values():
        # AR1 and AR10 are lower: some images have more than one or ten instances of a class
        perfect = {name: value for name, value in kind.figures.items() if name not in ("AR1", "AR10")}
        assert all(value is not None and value >= 0.999 for value in perfect.values()), perfect
        assert kind.by_category["person"]["AP"] == pytest.approx(1.0)
        people = [a for a in coco_mini["annotations"] if a["category_id"] == 1 and not a["iscrowd"]]
        assert kind.by_category["person"]["instances"] == len(people)
        defined = [c["AP"] for c in kind.by_category.values() if c["AP"] is not None]
        assert kind.figures["AP"] == pytest.approx(np.mean(defined))


def test_no_results_score_zero_and_undefined_figures_are_none() -> None:
    scores = score_coco(toy_ground_truth(), [], kinds=("bbox", "segm"))
    for kind in scores.kinds.values():
        assert list(kind.figures) == list(FIGURES)
        assert kind.figures["AP"] == kind.figures["AR100"] == kind.figures["APs"] == 0.0
        assert kind.figures["APl"] is None
        assert kind.by_category["cat"] == {"AP": 0.0, "AP50": 0.0, "instances": 1}
        assert kind.by_category["dog"] == {"AP": None, "AP50": None, "instances": 0}


def test_json_has_the_figures_and_the_categories() -> None:
    scores = score_coco(toy_ground_truth(), [toy_result()]).to_json()
    assert list(scores) == ["backend", "max_detections", "images", "skipped_images", "bbox"]
    assert list(scores["bbox"]) == [*FIGURES, "by_category"]
    assert json.loads(json.dumps(scores)) == scores
    assert scores["bbox"]["AP"] == pytest.approx(1.0)


def test_instances_of_an_image_without_results_count_as_missed() -> None:
    ground_truth = toy_ground_truth()
    ground_truth["annotations"].append({**ground_truth["annotations"][0], "image_id": 2})
    assert score_coco(ground_truth, [toy_result()]).kinds["bbox"].figures["AR100"] == pytest.approx(0.5)
    one_image = score_coco(ground_truth, [toy_result()], image_ids=[1]).kinds["bbox"]
    assert one_image.figures["AR100"] == pytest.approx(1.0)
    assert one_image.by_category["cat"]["instances"] == 1


def test_detections_in_a_crowd_are_neither_correct_nor_wrong() -> None:
    ground_truth = toy_ground_truth()
    crowd = {"image_id": 2, "category_id": 3, "bbox": [0.0, 0.0, 90.0, 90.0], "iscrowd": 1}
    ground_truth["annotations"].append(crowd)
    results = [toy_result(), toy_result(image_id=2, bbox=[20.0, 20.0, 9.0, 9.0], score=0.9)]
    kind = score_coco(ground_truth, results).kinds["bbox"]
    assert kind.figures["AP"] == pytest.approx(1.0) and kind.by_category["cat"]["instances"] == 1


def test_annotations_with_id_zero_are_scored() -> None:
    ground_truth = toy_ground_truth()
    ground_truth["annotations"][0]["id"] = 0
    assert score_coco(ground_truth, [toy_result()]).kinds["bbox"].figures["AP"] == pytest.approx(1.0)


def test_segm_uses_the_area_of_the_mask_not_of_the_box() -> None:
    # a false positive with a large box and a small mask (20x20): by the area of its box it is ignored in the range
    # "small"; by the area of its mask it is a small false positive with a higher score than the true positive
    false_positive = toy_result(image_id=2, bbox=[10.0, 10.0, 150.0, 150.0], segmentation=square(20), score=0.9)
    true_positive = toy_result(segmentation=square(20), score=0.5)
    scores = score_coco(toy_ground_truth(), [false_positive, true_positive], kinds=("bbox", "segm")).kinds
    assert scores["segm"].figures["APs"] == pytest.approx(0.5)
    assert scores["bbox"].figures["APs"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (toy_result(image_id=99), r"image ids of the results: \[99\] are not in the ground truth"),
        (toy_result(category_id=4), r"category ids of the results: \[4\] are not in the ground truth"),
        (toy_result(score=float("nan")), "result 0 lacks a finite score"),
        ({"image_id": 1, "score": 0.5}, r"result 0 lacks \['category_id'\]"),
        (toy_result(bbox=[1.0, 2.0]), r"result 0 .* has bbox \[1.0, 2.0\]"),
    ],
)
def test_invalid_results_are_errors(result: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_coco(toy_ground_truth(), [result])


def test_segm_needs_masks_of_the_images_size_in_results_and_ground_truth() -> None:
    with pytest.raises(ValueError, match="has no segmentation"):
        score_coco(toy_ground_truth(), [toy_result()], kinds=("bbox", "segm"))
    small = {"size": [2, 2], "counts": coco_mask.encode(np.ones((2, 2), np.uint8, order="F"))["counts"]}
    with pytest.raises(ValueError, match=r"\[2, 2\], image 1 is \[200, 200\]"):
        score_coco(toy_ground_truth(), [toy_result(segmentation=small)], kinds=("segm",))
    ground_truth = toy_ground_truth()
    del ground_truth["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="an annotation of image 1"):
        score_coco(ground_truth, [], kinds=("segm",))


def test_invalid_kinds_and_image_ids_are_errors() -> None:
    with pytest.raises(ValueError, match="kinds is"):
        score_coco(toy_ground_truth(), [], kinds=("keypoints",))
    with pytest.raises(ValueError, match="kinds is"):
        score_coco(toy_ground_truth(), [], kinds="bbox")
    with pytest.raises(ValueError, match="image_ids is empty"):
        score_coco(toy_ground_truth(), [], image_ids=[])
    with pytest.raises(ValueError, match=r"image_ids: \[5\] are not in the ground truth"):
        score_coco(toy_ground_truth(), [], image_ids=[5])


def test_scoring_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    score_coco(toy_ground_truth(), [toy_result()])
    assert capsys.readouterr() == ("", "")


def test_images_that_were_not_scored_are_part_of_the_result() -> None:
    scores = score_coco(toy_ground_truth(5), [toy_result()], image_ids=[4, 1], max_detections=50)
    assert (scores.images, scores.skipped_images, scores.max_detections) == (2, (2, 3, 5), 50)
    assert json.loads(json.dumps(scores.to_json()))["skipped_images"] == [2, 3, 5]
    assert score_coco(toy_ground_truth(), []).skipped_images == ()


@pytest.mark.parametrize("size", [[200], [200, 200, 1], [200.5, 200], [100, 200]])
def test_a_mask_of_another_size_is_named_among_many(size: list[float]) -> None:
    results = [toy_result(segmentation=square(5)) for _ in range(300)]
    results[123]["segmentation"] = {**results[123]["segmentation"], "size": size}
    with pytest.raises(ValueError, match=f"result 123 has a mask of .* {re.escape(str(size))}, image 1 is"):
        score_coco(toy_ground_truth(), results, kinds=("segm",))


@pytest.mark.parametrize("score", [None, "0.5", [0.5], float("inf")])
def test_the_first_result_without_a_finite_score_is_named_among_many(score: Any) -> None:
    results = [toy_result() for _ in range(300)]
    with pytest.raises(ValueError, match="result 250 lacks a finite score"):
        score_coco(toy_ground_truth(), [*results[:250], toy_result(score=score), *results])


@pytest.mark.parametrize("box", [None, [1, 2, 3], "1234", ["1", 2, 3, 4], [1, 2, None, 4], [1, 2, float("nan"), 4]])
def test_the_first_result_without_a_box_of_finite_numbers_is_named_among_many(box: Any) -> None:
    results = [toy_result() for _ in range(300)]
    with pytest.raises(ValueError, match="result 250 .image 1. has bbox"):
        score_coco(toy_ground_truth(), [*results[:250], toy_result(bbox=box), *results])


def test_results_of_numpy_numbers_score_as_those_of_python() -> None:
    given = {"image_id": np.int64(1), "category_id": np.int32(3), "score": np.float64(0.5)}
    boxes = [np.array([10.0, 10, 20, 20]), (10, 10, 20, 20)]
    plain = score_coco(toy_ground_truth(), [toy_result()] * 2)
    assert score_coco(toy_ground_truth(), [{**given, "bbox": box} for box in boxes]) == plain
