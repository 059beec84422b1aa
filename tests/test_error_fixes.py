"""The fixes that error messages name exist, and work when they are followed literally."""

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
# arguments of other libraries that messages name
EXTERNAL_ARGUMENTS = {"strict_img_size", "img_size", "requires_grad"}


class Message(NamedTuple):
    location: str
    package: str
    text: str


def messages() -> Iterator[Message]:
    """The text of every error that the packages raise, with {} for each formatted value."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    text = "".join(constant_parts(node.exc))
                    yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", package, text)


def constant_parts(node: ast.AST) -> Iterator[str]:
    """The constant strings in an expression, in order, and {} for each formatted value."""
    if isinstance(node, ast.FormattedValue):
        yield "{}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from constant_parts(child)


def parameters(package: str) -> set[str]:
    """The names of function arguments and class fields in a package."""
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
KNOWN_ARGUMENTS = {
    "resnet_backbone": ARGUMENTS["resnet_backbone"],
    "heads": ARGUMENTS["resnet_backbone"] | ARGUMENTS["heads"],
    "tools": set().union(*ARGUMENTS.values(), TOP_SETTINGS),
}


@pytest.mark.parametrize("message", list(messages()), ids=lambda message: message.location)
def test_options_settings_and_arguments_in_the_message_exist(message: Message) -> None:
    """Options are written `--name`, settings `section.name`, arguments `name=`."""
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", message.text):
        assert option in OPTIONS, f"no command has the option {option}"
    for setting in re.findall(rf"(?<![\w./])((?:{'|'.join(SECTIONS)})(?:\.(?:[a-z_]+|\*))+)(?![\w(])", message.text):
        pattern = re.compile(setting.replace(".", r"\.").replace("*", r"[a-z_]+") + r"(\..*)?")
        assert any(pattern.fullmatch(name) for name in ALL_SETTINGS), f"no setting is called {setting}"
    for argument in re.findall(r"(?<![\w.{}\-])([a-z_]{3,})=(?!=)", message.text):
        assert argument in KNOWN_ARGUMENTS[message.package] | EXTERNAL_ARGUMENTS, (
            f"{message.package} has no argument {argument}="
        )


def message_of(action: Callable[[], object]) -> str:
    """The message of the UserError that the action raises."""
    with pytest.raises(UserError) as error:
        action()
    return str(error.value)


def value_in(pattern: str, message: str) -> str:
    """The first group of the pattern in the message: the value that the message suggests."""
    match = re.search(pattern, message)
    assert match is not None, message
    return match[1]


@pytest.fixture
def bottleneck_file(tmp_path: Path) -> Path:
    """Weights of a ResNet-50 up to C2, without metadata."""
    torch.save(ResNetBackbone(RESNETS["resnet50"], norm="bn", out_levels=["c2"]).state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_suggested_source_loads_ambiguous_weights(bottleneck_file: Path) -> None:
    net = ResNetBackbone(RESNETS["resnet50"], out_levels=["c2"])
    source = value_in(r"source='(\w+)'", message_of(lambda: load_weights(net, bottleneck_file)))
    assert load_weights(net, bottleneck_file, source=source).complete


def test_setting_suggested_for_ambiguous_weights_is_accepted(bottleneck_file: Path, tmp_path: Path) -> None:
    message = message_of(lambda: build_backbone("resnet50", weights=bottleneck_file, out_levels=["c2"]))
    setting, source = value_in(r"(backbone_source)", message), value_in(r"source='(\w+)'", message)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"base": str(ROOT / "configs" / "faster_rcnn_r50_fpn_1x.yaml"), setting: source}))
    assert load_config(path).backbone_source == source


def test_suggested_norm_builds_a_backbone_without_weights() -> None:
    message = message_of(lambda: build_backbone("resnet18"))
    norm, stages = value_in(r"norm='(bn)'", message), int(value_in(r"frozen_stages=(\d)", message))
    assert build_backbone("resnet18", norm=norm, frozen_stages=stages).frozen_stages == 0


def test_suggested_stride_placement_loads_the_weights(bottleneck_file: Path) -> None:
    def load(stride_on: Any) -> object:
        spec = replace(RESNETS["resnet50"], stride_on=stride_on)
        net = ResNetBackbone(spec, out_levels=["c2"])
        return load_weights(net, bottleneck_file, source="mmdetection_caffe").complete

    assert load(value_in(r'stride_on="(\w+)"', message_of(lambda: load("3x3"))))


def test_suggested_norm_eps_loads_the_weights(tmp_path: Path) -> None:
    state = ResNetBackbone(RESNETS["resnet18"], norm="bn").state_dict()
    torch.save({f"backbone.body.{key}": value for key, value in state.items()}, tmp_path / "detector.pth")

    def load(eps: float) -> object:
        net = ResNetBackbone(RESNETS["resnet18"], norm_eps=eps)
        return load_weights(net, tmp_path / "detector.pth", source="torchvision_coco_v1").complete

    assert load(float(value_in(r"norm_eps=(\S+)", message_of(lambda: load(1e-5)))))


def test_suggested_allow_missing_keeps_initial_values() -> None:
    net = ResNetClassifier("resnet18", num_classes=7)
    state = ResNetClassifier("resnet18", num_classes=9).state_dict()
    argument = value_in(r"(allow_missing)=\[", message_of(lambda: load_weights(net, state)))
    report = load_weights(net, state, **{argument: ["fc.*"]})  # type: ignore[arg-type]
    assert report.kept_initial == ("fc.weight", "fc.bias")


def test_suggested_level_completes_the_pyramid() -> None:
    levels = ["c3", "c4", "c5"]
    backbone = ResNetBackbone(RESNETS["resnet18"], out_levels=levels)
    level = value_in(r'add "(\w+)" to out_levels', message_of(lambda: FeaturePyramid(backbone.feature_specs)))
    fixed = ResNetBackbone(RESNETS["resnet18"], out_levels=[level, *levels])
    assert list(FeaturePyramid(fixed.feature_specs).feature_specs) == ["p2", "p3", "p4", "p5", "p6"]


def test_suggested_number_of_classes_and_fine_tune_load_the_weights(small_recipe: DetectorRecipe) -> None:
    state = small_torchvision_state(small_recipe)
    message = message_of(lambda: build_detector(small_recipe, num_classes=2, weights=state, source="torchvision"))
    suggested = int(value_in(r"build with num_classes=(\d+)", message))
    source = build_detector(small_recipe, num_classes=suggested, weights=state, source="torchvision")
    assert "fine_tune()" in message
    report = fine_tune(build_detector(small_recipe, num_classes=2), source.state_dict())
    assert "box_head.logits.weight" in report.kept_initial


def small_torchvision_state(recipe: DetectorRecipe) -> dict[str, torch.Tensor]:
    """The state dict of an untrained detector for 5 classes, with torchvision's keys."""
    from heads.keymaps import to_layout

    return to_layout(build_detector(recipe, num_classes=5).state_dict(), "torchvision", {})


@pytest.mark.parametrize("misspelled", ["mask_rcnn_r50_fpm", "faster_rcn_r101_c4"])
def test_suggested_detector_exists(misspelled: str) -> None:
    name = value_in(r"did you mean '(\w+)'", message_of(lambda: build_detector(misspelled, num_classes=1)))
    assert name in DETECTORS


def test_suggested_as_backbone_wraps_a_torchvision_body(small_recipe: DetectorRecipe) -> None:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter

    layers = {f"layer{i}": f"c{i + 1}" for i in range(1, 5)}
    body: Any = IntermediateLayerGetter(resnet18(), layers)
    assert "as_backbone" in message_of(lambda: build_detector(small_recipe, num_classes=1, backbone=body))
    assert isinstance(build_detector(small_recipe, num_classes=1, backbone=as_backbone(body)), RCNN)


def test_suggested_one_target_per_image_is_accepted(
    small_recipe: DetectorRecipe, make_batch: Callable[..., ImageBatch], make_targets: Callable[..., Any]
) -> None:
    detector, batch = build_detector(small_recipe, num_classes=3), make_batch()
    assert "give one per image" in message_of(lambda: detector(batch, [make_targets([])]))
    assert set(detector(batch, [make_targets([])] * len(batch.sizes))) >= {"loss_cls"}


def test_suggested_setting_is_accepted(tmp_path: Path) -> None:
    base = str(ROOT / "configs" / "faster_rcnn_r50_fpn_1x.yaml")
    message = message_of(lambda: load_config(base, ["optimiser.learning_rat=0.1"]))
    assert "optimiser.learning_rat" in message
    name = value_in(r"did you mean '(\w+)'", message_of(lambda: load_config(base, ["train.precison=fp32"])))
    assert load_config(base, [f"train.{name}=fp32"]).train.precision == "fp32"


def test_error_for_a_module_that_is_no_backbone_names_as_backbone(small_recipe: DetectorRecipe) -> None:
    module: Any = nn.Linear(3, 3)
    assert "as_backbone" in message_of(lambda: build_detector(small_recipe, num_classes=1, backbone=module))
