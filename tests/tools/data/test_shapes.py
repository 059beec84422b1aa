"""The generated data set is valid COCO, does not depend on the number of workers, and is as hard as intended."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO  # type: ignore[import-untyped, unused-ignore]

from tools import make_shapes
from tools.data.shape_outlines import CATEGORY_IDS, FORMS, coverage_of, polygon_area, unit_outline
from tools.data.shape_scenes import MAX_RADIUS_PX, MIN_RADIUS_PX
from tools.data.shapes import ShapesSettings, generate_shapes, holds_shapes, make_sample

TRAIN, VAL = 110, 20


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "set"
    generate_shapes(root, train_images=TRAIN, val_images=VAL, seed=3, workers=2)
    return root


@pytest.fixture(scope="module")
def coco(root: Path) -> COCO:
    return COCO(str(root / "annotations" / "instances_train.json"))


def test_the_bytes_do_not_depend_on_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "one_worker", train_images=TRAIN, val_images=VAL, seed=3, workers=1)
    assert digests(tmp_path / "one_worker") == digests(root)


def test_a_sample_depends_on_seed_split_and_index_only() -> None:
    few, many = ShapesSettings(train_images=10, seed=5), ShapesSettings(train_images=99, seed=5)
    pixels, _ = make_sample(few, "train", 7)
    assert np.array_equal(pixels, make_sample(many, "train", 7)[0])
    others = [
        make_sample(few, "val", 7),
        make_sample(few, "train", 8),
        make_sample(ShapesSettings(), "train", 7),
    ]
    assert all(not np.array_equal(pixels, other) for other, _ in others)


def test_train_and_val_share_neither_images_nor_ids(root: Path) -> None:
    by_split = [{p.name: d for p, d in hashed(root / "images" / split)} for split in ("train", "val")]
    assert [len(set(split.values())) for split in by_split] == [TRAIN, VAL]
    assert not set(by_split[0].values()) & set(by_split[1].values())
    files = [json.loads((root / f"annotations/instances_{split}.json").read_text()) for split in ("train", "val")]
    for kind in ("images", "annotations"):
        train_ids, val_ids = ({record["id"] for record in file[kind]} for file in files)
        assert len(train_ids) == len(files[0][kind]) and not train_ids & val_ids


def hashed(folder: Path) -> list[tuple[Path, str]]:
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]


def test_category_ids_are_not_contiguous(coco: COCO) -> None:
    assert {category["name"]: category["id"] for category in coco.dataset["categories"]} == CATEGORY_IDS
    ids = sorted(CATEGORY_IDS.values())
    assert ids[0] == 1 and ids != list(range(1, len(ids) + 1))
    assert len(FORMS) == 5 and {c["supercategory"] for c in coco.dataset["categories"]} == {"shape"}


def test_images_have_the_recorded_sizes(root: Path, coco: COCO) -> None:
    sizes = set()
    for record in coco.dataset["images"]:
        pixels = cv2.imread(str(root / "images" / "train" / record["file_name"]))
        assert pixels is not None and pixels.shape == (record["height"], record["width"], 3)
        sizes.add((record["height"], record["width"]))
    assert sizes == {(144, 144), (144, 192), (192, 144)}


def test_area_and_box_agree_with_the_mask(coco: COCO) -> None:
    slacks = []
    for record in coco.dataset["annotations"]:
        mask = coco.annToMask(record)
        ys, xs = np.nonzero(mask)
        x, y, width, height = record["bbox"]
        slack = np.array([xs.min() - x, ys.min() - y, x + width - xs.max() - 1, y + height - ys.max() - 1])
        if isinstance(record["segmentation"], dict):
            assert mask.sum() == record["area"]
            assert not slack.any()
        else:
            # the exact outline differs from pixels along the border, and most at the tips of stars
            assert abs(mask.sum() - record["area"]) < 1.2 * record["area"] ** 0.5
            assert (abs(slack) < 2).all()
            slacks.append(abs(slack).mean())
        assert record["area"] >= 60
        assert x >= 0 and y >= 0
        image = coco.imgs[record["image_id"]]
        assert x + width <= image["width"] and y + height <= image["height"]
    assert np.mean(slacks) < 0.5


def test_masks_of_one_image_do_not_overlap(coco: COCO) -> None:
    """An RLE has visible pixels only; a polygon may touch pixels of a neighbour along a border."""
    for image_id in coco.imgs:
        records = coco.imgToAnns[image_id]
        rle_masks = [coco.annToMask(r) for r in records if isinstance(r["segmentation"], dict)]
        assert not rle_masks or np.sum(rle_masks, axis=0).max() == 1


def test_all_kinds_of_annotation_occur(coco: COCO) -> None:
    records = coco.dataset["annotations"]
    crowds = [record for record in records if record["iscrowd"]]
    assert 1 <= len(crowds) <= 0.12 * TRAIN
    assert all(isinstance(record["segmentation"]["counts"], list) for record in crowds)
    assert all(sum(r["segmentation"]["counts"]) == np.prod(r["segmentation"]["size"]) for r in crowds)
    objects = [record["segmentation"] for record in records if not record["iscrowd"]]
    polygons = sum(isinstance(segmentation, list) for segmentation in objects)
    assert 0.2 * len(objects) < polygons < 0.8 * len(objects)
    assert all(isinstance(s["counts"], str) for s in objects if isinstance(s, dict))
    empty = set(coco.imgs) - {record["image_id"] for record in records}
    assert 1 <= len(empty) <= 0.12 * TRAIN
    most = max(sum(not r["iscrowd"] for r in coco.imgToAnns[image_id]) for image_id in coco.imgs)
    assert 4 <= most <= 6


def test_sizes_overlaps_and_forms_have_the_intended_distributions() -> None:
    settings = ShapesSettings()
    radii, occluded, forms = [], 0, []
    for index in range(110):
        for instance in make_sample(settings, "train", index)[1]:
            if instance.polygon is None:
                continue
            forms.append(instance.form)
            radii.append((instance.full_px / polygon_area(unit_outline(instance.form))) ** 0.5)
            share = instance.visible.sum() / instance.full_px
            assert share >= 0.4
            occluded += share < 0.9
    assert min(radii) > MIN_RADIUS_PX - 0.1 and max(radii) < MAX_RADIUS_PX + 0.1
    assert max(radii) / min(radii) > 5
    # log-uniform: half of the shapes are smaller than the geometric mean, 20 px
    assert 14 < np.median(radii) < 26
    assert occluded > 0.1 * len(radii)
    assert all(0.13 < forms.count(form) / len(forms) < 0.27 for form in FORMS)


def test_colour_does_not_reveal_the_form() -> None:
    """Classification by the nearest class centroid in colour space is hardly better than chance, 1 in 5."""
    means, forms = [], []
    for index in range(150):
        pixels, instances = make_sample(ShapesSettings(seed=1), "train", index)
        for instance in instances:
            colours = pixels[instance.visible].astype(float)
            means.append([*colours.mean(axis=0), *colours.std(axis=0)])
            forms.append(FORMS.index(instance.form))
    features, labels = np.array(means), np.array(forms)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    half = len(labels) // 2
    centroids = np.stack([features[:half][labels[:half] == k].mean(axis=0) for k in range(len(FORMS))])
    predictions = np.linalg.norm(features[half:, None] - centroids, axis=2).argmin(axis=1)
    assert (predictions == labels[half:]).mean() < 0.32


def test_objects_contrast_with_their_surroundings() -> None:
    for index in range(40):
        pixels, instances = make_sample(ShapesSettings(seed=2), "train", index)
        if not instances:
            continue
        front = instances[-1]  # drawn last: it and its surroundings are not occluded
        surroundings = cv2.dilate(front.visible.astype(np.uint8), np.ones((7, 7), np.uint8)) > front.visible
        inner, outer = (pixels[mask].astype(float).mean(axis=0) for mask in (front.visible, surroundings))
        assert np.linalg.norm(inner - outer) > 30


def test_coverage_is_exact_to_a_subpixel() -> None:
    square = np.array([(2.0, 3.0), (6.5, 3.0), (6.5, 5.25), (2.0, 5.25)])
    coverage = coverage_of(square, height=8, width=8)
    border_px = 2 * (4.5 + 2.25)
    assert coverage.sum() == pytest.approx(polygon_area(square), abs=border_px / 8)
    assert (coverage[3:5, 2:6] == 1).all()
    assert coverage[4, 6] == pytest.approx(0.5, abs=0.13) and coverage[5, 3] == pytest.approx(0.25, abs=0.13)
    assert not coverage[:3].any() and not coverage[:, :2].any()
    assert not coverage_of(square + 20, height=8, width=8).any()


@pytest.mark.parametrize("form", FORMS)
def test_outlines_touch_the_unit_circle_and_are_centred(form: str) -> None:
    outline = unit_outline(form)
    assert np.linalg.norm(outline, axis=1).max() == pytest.approx(1)
    assert outline.mean(axis=0) == pytest.approx([0, 0], abs=1e-12)
    expected = {"circle": 3.13, "triangle": 1.3, "square": 2.0, "star": 1.32, "cross": 2.02}[form]
    assert polygon_area(outline) == pytest.approx(expected, abs=0.02)


def test_the_short_side_is_that_of_the_settings() -> None:
    shapes = {make_sample(ShapesSettings(side_px=128), "val", index)[0].shape for index in range(30)}
    assert shapes == {(128, 128, 3), (128, 171, 3), (171, 128, 3)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side_px": 64}, "side_px is 64, but must be an integer of at least 128"),
        ({"train_images": 0}, "train_images is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"val_images": 2.5}, "val_images is 2.5"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_wrong_settings_are_errors(settings: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        generate_shapes(tmp_path / "set", **settings)
    assert not (tmp_path / "set").exists()


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(FileExistsError, match="choose a new or empty folder"):
        generate_shapes(tmp_path, train_images=1, val_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_command_generates_the_data_set_once(tmp_path: Path, call: Callable[..., Any]) -> None:
    out = tmp_path / "deep" / "set"
    arguments = [out, "--train", 3, "--val", 2, "--workers", 1]
    first = call(make_shapes, *arguments)
    assert first.code == 0 and "written in" in first.out
    assert [path.name for path in out.parent.iterdir()] == ["set"]  # no temporary folder is left
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    second = call(make_shapes, *arguments)
    assert second.code == 0 and "nothing to do" in second.out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    next((out / "images" / "val").iterdir()).unlink()
    assert not holds_shapes(out, ShapesSettings(train_images=3, val_images=2))
    incomplete = call(make_shapes, *arguments)
    assert incomplete.code == 2 and "remove what is there" in incomplete.err
