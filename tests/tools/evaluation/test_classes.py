"""Classes are matched by name; what cannot be matched is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heads.class_lists import COCO_80, COCO_90
from tools.evaluation.classes import match_categories


def test_matching_ignores_case_and_spaces() -> None:
    match = match_categories(
        ["Traffic Light", "hotdog", " person "], [(1, "person"), (10, "traffic light"), (58, "hot dog")]
    )
    assert match.category_ids == [10, 58, 1]
    assert match.unmatched_model == [] and match.unmatched_dataset == []


def test_unmatched_names_of_both_sides_are_reported() -> None:
    match = match_categories(["cat", "unicorn", "dog"], [(7, "dog"), (3, "zebra"), (5, "Cat")])
    assert match.category_ids == [5, None, 7]
    assert match.unmatched_model == ["unicorn"]
    assert match.unmatched_dataset == ["zebra"]


def test_unused_classes_may_repeat_and_are_not_reported() -> None:
    match = match_categories(["N/A", "person", "n/a", "N/A"], [(1, "person")])
    assert match.category_ids == [None, 1, None, None]
    assert match.unmatched_model == []


def test_no_match_at_all_is_an_error_with_both_lists() -> None:
    with pytest.raises(ValueError, match=r"'a0'.*and 2 more.*'zebra'.*rename"):
        match_categories([f"a{i}" for i in range(7)], [(1, "zebra")])


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        (["cat", "Cat"], [(1, "cat")]),
        (["cat"], [(1, "cat"), (2, "c at")]),
    ],
)
def test_repeated_names_are_errors(model: list[str], dataset: list[tuple[int, str]]) -> None:
    with pytest.raises(ValueError, match="more than once"):
        match_categories(model, dataset)


def test_torchvisions_labels_match_cocos_ids(coco_mini: Path) -> None:
    """Of torchvision's 90 labels, those named N/A match nothing; all others match the category of their number."""
    content = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    categories = [(c["id"], c["name"]) for c in content["categories"]]
    match = match_categories(COCO_90, categories)
    assert not match.unmatched_model and not match.unmatched_dataset
    category_ids = {category_id for category_id, _ in categories}
    assert match.category_ids == [i if i in category_ids else None for i in range(1, 91)]
    assert match_categories(COCO_80, categories).category_ids == sorted(category_ids)
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    assert ("__background__", *COCO_90) == tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
