"""Certified files: round trips, and errors that name what was changed after saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_backbone import Preprocess, ResNetBackbone, ResNetClassifier, build_backbone, load_weights
from resnet_backbone.build import save_weights
from resnet_backbone.weights.certificate import CertificateMismatch, generated_pixels
from resnet_backbone.weights.read import read_file, read_weights, save_atomically

BGR = Preprocess(channel_order="bgr", value_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))


@pytest.fixture(params=[".pth", ".safetensors"])
def path(request: pytest.FixtureRequest, narrow: ResNetClassifier, tmp_path: Path) -> Path:
    """A certified file of a net with BGR preprocessing."""
    narrow.preprocess = BGR
    save_weights(narrow, tmp_path / f"net{request.param}", source="detectron2_rgb")
    return tmp_path / f"net{request.param}"


def empty(narrow: ResNetClassifier, **changes: Any) -> ResNetClassifier:
    """A net of the same spec, except for `changes`, with initial values."""
    return ResNetClassifier(replace(narrow.spec, **changes), num_classes=5)


def edited(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A copy of the file after `edit(state_dict, metadata)`, with the original certificate."""
    content: Any = read_file(path)
    edit(content["model"], content["meta"])
    copy = path.with_stem("edited")
    save_atomically(content, copy)
    return copy


def test_certified_file_restores_tensors_preprocessing_and_metadata(path: Path, narrow: ResNetClassifier) -> None:
    net = empty(narrow)
    assert load_weights(net, path).complete
    assert all(torch.equal(value, narrow.state_dict()[key]) for key, value in net.state_dict().items())
    assert net.preprocess == BGR
    meta = read_weights(path).meta
    assert meta is not None and meta["source"] == "detectron2_rgb" and meta["kind"] == "backbone"
    assert set(meta["tensors"]) == set(narrow.state_dict())
    assert list(meta["fingerprint"]) == ["c1", "stem", "c2", "c3", "c4", "c5"]


@pytest.mark.parametrize("norm", ["frozen_bn", "bn_eval"])
def test_nets_with_other_norms_and_levels_load_a_certified_file(
    norm: str, path: Path, narrow: ResNetClassifier
) -> None:
    net = ResNetBackbone(narrow.spec, norm=norm, out_levels=["c3"], frozen_stages=2)
    assert load_weights(net, path).complete and net.preprocess == BGR


def test_error_names_an_edited_tensor_and_the_net_is_unchanged(path: Path, narrow: ResNetClassifier) -> None:
    def edit(state: dict[str, Any], meta: dict[str, Any]) -> None:
        state["layer2.0.conv2.weight"][3, 1, 0, 0] += 1e-7

    net = empty(narrow)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CertificateMismatch, match="layer2.0.conv2.weight is not the tensor that was certified"):
        load_weights(net, edited(path, edit))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_error_names_a_missing_or_added_tensor(path: Path, narrow: ResNetClassifier) -> None:
    with pytest.raises(CertificateMismatch, match="fc.bias is missing"):
        load_weights(empty(narrow), edited(path, lambda state, meta: state.pop("fc.bias")))
    with pytest.raises(CertificateMismatch, match="more is not in the certificate"):
        load_weights(empty(narrow), edited(path, lambda state, meta: state.update(more=torch.zeros(1))))


@pytest.mark.parametrize(
    ("path_in_meta", "value", "stage"),
    [
        (("net", "spec", "stride_on"), "1x1", "c3"),
        (("net", "norm_eps"), 0.3, "c1"),
        (("preprocess", "channel_order"), "rgb", "c1"),
        (("preprocess", "mean"), [0.0, 0.0, 0.0], "c1"),
    ],
)
def test_error_for_a_changed_setting_names_the_first_stage_that_differs(
    path_in_meta: tuple[str, ...], value: Any, stage: str, path: Path, narrow: ResNetClassifier
) -> None:
    def edit(state: dict[str, Any], meta: dict[str, Any]) -> None:
        for name in path_in_meta[:-1]:
            meta = meta[name]
        meta[path_in_meta[-1]] = value

    with pytest.raises(CertificateMismatch, match=f"{stage} is the first stage whose output differs"):
        load_weights(empty(narrow), edited(path, edit))


@pytest.mark.parametrize(("name", "value"), [("shortcut", "D"), ("block", "Transformer"), ("depths", [2, 1])])
def test_certificate_of_another_net_is_refused(name: str, value: Any, path: Path, narrow: ResNetClassifier) -> None:
    with pytest.raises(CertificateMismatch, match="its certificate describes no net of these tensors"):
        load_weights(empty(narrow), edited(path, lambda state, meta: meta["net"]["spec"].update({name: value})))


def test_incomplete_certificate_is_refused(path: Path, narrow: ResNetClassifier) -> None:
    with pytest.raises(CertificateMismatch, match="its certificate has lost tensors: make the file again"):
        load_weights(empty(narrow), edited(path, lambda state, meta: meta.pop("tensors")))


def test_certificate_with_a_stage_that_the_net_lacks_is_refused(path: Path, narrow: ResNetClassifier) -> None:
    with pytest.raises(CertificateMismatch, match="a stage 'keypoints' that this net lacks"):
        load_weights(empty(narrow), edited(path, lambda state, meta: meta["fingerprint"].update(keypoints=[0.0])))


def test_rgb_source_is_refused_for_a_bgr_file(path: Path, narrow: ResNetClassifier) -> None:
    with pytest.raises(ValueError, match="is certified as BGR, stride on the 3x3.*source='torchvision' means RGB"):
        load_weights(empty(narrow), path, source="torchvision")


def test_net_with_another_stride_placement_than_the_certificate_is_refused(
    path: Path, narrow: ResNetClassifier
) -> None:
    with pytest.raises(ValueError, match='the 3x3, this net has it on the 1x1: build it with stride_on="3x3"'):
        load_weights(empty(narrow, stride_on="1x1"), path)
    with pytest.raises(ValueError, match='the 3x3, this net has it on the 1x1: build it with stride_on="3x3"'):
        build_backbone(replace(narrow.spec, stride_on="1x1"), weights=path)


@pytest.mark.parametrize("keep", [0.3, 0.95])
def test_error_names_a_truncated_file(keep: float, path: Path, narrow: ResNetClassifier) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"is not a whole .* file .*copy or download it again"):
        load_weights(empty(narrow), path)


def test_file_of_a_newer_format_is_refused_with_the_fix(path: Path, narrow: ResNetClassifier) -> None:
    with pytest.raises(ValueError, match=r"was written by a newer version \(format 2\): update resnet-backbone"):
        load_weights(empty(narrow), edited(path, lambda state, meta: meta.update(format=2)))


def test_generated_image_depends_on_the_channel_order_and_has_padding() -> None:
    rgb, bgr = generated_pixels(Preprocess()), generated_pixels(Preprocess(channel_order="bgr"))
    assert rgb.shape == (1, 3, 128, 160) and not torch.allclose(rgb, bgr)
    assert (rgb[:, :, 120:] == 0).all() and len(rgb.unique()) > 300
