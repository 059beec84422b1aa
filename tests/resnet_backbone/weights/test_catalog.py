"""Published weights: the names, the cache, and life without a network."""

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
    """torch.hub's folder, empty, on a machine that is offline."""

    def offline(*args: object, **kwargs: object) -> NoReturn:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_file_names_are_torchvisions() -> None:
    for name, files in PUBLISHED.items():
        for net, file in files.items():
            enum = torchvision.models.get_model_weights(net)
            assert enum[name.upper()].url.endswith("/" + file)


def test_offline_the_error_names_the_address_and_the_path_to_put_the_file(cache: Path) -> None:
    with pytest.raises(ConnectionError) as error:
        build_backbone("resnet18", weights="imagenet1k_v1")
    said = str(error.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in said
    assert f"copy the file to {cache / 'resnet18-f37072fd.pth'}" in said and "Name or service not known" in said


def test_a_file_placed_by_hand_is_used_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = (ResNetClassifier("resnet20_cifar", num_classes=10) for _ in range(2))
    torch.save(net.state_dict(), cache / "made.pth")
    file = f"resnet20-{hashlib.sha256((cache / 'made.pth').read_bytes()).hexdigest()[:8]}.pth"
    (cache / "made.pth").rename(cache / file)
    monkeypatch.setitem(PUBLISHED, "by_hand", {"resnet20_cifar": file})
    assert load_weights(other, "by_hand").complete
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


def test_another_file_under_a_published_name_is_refused(cache: Path, imagenet_weights: Path) -> None:
    placed = cache / "resnet18-f37072fd.pth"
    placed.write_bytes((imagenet_weights / "resnet18-imagenet.pth").read_bytes())
    with pytest.raises(ValueError, match="its name says f37072fd: the file is damaged or another one"):
        build_backbone("resnet18", weights="imagenet1k_v1")


def test_an_interrupted_download_leaves_nothing_behind(cache: Path) -> None:
    with pytest.raises(ConnectionError):
        published_file("imagenet1k_v2", "resnet50")
    assert not list(cache.iterdir())


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="'imagenet1k_v3' is neither a file nor published weights: did you mean 'imagenet1k_v"
    ):
        published_file("imagenet1k_v3", "resnet50")
    with pytest.raises(
        ValueError, match="imagenet1k_v2 is not published for resnet18, only for resnet50, resnet101, resnet152"
    ):
        published_file("imagenet1k_v2", "resnet18")


def test_a_net_of_ones_own_has_no_published_weights(cache: Path) -> None:
    """The same depth with the stride elsewhere has the same keys, but other weights: they must not load."""
    spec = ResNetSpec(Bottleneck, (3, 4, 6, 3), stride_on="1x1")
    with pytest.raises(ValueError, match="imagenet1k_v1 is not published for"):
        build_backbone(spec, weights="imagenet1k_v1")
