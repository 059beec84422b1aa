"""Names of other projects' detectors: torchvision's two generations, and what has no place."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import detection as tv

from heads.build import DETECTORS, assemble, empty_backbone
from heads.formats import from_source, names_in, older_torchvision
from resnet_backbone import WeightMismatch, load_weights


def test_torchvisions_older_names_are_its_own_and_load() -> None:
    """torchvision renames them itself when it loads a file without a version."""
    theirs = tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    older = {older_torchvision(key): value for key, value in theirs.state_dict().items()}
    for key in ("backbone.fpn.inner_blocks.0.weight", "rpn.head.conv.bias", "roi_heads.mask_head.mask_fcn4.weight"):
        assert key in older
    assert not tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).load_state_dict(older).missing_keys
    recipe = DETECTORS["maskrcnn_resnet50_fpn"]
    first, second = (assemble(recipe, 90, empty_backbone(recipe)) for _ in range(2))
    assert load_weights(first, from_source(first, older, "torchvision")).complete
    assert load_weights(second, from_source(second, theirs.state_dict(), "torchvision")).complete
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("source", ["detectron2", "mmdetection", "torchvision"])
@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_no_two_tensors_share_a_name(name: str, source: str) -> None:
    recipe = DETECTORS[name]
    if source == "mmdetection" and recipe.rpn.convs > 1:
        pytest.skip("mmdetection has no such detector")
    with torch.device("meta"):
        names = names_in(assemble(recipe, 90, empty_backbone(recipe)), source)
    assert len(set(names.values())) == len(names)


def test_a_key_without_a_place_is_named_as_it_stands_in_the_file() -> None:
    recipe = DETECTORS["faster_rcnn_r18_fpn"]
    detector = assemble(recipe, 3, empty_backbone(recipe))
    theirs = {names_in(detector, "detectron2")[key]: value for key, value in detector.state_dict().items()}
    theirs["roi_heads.keypoint_head.weight"] = torch.zeros(1)
    with pytest.raises(WeightMismatch, match="roi_heads.keypoint_head.weight"):
        load_weights(detector, from_source(detector, theirs, "detectron2"))


def test_an_unknown_source_lists_the_known_ones() -> None:
    recipe = DETECTORS["faster_rcnn_r18_fpn"]
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="no detector's layout is called 'detectron': did you mean"),
    ):
        names_in(assemble(recipe, 3, empty_backbone(recipe)), "detectron")
