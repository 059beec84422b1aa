"""Errors name fixes that exist, and that work when they are followed literally."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import nn

from heads import DETECTORS, RCNN, DetectorRecipe, ImageBatch, build_detector, fine_tune
from heads.fpn import FeaturePyramid
from resnet_backbone import (
    RESNETS,
    ResNetBackbone,
    ResNetClassifier,
    UserError,
    as_backbone,
    build_backbone,
    load_weights,
)
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig, load_config
from tools.config.settings import settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("resnet_backbone", "heads", "tools")
SECTIONS = ("model", "data", "input", "optimiser", "schedule", "train", "eval")
# arguments of other projects that a message tells to set there
OF_OTHERS = {"strict_img_size", "img_size", "requires_grad"}


class Message(NamedTuple):
    where: str
    package: str
    text: str


def messages() -> Iterator[Message]:
    """The text of every error that the packages raise, {} in place of values."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    text = "".join(constant_parts(node.exc))
                    yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", package, text)


def constant_parts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FormattedValue):
        yield "{}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from constant_parts(child)


def parameters(package: str) -> set[str]:
    """Names of arguments and of fields of classes in a package."""
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names |= {a.arg for a in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)}
            if isinstance(node, ast.ClassDef):
                names |= {
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
    return names


ALL_SETTINGS = {name for kind in (RunConfig, ClassifierRunConfig) for name, _ in settings(kind)}
TOP_SETTINGS = {name.split(".")[0] for name in ALL_SETTINGS}
OPTIONS = {
    value
    for path in (ROOT / "tools").rglob("*.py")
    for value in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', path.read_text(encoding="utf-8"))
}
ARGUMENTS = {package: parameters(package) for package in PACKAGES}
KNOWN = {
    "resnet_backbone": ARGUMENTS["resnet_backbone"],
    "heads": ARGUMENTS["resnet_backbone"] | ARGUMENTS["heads"],
    "tools": set().union(*ARGUMENTS.values(), TOP_SETTINGS),
}


@pytest.mark.parametrize("message", list(messages()), ids=lambda message: message.where)
def test_what_an_error_names_as_its_fix_exists(message: Message) -> None:
    """Arguments (`name=`), options (`--name`) and settings (`section.name`)."""
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", message.text):
        assert option in OPTIONS, f"no command has the option {option}"
    for setting in re.findall(rf"(?<![\w./])((?:{'|'.join(SECTIONS)})(?:\.(?:[a-z_]+|\*))+)(?![\w(])", message.text):
        pattern = re.compile(setting.replace(".", r"\.").replace("*", r"[a-z_]+") + r"(\..*)?")
        assert any(pattern.fullmatch(name) for name in ALL_SETTINGS), f"no setting is called {setting}"
    for argument in re.findall(r"(?<![\w.{}\-])([a-z_]{3,})=(?!=)", message.text):
        assert argument in KNOWN[message.package] | OF_OTHERS, f"nothing in {message.package} takes {argument}="


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        action()
    return str(error.value)


def named(pattern: str, message: str) -> str:
    """The value that the message tells to use."""
    match = re.search(pattern, message)
    assert match is not None, message
    return match[1]


@pytest.fixture
def bottleneck_file(tmp_path: Path) -> Path:
    torch.save(ResNetBackbone(RESNETS["resnet50"], norm="bn", out_levels=["c2"]).state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_an_unclear_source_is_given_as_the_error_says(bottleneck_file: Path) -> None:
    net = ResNetBackbone(RESNETS["resnet50"], out_levels=["c2"])
    source = named(r"source='(\w+)'", error_of(lambda: load_weights(net, bottleneck_file)))
    assert load_weights(net, bottleneck_file, source=source).complete


def test_an_unclear_source_in_a_configuration_is_given_as_the_error_says(bottleneck_file: Path, tmp_path: Path) -> None:
    message = error_of(lambda: build_backbone("resnet50", weights=bottleneck_file, out_levels=["c2"]))
    setting, source = named(r"(backbone_source)", message), named(r"source='(\w+)'", message)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"base": str(ROOT / "configs" / "faster_rcnn_r50_fpn_1x.yaml"), setting: source}))
    assert load_config(path).backbone_source == source


def test_frozen_norms_without_weights_are_replaced_as_the_error_says() -> None:
    message = error_of(lambda: build_backbone("resnet18"))
    norm, stages = named(r"norm='(bn)'", message), int(named(r"frozen_stages=(\d)", message))
    assert build_backbone("resnet18", norm=norm, frozen_stages=stages).frozen_stages == 0


def test_a_net_with_another_stride_is_built_as_the_error_says(bottleneck_file: Path) -> None:
    def load(stride_on: Any) -> object:
        spec = replace(RESNETS["resnet50"], stride_on=stride_on)
        net = ResNetBackbone(spec, out_levels=["c2"])
        return load_weights(net, bottleneck_file, source="mmdetection_caffe").complete

    assert load(named(r'stride_on="(\w+)"', error_of(lambda: load("3x3"))))


def test_a_net_with_another_epsilon_is_built_as_the_error_says(tmp_path: Path) -> None:
    state = ResNetBackbone(RESNETS["resnet18"], norm="bn").state_dict()
    torch.save({f"backbone.body.{key}": value for key, value in state.items()}, tmp_path / "detector.pth")

    def load(eps: float) -> object:
        net = ResNetBackbone(RESNETS["resnet18"], norm_eps=eps)
        return load_weights(net, tmp_path / "detector.pth", source="torchvision_coco_v1").complete

    assert load(float(named(r"norm_eps=(\S+)", error_of(lambda: load(1e-5)))))


def test_missing_tensors_are_allowed_as_the_error_says() -> None:
    net = ResNetClassifier("resnet18", num_classes=7)
    state = ResNetClassifier("resnet18", num_classes=9).state_dict()
    argument = named(r"(allow_missing)=\[", error_of(lambda: load_weights(net, state)))
    report = load_weights(net, state, **{argument: ["fc.*"]})  # type: ignore[arg-type]
    assert report.kept_initial == ("fc.weight", "fc.bias")


def test_a_missing_level_is_added_as_the_error_says() -> None:
    levels = ["c3", "c4", "c5"]
    backbone = ResNetBackbone(RESNETS["resnet18"], out_levels=levels)
    level = named(r'add "(\w+)" to out_levels', error_of(lambda: FeaturePyramid(backbone.feature_specs)))
    added = ResNetBackbone(RESNETS["resnet18"], out_levels=[level, *levels])
    assert list(FeaturePyramid(added.feature_specs).feature_specs) == ["p2", "p3", "p4", "p5", "p6"]


def test_another_number_of_classes_is_fine_tuned_as_the_error_says(small_recipe: DetectorRecipe) -> None:
    published = small_torchvision_state(small_recipe)
    message = error_of(lambda: build_detector(small_recipe, num_classes=2, weights=published, source="torchvision"))
    classes = int(named(r"build with num_classes=(\d+)", message))
    start = build_detector(small_recipe, num_classes=classes, weights=published, source="torchvision")
    assert "fine_tune()" in message
    report = fine_tune(build_detector(small_recipe, num_classes=2), start.state_dict())
    assert "box_head.logits.weight" in report.kept_initial


def small_torchvision_state(recipe: DetectorRecipe) -> dict[str, torch.Tensor]:
    from heads.keymaps import to_layout

    return to_layout(build_detector(recipe, num_classes=5).state_dict(), "torchvision", {})


@pytest.mark.parametrize("wrong", ["mask_rcnn_r50_fpm", "faster_rcn_r101_c4"])
def test_a_mistyped_detector_is_named_as_the_error_says(wrong: str) -> None:
    name = named(r"did you mean '(\w+)'", error_of(lambda: build_detector(wrong, num_classes=1)))
    assert name in DETECTORS


def test_a_foreign_backbone_is_wrapped_as_the_error_says(small_recipe: DetectorRecipe) -> None:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter

    layers = {f"layer{i}": f"c{i + 1}" for i in range(1, 5)}
    body: Any = IntermediateLayerGetter(resnet18(), layers)
    assert "as_backbone" in error_of(lambda: build_detector(small_recipe, num_classes=1, backbone=body))
    assert isinstance(build_detector(small_recipe, num_classes=1, backbone=as_backbone(body)), RCNN)


def test_labels_and_targets_are_counted_as_the_error_says(
    small_recipe: DetectorRecipe, make_batch: Callable[..., ImageBatch], make_targets: Callable[..., Any]
) -> None:
    detector, batch = build_detector(small_recipe, num_classes=3), make_batch()
    assert "give one per image" in error_of(lambda: detector(batch, [make_targets([])]))
    assert set(detector(batch, [make_targets([])] * len(batch.sizes))) >= {"loss_cls"}


def test_a_mistyped_setting_is_named_as_the_error_says(tmp_path: Path) -> None:
    base = str(ROOT / "configs" / "faster_rcnn_r50_fpn_1x.yaml")
    message = error_of(lambda: load_config(base, ["optimiser.learning_rat=0.1"]))
    assert "optimiser.learning_rat" in message
    name = named(r"did you mean '(\w+)'", error_of(lambda: load_config(base, ["train.precison=fp32"])))
    assert load_config(base, [f"train.{name}=fp32"]).train.precision == "fp32"


def test_modules_that_are_no_backbones_are_refused_before_anything_is_built(small_recipe: DetectorRecipe) -> None:
    foreign: Any = nn.Linear(3, 3)
    assert "as_backbone" in error_of(lambda: build_detector(small_recipe, num_classes=1, backbone=foreign))
