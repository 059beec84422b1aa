"""Published weights: names, torch.hub's cache, and errors without a network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import pytest
import torch
import torchvision

from resnet_backbone import ResNetClassifier, ResNetSpec, build_backbone, load_weights
from resnet_backbone.blocks import Bottleneck
from resnet_backbone.weights.catalog import PUBLISHED, published_file


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torch.hub's checkpoint folder, empty; downloads fail as on a machine without a network."""

    def offline(*args: object, **kwargs: object) -> NoReturn:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_file_names_equal_torchvisions() -> None:
    for name, files in PUBLISHED.items():
        for net, file in files.items():
            enum = torchvision.models.get_model_weights(net)
            assert enum[name.upper()].url.endswith("/" + file)


def test_error_without_a_network_names_the_url_and_the_path_for_a_manual_copy(cache: Path) -> None:
    with pytest.raises(ConnectionError) as error:
        build_backbone("resnet18", weights="imagenet1k_v1")
    message = str(error.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert f"copy the file to {cache / 'resnet18-f37072fd.pth'}" in message and "Name or service not known" in message


def test_file_copied_into_the_cache_is_used_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, loaded = (ResNetClassifier("resnet20_cifar", num_classes=10) for _ in range(2))
    torch.save(saved.state_dict(), cache / "net.pth")
    file = f"resnet20-{hashlib.sha256((cache / 'net.pth').read_bytes()).hexdigest()[:8]}.pth"
    (cache / "net.pth").rename(cache / file)
    monkeypatch.setitem(PUBLISHED, "copied", {"resnet20_cifar": file})
    assert load_weights(loaded, "copied").complete
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters()))


def test_other_file_under_a_published_name_is_refused(cache: Path, imagenet_weights: Path) -> None:
    path = cache / "resnet18-f37072fd.pth"
    path.write_bytes((imagenet_weights / "resnet18-imagenet.pth").read_bytes())
    with pytest.raises(ValueError, match="its name says f37072fd: the file is damaged or another one"):
        build_backbone("resnet18", weights="imagenet1k_v1")


def test_failed_download_leaves_no_files(cache: Path) -> None:
    with pytest.raises(ConnectionError):
        published_file("imagenet1k_v2", "resnet50")
    assert not list(cache.iterdir())


def test_error_for_unknown_weights_suggests_valid_ones() -> None:
    with pytest.raises(
        ValueError, match="'imagenet1k_v3' is neither a file nor published weights: did you mean 'imagenet1k_v"
    ):
        published_file("imagenet1k_v3", "resnet50")
    with pytest.raises(
        ValueError, match="imagenet1k_v2 is not published for resnet18, only for resnet50, resnet101, resnet152"
    ):
        published_file("imagenet1k_v2", "resnet18")


def test_published_weights_are_refused_for_a_custom_spec(cache: Path) -> None:
    """ResNet-50 with the stride on the 1x1 has the same keys but needs other weights."""
    spec = ResNetSpec(Bottleneck, (3, 4, 6, 3), stride_on="1x1")
    with pytest.raises(ValueError, match="imagenet1k_v1 is not published for"):
        build_backbone(spec, weights="imagenet1k_v1")
