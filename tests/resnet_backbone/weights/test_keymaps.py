"""Key maps: nets of timm and transformers give the same features as ours with the same weights.

MSRA's and detectron2's files are synthetic: they are built from the published key layouts.
"""

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


def randomise_norms(net: torch.nn.Module) -> dict[str, Tensor]:
    """Fill the affine terms and statistics of the net with random values, in place, and return its state dict."""
    for key, value in net.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(
                torch.rand(value.shape) * 0.8 + 0.6 if "running_mean" not in key else torch.randn(value.shape) * 0.1
            )
    return net.eval().state_dict()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "resnet50d"])
def test_features_equal_those_of_timm(name: str, tmp_path: Path) -> None:
    reference = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
    classifier = timm.create_model(name, pretrained=False)
    torch.save(randomise_norms(classifier), tmp_path / "net.pth")
    reference.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")})
    ours = build_backbone(name, weights=tmp_path / "net.pth", source="timm").eval()
    pixels = torch.randn(PIXELS)
    for expected, actual, info in zip(
        reference.eval()(pixels), ours(pixels).values(), reference.feature_info, strict=False
    ):
        assert float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), info


@torch.inference_mode()
@pytest.mark.parametrize(("layer", "depths"), [("bottleneck", (2, 1, 2, 1)), ("basic", (1, 2, 1, 1))])
@pytest.mark.parametrize("kind", ["ResNetModel", "ResNetForImageClassification"])
def test_features_equal_those_of_transformers(layer: str, depths: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    expansion = 4 if layer == "bottleneck" else 1
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[w * expansion for w in (8, 12, 16, 24)], depths=list(depths), layer_type=layer
    )
    reference = getattr(transformers, kind)(config)
    torch.save(randomise_norms(reference), tmp_path / "net.bin")
    spec = ResNetSpec(Bottleneck if expansion == 4 else BasicBlock, depths, widths=(8, 12, 16, 24))
    ours = build_backbone(spec, weights=tmp_path / "net.bin").eval()  # the key names are unique: no source needed
    pixels = torch.randn(PIXELS)
    hidden_states = reference.eval()(pixels, output_hidden_states=True).hidden_states[1:]
    for expected, actual in zip(hidden_states, ours(pixels).values(), strict=True):
        assert float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("layout", ["torchvision", "detectron2", "transformers"])
def test_round_trip_through_a_layout_keeps_every_tensor_bit_for_bit(narrow: ResNetClassifier, layout: str) -> None:
    state = narrow.state_dict()
    converted = narrow.to_native_keys(body_in_layout(state, layout))
    assert converted.layout == layout and set(converted.state) == set(state) and not converted.unused
    assert all(torch.equal(value, converted.state[key]) for key, value in state.items())


def caffe2_pickle(net: ResNetClassifier, *, statistics: bool, path: Path) -> None:
    """Write a synthetic pickle with the keys that detectron2's notes and logs list for MSRA's R-50.pkl.

    Args:
        statistics: True for the layout of detectron2's copy (norms with `gamma`, `beta` and running statistics), False
            for the one of Detectron (affine terms only).
    """
    long_names = {"s": "gamma", "b": "beta", "rm": "running_mean", "riv": "running_var"}
    blobs: dict[str, Any] = {}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked") or (not statistics and "running" in key):
            continue
        name = CAFFE2(key)
        if statistics and "_bn_" in name:
            stem, _, kind = name.rpartition("_")
            name = f"{stem}_{long_names[kind]}"
        blobs[name] = value.numpy()
    blobs["conv1_b"] = np.zeros(len(blobs["conv1_w"]), np.float32)
    path.write_bytes(pickle.dumps({"blobs": blobs} if not statistics else blobs, protocol=2))


@torch.inference_mode()
@pytest.mark.parametrize("statistics", [True, False])
def test_msra_pickles_load_with_bgr_and_the_stride_on_the_1x1(statistics: bool, tmp_path: Path) -> None:
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


def test_backbone_is_loaded_from_the_checkpoint_of_a_detector(narrow: ResNetClassifier, tmp_path: Path) -> None:
    state = {f"backbone.bottom_up.{k}": v for k, v in body_in_layout(narrow.state_dict(), "detectron2").items()}
    state["proposal_generator.rpn_head.conv.weight"] = torch.zeros(1)
    torch.save({"model": state, "__author__": "Detectron2 Model Zoo"}, tmp_path / "model_final.pth")
    net = ResNetBackbone(replace(NARROW, stride_on="1x1"))
    report = load_weights(net, tmp_path / "model_final.pth")
    assert "proposal_generator.rpn_head.conv.weight" in report.unused_by_design
    assert torch.equal(net.state_dict()["layer3.1.bn2.bias"], narrow.state_dict()["layer3.1.bn2.bias"])


def test_certified_file_converts_back_to_timm_bit_for_bit(tmp_path: Path) -> None:
    reference = timm.create_model("resnet18", pretrained=False)
    state: Mapping[str, Tensor] = randomise_norms(reference)
    ours = ResNetClassifier("resnet18")
    load_weights(ours, state, source="timm")
    save_weights(ours, tmp_path / "ours.safetensors", source="timm")
    loaded = ResNetClassifier("resnet18")
    load_weights(loaded, tmp_path / "ours.safetensors")
    converted = body_in_layout(loaded.state_dict(), "torchvision")
    timm.create_model("resnet18", pretrained=False).load_state_dict(converted)
    assert set(converted) == set(state) and all(torch.equal(converted[key], value) for key, value in state.items())
