"""Certified files of detectors: a round trip keeps everything, and changed files are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heads import DETECTORS, RCNN, DetectorRecipe, ImageBatch, build_detector
from heads.box_head import BoxHeadSpec
from heads.conventions import CONVENTIONS
from heads.files import detector_content, load_detector, save_detector
from heads.mask_head import MaskHeadSpec
from heads.rpn import RPNSpec
from resnet_backbone import ResNetBackbone, load_weights
from resnet_backbone.weights.certificate import CertificateMismatch
from resnet_backbone.weights.read import read_file, save_atomically

Edit = Callable[[dict[str, Any], dict[str, Any]], Any]
C4 = replace(
    DETECTORS["mask_rcnn_r50_c4"],
    norm="bn",
    frozen_stages=0,
    rpn=RPNSpec(((32.0, 64.0),), keep_after_nms_test=20),
    mask=MaskHeadSpec(convs=0, channels=16),
)


@pytest.fixture
def recipe(small_recipe: DetectorRecipe) -> DetectorRecipe:
    """The small recipe with torchvision's conventions."""
    return replace(small_recipe, conventions=CONVENTIONS["torchvision"])


@pytest.fixture
def detector(recipe: DetectorRecipe) -> RCNN:
    """A detector with spread head outputs, class names, its own preprocessing and background rows."""
    net = build_detector(recipe, num_classes=3)
    for head in (net.box_head.logits, net.box_head.deltas, net.mask_head.logits):
        nn.init.normal_(head.weight, std=0.1)  # type: ignore[union-attr]
    net.class_names = ("one", "N/A", "three")
    net.preprocess = replace(net.preprocess, channel_order="bgr", short_side_px=640)
    net.background = {"box_head.deltas.bias": torch.arange(4.0)}
    return net.eval()


@pytest.fixture(params=[".pth", ".safetensors"])
def path(request: pytest.FixtureRequest, detector: RCNN, recipe: DetectorRecipe, tmp_path: Path) -> Path:
    """A file of the detector in each format."""
    save_detector(detector, recipe, tmp_path / f"detector{request.param}", source="a test")
    return tmp_path / f"detector{request.param}"


def edited(path: Path, edit: Edit) -> Path:
    """A copy of the file, with the edit applied to its tensors and metadata."""
    content: Any = read_file(path)
    edit(content["model"], content["meta"])
    save_atomically(content, path.with_stem("edited"))
    return path.with_stem("edited")


def _set_eps(meta: dict[str, Any], eps: float) -> None:
    meta["net"]["norm_eps"] = meta["recipe"]["conventions"]["norm_eps"] = eps


@torch.inference_mode()
def test_loading_a_saved_file_restores_detector_and_recipe(
    path: Path, detector: RCNN, recipe: DetectorRecipe, make_batch: Callable[..., ImageBatch]
) -> None:
    loaded, loaded_recipe = load_detector(path)
    assert (
        loaded_recipe == recipe
        and loaded.class_names == detector.class_names
        and loaded.preprocess == detector.preprocess
    )
    assert torch.equal(loaded.background["box_head.deltas.bias"], torch.arange(4.0))
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in loaded.state_dict().items())
    batch = make_batch()
    for a, b in zip(detector.detect(batch), loaded.eval().detect(batch), strict=True):
        assert len(a) and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)


def test_certificate_of_a_c4_detector_covers_the_shared_stage(tmp_path: Path) -> None:
    detector = build_detector(C4, num_classes=2)
    save_detector(detector, C4, tmp_path / "c4.pth", source="a test")
    assert load_detector(tmp_path / "c4.pth")[1] == C4
    other_stride = edited(tmp_path / "c4.pth", lambda state, meta: meta["recipe"].update(stride_on="1x1"))
    with pytest.raises(CertificateMismatch, match="stride_on is '3x3' for its net and '1x1' in its recipe"):
        load_detector(other_stride)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state, meta: state["mask_head.logits.bias"].add_(1e-6), "mask_head.logits.bias is not the tensor"),
        (
            lambda state, meta: state["background.box_head.deltas.bias"].add_(1),
            "background.*deltas.bias is not",
        ),
        (lambda state, meta: meta["recipe"]["conventions"].update(roi_samples=1), "box regions is the first stage"),
        (lambda state, meta: meta["recipe"]["conventions"].update(roi_aligned=True), "box regions is the first stage"),
        (lambda state, meta: meta["preprocess"].update(channel_order="rgb"), "c1 is the first stage"),
        (lambda state, meta: meta["net"].update(norm_eps=0.5), "norm_eps is 0.5 for its net and 1e-05 in its recipe"),
        (lambda state, meta: _set_eps(meta, 0.5), "c1 is the first stage"),
        (lambda state, meta: meta["fingerprint"]["p4"].__setitem__(7, 3.0), "p4 is the first stage"),
        (lambda state, meta: meta["fingerprint"].update(keypoints=[0.0]), "a stage 'keypoints' that this net lacks"),
    ],
)
def test_error_for_an_edited_file_names_the_edit(edit: Edit, message: str, path: Path) -> None:
    with pytest.raises(CertificateMismatch, match=message):
        load_detector(edited(path, edit))


def test_build_detector_takes_over_what_a_certified_file_holds(
    path: Path, detector: RCNN, recipe: DetectorRecipe
) -> None:
    """The conventions of the recipe are replaced by the file's, in which the weights were trained."""
    other_recipe = replace(recipe, conventions=CONVENTIONS["detectron2"])
    built = build_detector(other_recipe, num_classes=3, weights=path)
    assert built.box_head.conventions == built.rpn.conventions == recipe.conventions
    assert built.class_names == detector.class_names and built.preprocess == detector.preprocess
    with pytest.raises(ValueError, match="of these weights differ from this detector's, first round_anchors"):
        load_weights(build_detector(other_recipe, num_classes=3), path)


def test_backbone_loads_from_a_detector_file(path: Path, detector: RCNN) -> None:
    assert isinstance(detector.backbone, ResNetBackbone)
    net = ResNetBackbone(detector.backbone.spec)
    report = load_weights(net, path)
    assert torch.equal(net.state_dict()["layer4.1.bn2.weight"], detector.state_dict()["backbone.layer4.1.bn2.weight"])
    assert net.preprocess.channel_order == "bgr" and "rpn.objectness.weight" in report.unused_by_design


def test_files_without_a_detector_of_this_project_are_refused(tmp_path: Path, detector: RCNN) -> None:
    torch.save(detector.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="bare.pth holds no detector of this project.*convert_weights.py"):
        load_detector(tmp_path / "bare.pth")
    with pytest.raises(FileNotFoundError, match="no detector at .*nowhere.pth"):
        load_detector(tmp_path / "nowhere.pth")


def test_a_detector_with_a_foreign_backbone_is_not_saved(recipe: DetectorRecipe) -> None:
    class Foreign(nn.Module):
        pass

    detector = build_detector(recipe, num_classes=1)
    detector.backbone = Foreign()
    with pytest.raises(TypeError, match="Foreign cannot be rebuilt from a recipe"):
        detector_content(detector, recipe)


def test_lists_in_a_plain_recipe_become_tuples() -> None:
    """safetensors keeps metadata as JSON, where tuples are lists."""
    from resnet_backbone.plain import from_plain

    values = {"backbone": "resnet18", "rpn": {"anchor_sizes_px": [[8], [16], [32], [64], [128]]}}
    recipe = from_plain(DetectorRecipe, {**values, "box": {"convs": 1}})
    assert recipe.rpn.anchor_sizes_px == ((8,), (16,), (32,), (64,), (128,)) and recipe.box == BoxHeadSpec(convs=1)
