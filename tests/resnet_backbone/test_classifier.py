"""Real weights on real images: the counts that ../shared/README.md states."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from resnet_backbone import Preprocess, ResNetClassifier, load_weights


def centre_crop(path: Path) -> np.ndarray:
    """Short side 256, the middle 224 x 224: (224, 224, 3) uint8."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def imagenet_sample(shared: Path) -> tuple[Tensor, Tensor]:
    """(500, 3, 224, 224) uint8 and its labels."""
    folder = shared / "data" / "imagenet-sample"
    index = json.loads((folder / "wnid_to_index.json").read_text())
    paths = sorted(folder.glob("*/*.jpg"))
    pixels = np.stack([centre_crop(path) for path in paths])
    return torch.tensor(pixels).permute(0, 3, 1, 2), torch.tensor([index[path.parent.name] for path in paths])


@pytest.fixture(scope="module")
def cifar_test(shared: Path) -> tuple[Tensor, Tensor]:
    """(10000, 3, 32, 32) uint8 and its labels, classes in alphabetical order."""
    with zipfile.ZipFile(shared / "data" / "cifar10-jpeg.zip") as files:
        names = sorted(name for name in files.namelist() if name.startswith("test/") and name.endswith(".jpg"))
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(files.read(name))).convert("RGB")) for name in names])
    classes = sorted({name.split("/")[1] for name in names})
    return torch.tensor(pixels).permute(0, 3, 1, 2), torch.tensor([classes.index(n.split("/")[1]) for n in names])


@torch.inference_mode()
def correct(net: ResNetClassifier, images: Tensor, labels: Tensor, *, batch: int) -> dict[int, int]:
    """How many of the images have their label among the first 1 and the first 5."""
    net = net.eval().to(memory_format=torch.channels_last)
    rule, ranks = Preprocess(), []
    for part, truth in zip(images.split(batch), labels.split(batch)):
        pixels = torch.stack([rule.normalise(image) for image in part]).contiguous(memory_format=torch.channels_last)
        ranks.append((net(pixels).topk(5).indices == truth[:, None]).nonzero()[:, 1])
    return {k: int((torch.cat(ranks) < k).sum()) for k in (1, 5)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top1", "top5"), [("resnet18", 375, 459), ("resnet50", 405, 474)])
def test_imagenet_accuracy_is_the_stated_one(
    name: str, top1: int, top5: int, imagenet_weights: Path, imagenet_sample: tuple[Tensor, Tensor]
) -> None:
    net = ResNetClassifier(name, norm="frozen_bn")
    load_weights(net, imagenet_weights / f"{name}-imagenet.pth", origin="torchvision")
    found = correct(net, *imagenet_sample, batch=20)
    assert found[1] == pytest.approx(top1, abs=2) and found[5] == pytest.approx(top5, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "depth", "top1"), [("resnet20-12fca82f.th", 20, 8103), ("resnet56-4bfd9763.th", 56, 8320)]
)
def test_cifar_accuracy_is_the_stated_one(
    file: str, depth: int, top1: int, shared: Path, cifar_test: tuple[Tensor, Tensor]
) -> None:
    net = ResNetClassifier(f"resnet{depth}_cifar", num_classes=10, norm="frozen_bn")
    load_weights(net, shared / "weights" / "cifar" / file)
    assert correct(net, *cifar_test, batch=250)[1] == pytest.approx(top1, abs=3)


@torch.inference_mode()
def test_logits_are_torchvisions_on_a_real_image(
    imagenet_weights: Path, imagenet_sample: tuple[Tensor, Tensor]
) -> None:
    state = torch.load(imagenet_weights / "resnet18-imagenet.pth", weights_only=True)
    ours, theirs = ResNetClassifier("resnet18").eval(), torchvision.models.resnet18(weights=None).eval()
    load_weights(ours, state)
    theirs.load_state_dict(state)
    pixels = Preprocess().normalise(imagenet_sample[0][7])[None]
    torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-5, atol=1e-4)


def test_an_unknown_net_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no ResNet is called 'resnet20-cifar': did you mean 'resnet20_cifar'"):
        ResNetClassifier("resnet20-cifar")
