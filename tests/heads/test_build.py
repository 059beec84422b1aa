"""build_detector and fine_tune: names, recipes, and what weights bring with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from heads import DETECTORS, DetectorRecipe, ImageBatch, build_detector
from heads.box_head import BoxHeadSpec
from heads.build import fine_tune
from heads.conventions import CONVENTIONS
from heads.keymaps import to_layout
from heads.mask_head import MaskHeadSpec
from heads.rpn import RPNSpec
from resnet_backbone import ResNetBackbone, ResNetSpec, WeightMismatch, load_weights
from resnet_backbone.blocks import BasicBlock
from resnet_backbone.weights.sources import AmbiguousWeights


@pytest.fixture
def recipe(small_recipe: DetectorRecipe) -> DetectorRecipe:
    """The small recipe with group norm, which needs no weights."""
    return replace(small_recipe, norm="gn")


def test_detectors_cover_every_depth_and_neck_with_and_without_masks() -> None:
    kinds = ("faster", "mask")
    expected = {f"{kind}_rcnn_r{depth}_fpn" for kind in kinds for depth in (18, 34, 50, 101, 152)}
    expected |= {f"{kind}_rcnn_r{depth}_{neck}" for kind in kinds for depth in (50, 101) for neck in ("c4", "dc5")}
    expected |= {f"{kind}rcnn_resnet50_fpn{version}" for kind in kinds for version in ("", "_v2")}
    assert set(DETECTORS) == expected
    assert all((recipe.mask is None) == name.startswith("faster") for name, recipe in DETECTORS.items())


def test_mask_rcnn_r50_has_the_published_number_of_parameters() -> None:
    """44.4 million for 90 classes in torchvision (91 logits) and for 80 in detectron2's model zoo."""
    with torch.device("meta"):
        detector = build_detector(replace(DETECTORS["mask_rcnn_r50_fpn"], norm="bn", frozen_stages=0), num_classes=90)
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(44.4, abs=0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mask_rcnn_r51_fpn", "no detector is called 'mask_rcnn_r51_fpn': did you mean 'mask_rcnn_r50_fpn'"),
        ("yolo", "no detector is called 'yolo': give one of faster_rcnn_r18_fpn"),
    ],
)
def test_unknown_name_is_refused_with_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_detector(name, num_classes=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet51"}, "backbone='resnet51' is no ResNet: did you mean 'resnet50'"),
        ({"backbone": "resnet20_cifar"}, "has no C5: a pyramid needs one of the ImageNet nets"),
        ({"rpn": RPNSpec(anchor_sizes_px=((32,), (64,)))}, "has 2 levels, the pyramid has five"),
    ],
)
def test_invalid_recipe_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorRecipe(**fields)


@pytest.mark.parametrize(
    ("spec", "name", "value", "message"),
    [
        (RPNSpec, "samples_per_image", 0, "greater than 0"),
        (RPNSpec, "keep_before_nms_train", 0, "greater than 0"),
        (RPNSpec, "keep_after_nms_test", -1, "greater than 0"),
        (RPNSpec, "nms_iou", 1.5, "between 0 and 1"),
        (RPNSpec, "positive_fraction", -0.1, "between 0 and 1"),
        (BoxHeadSpec, "pool_size", 0, "greater than 0"),
        (BoxHeadSpec, "max_detections", 0, "greater than 0"),
        (BoxHeadSpec, "min_score", 5, "between 0 and 1"),
        (BoxHeadSpec, "positive_iou", float("nan"), "between 0 and 1"),
        (MaskHeadSpec, "convs", -1, "not be negative"),
        (MaskHeadSpec, "channels", 0, "greater than 0"),
        (DetectorRecipe, "pyramid_channels", 0, "greater than 0"),
    ],
)
def test_error_for_an_invalid_setting_names_it(spec: type, name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must .*{message}"):
        spec(**{name: value})


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_detector_without_classes_is_refused(num_classes: int, recipe: DetectorRecipe) -> None:
    with pytest.raises(ValueError, match=f"num_classes={num_classes}: a detector needs at least one class"):
        build_detector(recipe, num_classes=num_classes)


@pytest.mark.parametrize(("norm", "frozen_stages"), [("frozen_bn", 0), ("bn", 2)])
def test_freezing_initial_values_is_refused(norm: str, frozen_stages: int, recipe: DetectorRecipe) -> None:
    with pytest.raises(ValueError, match="without weights would freeze initial values"):
        build_detector(replace(recipe, norm=norm, frozen_stages=frozen_stages), num_classes=3)


def test_error_for_a_backbone_without_c2_names_out_levels(recipe: DetectorRecipe) -> None:
    spec = ResNetSpec(BasicBlock, (1, 1, 1, 1), widths=(4, 8, 8, 8))
    backbone = ResNetBackbone(spec, norm="gn", out_levels=("c3", "c4", "c5"))
    with pytest.raises(ValueError, match='P2 needs C2, the backbone gives .*add "c2" to out_levels'):
        build_detector(recipe, num_classes=3, backbone=backbone)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["mapping", "file"])
def test_detector_built_from_weights_gives_the_same_detections(
    kind: str, recipe: DetectorRecipe, tmp_path: Path, make_batch: Callable[..., ImageBatch]
) -> None:
    saved = build_detector(recipe, num_classes=3).eval()
    if kind == "file":
        torch.save({"model": saved.state_dict()}, tmp_path / "detector.pth")
    weights = saved.state_dict() if kind == "mapping" else tmp_path / "detector.pth"
    loaded = build_detector(recipe, num_classes=3, weights=weights).eval()
    batch = make_batch()
    for a, b in zip(saved.detect(batch), loaded.detect(batch)):
        assert len(a) and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
        assert torch.equal(a.masks.probabilities, b.masks.probabilities)  # type: ignore[union-attr]


def test_weights_allow_frozen_norms(recipe: DetectorRecipe) -> None:
    trained = build_detector(replace(recipe, norm="bn"), num_classes=3)
    frozen = build_detector(
        replace(recipe, norm="frozen_bn", frozen_stages=2), num_classes=3, weights=trained.state_dict()
    )
    key = "backbone.layer4.1.bn2.running_var"
    assert torch.equal(frozen.state_dict()[key], trained.state_dict()[key])


def test_weights_of_another_detector_are_refused(recipe: DetectorRecipe) -> None:
    state = build_detector(recipe, num_classes=3).state_dict()
    with pytest.raises(WeightMismatch, match=r"box_head.logits.weight file \(4, 64\) model \(6, 64\)"):
        build_detector(recipe, num_classes=5, weights=state)
    with pytest.raises(WeightMismatch, match="missing .*mask_head.convs.0.weight"):
        build_detector(recipe, num_classes=3, weights={k: v for k, v in state.items() if not k.startswith("mask_")})
    with pytest.raises(WeightMismatch, match="missing"):
        build_detector(recipe, num_classes=3, weights={k: v for k, v in state.items() if not k.startswith("rpn.")})


def test_fine_tuning_reports_and_keeps_initial_values_of_class_layers_only(recipe: DetectorRecipe) -> None:
    source = build_detector(recipe, num_classes=3).state_dict()
    detector = build_detector(recipe, num_classes=5)
    initial = {key: value.clone() for key, value in detector.state_dict().items()}
    report = fine_tune(detector, source)
    layers = {
        f"{layer}.{part}"
        for layer in ("box_head.logits", "box_head.deltas", "mask_head.logits")
        for part in ("weight", "bias")
    }
    assert set(report.kept_initial) == layers and report.complete
    for key, value in detector.state_dict().items():
        assert torch.equal(value, initial[key] if key in layers else source[key])


def test_fine_tuning_with_the_same_number_of_classes_loads_everything(recipe: DetectorRecipe) -> None:
    source = build_detector(recipe, num_classes=3)
    assert fine_tune(build_detector(recipe, num_classes=3), source.state_dict()).kept_initial == ()


def test_fine_tuning_refuses_differences_outside_the_class_layers(recipe: DetectorRecipe) -> None:
    source = build_detector(replace(recipe, pyramid_channels=16), num_classes=3).state_dict()
    with pytest.raises(WeightMismatch, match="neck.lateral.c2.weight"):
        fine_tune(build_detector(recipe, num_classes=5), source)


def test_backbone_has_the_norm_eps_of_the_conventions(recipe: DetectorRecipe) -> None:
    detector = build_detector(replace(recipe, conventions=replace(recipe.conventions, norm_eps=1e-3)), num_classes=2)
    assert detector.backbone.bn1.eps == 1e-3  # type: ignore[union-attr]
    assert load_weights(detector, detector.state_dict()).complete


@pytest.mark.parametrize("part", ["pyramid_norm", "box", "mask"])
def test_frozen_norms_in_neck_and_heads_are_refused_without_a_detectors_weights(
    part: str, recipe: DetectorRecipe
) -> None:
    changes: dict[str, Any] = {
        "pyramid_norm": "frozen_bn",
        "box": replace(recipe.box, convs=1, norm="bn_eval"),
        "mask": replace(recipe.mask, norm="frozen_bn"),  # type: ignore[type-var]
    }
    with pytest.raises(ValueError, match=f"{part}.*without a detector's weights would freeze initial statistics"):
        build_detector(replace(recipe, **{part: changes[part]}), num_classes=3)


@pytest.fixture(scope="module")
def torchvision_state() -> dict[str, torch.Tensor]:
    """The state dict of torchvision's Mask R-CNN, with initial values."""
    from torchvision.models import detection as tv

    torch.manual_seed(0)
    return tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()


@pytest.mark.parametrize(("source", "eps"), [("torchvision", 1e-5), ("torchvision_coco_v1", 0.0)])
def test_weights_bring_the_conventions_of_their_source(
    source: str, eps: float, torchvision_state: dict[str, torch.Tensor]
) -> None:
    built = build_detector("mask_rcnn_r50_fpn", num_classes=90, weights=torchvision_state, source=source)
    expected = replace(CONVENTIONS["torchvision"], norm_eps=eps)
    assert built.box_head.conventions == built.rpn.conventions == built.box_regions.conventions == expected
    assert isinstance(built.backbone, ResNetBackbone) and built.backbone.bn1.eps == eps
    assert built.preprocess.resize == "torch" and built.preprocess.value_range == 1
    assert built.class_names[0] == "person" and built.class_names[89] == "toothbrush" and built.class_names[11] == "N/A"


def test_weights_of_an_ambiguous_source_are_refused(torchvision_state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(AmbiguousWeights, match=r"(?s)source='torchvision': .*epsilon 1e-05.*_coco_v1': .*epsilon 0$"):
        build_detector("mask_rcnn_r50_fpn", num_classes=90, weights=torchvision_state)


def test_num_classes_that_counts_the_background_is_refused(torchvision_state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="have 90 classes and the background, num_classes=91 was given"):
        build_detector("mask_rcnn_r50_fpn", num_classes=91, weights=torchvision_state, source="torchvision")


@pytest.mark.parametrize(("neck", "pad"), [("fpn", 32), ("c4", 1)])
def test_detectron2_weights_bring_bgr_stride_placement_and_padding(neck: str, pad: int) -> None:
    name = f"faster_rcnn_r50_{neck}"
    with torch.random.fork_rng():
        original = build_detector(replace(DETECTORS[name], norm="bn", frozen_stages=0), num_classes=80)
    checkpoint = {"model": to_layout(original.state_dict(), "detectron2", {}), "__author__": "Detectron2 Model Zoo"}
    detector = build_detector(name, num_classes=80, weights=checkpoint)  # type: ignore[arg-type]
    assert isinstance(detector.backbone, ResNetBackbone)
    assert detector.backbone.spec.stride_on == "1x1" and detector.preprocess.channel_order == "bgr"
    assert detector.preprocess.pad_to_multiple_px == pad and detector.class_names[79] == "toothbrush"
    with pytest.raises(ValueError, match='on the 1x1, this net has it on the 3x3: build it with stride_on="1x1"'):
        build_detector(DETECTORS[name], num_classes=80, weights=checkpoint)  # type: ignore[arg-type]


def test_mmdetection_weights_bring_class_names_and_keep_best(
    small_recipe: DetectorRecipe,
) -> None:
    original = build_detector(replace(small_recipe, norm="bn"), num_classes=2)
    meta = {"dataset_meta": {"classes": ("cat", "dog")}, "cfg": "backbone=dict(style='pytorch')"}
    checkpoint = {"state_dict": to_layout(original.state_dict(), "mmdetection", {}), "meta": meta}
    detector = build_detector(small_recipe, num_classes=2, weights=checkpoint)  # type: ignore[arg-type]
    assert detector.class_names == ("cat", "dog") and detector.preprocess.resize == "opencv"
    assert detector.box_head.conventions == CONVENTIONS["mmdetection"] and detector.box_head.spec.keep_best
