"""Other projects' nets, live: the same weights give the same features. And files that cannot be had here, synthetic,
built from their published layout."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor

from resnet_backbone import ResNetBackbone, ResNetClassifier, ResNetSpec, build_backbone, load_weights
from resnet_backbone.blocks import BasicBlock, Bottleneck
from resnet_backbone.build import save_weights
from resnet_backbone.weights.keymaps import CAFFE2, body_in_layout

from .conftest import NARROW, scrambled

PIXELS = (2, 3, 97, 130)


def live_statistics(net: torch.nn.Module) -> dict[str, Tensor]:
    """Random affine terms and statistics that are not trivial, in the net itself; its state dict."""
    for key, value in net.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(
                torch.rand(value.shape) * 0.8 + 0.6 if "running_mean" not in key else torch.randn(value.shape) * 0.1
            )
    return net.eval().state_dict()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "resnet50d"])
def test_timms_features_are_ours(name: str, tmp_path: Path) -> None:
    theirs = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
    classifier = timm.create_model(name, pretrained=False)
    torch.save(live_statistics(classifier), tmp_path / "net.pth")
    theirs.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")})
    ours = build_backbone(name, weights=tmp_path / "net.pth", source="timm").eval()
    pixels = torch.randn(PIXELS)
    for want, found, info in zip(theirs.eval()(pixels), ours(pixels).values(), theirs.feature_info, strict=False):
        assert float((found - want).abs().max()) <= 1e-5 * float(want.abs().max()), info


@torch.inference_mode()
@pytest.mark.parametrize(("layer", "depths"), [("bottleneck", (2, 1, 2, 1)), ("basic", (1, 2, 1, 1))])
@pytest.mark.parametrize("kind", ["ResNetModel", "ResNetForImageClassification"])
def test_transformers_features_are_ours(layer: str, depths: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    expansion = 4 if layer == "bottleneck" else 1
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[w * expansion for w in (8, 12, 16, 24)], depths=list(depths), layer_type=layer
    )
    theirs = getattr(transformers, kind)(config)
    torch.save(live_statistics(theirs), tmp_path / "net.bin")
    spec = ResNetSpec(Bottleneck if expansion == 4 else BasicBlock, depths, widths=(8, 12, 16, 24))
    ours = build_backbone(spec, weights=tmp_path / "net.bin").eval()  # nobody else has these names: no source is asked
    pixels = torch.randn(PIXELS)
    wanted = theirs.eval()(pixels, output_hidden_states=True).hidden_states[1:]
    for want, found in zip(wanted, ours(pixels).values(), strict=True):
        assert float((found - want).abs().max()) <= 1e-5 * float(want.abs().max())


@pytest.mark.parametrize("layout", ["torchvision", "detectron2", "transformers"])
def test_there_and_back_every_tensor_is_the_same_bit_for_bit(narrow: ResNetClassifier, layout: str) -> None:
    state = narrow.state_dict()
    back = narrow.to_native_keys(body_in_layout(state, layout))
    assert back.layout == layout and set(back.state) == set(state) and not back.unused
    assert all(torch.equal(value, back.state[key]) for key, value in state.items())


def caffe2_pickle(net: ResNetClassifier, *, statistics: bool, path: Path) -> None:
    """Synthetic: names and contents as detectron2's notes and logs describe MSRA's R-50.pkl. With statistics, as in
    detectron2's copy, whose norms are spelt out; without, as in Detectron's, whose norms are affine."""
    spelt = {"s": "gamma", "b": "beta", "rm": "running_mean", "riv": "running_var"}
    blobs: dict[str, Any] = {}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked") or (not statistics and "running" in key):
            continue
        name = CAFFE2(key)
        if statistics and "_bn_" in name:
            stem, _, kind = name.rpartition("_")
            name = f"{stem}_{spelt[kind]}"
        blobs[name] = value.numpy()
    blobs["conv1_b"] = np.zeros(len(blobs["conv1_w"]), np.float32)
    path.write_bytes(pickle.dumps({"blobs": blobs} if not statistics else blobs, protocol=2))


@torch.inference_mode()
@pytest.mark.parametrize("statistics", [True, False])
def test_msras_pickles_load_and_are_bgr_with_the_stride_on_the_first_convolution(
    statistics: bool, tmp_path: Path
) -> None:
    spec = replace(NARROW, stride_on="1x1")
    net = scrambled(ResNetClassifier(spec, num_classes=1000))
    path = tmp_path / "R-50.pkl"
    caffe2_pickle(net, statistics=statistics, path=path)
    ours = ResNetClassifier(spec).eval()
    report = load_weights(ours, path)
    assert report.complete and report.unused_by_design == ("conv1_b",)
    assert ours.preprocess.channel_order == "bgr" and ours.preprocess.value_range == 255
    for key, value in net.state_dict().items():
        if "running" in key and not statistics:
            value = torch.zeros_like(value) if "mean" in key else torch.ones_like(value)
        assert torch.equal(ours.state_dict()[key], value) or key.endswith("num_batches_tracked"), key
    with pytest.raises(ValueError, match="stride on the 1x1"):
        load_weights(ResNetClassifier(NARROW), path)


def test_the_backbone_of_a_whole_detector_is_taken_alone(narrow: ResNetClassifier, tmp_path: Path) -> None:
    state = {f"backbone.bottom_up.{k}": v for k, v in body_in_layout(narrow.state_dict(), "detectron2").items()}
    state["proposal_generator.rpn_head.conv.weight"] = torch.zeros(1)
    torch.save({"model": state, "__author__": "Detectron2 Model Zoo"}, tmp_path / "model_final.pth")
    net = ResNetBackbone(replace(NARROW, stride_on="1x1"))
    report = load_weights(net, tmp_path / "model_final.pth")
    assert "proposal_generator.rpn_head.conv.weight" in report.unused_by_design
    assert torch.equal(net.state_dict()["layer3.1.bn2.bias"], narrow.state_dict()["layer3.1.bn2.bias"])


def test_a_certified_file_becomes_timms_again_bit_for_bit(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", pretrained=False)
    given: Mapping[str, Tensor] = live_statistics(theirs)
    ours = ResNetClassifier("resnet18")
    load_weights(ours, given, source="timm")
    save_weights(ours, tmp_path / "ours.safetensors", source="timm")
    again = ResNetClassifier("resnet18")
    load_weights(again, tmp_path / "ours.safetensors")
    back = body_in_layout(again.state_dict(), "torchvision")
    timm.create_model("resnet18", pretrained=False).load_state_dict(back)
    assert set(back) == set(given) and all(torch.equal(back[key], value) for key, value in given.items())
