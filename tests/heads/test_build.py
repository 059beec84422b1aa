"""Building detectors: names, recipes, weights."""

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
    return replace(small_recipe, norm="gn")


def test_the_table_names_every_depth_with_and_without_masks() -> None:
    kinds = ("faster", "mask")
    wanted = {f"{kind}_rcnn_r{depth}_fpn" for kind in kinds for depth in (18, 34, 50, 101, 152)}
    wanted |= {f"{kind}_rcnn_r{depth}_{neck}" for kind in kinds for depth in (50, 101) for neck in ("c4", "dc5")}
    wanted |= {f"{kind}rcnn_resnet50_fpn{version}" for kind in kinds for version in ("", "_v2")}
    assert set(DETECTORS) == wanted
    assert all((recipe.mask is None) == name.startswith("faster") for name, recipe in DETECTORS.items())


def test_mask_rcnn_r50_has_the_published_number_of_parameters() -> None:
    """detectron2's model zoo and torchvision: 44.4 M for 80 classes and 91 logits."""
    with torch.device("meta"):
        detector = build_detector(replace(DETECTORS["mask_rcnn_r50_fpn"], norm="bn", frozen_stages=0), num_classes=90)
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(44.4, abs=0.1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mask_rcnn_r51_fpn", "no detector is called 'mask_rcnn_r51_fpn': did you mean 'mask_rcnn_r50_fpn'"),
        ("yolo", "no detector is called 'yolo': give one of faster_rcnn_r18_fpn"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_detector(name, num_classes=3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"backbone": "resnet51"}, "backbone='resnet51' is no ResNet: did you mean 'resnet50'"),
        ({"backbone": "resnet20_cifar"}, "has no C5: a pyramid needs one of the ImageNet nets"),
        ({"rpn": RPNSpec(anchor_sizes_px=((32,), (64,)))}, "has 2 levels, the pyramid has five"),
    ],
)
def test_a_wrong_recipe_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DetectorRecipe(**wrong)


@pytest.mark.parametrize(
    ("spec", "name", "value", "says"),
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
def test_an_impossible_setting_is_refused_by_name(spec: type, name: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must .*{says}"):
        spec(**{name: value})


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_detector_needs_a_class(num_classes: int, recipe: DetectorRecipe) -> None:
    with pytest.raises(ValueError, match=f"num_classes={num_classes}: a detector needs at least one class"):
        build_detector(recipe, num_classes=num_classes)


@pytest.mark.parametrize(("norm", "frozen_stages"), [("frozen_bn", 0), ("bn", 2)])
def test_freezing_what_nobody_trained_is_refused(norm: str, frozen_stages: int, recipe: DetectorRecipe) -> None:
    with pytest.raises(ValueError, match="without weights would freeze initial values"):
        build_detector(replace(recipe, norm=norm, frozen_stages=frozen_stages), num_classes=3)


def test_a_backbone_without_c2_is_refused_with_the_mend(recipe: DetectorRecipe) -> None:
    spec = ResNetSpec(BasicBlock, (1, 1, 1, 1), widths=(4, 8, 8, 8))
    backbone = ResNetBackbone(spec, norm="gn", out_levels=("c3", "c4", "c5"))
    with pytest.raises(ValueError, match='P2 needs C2, the backbone gives .*add "c2" to out_levels'):
        build_detector(recipe, num_classes=3, backbone=backbone)


@torch.inference_mode()
@pytest.mark.parametrize("through", ["mapping", "file"])
def test_weights_carry_a_detector_whole(
    through: str, recipe: DetectorRecipe, tmp_path: Path, make_batch: Callable[..., ImageBatch]
) -> None:
    first = build_detector(recipe, num_classes=3).eval()
    if through == "file":
        torch.save({"model": first.state_dict()}, tmp_path / "detector.pth")
    source = first.state_dict() if through == "mapping" else tmp_path / "detector.pth"
    second = build_detector(recipe, num_classes=3, weights=source).eval()
    batch = make_batch()
    for a, b in zip(first.detect(batch), second.detect(batch)):
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
    with pytest.raises(WeightMismatch, match="unexpected .*mask_head.convs.0.weight"):
        build_detector(replace(recipe, mask=None), num_classes=3, weights=state)
    with pytest.raises(WeightMismatch, match="missing"):
        build_detector(recipe, num_classes=3, weights={k: v for k, v in state.items() if not k.startswith("rpn.")})


def test_fine_tuning_remakes_the_class_layers_alone_and_says_so(recipe: DetectorRecipe) -> None:
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


def test_fine_tuning_on_as_many_classes_keeps_everything(recipe: DetectorRecipe) -> None:
    source = build_detector(recipe, num_classes=3)
    assert fine_tune(build_detector(recipe, num_classes=3), source.state_dict()).kept_initial == ()


def test_fine_tuning_does_not_excuse_any_other_difference(recipe: DetectorRecipe) -> None:
    source = build_detector(replace(recipe, pyramid_channels=16), num_classes=3).state_dict()
    with pytest.raises(WeightMismatch, match="neck.lateral.c2.weight"):
        fine_tune(build_detector(recipe, num_classes=5), source)


def test_norm_eps_of_the_conventions_reaches_the_backbone(recipe: DetectorRecipe) -> None:
    made = build_detector(replace(recipe, conventions=replace(recipe.conventions, norm_eps=1e-3)), num_classes=2)
    assert made.backbone.bn1.eps == 1e-3  # type: ignore[union-attr]
    assert load_weights(made, made.state_dict()).complete


@pytest.mark.parametrize("part", ["pyramid_norm", "box", "mask"])
def test_frozen_norms_in_the_heads_without_a_detectors_weights_are_refused(part: str, recipe: DetectorRecipe) -> None:
    changes: dict[str, Any] = {
        "pyramid_norm": "frozen_bn",
        "box": replace(recipe.box, convs=1, norm="bn_eval"),
        "mask": replace(recipe.mask, norm="frozen_bn"),  # type: ignore[type-var]
    }
    with pytest.raises(ValueError, match=f"{part}.*without a detector's weights would freeze initial statistics"):
        build_detector(replace(recipe, **{part: changes[part]}), num_classes=3)


@pytest.fixture(scope="module")
def torchvisions() -> dict[str, torch.Tensor]:
    from torchvision.models import detection as tv

    torch.manual_seed(0)
    return tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()


@pytest.mark.parametrize(("source", "eps"), [("torchvision", 1e-5), ("torchvision_coco_v1", 0.0)])
def test_weights_bring_their_sources_conventions(
    source: str, eps: float, torchvisions: dict[str, torch.Tensor]
) -> None:
    made = build_detector("mask_rcnn_r50_fpn", num_classes=90, weights=torchvisions, source=source)
    wanted = replace(CONVENTIONS["torchvision"], norm_eps=eps)
    assert made.box_head.conventions == made.rpn.conventions == made.box_regions.conventions == wanted
    assert isinstance(made.backbone, ResNetBackbone) and made.backbone.bn1.eps == eps
    assert made.preprocess.resize == "torch" and made.preprocess.value_range == 1
    assert made.class_names[0] == "person" and made.class_names[89] == "toothbrush" and made.class_names[11] == "N/A"


def test_weights_whose_source_nothing_tells_are_refused(torchvisions: dict[str, torch.Tensor]) -> None:
    with pytest.raises(AmbiguousWeights, match=r"(?s)source='torchvision': .*epsilon 1e-05.*_coco_v1': .*epsilon 0$"):
        build_detector("mask_rcnn_r50_fpn", num_classes=90, weights=torchvisions)


def test_a_background_that_was_counted_is_named(torchvisions: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="have 90 classes and the background, num_classes=91 was given"):
        build_detector("mask_rcnn_r50_fpn", num_classes=91, weights=torchvisions, source="torchvision")


@pytest.mark.parametrize(("neck", "pad"), [("fpn", 32), ("c4", 1)])
def test_detectron2s_weights_bring_bgr_the_stride_and_its_padding(neck: str, pad: int) -> None:
    name = f"faster_rcnn_r50_{neck}"
    with torch.random.fork_rng():
        given = build_detector(replace(DETECTORS[name], norm="bn", frozen_stages=0), num_classes=80)
    theirs = {"model": to_layout(given.state_dict(), "detectron2", {}), "__author__": "Detectron2 Model Zoo"}
    made = build_detector(name, num_classes=80, weights=theirs)  # type: ignore[arg-type]  # a file's content
    assert isinstance(made.backbone, ResNetBackbone)
    assert made.backbone.spec.stride_on == "1x1" and made.preprocess.channel_order == "bgr"
    assert made.preprocess.pad_to_multiple_px == pad and made.class_names[79] == "toothbrush"
    with pytest.raises(ValueError, match='on the 1x1, this net has it on the 3x3: build it with stride_on="1x1"'):
        build_detector(DETECTORS[name], num_classes=80, weights=theirs)  # type: ignore[arg-type]


def test_mmdetections_weights_bring_its_class_names_and_its_mask_rcnns_best_regions(
    small_recipe: DetectorRecipe,
) -> None:
    given = build_detector(replace(small_recipe, norm="bn"), num_classes=2)
    meta = {"dataset_meta": {"classes": ("cat", "dog")}, "cfg": "backbone=dict(style='pytorch')"}
    theirs = {"state_dict": to_layout(given.state_dict(), "mmdetection", {}), "meta": meta}
    made = build_detector(small_recipe, num_classes=2, weights=theirs)  # type: ignore[arg-type]
    assert made.class_names == ("cat", "dog") and made.preprocess.resize == "opencv"
    assert made.box_head.conventions == CONVENTIONS["mmdetection"] and made.box_head.spec.keep_best
