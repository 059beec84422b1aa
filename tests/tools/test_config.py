"""Every setting is checked where it is read, and read by something."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from heads import DETECTORS
from heads.conventions import CONVENTIONS
from tools.config.detection import RunConfig, load_config
from tools.config.classification import ClassifierRunConfig
from tools.engine.optim import make_schedule
from tools.config.settings import CommonConfig, ConfigError, settings, to_yaml
from tools.config.settings import load as load_settings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    """YAML text and overrides -> configuration, with what every run needs already said."""

    def make(text: str = "", overrides: Sequence[str] = (), model: Any = "faster_rcnn_r18_fpn") -> RunConfig:
        values = {"out": "runs/x", "model": model, "schedule": {"iters": 100}} | (yaml.safe_load(text) or {})
        path = tmp_path / "case.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_config(path, overrides)

    return make


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("optimizer: {lr: 1}", ["optimizer: no such setting", "did you mean 'optimiser'"]),
        ("optimiser: {learning_rat: 1}", ["optimiser.learning_rat: no such setting", "give one of", "lr", "momentum"]),
        ("optimiser: {momentun: 0.9}", ["optimiser.momentun: no such setting", "did you mean 'momentum'"]),
        ("data: {train: {image: a, annotations: b}}", ["data.train.image:", "did you mean 'images'"]),
        ("model: {recipe: mask_rcnn_r50_fpm}", ["'mask_rcnn_r50_fpm'", "did you mean 'mask_rcnn_r50_fpn'"]),
        ("model: {recipe: mask_rcnn_r50_fpn, box: {hiden: 3}}", ["model.box.hiden", "did you mean 'hidden'"]),
        ("model: {recipe: mask_rcnn_r50_fpn, frozen_stage: 3}", ["model.frozen_stage", "did you mean 'frozen_stages'"]),
        ("model: {recipe: mask_rcnn_r50_fpn, backbone: resnet51}", ["'resnet51'", "did you mean 'resnet50'"]),
        ("model: {recipe: mask_rcnn_r50_fpn, conventions: mmdet}", ["'mmdet'", "did you mean 'mmdetection'"]),
        ("backbone_source: torchvison", ["source='torchvison' is unknown", "did you mean 'torchvision'"]),
        ("train: {precision: fp8}", ["train.precision: got 'fp8'", "'fp16'", "'bf16'"]),
        ("data: {empty_images: ignore}", ["data.empty_images: got 'ignore'", "'drop' or 'keep'"]),
        ("optimiser: {lr: fast}", ["optimiser.lr", "number", "'fast'"]),
        ("optimiser: {lr: 0}", ["optimiser.lr", "greater than 0", "got 0"]),
        ("train: {batch_size: 2.5}", ["train.batch_size", "integer", "2.5"]),
        ("train: {batch_size: 6, accumulate: 4}", ["batch_size=6", "multiple", "accumulate=4"]),
        ("input: {flip_probability: 1.5}", ["input.flip_probability", "less than or equal to 1", "1.5"]),
        ("input: {short_side_px: [16]}", ["short sides [16]", "between 32 and", "long_side_px=1333"]),
        ("input: {test_short_side_px: 20}", ["and 20 must lie between 32"]),
        ("input: {short_side_px: [900], long_side_px: 800}", ["900", "long_side_px=800"]),
        ("input: {short_side_px: []}", ["input.short_side_px", "at least 1 item"]),
        ("schedule: {iters: 10, decay_at: [0.9, 0.5]}", ["decay_at=[0.9, 0.5]", "rising fractions"]),
        ("backbone_weights: null", ["norm=frozen_bn without backbone_weights", "norm: bn"]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(text: str, wanted: list[str], load: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError) as error:
        load(text)
    for part in wanted:
        assert part in str(error.value)


def test_every_fault_is_named_at_once(load: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError) as error:
        load("{train: {seed: -1, bacth_size: 3}, optimiser: {kind: adam}}")
    for name in ("train.seed", "train.bacth_size", "did you mean 'batch_size'", "optimiser.kind"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("schedule", "fits"),
    [
        ({"iters": 5}, True),
        ({"epochs": 0.5}, True),
        ({"iters": 5, "epochs": 1}, False),
        ({}, False),
        ({"iters": 5, "epochs": None}, True),
    ],
)
def test_epochs_or_iters(schedule: dict[str, Any], fits: bool, load: Callable[..., RunConfig]) -> None:
    text = yaml.safe_dump({"schedule": schedule})
    if fits:
        assert (load(text).schedule.iters, load(text).schedule.epochs) == (
            schedule.get("iters"),
            schedule.get("epochs"),
        )
    else:
        with pytest.raises(ConfigError, match="give exactly one of them"):
            load(text)


def test_overrides(load: Callable[..., RunConfig]) -> None:
    config = load(
        "optimiser: {lr: 0.5, momentum: 0.5}",
        [
            "optimiser.lr=0.25",
            "input.short_side_px=[64, 96]",
            "data.val={images: i, annotations: a}",
            "data.val.max_images=7",
            "backbone_weights=null",
            "model.norm=gn",
            "model.frozen_stages=0",
            "model.box.hidden=64",
            "model.mask={channels: 8}",
            "schedule.iters=null",
            "schedule.epochs=1.5",
        ],
    )
    assert (config.optimiser.lr, config.optimiser.momentum) == (0.25, 0.5)
    assert config.input.short_side_px == (64, 96)
    assert config.data.val is not None and (config.data.val.images, config.data.val.max_images) == (Path("i"), 7)
    assert config.backbone_weights is None
    assert (config.schedule.iters, config.schedule.epochs) == (None, 1.5)
    plain = DETECTORS["faster_rcnn_r18_fpn"]
    assert (config.model.backbone, config.model.norm, config.model.frozen_stages) == ("resnet18", "gn", 0)
    assert config.model.box.hidden == 64 and config.model.box.nms_iou == plain.box.nms_iou
    assert config.model.mask is not None and (config.model.mask.channels, config.model.mask.convs) == (8, 4)
    assert config.model.rpn == plain.rpn


def test_a_later_override_wins_and_a_bad_one_says_how_to_write_it(load: Callable[..., RunConfig]) -> None:
    assert load("", ["train.seed=1", "train.seed=2"]).train.seed == 2
    assert load("", ["model=mask_rcnn_r50_fpn"]).model == DETECTORS["mask_rcnn_r50_fpn"]
    with pytest.raises(ConfigError, match=r"write it as section\.key=value"):
        load("", ["train.seed"])
    with pytest.raises(ConfigError, match=r"train\.sed: no such setting: did you mean 'seed'"):
        load("", ["train.sed=3"])


@pytest.mark.parametrize("override", ["train.seed=[1", "a: b: c=1", 'train.seed="x'])
def test_an_override_that_is_not_yaml_is_a_config_error(override: str, load: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError):
        load("", [override])


@pytest.mark.parametrize("model", ["mask_rcnn_r50_fpn", {"recipe": "faster_rcnn_r18_fpn", "norm": "bn"}])
def test_the_written_configuration_is_read_back(model: Any, load: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = load("{input: {short_side_px: [320, 352]}, data: {train: {images: i, annotations: a}}}", model=model)
    (tmp_path / "written.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "written.yaml") == config
    again = load_config(tmp_path / "written.yaml", ["model.box.hidden=32"])
    assert asdict(again.model) == asdict(config.model) | {"box": asdict(config.model.box) | {"hidden": 32}}


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("out: [")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="did you mean 'train.yaml'"):
        load_config(tmp_path / "trian.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(tmp_path / "train.yaml")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_ours_loads(path: Path, tmp_path: Path) -> None:
    classifies = path.stem.startswith(("cifar", "imagenet"))
    kind: type[RunConfig] | type[ClassifierRunConfig] = ClassifierRunConfig if classifies else RunConfig
    config = load_settings(kind, path)
    (tmp_path / "written.yaml").write_text(to_yaml(config))
    assert load_settings(kind, tmp_path / "written.yaml") == config
    assert config.data.train is not None and config.data.val is not None


def test_conventions_may_be_named(load: Callable[..., RunConfig]) -> None:
    named = load("model: {recipe: mask_rcnn_r50_fpn, conventions: mmdetection}")
    assert named.model.conventions == CONVENTIONS["mmdetection"]
    changed = load("model: {recipe: maskrcnn_resnet50_fpn, conventions: {roi_samples: 1}}").model.conventions
    assert changed == replace(CONVENTIONS["torchvision"], roi_samples=1)


def test_auto_scale_sees_the_same_images_at_a_rate_that_follows_the_batch(load: Callable[..., RunConfig]) -> None:
    text = "{{optimiser: {{lr: 0.02}}, schedule: {{iters: 90000, warmup_iters: 1000, auto_scale: {on}}}, train: {{batch_size: {n}}}}}"  # fmt: skip  # noqa: E501
    whole, half = (make_schedule(load(text.format(on="true", n=n)), 100) for n in (16, 8))
    assert (whole.peak_lr, whole.total, whole.warmup) == (0.02, 90000, 1000)
    assert (half.peak_lr, half.total, half.warmup) == (0.01, 180000, 2000)
    for step in (0, 500, 1000, 50000, 60000, 80000, 89999):
        assert half.lr(2 * step) == pytest.approx(whole.lr(step) / 2)
    plain = make_schedule(load(text.format(on="false", n=8)), 100)
    assert (plain.peak_lr, plain.total, plain.warmup) == (0.02, 90000, 1000)


def test_epochs_count_the_images_whatever_the_batch(load: Callable[..., RunConfig]) -> None:
    config = load("{schedule: {epochs: 2, warmup_iters: 16, auto_scale: true}, train: {batch_size: 8}}")
    schedule = make_schedule(config, steps_per_epoch=50)
    assert (schedule.total, schedule.warmup) == (100, 32)


@pytest.mark.parametrize("kind", [RunConfig, ClassifierRunConfig])
def test_every_setting_is_read_by_code(kind: type[CommonConfig]) -> None:
    read: set[str] = set()
    for package in ("tools", "heads", "resnet_backbone"):
        for path in (ROOT / package).rglob("*.py"):
            if path.parent == ROOT / "tools" and path.name in ("config.py", "config_cls.py", "settings.py"):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    names = [name for name, _ in settings(kind)]
    assert len(names) > 45 and len(set(names)) == len(names)
    # model.recipe is resolved by config.py itself, and becomes the other settings of `model`
    unread = [name for name in names if name.rpartition(".")[2] not in read and name != "model.recipe"]
    assert not unread


def test_help_shows_every_setting_with_its_default() -> None:
    shown = dict(settings(RunConfig))
    assert shown["optimiser.lr"].startswith("0.02; ")
    assert shown["schedule.epochs"].startswith("none; ")
    assert shown["out"].startswith("required; ")
    assert re.match("1024", shown["model.box.hidden"])
    assert all("; " in text for text in shown.values())
