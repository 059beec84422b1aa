"""Testing a classifier with one crop, ten crops, or the whole image at several scales.

Source: the paper, section 3.4. "The standard 10-crop testing" is that of Krizhevsky et al., NIPS 2012, section 4.1:
four corners and the centre, and their horizontal reflections. "The fully-convolutional form [...] at multiple scales"
is that of Sermanet et al., OverFeat, ICLR 2014, section 3.3: the net runs on the whole image, its average pooling has
the window size of a training crop and slides over the features, and the linear layer is applied at every position. The
scores of all positions, scales and reflections are averaged. Scores are softmax probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heads.images import resize, resized_size
from heads.structures import ImageSize
from resnet_backbone import Preprocess, ResNetClassifier
from resnet_backbone.errors import InvalidValue

UNLIMITED_PX = 10**9  # larger than the long side of any image
MAX_ASPECT = 16  # of a longer image the middle is scored: one of 5000x20 would be resized to 160,000x640


@dataclass(frozen=True)
class CropRule:
    """Which crops of an image are scored.

    Attributes:
        kind: "1-crop", "10-crop" or "multi-scale".
        short_side_px: short side that the image is resized to before "1-crop" and "10-crop"; None keeps its size.
        crop_px: side of the crops of "1-crop" and "10-crop".
        scales_px: short sides of "multi-scale".
    """

    kind: str
    short_side_px: int | None
    crop_px: int
    scales_px: tuple[int, ...]

    def crops(self, image: np.ndarray) -> list[np.ndarray]:
        """Cut an image.

        Args:
            image: (H, W, 3) uint8.

        Returns:
            Crops, (h, w, 3) uint8 each: one, ten, or for "multi-scale" the whole image and its reflection at every
            scale. One crop equals torchvision's Resize and CenterCrop, ten crops equal its TenCrop. Of an image that
            is more than 16 times as long as wide, the middle of this length is taken first.

        Raises:
            InvalidValue: a crop is larger than the image.
        """
        image = _middle(image)
        if self.kind == "multi-scale":
            scaled = [_resize_short_side(image, side) for side in self.scales_px]
            return [crop for one in scaled for crop in (one, one[:, ::-1])]
        image = image if self.short_side_px is None else _resize_short_side(image, self.short_side_px)
        height, width = image.shape[:2]
        side = self.crop_px
        if side > min(height, width):
            raise InvalidValue(
                f"a crop of {side} px does not fit an image of {width}x{height}: set input.test_short_side_px to at "
                f"least {side}"
            )
        bottom, right = height - side, width - side
        # rounded as in torchvision's CenterCrop
        centre = [(round(bottom / 2), round(right / 2))]
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if self.kind == "10-crop" else []
        # reflected before cropping, as in torchvision's TenCrop: with an odd margin the centre crops differ by a pixel
        images = [image, image[:, ::-1]] if corners else [image]
        return [one[top : top + side, left : left + side] for one in images for top, left in corners + centre]


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of a very long image."""
    longest = MAX_ASPECT * min(image.shape[:2])
    top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
    return image[top : top + longest, left : left + longest]


def _resize_short_side(image: np.ndarray, side_px: int) -> np.ndarray:
    """Resize with Pillow's filter and torchvision's rounding, with which published weights were scored."""
    size = ImageSize(height=image.shape[0], width=image.shape[1])
    return resize(image, resized_size(size, short_side_px=side_px, long_side_px=UNLIMITED_PX, how="torch"))


@torch.inference_mode()
def probabilities(
    score: Callable[[Tensor], Tensor], images: Sequence[np.ndarray], rule: CropRule, preprocess: Preprocess
) -> Tensor:
    """Compute class probabilities of images, averaged over their crops.

    Args:
        score: maps normalised pixels (n, 3, h, w) to probabilities (n, K); made by `scorer`.
        images: N images, (H, W, 3) uint8 each, of any sizes.
        rule: which crops of an image are scored.
        preprocess: how pixels are normalised.

    Returns:
        (N, K) float32, on the CPU.

    Raises:
        InvalidValue: a crop is larger than its image.
    """
    crops = [rule.crops(image) for image in images]
    # a batch holds crops of one size: nothing is padded
    by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, crops_of_image in enumerate(crops):
        for crop in crops_of_image:
            by_shape.setdefault(crop.shape, []).append((row, crop))
    total: Tensor | None = None
    for batch in by_shape.values():
        rows = torch.tensor([row for row, _ in batch])
        pixels = torch.from_numpy(np.stack([crop for _, crop in batch])).permute(0, 3, 1, 2)
        scores = score(preprocess.normalise(pixels)).cpu()
        if total is None:
            total = scores.new_zeros(len(images), scores.shape[1])
        total.index_add_(0, rows, scores)
    assert total is not None
    return total / len(crops[0])


def scorer(net: ResNetClassifier, *, precision: str, window_px: int | None = None) -> Callable[[Tensor], Tensor]:
    """Make the scoring function that `probabilities` calls. It runs on the device of the net.

    Args:
        net: the classifier, in inference mode.
        precision: "fp32", or "bf16" or "fp16" for autocast.
        window_px: side of the training crops, for the fully-convolutional form: the average pooling has the window of
            a training crop, slides over the features, and the probabilities of all positions are averaged. None pools
            the whole map, for crops of the training size. (Pooling the whole map of a larger image mixes the object
            with its background and costs accuracy.)

    Returns:
        A function from normalised pixels (n, 3, h, w) to probabilities (n, K) float32.
    """
    device = next(net.parameters()).device
    level = net.out_levels[-1]
    window = None if window_px is None else max(1, window_px // net.feature_specs[level].stride)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def score(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
            if window is None:
                return net(pixels).float().softmax(1)
            features = net.levels(pixels)[level]
        window_sides = [min(window, side) for side in features.shape[2:]]  # an image may be smaller than a crop
        pooled = F.avg_pool2d(features.float(), window_sides, stride=1).flatten(2).transpose(1, 2)
        return net.fc(pooled).softmax(2).mean(1)

    return score
