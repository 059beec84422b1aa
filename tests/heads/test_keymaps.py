"""Key maps of detectors: torchvision's two generations, norms in heads, background rows, both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as tv

from heads.box_head import BoxHeadSpec
from heads.build import assemble, empty_backbone
from heads.detector import RCNN
from heads.keymaps import keys_in, older_torchvision, to_layout
from heads.mask_head import MaskHeadSpec
from heads.recipes import DETECTORS, DetectorRecipe
from resnet_backbone import WeightMismatch, load_weights

WITH_NORMS = DetectorRecipe(
    pyramid_norm="bn", box=BoxHeadSpec(convs=4, norm="bn", hidden_layers=1), mask=MaskHeadSpec(norm="bn")
)


def empty_detector(recipe: DetectorRecipe, num_classes: int = 90) -> RCNN:
    """The recipe's detector without weights."""
    return assemble(recipe, num_classes, empty_backbone(recipe))


def with_random_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with random values, all different, so that swapped tensors or rows are noticed."""
    return {key: torch.randn(v.shape).abs() if v.is_floating_point() else v for key, v in state.items()}


def test_torchvisions_older_keys_load_as_the_newer_ones() -> None:
    """torchvision renames the older keys when it loads a file without a version."""
    reference = tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    older = {older_torchvision(key): value for key, value in reference.state_dict().items()}
    for key in ("backbone.fpn.inner_blocks.0.weight", "rpn.head.conv.bias", "roi_heads.mask_head.mask_fcn4.weight"):
        assert key in older
    assert not tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).load_state_dict(older).missing_keys
    from_older, from_newer = (empty_detector(DETECTORS["maskrcnn_resnet50_fpn"]) for _ in range(2))
    assert load_weights(from_older, older, source="torchvision").complete
    assert load_weights(from_newer, reference.state_dict(), source="torchvision").complete
    for key, value in from_older.state_dict().items():
        assert torch.equal(value, from_newer.state_dict()[key]), key


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        (DETECTORS["mask_rcnn_r50_fpn"], "detectron2"),
        (DETECTORS["mask_rcnn_r50_c4"], "detectron2"),
        (DETECTORS["faster_rcnn_r50_dc5"], "detectron2"),
        (DETECTORS["mask_rcnn_r50_fpn"], "mmdetection"),
        (DETECTORS["mask_rcnn_r50_fpn"], "torchvision"),
        *((WITH_NORMS, layout) for layout in ("detectron2", "mmdetection", "torchvision")),
    ],
)
def test_converting_to_a_layout_and_back_keeps_every_tensor(recipe: DetectorRecipe, layout: str) -> None:
    """No two tensors share a key. The keys are checked by the golden files and against torchvision."""
    with torch.device("meta"):
        ours = empty_detector(recipe)
    state = with_random_values(
        {key: torch.empty(value.shape, dtype=value.dtype) for key, value in ours.state_dict().items()}
    )
    converted = to_layout(state, layout, {})
    assert len(converted) == len(state)
    restored = ours.to_native_keys(converted)
    assert restored.layout == layout and set(restored.state) == set(state)
    for key, value in state.items():
        assert torch.equal(restored.state[key], value), key


def test_mmdetection_keys_of_convolutions_with_norms() -> None:
    """mmcv's `ConvModule` consists of conv and bn; without a norm it has conv only. The RPN has no `ConvModule`."""
    with torch.device("meta"):
        names = keys_in(empty_detector(WITH_NORMS).state_dict(), "mmdetection")
    assert names["box_head.convs.2.0.weight"] == "roi_head.bbox_head.shared_convs.2.conv.weight"
    assert names["box_head.convs.2.1.running_var"] == "roi_head.bbox_head.shared_convs.2.bn.running_var"
    assert names["mask_head.convs.0.1.bias"] == "roi_head.mask_head.convs.0.bn.bias"
    assert names["neck.output.c5.1.weight"] == "neck.fpn_convs.3.bn.weight"
    assert names["rpn.convs.0.weight"] == "rpn_head.rpn_conv.weight"


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_converting_to_torchvision_restores_its_state_with_background_rows(name: str) -> None:
    reference = getattr(tv, name)(weights=None, weights_backbone=None)
    original = with_random_values(reference.state_dict())
    ours = empty_detector(replace(DETECTORS[name], norm="bn", frozen_stages=0))
    assert load_weights(ours, original, source="torchvision").complete
    converted = to_layout(ours.state_dict(), "torchvision", ours.background)
    reference.load_state_dict(converted)  # strict
    assert set(converted) == set(original)
    for key, value in original.items():
        assert torch.equal(converted[key], value), key
    assert ours.class_names[0] == "person" and ours.class_names[11] == "N/A" and len(set(ours.class_names)) == 81


def test_keys_of_older_detectron2_files_are_unused_by_design() -> None:
    ours = empty_detector(DETECTORS["faster_rcnn_r18_fpn"], 3)
    state = to_layout(ours.state_dict(), "detectron2", {})
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    report = load_weights(ours, state)  # pixel_mean identifies the source, "detectron2"
    assert set(report.unused_by_design) == {"proposal_generator.anchor_generator.cell_anchors.0", "pixel_mean"}
    assert ours.preprocess.channel_order == "bgr"


def test_an_unexpected_key_is_named_as_in_the_file() -> None:
    ours = empty_detector(DETECTORS["faster_rcnn_r18_fpn"], 3)
    state = to_layout(ours.state_dict(), "detectron2", {})
    state["roi_heads.keypoint_head.weight"] = torch.zeros(1)
    with pytest.raises(WeightMismatch, match="roi_heads.keypoint_head.weight"):
        load_weights(ours, state, source="detectron2")


def test_unknown_layouts_are_refused() -> None:
    with torch.device("meta"):
        pyramid, c4 = (
            empty_detector(DETECTORS["faster_rcnn_r18_fpn"], 3),
            empty_detector(DETECTORS["faster_rcnn_r50_c4"], 3),
        )
    with pytest.raises(ValueError, match="no detector's layout is called 'detectron': did you mean"):
        keys_in(pyramid.state_dict(), "detectron")
    with pytest.raises(ValueError, match="torchvision has no names for C4 and DC5 detectors"):
        keys_in(c4.state_dict(), "torchvision")
