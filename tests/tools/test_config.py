"""Configuration files: inheritance, errors, and that every setting is read by something."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from heads import DETECTORS
from heads.conventions import CONVENTIONS
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig, load_config
from tools.config.settings import CommonConfig, ConfigError, settings, to_yaml, validate
from tools.config.settings import load as load_settings
from tools.engine.optim import make_schedule

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").glob("*.yaml"))}
RECIPES = [name for name, values in CONFIGS.items() if "out" in values]  # the others are bases
COCO_RECIPES = [
    f"{kind}_rcnn_{body}_{schedule}"
    for kind in ("faster", "mask")
    for body, schedules in {
        **dict.fromkeys(("r18_fpn", "r50_fpn", "r101_fpn", "r50_c4", "r50_dc5"), ("1x", "3x")),
        **dict.fromkeys(("r101_c4", "r101_dc5"), ("3x",)),
    }.items()
    for schedule in schedules
]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    """A function from YAML text and overrides to a configuration; the required settings have values already."""

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
        ("Optimizer: {lr: 1}", ["Optimizer: no such setting", "did you mean 'optimiser'"]),
        ("data: {trian: {images: a}}", ["data.trian: no such setting", "did you mean 'train'"]),
        ("data: {train: {images: a}}", ["data.train.annotations: required but missing (COCO instances JSON)"]),
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
        ("backbone_weights: null", ["norm='frozen_bn' without weights would freeze", "backbone_weights", "norm='bn'"]),
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
        ({"iters": None, "epochs": 1}, True),
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


def write(folder: Path, **files: str) -> None:
    """Write YAML files; a double underscore in a name is a folder."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_overrides_are_laid_over_the_file_and_the_file_over_its_bases(tmp_path: Path) -> None:
    write(
        tmp_path,
        common__root="{optimiser: {lr: 1, momentum: 0.1, beta2: 0.1, clip_norm: 1}, input: {short_side_px: [64, 96]}}",
        common__middle="{base: root.yaml, schedule: {iters: 7}, optimiser: {momentum: 0.2, beta2: 0.2, clip_norm: 2}}",
        case="{base: common/middle.yaml, out: o, model: mask_rcnn_r50_fpn, optimiser: {beta2: 0.3, clip_norm: 3}}",
    )
    config = load_config(tmp_path / "case.yaml", ["optimiser.clip_norm=4", "input.short_side_px=[128]"])
    optimiser = config.optimiser
    assert (optimiser.lr, optimiser.momentum, optimiser.beta2, optimiser.clip_norm) == (1, 0.2, 0.3, 4)
    assert (config.schedule.iters, config.input.short_side_px) == (7, (128,))
    assert load_config(tmp_path / "case.yaml").input.short_side_px == (64, 96)
    resolved = yaml.safe_load(to_yaml(config))
    assert "base" not in resolved and validate(resolved, RunConfig) == config


@pytest.mark.parametrize(
    ("base", "over", "wanted"),
    [
        ("mask_rcnn_r50_fpn", "faster_rcnn_r18_fpn", {"recipe": "faster_rcnn_r18_fpn"}),
        ("mask_rcnn_r50_fpn", "{norm: bn}", {"recipe": "mask_rcnn_r50_fpn", "norm": "bn"}),
        ("{norm: bn}", "mask_rcnn_r50_fpn", {"recipe": "mask_rcnn_r50_fpn", "norm": "bn"}),
        ("{recipe: mask_rcnn_r50_fpn, norm: bn}", "mask_rcnn_r18_fpn", {"recipe": "mask_rcnn_r18_fpn", "norm": "bn"}),
    ],
)  # fmt: skip
def test_a_bare_model_is_merged_as_its_recipe(base: str, over: str, wanted: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, base=f"model: {base}", case=f"{{base: base.yaml, out: o, schedule: {{iters: 1}}, model: {over}}}")
    expected = {"out": "o", "schedule": {"iters": 1}, "model": wanted}
    assert load_config(tmp_path / "case.yaml") == validate(expected, RunConfig)


@pytest.mark.parametrize(
    ("base", "wanted"),
    [
        ("coco_1y.yaml", ["case.yaml: no base at", "coco_1y.yaml", "did you mean 'coco_1x.yaml'?"]),
        ("sub/lits.yaml", ["case.yaml: no base at", "lits.yaml", "did you mean 'sub/list.yaml'?"]),
        ("cases.yaml", ["case.yaml: no base at", "give one of coco_1x.yaml, loop.yaml"]),  # not itself
        ("nowhere/a.yaml", ["case.yaml: no base at", "nowhere holds no other .yaml file: correct the path"]),
        ("[coco_1x.yaml]", ["case.yaml: base must be the name of one YAML file", "['coco_1x.yaml'] (list)", "write"]),
        ("null", ["case.yaml: base must be the name of one YAML file, got None"]),
        ("case.yaml", ["case.yaml: its base leads back to itself", "case.yaml -> ", "remove `base`"]),
        ("loop.yaml", ["loop.yaml: its base leads back to itself", "case.yaml -> ", "remove `base`"]),
        ("sub/list.yaml", ["list.yaml (base of ", "case.yaml) must be a mapping of settings, got a list: write"]),
        ("sub/broken.yaml", ["broken.yaml (base of ", "case.yaml) is not YAML"]),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_by_name(base: str, wanted: list[str], tmp_path: Path) -> None:
    write(tmp_path, coco_1x="schedule: {iters: 1}", loop="base: case.yaml", sub__list="[1]", sub__broken="out: [")
    write(tmp_path, case=f"{{base: {base}, out: o, model: mask_rcnn_r50_fpn}}")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "case.yaml")
    for part in wanted:
        assert part in str(error.value)


def test_base_is_set_in_files_only() -> None:
    with pytest.raises(ConfigError, match="base can only be set in a YAML file"):
        load_config(ROOT / "configs" / "mask_rcnn_r50_fpn_1x.yaml", ["base=coco_3x.yaml"])


def test_a_base_alone_names_what_it_lacks_and_trains_with_it() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(ROOT / "configs" / "coco_1x.yaml")
    for part in ("out: required but missing", "model: required but missing", "--set out=FOLDER --set model=NAME"):
        assert part in str(error.value)
    recipe = ROOT / "configs" / "mask_rcnn_r50_fpn_1x.yaml"
    sets = ["out=runs/mask_rcnn_r50_fpn_1x", "model=mask_rcnn_r50_fpn"]
    assert load_config(ROOT / "configs" / "coco_1x.yaml", sets) == load_config(recipe)


@pytest.mark.parametrize("name", COCO_RECIPES)
def test_a_coco_recipe_is_its_name(name: str) -> None:
    """The schedules are those of detectron2: 16 images per step, 90k or 270k steps."""
    recipe, _, schedule = name.rpartition("_")
    assert CONFIGS[f"{name}.yaml"] == {"base": f"coco_{schedule}.yaml", "out": f"runs/{name}", "model": recipe}
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    iters, decays = {"1x": (90_000, [60_000, 80_000]), "3x": (270_000, [210_000, 250_000])}[schedule]
    made = make_schedule(config, steps_per_epoch=7330)
    falls = [step for step in decays if made.lr(step) == pytest.approx(made.lr(step - 1) / 10)]
    assert (made.total, made.peak_lr, falls, config.train.batch_size) == (iters, 0.02, decays, 16)
    assert config.model == DETECTORS[recipe]
    assert config.data.train is not None and config.data.train.images == Path("datasets/coco/train2017")


def test_there_are_no_other_coco_recipes() -> None:
    assert len(COCO_RECIPES) == 24
    assert {f"{name}.yaml" for name in COCO_RECIPES} == {name for name in RECIPES if re.match("(faster|mask)_", name)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_config_of_ours_loads(name: str, tmp_path: Path) -> None:
    classifies = name.startswith(("cifar", "imagenet"))
    kind: type[RunConfig] | type[ClassifierRunConfig] = ClassifierRunConfig if classifies else RunConfig
    config = load_settings(kind, ROOT / "configs" / name)
    (tmp_path / "written.yaml").write_text(to_yaml(config))
    assert load_settings(kind, tmp_path / "written.yaml") == config
    assert config.data.train is not None and config.data.val is not None


def test_bases_are_only_bases() -> None:
    bases = {name: values for name, values in CONFIGS.items() if name not in RECIPES}
    assert bases and all("model" not in values for values in bases.values())
    assert set(bases) <= {values.get("base") for values in CONFIGS.values()}


class Renamed(CommonConfig):
    """A kind of configuration with former names."""

    bare_model = "net"
    renamed: ClassVar = {"train.images_per_step": "train.batch_size", "solver": "optimiser"}


def test_a_former_name_is_refused_with_the_present_one() -> None:
    values = {"out": "o", "schedule": {"iters": 1}, "solver": {"lr": 1}, "train": {"images_per_step": 2, "sed": 1}}
    with pytest.raises(ConfigError) as error:
        validate(values, Renamed)
    for part in (
        "train.images_per_step is now called train.batch_size: rename it",
        "solver is now called optimiser: rename it",
        "train.sed: no such setting: did you mean 'seed'?",
    ):
        assert part in str(error.value)


def test_views_of_a_classifier_are_crops_now() -> None:
    with pytest.raises(ConfigError, match=r"eval\.views is now called eval\.crops: rename it"):
        load_settings(ClassifierRunConfig, ROOT / "configs" / "cifar_paper.yaml", ["eval.views=10-crop"])


@pytest.mark.parametrize("kind", [RunConfig, ClassifierRunConfig])
def test_former_names_are_free_and_present_ones_exist(kind: type[CommonConfig]) -> None:
    names = {name for name, _ in settings(kind)}
    assert names.isdisjoint(kind.renamed) and names >= set(kind.renamed.values())


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
            if path.parent == ROOT / "tools" / "config":
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    names = [name for name, _ in settings(kind)]
    assert len(names) > 45 and len(set(names)) == len(names)
    # model.recipe is resolved by tools/config/detection.py, and becomes the other settings of `model`
    unread = [name for name in names if name.rpartition(".")[2] not in read and name != "model.recipe"]
    assert not unread


def test_help_shows_every_setting_with_its_default() -> None:
    shown = dict(settings(RunConfig))
    assert shown["optimiser.lr"].startswith("0.02; ")
    assert shown["schedule.epochs"].startswith("none; ")
    assert shown["out"].startswith("required; ")
    assert re.match("1024", shown["model.box.hidden"])
    assert all("; " in text for text in shown.values())
