"""Folders and files as the data of a run: splits, classes and settings that belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resnet_backbone.errors import InvalidValue
from tools.annotations.findings import BadAnnotations
from tools.config.detection import RunConfig, load_config
from tools.config.settings import ConfigError, validate
from tools.jobs import runs
from tools.jobs.detection_data import load_data
from tools.jobs.plan import plan_for_folder

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A function that writes a YOLO folder of 20 different images with one or more boxes each."""

    def make(name: str = "photos", classes: str = "[cat, dog]", polygons: bool = False) -> Path:
        root = tmp_path / name
        for part in ("images", "labels"):
            (root / part).mkdir(parents=True)
        for i in range(20):
            image = Image.effect_noise((96, 64), 90).convert("RGB")
            image.paste((20 * (i % 7), 12 * i, 90), (8 * (i % 6), 5 * (i % 5), 8 * (i % 6) + 40, 5 * (i % 5) + 30))
            image.save(root / "images" / f"{i}.png")
            line = f"{i % 2} 0.3 0.3 0.8 0.3 0.6 0.8" if polygons else f"{i % 2} 0.5 0.5 0.5 0.5"
            (root / "labels" / f"{i}.txt").write_text(line + "\n")
        (root / "data.yaml").write_text(f"train: images\nnames: {classes}\n")
        return root

    return make


def config(**data: Any) -> RunConfig:
    return validate({"out": "x", "model": "faster_rcnn_r18_fpn", "schedule": {"iters": 1}, "data": data}, RunConfig)


def names(data: Any) -> set[str]:
    return {path.name for path in data.table.paths}


def test_a_folder_without_a_split_gets_the_same_one_for_training_and_for_scoring(folder: Folder) -> None:
    settings = config(folder=str(folder()))
    both = load_data(settings)
    assert both.train is not None and both.val is not None
    assert len(names(both.val)) == 4 and not names(both.train) & names(both.val)
    assert any("val_fraction=0.2" in note and "seed 0" in note for note in both.notes)
    alone = load_data(settings, train=False)
    assert alone.train is None and alone.val is not None and names(alone.val) == names(both.val)
    other = load_data(config(folder=settings.data.folder, split_seed=1))
    assert other.val is not None and names(other.val) != names(both.val)


def test_one_error_names_what_is_wrong_with_both_splits(folder: Folder, tmp_path: Path) -> None:
    root = folder()
    content = load_data(config(folder=str(root), val_fraction=0.5)).train
    assert content is not None
    splits = {}
    for name, box in (("train", [1, 2, 3]), ("val", "x")):
        broken = content.table.to_coco()
        broken["annotations"][0]["bbox"] = box
        splits[name] = {"images": str(root / "images"), "annotations": str(tmp_path / f"{name}.json")}
        Path(splits[name]["annotations"]).write_text(json.dumps(broken))
    with pytest.raises(BadAnnotations, match=r"train.json(?s:.*)annotation 1: \[1, 2, 3\](?s:.*)val.json(?s:.*): x\)"):
        load_data(config(**splits))


def test_splits_without_a_common_class_are_an_error_and_unmatched_classes_are_said(
    folder: Folder, tmp_path: Path
) -> None:
    def split(name: str, classes: str) -> dict[str, str]:
        data = load_data(config(folder=str(folder(name, classes)))).train
        assert data is not None
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data.table.to_coco()))
        return {"images": str(tmp_path / name / "images"), "annotations": str(path)}

    train, other, partly = split("a", "[cat, dog]"), split("b", "[car, bus]"), split("c", "[dog, bus]")
    with pytest.raises(InvalidValue, match="no class of the training split is a category of the data set"):
        load_data(config(train=train, val=other))
    notes = load_data(config(train=train, val=partly)).notes
    assert any("that the validation split lacks: cat" in note for note in notes)
    assert any("that the training split lacks, so that they score zero: bus" in note for note in notes)


def test_other_training_images_do_not_inherit_the_validation_images_of_a_base(tmp_path: Path) -> None:
    base = Path(__file__).parents[3] / "configs" / "faster_rcnn_r18_fpn_1x.yaml"
    mine = ["data.train.images=mine", "data.train.annotations=mine.json"]
    assert load_config(base).data.val is not None
    assert load_config(base, mine).data.val is None
    val = ["data.val.images=other", "data.val.annotations=other.json"]
    assert load_config(base, [*val, *mine]).data.val is not None
    assert load_config(base, ["data.train.max_images=8"]).data.val is not None
    replaced = load_config(base, ["data.folder=photos"]).data
    assert replaced.train is None and replaced.val is None and replaced.workers == load_config(base).data.workers
    child = tmp_path / "child.yaml"
    child.write_text(f"base: {base}\nout: x\ndata: {{train: {{images: a, annotations: b}}}}\n")
    assert load_config(child).data.val is None


def test_the_length_of_a_schedule_replaces_that_of_a_base(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("out: x\nmodel: faster_rcnn_r18_fpn\nschedule: {epochs: 12, warmup_iters: 7}\n")
    schedule = load_config(base, ["schedule.iters=20"]).schedule
    assert (schedule.iters, schedule.epochs, schedule.warmup_iters) == (20, None, 7)
    with pytest.raises(ConfigError, match="schedule.epochs=null"):
        load_config(base, ["schedule.iters=20", "schedule.epochs=3"])


def test_classes_are_given_as_a_list_or_as_a_mapping() -> None:
    assert config(folder="x", classes=["cat", "dog"]).data.classes == {"cat": ("cat",), "dog": ("dog",)}
    mapping = {"pet": ["cat", "dog"], "car": "auto", "bus": None}
    assert config(folder="x", classes=mapping).data.classes == {
        "pet": ("cat", "dog"),
        "car": ("auto",),
        "bus": ("bus",),
    }
    with pytest.raises(ConfigError, match="folder replaces train and val"):
        config(folder="x", train={"images": "a", "annotations": "b"})


@pytest.mark.parametrize(
    ("total", "warmup", "schedule", "epochs", "message"),
    [
        (360_000, 1000, {}, 11_077, "360,000 steps are 11,077 epochs.*schedule.iters"),
        (100, 80, {"kind": "step", "decay_at": [0.5, 0.9]}, 2, "the learning rate decays at step 50.*warmup_iters"),
        (100, 100, {"kind": "cosine"}, 2, "the run ends at step 100"),
        (100, 10, {"kind": "cosine"}, 2, None),
    ],
)
def test_schedules_that_do_not_fit_the_data_are_said(
    total: int, warmup: int, schedule: dict[str, Any], epochs: float, message: str | None
) -> None:
    settings = validate(
        {"out": "x", "model": "faster_rcnn_r18_fpn", "schedule": {"iters": total, **schedule}}, RunConfig
    )
    said = runs.schedule_warnings(total, warmup, settings, total / epochs)
    assert len(said) == (message is not None)
    if message is not None:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(said[0])


def value(plan: Any, setting: str) -> Any:
    return {reason.setting: reason.value for reason in plan.reasons}.get(setting)


def test_a_plan_chooses_masks_by_the_outlines_and_the_net_by_the_weights(
    folder: Folder, imagenet_weights: Path
) -> None:
    weights = imagenet_weights / "resnet18-imagenet.pth"
    boxes = plan_for_folder(folder("boxes"), weights=weights)
    masks = plan_for_folder(folder("masks", polygons=True), weights=weights)
    assert value(boxes, "model.recipe") == "faster_rcnn_r18_fpn" and boxes.config.model.mask is None
    assert value(masks, "model.recipe") == "mask_rcnn_r18_fpn" and masks.config.model.mask is not None
    assert boxes.config.backbone_source == "torchvision"  # the keys fit others too: the reason says so
    reason = next(reason for reason in boxes.reasons if reason.setting == "backbone_source")
    assert "timm" in reason.why


def test_overrides_of_a_plan_win_and_have_no_reason(folder: Folder, imagenet_weights: Path) -> None:
    weights = imagenet_weights / "resnet18-imagenet.pth"
    overrides = ["train.batch_size=2", "schedule.epochs=3", "input.flip_probability=0.25", "data.val_fraction=0.5"]
    plan = plan_for_folder(folder(), weights=weights, overrides=overrides)
    assert plan.config.train.batch_size == 2 and plan.config.schedule.epochs == 3 and plan.config.schedule.iters is None
    assert plan.config.input.flip_probability == 0.25 and plan.config.data.val_fraction == 0.5
    assert not {"train.batch_size", "input.flip_probability"} & {reason.setting for reason in plan.reasons}


def test_a_wrong_override_of_a_plan_is_an_error_with_its_name(folder: Folder, imagenet_weights: Path) -> None:
    weights = imagenet_weights / "resnet18-imagenet.pth"
    with pytest.raises(ConfigError, match=r"train\.batchsize: no such setting.*batch_size"):
        plan_for_folder(folder(), weights=weights, overrides=["train.batchsize=2"])


def test_a_plan_does_not_flip_classes_with_a_side(folder: Folder, imagenet_weights: Path) -> None:
    weights = imagenet_weights / "resnet18-imagenet.pth"
    plan = plan_for_folder(folder(classes="[left_hand, right_hand]"), weights=weights)
    assert plan.config.input.flip_probability == 0


def test_a_folder_of_no_known_format_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BadAnnotations, match=r"no annotations were recognised(.|\n)*COCO(.|\n)*YOLO"):
        load_data(config(folder=str(tmp_path)))
