"""Names of other projects' detectors: torchvision's two generations, norms in heads, background rows, the way back."""

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

NORMED = DetectorRecipe(
    pyramid_norm="bn", box=BoxHeadSpec(convs=4, norm="bn", hidden_layers=1), mask=MaskHeadSpec(norm="bn")
)


def empty(recipe: DetectorRecipe, num_classes: int = 90) -> RCNN:
    return assemble(recipe, num_classes, empty_backbone(recipe))


def scrambled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """No two values alike, so that a mixed-up row shows."""
    return {key: torch.randn(v.shape).abs() if v.is_floating_point() else v for key, v in state.items()}


def test_torchvisions_older_names_are_its_own_and_load() -> None:
    """torchvision renames them itself when it loads a file without a version."""
    theirs = tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    older = {older_torchvision(key): value for key, value in theirs.state_dict().items()}
    for key in ("backbone.fpn.inner_blocks.0.weight", "rpn.head.conv.bias", "roi_heads.mask_head.mask_fcn4.weight"):
        assert key in older
    assert not tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).load_state_dict(older).missing_keys
    first, second = (empty(DETECTORS["maskrcnn_resnet50_fpn"]) for _ in range(2))
    assert load_weights(first, older, source="torchvision").complete
    assert load_weights(second, theirs.state_dict(), source="torchvision").complete
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        (DETECTORS["mask_rcnn_r50_fpn"], "detectron2"),
        (DETECTORS["mask_rcnn_r50_c4"], "detectron2"),
        (DETECTORS["faster_rcnn_r50_dc5"], "detectron2"),
        (DETECTORS["mask_rcnn_r50_fpn"], "mmdetection"),
        (DETECTORS["mask_rcnn_r50_fpn"], "torchvision"),
        *((NORMED, layout) for layout in ("detectron2", "mmdetection", "torchvision")),
    ],
)
def test_there_and_back_every_tensor_is_the_same_bit_for_bit(recipe: DetectorRecipe, layout: str) -> None:
    """And no two share a name. The names themselves are held by the golden files and by torchvision, live."""
    with torch.device("meta"):
        ours = empty(recipe)
    state = scrambled({key: torch.empty(value.shape, dtype=value.dtype) for key, value in ours.state_dict().items()})
    there = to_layout(state, layout, {})
    assert len(there) == len(state)
    back = ours.to_native_keys(there)
    assert back.layout == layout and set(back.state) == set(state)
    for key, value in state.items():
        assert torch.equal(back.state[key], value), key


def test_names_of_normed_convolutions_in_mmdetection() -> None:
    """mmcv's `ConvModule` calls its parts conv and bn; what has no norm is a `ConvModule` as well, but for the RPN."""
    with torch.device("meta"):
        names = keys_in(empty(NORMED).state_dict(), "mmdetection")
    assert names["box_head.convs.2.0.weight"] == "roi_head.bbox_head.shared_convs.2.conv.weight"
    assert names["box_head.convs.2.1.running_var"] == "roi_head.bbox_head.shared_convs.2.bn.running_var"
    assert names["mask_head.convs.0.1.bias"] == "roi_head.mask_head.convs.0.bn.bias"
    assert names["neck.output.c5.1.weight"] == "neck.fpn_convs.3.bn.weight"
    assert names["rpn.convs.0.weight"] == "rpn_head.rpn_conv.weight"


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_torchvision_gets_every_tensor_back_bit_for_bit_with_the_rows_of_its_background(name: str) -> None:
    theirs = getattr(tv, name)(weights=None, weights_backbone=None)
    given = scrambled(theirs.state_dict())
    ours = empty(replace(DETECTORS[name], norm="bn", frozen_stages=0))
    assert load_weights(ours, given, source="torchvision").complete
    back = to_layout(ours.state_dict(), "torchvision", ours.background)
    theirs.load_state_dict(back)  # strict
    assert set(back) == set(given)
    for key, value in given.items():
        assert torch.equal(back[key], value), key
    assert ours.class_names[0] == "person" and ours.class_names[11] == "N/A" and len(set(ours.class_names)) == 81


def test_what_only_older_detectron2_files_hold_is_unused_and_not_unexpected() -> None:
    ours = empty(DETECTORS["faster_rcnn_r18_fpn"], 3)
    older = to_layout(ours.state_dict(), "detectron2", {})
    older["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    older["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    report = load_weights(ours, older)  # the mean also says which of detectron2's styles this is
    assert set(report.unused_by_design) == {"proposal_generator.anchor_generator.cell_anchors.0", "pixel_mean"}
    assert ours.preprocess.channel_order == "bgr"


def test_a_key_without_a_place_is_named_as_it_stands_in_the_file() -> None:
    ours = empty(DETECTORS["faster_rcnn_r18_fpn"], 3)
    theirs = to_layout(ours.state_dict(), "detectron2", {})
    theirs["roi_heads.keypoint_head.weight"] = torch.zeros(1)
    with pytest.raises(WeightMismatch, match="roi_heads.keypoint_head.weight"):
        load_weights(ours, theirs, source="detectron2")


def test_layouts_that_do_not_exist_are_refused() -> None:
    with torch.device("meta"):
        pyramid, c4 = empty(DETECTORS["faster_rcnn_r18_fpn"], 3), empty(DETECTORS["faster_rcnn_r50_c4"], 3)
    with pytest.raises(ValueError, match="no detector's layout is called 'detectron': did you mean"):
        keys_in(pyramid.state_dict(), "detectron")
    with pytest.raises(ValueError, match="torchvision has no names for C4 and DC5 detectors"):
        keys_in(c4.state_dict(), "torchvision")
