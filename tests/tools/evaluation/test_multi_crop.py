"""One crop, ten, and the whole image: against torchvision's transforms, and a net written out as convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from PIL import Image
from torch import Tensor

from resnet_backbone import Preprocess, ResNetClassifier
from tools.evaluation.multi_crop import Views, probabilities, scorer

SCALES = (224, 256, 384)


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[np.ndarray]:
    paths = sorted((shared / "data" / "imagenet-sample").glob("*/*.jpg"))[::100]
    paths += sorted((shared / "data" / "coco-mini" / "val2017").glob("*.jpg"))[::40]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def views(kind: str, side: int | None = 256) -> Views:
    return Views(kind, side, 224, SCALES)


def test_one_crop_is_torchvisions_resize_and_centre_crop(photographs: list[np.ndarray]) -> None:
    theirs = T.Compose([T.Resize(256), T.CenterCrop(224)])
    sizes = {image.shape for image in photographs}
    assert len(sizes) > 3
    for image in photographs:
        (ours,) = views("1-crop").of(image)
        assert np.array_equal(ours, np.asarray(theirs(Image.fromarray(image))))


def test_ten_crops_are_torchvisions(photographs: list[np.ndarray]) -> None:
    theirs = T.Compose([T.Resize(256), T.TenCrop(224)])
    for image in photographs:
        ours = {view.tobytes() for view in views("10-crop").of(image)}
        assert len(ours) == 10
        assert ours == {np.asarray(crop).tobytes() for crop in theirs(Image.fromarray(image))}


def test_multi_scale_shows_the_whole_image_and_its_reflection(photographs: list[np.ndarray]) -> None:
    for image in photographs:
        shown = views("multi-scale").of(image)
        assert len(shown) == 2 * len(SCALES)
        for side, straight, mirrored in zip(SCALES, shown[::2], shown[1::2]):
            assert np.array_equal(straight, np.asarray(T.Resize(side)(Image.fromarray(image))))
            assert np.array_equal(straight[:, ::-1], mirrored)


@pytest.fixture(scope="module")
def net() -> ResNetClassifier:
    torch.manual_seed(0)
    made = ResNetClassifier("resnet18", num_classes=7)
    made.train()
    with torch.no_grad():
        for _ in range(20):  # statistics that fit the weights, so that logits are of ordinary size
            made(torch.randn(4, 3, 64, 64))
    return made.eval()


def as_convolutions(net: ResNetClassifier, pixels: Tensor) -> Tensor:
    """The fully-convolutional form: pool and linear layer are one 7x7 convolution, whose probabilities are averaged."""
    kernel = net.fc.weight[:, :, None, None].expand(-1, -1, 7, 7) / 49
    return F.conv2d(net.levels(pixels)["c5"], kernel, net.fc.bias).softmax(1).mean((2, 3))


@pytest.mark.parametrize("kind", ["1-crop", "10-crop", "multi-scale"])
@torch.inference_mode()
def test_probabilities_are_the_mean_of_every_views(
    kind: str, net: ResNetClassifier, photographs: list[np.ndarray]
) -> None:
    shown, rule = views(kind), Preprocess()
    score = scorer(net, precision="fp32", window_px=224 if kind == "multi-scale" else None)
    ours = probabilities(score, photographs[:3], shown, rule)
    for row, image in zip(ours, photographs):
        theirs = [T.functional.to_tensor(view.copy()) for view in shown.of(image)]
        theirs = [T.functional.normalize(view, rule.mean, rule.std)[None] for view in theirs]
        wanted = torch.stack([as_convolutions(net, view)[0] for view in theirs]).mean(0)
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_an_image_smaller_than_a_crop_is_one_place(net: ResNetClassifier) -> None:
    pixels = torch.randn(2, 3, 160, 192)
    torch.testing.assert_close(scorer(net, precision="fp32", window_px=224)(pixels), net(pixels).softmax(1))


def test_bf16_is_near(net: ResNetClassifier, photographs: list[np.ndarray]) -> None:
    one, other = (
        probabilities(scorer(net, precision=p), photographs[:2], views("1-crop"), Preprocess())
        for p in ("fp32", "bf16")
    )
    assert other.dtype == torch.float32 and 0 < float((one - other).abs().max()) < 0.05


def test_a_crop_larger_than_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a crop of 224 px does not fit an image of 60x40: set test_short_side_px"):
        views("1-crop", None).of(np.zeros((40, 60, 3), np.uint8))
