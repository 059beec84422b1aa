"""The source of weights: it is given by the caller, the metadata or a published hash; otherwise loading fails."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_backbone import ResNetClassifier, ResNetSpec, build_backbone, load_weights
from resnet_backbone.blocks import Bottleneck
from resnet_backbone.weights.catalog import HASHES
from resnet_backbone.weights.sources import SOURCES, AmbiguousWeights, resolve_source, source_from_metadata

CAFFE_CONFIG = "model = dict(backbone=dict(type='ResNet', depth=50,\n    style='caffe'))"


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ({"model": {}, "__author__": "Detectron2 Model Zoo"}, "detectron2"),
        ({"model": {}, "__author__": "torchvision", "matching_heuristics": True}, "detectron2_rgb"),
        ({"model": {"pixel_mean": torch.tensor([[[103.53]], [[116.28]], [[123.675]]])}}, "detectron2"),
        ({"model": {"pixel_mean": torch.tensor([123.675, 116.28, 103.53])}}, "detectron2_rgb"),
        ({"state_dict": {}, "meta": {"cfg": CAFFE_CONFIG}}, "mmdetection_caffe"),
        ({"state_dict": {}, "meta": {"config": CAFFE_CONFIG.replace("caffe", "pytorch")}}, "mmdetection"),
        ({"state_dict": {}, "meta": {"CLASSES": ("person",)}}, None),
        ({"conv1.weight": torch.zeros(1)}, None),
        ([1, 2], None),
    ],
)
def test_source_is_read_from_the_metadata_of_a_file(content: Any, source: str | None) -> None:
    assert source_from_metadata(content) == source
    assert source is None or source in SOURCES


def test_published_hash_determines_the_source(tmp_path: Path) -> None:
    """The hash is computed from the bytes of the file; its name may differ."""
    path = tmp_path / "renamed.pth"
    path.write_bytes(b"weights")
    hashes = {hashlib.sha256(b"weights").hexdigest()[:8]: "timm"}
    assert resolve_source(("torchvision", "timm"), source=None, path=path, hashes=hashes) == "timm"
    with pytest.raises(AmbiguousWeights):
        resolve_source(("torchvision", "mmdetection_caffe"), source=None, path=path, hashes=hashes)


def test_published_hashes_belong_to_known_sources() -> None:
    assert len(HASHES) > 80 and set(HASHES.values()) <= set(SOURCES)
    assert all(re.fullmatch("[0-9a-f]{8}", prefix) for prefix in HASHES)
    # compare with the file names in the installed torchvision
    from torchvision.models import ResNet50_Weights
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_Weights

    published = {
        ResNet50_Weights.IMAGENET1K_V2: "torchvision",
        MaskRCNN_ResNet50_FPN_Weights.COCO_V1: "torchvision_coco_v1",
        FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1: "torchvision",
    }
    for weights, source in published.items():
        assert HASHES[weights.url.removesuffix(".pth").rpartition("-")[2]] == source


def test_ambiguous_and_wrong_sources_are_refused_with_the_choices(narrow: ResNetClassifier, tmp_path: Path) -> None:
    torch.save(narrow.state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        AmbiguousWeights, match="(?s)source='timm': RGB, stride on the 3x3.*caffe': BGR, stride on the 1x1"
    ):
        load_weights(ResNetClassifier(narrow.spec, num_classes=5), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="source='detectron2' uses other keys: these are of torchvision or timm"):
        load_weights(ResNetClassifier(narrow.spec, num_classes=5), tmp_path / "net.pth", source="detectron2")
    with pytest.raises(ValueError, match="source='torchvison' is unknown: did you mean 'torchvision'"):
        load_weights(ResNetClassifier(narrow.spec, num_classes=5), tmp_path / "net.pth", source="torchvison")


def test_state_dict_with_our_keys_needs_no_source(narrow: ResNetClassifier) -> None:
    net = ResNetClassifier(narrow.spec, num_classes=5)
    preprocess = net.preprocess
    assert load_weights(net, narrow.state_dict()).complete and net.preprocess == preprocess


def test_net_given_by_name_adopts_the_stride_of_its_weights_and_a_spec_does_not(tmp_path: Path) -> None:
    torch.save(ResNetClassifier("resnet50").state_dict(), tmp_path / "caffe.pth")
    net = build_backbone("resnet50", weights=tmp_path / "caffe.pth", source="mmdetection_caffe")
    assert net.spec.stride_on == "1x1" and net.layer3[0].conv1.stride == (2, 2) and net.layer3[0].conv2.stride == (1, 1)
    assert net.preprocess.channel_order == "bgr" and net.preprocess.std == (1.0, 1.0, 1.0)
    assert net.preprocess.resize == "pillow"  # only detectors adopt the resizing of their source
    spec = ResNetSpec(Bottleneck, (3, 4, 6, 3))
    with pytest.raises(
        ValueError, match='stride on the 1x1, this net has it on the 3x3: build it with stride_on="1x1"'
    ):
        build_backbone(spec, weights=tmp_path / "caffe.pth", source="mmdetection_caffe")


def test_epsilon_0_of_torchvisions_first_detectors_is_adopted_or_refused(tmp_path: Path) -> None:
    state = {f"backbone.body.{key}": value for key, value in ResNetClassifier("resnet18").state_dict().items()}
    torch.save({key: value for key, value in state.items() if ".fc." not in key}, tmp_path / "detector.pth")
    net = build_backbone("resnet18", weights=tmp_path / "detector.pth", source="torchvision_coco_v1")
    assert net.norm_eps == 0 and net.bn1.eps == 0
    with pytest.raises(ValueError, match="an epsilon of 0 in the norms, this net has 1e-05"):
        load_weights(
            build_backbone("resnet18", norm="bn", frozen_stages=0),
            tmp_path / "detector.pth",
            source="torchvision_coco_v1",
        )
