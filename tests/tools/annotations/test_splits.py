"""A made split keeps near-duplicates together, every class in train, and rare classes in val."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_backbone.errors import InvalidValue
from tools.annotations import splits
from tools.annotations.findings import BadAnnotations
from tools.annotations.reader import ReadOptions, read_annotations
from tools.annotations.splits import choose_val, split_table


def content_of(classes: list[set[int]]) -> dict[str, Any]:
    """One image per set of classes, with an object of each."""
    annotations = [
        {"id": 100 * i + c, "image_id": i, "category_id": c, "bbox": [1, 1, 4, 4]}
        for i, held in enumerate(classes)
        for c in held
    ]
    images = [{"id": i, "file_name": f"{i:04d}.png", "width": 8, "height": 8} for i in range(len(classes))]
    return {"images": images, "annotations": annotations, "categories": [{"id": c, "name": str(c)} for c in range(9)]}


def split_content(content: dict[str, Any], images: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Content of train and val, and what was said about the split."""
    classes: list[set[int]] = [set() for _ in content["images"]]
    rows = {entry["id"]: row for row, entry in enumerate(content["images"])}
    for entry in content["annotations"]:
        classes[rows[entry["image_id"]]].add(entry["category_id"])
    in_val, said = choose_val([images / e["file_name"] for e in content["images"]], classes, images, **options)

    def part(is_val: bool) -> dict[str, Any]:
        return {
            **content,
            "images": [e for e, v in zip(content["images"], in_val) if v == is_val],
            "annotations": [e for e in content["annotations"] if in_val[rows[e["image_id"]]] == is_val],
        }

    return part(False), part(True), said


def classes_in(content: dict[str, Any]) -> Counter[int]:
    return Counter(annotation["category_id"] for annotation in content["annotations"])


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The groups that the images are in, to be filled by the test."""
    wanted: list[list[int]] = []
    monkeypatch.setattr(splits, "_groups", lambda paths: wanted or [[i] for i in range(len(paths))])
    return wanted


@given(
    classes=st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=3, max_size=60),
    fraction=st.sampled_from([0.1, 0.2, 0.5]),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=200)
def test_every_class_is_in_train_and_no_image_is_lost(classes: list[set[int]], fraction: float, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_groups", lambda paths: [[i] for i in range(len(paths))])
        content = content_of(classes)
        try:
            train, val, _ = split_content(content, Path(), val_fraction=fraction, seed=seed)
        except BadAnnotations:
            counts = classes_in(content)  # every image has the only object of a class
            assert all(any(counts[c] == 1 for c in held) for held in classes)
            return
    ids = [image["id"] for image in train["images"]], [image["id"] for image in val["images"]]
    assert sorted(ids[0] + ids[1]) == list(range(len(classes))) and ids[0] and ids[1]
    assert len(train["annotations"]) + len(val["annotations"]) == len(content["annotations"])
    assert set(classes_in(train)) == set(classes_in(content))
    assert {annotation["image_id"] for annotation in val["annotations"]} <= set(ids[1])


def test_shares_of_classes_and_of_images_without_objects_are_the_fraction(groups: list[list[int]]) -> None:
    rng = random.Random(0)
    classes = [{rng.choice([0, 0, 0, 0, 1, 1, 2])} if i % 5 else set() for i in range(1000)]
    content = content_of(classes)
    _train, val, said = split_content(content, Path())
    assert len(val["images"]) == 200
    for c, count in classes_in(content).items():
        assert classes_in(val)[c] == pytest.approx(0.2 * count, abs=1.5)
    with_objects = {annotation["image_id"] for annotation in val["annotations"]}
    assert len(val["images"]) - len(with_objects) == pytest.approx(40, abs=1.5)
    assert "200 of 1,000 images" in said and "seed 0" in said


def test_a_class_in_two_images_is_on_both_sides_and_one_in_one_image_is_in_train(groups: list[list[int]]) -> None:
    classes = [{0} for _ in range(100)]
    classes[3], classes[70], classes[50] = {0, 1}, {0, 1}, {0, 2}
    for seed in range(10):
        train, val, _ = split_content(content_of(classes), Path(), seed=seed)
        assert classes_in(train)[1] == classes_in(val)[1] == 1
        assert classes_in(train)[2] == 1 and len(val["images"]) == 20


def test_groups_stay_together_for_every_seed(groups: list[list[int]]) -> None:
    groups += [[i, i + 1, i + 2] for i in range(0, 90, 3)]
    for seed in range(10):
        _, val, _ = split_content(content_of([{i % 2} for i in range(90)]), Path(), seed=seed)
        ids = {image["id"] for image in val["images"]}
        assert all(len(ids & set(group)) in (0, 3) for group in groups) and len(ids) == 18


def test_crowds_and_ignored_objects_do_not_count(groups: list[list[int]]) -> None:
    content = content_of([{0, 1} for _ in range(10)])
    for number, key in enumerate(("ignore", "iscrowd")):
        mark = {"id": 900 + number, "image_id": 4, "category_id": 7 + number, "bbox": [1, 1, 4, 4], key: 1}
        content["annotations"].append(mark)
    table = read_annotations(content, None, ReadOptions(crowds="crowds"))
    table = replace(table, paths=tuple(Path(name) for name in table.file_names))
    in_val = [4 in split_table(table, seed=seed)[1].image_ids for seed in range(30)]
    assert any(in_val)  # the only objects of classes 7 and 8 would keep it in train


def test_a_split_table_holds_every_object_once_and_its_findings_are_said_once(groups: list[list[int]]) -> None:
    table = read_annotations(content_of([{i % 3, 4} for i in range(30)]), None)
    table = replace(table, paths=tuple(Path(name) for name in table.file_names))
    table.findings.add("warning", "an example")
    train, val, said = split_table(table, seed=1)
    assert sorted(train.image_ids + val.image_ids) == list(range(30)) and len(val.image_ids) == 6
    assert sorted([*train.rows, *val.rows]) == sorted(table.rows)
    assert train.objects_in_file + val.objects_in_file == table.objects_in_file == len(train.rows) + len(val.rows)
    assert train.findings.lines() == ["warning: 1 object: an example"] and not val.findings.lines()
    assert said.startswith("val: 6 of 30 images, seed 1")


def test_frames_of_one_scene_are_cut_into_runs_and_it_is_said(groups: list[list[int]]) -> None:
    groups.append(list(range(100)))
    _, val, said = split_content(content_of([{0}] * 100), Path())
    ids = [image["id"] for image in val["images"]]
    assert len(ids) == 20 and sum(b - a > 1 for a, b in pairwise(ids)) <= 1
    assert "cut into runs" in said


def test_the_order_of_the_images_does_not_matter_and_the_seed_does(groups: list[list[int]]) -> None:
    content = content_of([{i % 3} for i in range(60)])
    turned = {**content, "images": content["images"][::-1], "annotations": content["annotations"][::-1]}

    def val_ids(content: dict[str, Any], seed: int) -> list[int]:
        return sorted(image["id"] for image in split_content(content, Path(), seed=seed)[1]["images"])

    assert val_ids(content, 1) == val_ids(turned, 1) != val_ids(content, 2)


def test_copies_in_files_of_other_names_and_kinds_stay_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = content_of([{0} for _ in range(40)])
    for i in range(0, 40, 2):
        picture = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((160, 120))
        picture.save(tmp_path / f"{i:04d}.png")
        picture.resize((90, 70)).save(tmp_path / f"{i + 1:04d}.png")
    _, val, _ = split_content(content, tmp_path)
    ids = {image["id"] for image in val["images"]}
    assert len(ids) == 8 and all((i in ids) == (i + 1 in ids) for i in range(0, 40, 2))


@pytest.mark.parametrize("classes", [[], [{0}], [{0}, {1}, {2}]], ids=["none", "one", "each the only one of a class"])
def test_what_cannot_be_split_is_an_error(classes: list[set[int]], groups: list[list[int]]) -> None:
    with pytest.raises(BadAnnotations, match="give a val split"):
        split_content(content_of(classes), Path())


@pytest.mark.parametrize("options", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"seed": -1}], ids=str)
def test_a_wrong_fraction_or_seed_is_an_error_that_names_it(options: dict[str, Any], groups: list[list[int]]) -> None:
    (name,) = options
    with pytest.raises(InvalidValue, match=f"{name}="):
        split_content(content_of([{0}, {0}]), Path(), **options)
