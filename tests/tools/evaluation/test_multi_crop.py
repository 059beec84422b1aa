"""Crops equal those of torchvision's transforms, and their scores equal those of a fully-convolutional net."""

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
from tools.evaluation.multi_crop import CropRule, probabilities, scorer

SCALES = (224, 256, 384)


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[np.ndarray]:
    paths = sorted((shared / "data" / "imagenet-sample").glob("*/*.jpg"))[::100]
    paths += sorted((shared / "data" / "coco-mini" / "val2017").glob("*.jpg"))[::40]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def crop_rule(kind: str, side: int | None = 256) -> CropRule:
    return CropRule(kind, side, 224, SCALES)


def test_one_crop_is_torchvisions_resize_and_centre_crop(photographs: list[np.ndarray]) -> None:
    theirs = T.Compose([T.Resize(256), T.CenterCrop(224)])
    sizes = {image.shape for image in photographs}
    assert len(sizes) > 3
    for image in photographs:
        (ours,) = crop_rule("1-crop").crops(image)
        assert np.array_equal(ours, np.asarray(theirs(Image.fromarray(image))))


def test_ten_crops_are_torchvisions(photographs: list[np.ndarray]) -> None:
    theirs = T.Compose([T.Resize(256), T.TenCrop(224)])
    for image in photographs:
        ours = {crop.tobytes() for crop in crop_rule("10-crop").crops(image)}
        assert len(ours) == 10
        assert ours == {np.asarray(crop).tobytes() for crop in theirs(Image.fromarray(image))}


def test_multi_scale_is_the_whole_image_and_its_reflection_at_every_scale(photographs: list[np.ndarray]) -> None:
    for image in photographs:
        crops = crop_rule("multi-scale").crops(image)
        assert len(crops) == 2 * len(SCALES)
        for side, straight, mirrored in zip(SCALES, crops[::2], crops[1::2]):
            assert np.array_equal(straight, np.asarray(T.Resize(side)(Image.fromarray(image))))
            assert np.array_equal(straight[:, ::-1], mirrored)


@pytest.fixture(scope="module")
def net() -> ResNetClassifier:
    torch.manual_seed(0)
    net = ResNetClassifier("resnet18", num_classes=7)
    net.train()
    with torch.no_grad():
        for _ in range(20):  # running statistics that fit the weights keep the logits in a realistic range
            net(torch.randn(4, 3, 64, 64))
    return net.eval()


def as_convolutions(net: ResNetClassifier, pixels: Tensor) -> Tensor:
    """The fully-convolutional form: one 7x7 convolution pools and classifies; probabilities are averaged."""
    kernel = net.fc.weight[:, :, None, None].expand(-1, -1, 7, 7) / 49
    return F.conv2d(net.levels(pixels)["c5"], kernel, net.fc.bias).softmax(1).mean((2, 3))


@pytest.mark.parametrize("kind", ["1-crop", "10-crop", "multi-scale"])
@torch.inference_mode()
def test_probabilities_are_the_mean_over_the_crops(
    kind: str, net: ResNetClassifier, photographs: list[np.ndarray]
) -> None:
    rule, preprocess = crop_rule(kind), Preprocess()
    score = scorer(net, precision="fp32", window_px=224 if kind == "multi-scale" else None)
    ours = probabilities(score, photographs[:3], rule, preprocess)
    for row, image in zip(ours, photographs):
        theirs = [T.functional.to_tensor(crop.copy()) for crop in rule.crops(image)]
        theirs = [T.functional.normalize(crop, preprocess.mean, preprocess.std)[None] for crop in theirs]
        expected = torch.stack([as_convolutions(net, crop)[0] for crop in theirs]).mean(0)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_an_image_smaller_than_a_training_crop_is_pooled_as_a_whole(net: ResNetClassifier) -> None:
    pixels = torch.randn(2, 3, 160, 192)
    torch.testing.assert_close(scorer(net, precision="fp32", window_px=224)(pixels), net(pixels).softmax(1))


def test_bf16_probabilities_are_close_to_fp32(net: ResNetClassifier, photographs: list[np.ndarray]) -> None:
    one, other = (
        probabilities(scorer(net, precision=p), photographs[:2], crop_rule("1-crop"), Preprocess())
        for p in ("fp32", "bf16")
    )
    assert other.dtype == torch.float32 and 0 < float((one - other).abs().max()) < 0.05


@pytest.mark.parametrize("kind", ["1-crop", "10-crop", "multi-scale"])
def test_very_long_images_are_scored_by_their_middle(kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 5000, 3), dtype=np.uint8)
    rule = CropRule(kind, short_side_px=40, crop_px=32, scales_px=(32, 64))
    for long, turned in ((image, False), (image.transpose(1, 0, 2), True)):
        middle = long[2340:2660] if turned else long[:, 2340:2660]
        for one, other in zip(rule.crops(long), rule.crops(middle), strict=True):
            assert np.array_equal(one, other)
    assert max(crop.size for crop in rule.crops(image)) <= 3 * 64 * 64 * 16


def test_a_crop_larger_than_its_image_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a crop of 224 px does not fit an image of 60x40: set input.test_short_side_px"
    ):
        crop_rule("1-crop", None).crops(np.zeros((40, 60, 3), np.uint8))
