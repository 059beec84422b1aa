"""What a classifier is shown of a test image: one crop, ten, or the whole of it at several scales.

Source: the paper, section 3.4: "the standard 10-crop testing" (Krizhevsky et al., NIPS 2012: four corners, the centre,
and their reflections), and "the fully-convolutional form [...] at multiple scales": the net is run on the whole image,
its average pool, as large as over a training crop, slides over the features and the linear layer with it (Sermanet et
al., OverFeat, ICLR 2014, section 3.3), and the scores of all places, scales and reflections are averaged. Scores are
softmax probabilities.
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

ANY_PX = 10**9  # no cap on the long side


@dataclass(frozen=True)
class Views:
    """kind: "1-crop", "10-crop" or "multi-scale"; short_side_px: of 1-crop and 10-crop, None leaves the image's size;
    crop_px: side of the crops; scales_px: multi-scale's short sides."""

    kind: str
    short_side_px: int | None
    crop_px: int
    scales_px: tuple[int, ...]

    def of(self, image: np.ndarray) -> list[np.ndarray]:
        """image: (H, W, 3) uint8 -> views, (h, w, 3) uint8. Raises ValueError where a crop is larger than its image."""
        if self.kind == "multi-scale":
            whole = [_short_side(image, side) for side in self.scales_px]
            return [view for one in whole for view in (one, one[:, ::-1])]
        image = image if self.short_side_px is None else _short_side(image, self.short_side_px)
        height, width = image.shape[:2]
        side = self.crop_px
        if side > min(height, width):
            raise InvalidValue(f"a crop of {side} px does not fit an image of {width}x{height}: set test_short_side_px")
        bottom, right = height - side, width - side
        # rounded as torchvision's CenterCrop
        centre = [(round(bottom / 2), round(right / 2))]
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if self.kind == "10-crop" else []
        # reflected before it is cropped, as torchvision's TenCrop: an odd margin makes the centres differ by a pixel
        images = [image, image[:, ::-1]] if corners else [image]
        return [one[top : top + side, left : left + side] for one in images for top, left in corners + centre]


def _short_side(image: np.ndarray, side: int) -> np.ndarray:
    """Pillow's filter and torchvision's rounding, which is how published weights are scored."""
    now = ImageSize(height=image.shape[0], width=image.shape[1])
    return resize(image, resized_size(now, short_side_px=side, long_side_px=ANY_PX, how="torch"))


@torch.inference_mode()
def probabilities(
    score: Callable[[Tensor], Tensor], images: Sequence[np.ndarray], views: Views, preprocess: Preprocess
) -> Tensor:
    """images: N of (H, W, 3) uint8; score: pixels (n, 3, h, w), normalised -> probabilities (n, K), made by
    `scorer`. -> (N, K) float32, on the CPU: the mean over the views."""
    shown = [views.of(image) for image in images]
    groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, image_views in enumerate(shown):
        for view in image_views:
            groups.setdefault(view.shape, []).append((row, view))
    total: Tensor | None = None
    for group in groups.values():  # a batch is of one size: nothing is padded
        rows = torch.tensor([row for row, _ in group])
        pixels = torch.from_numpy(np.stack([view for _, view in group])).permute(0, 3, 1, 2)
        found = score(preprocess.normalise(pixels)).cpu()
        if total is None:
            total = found.new_zeros(len(images), found.shape[1])
        total.index_add_(0, rows, found)
    assert total is not None
    return total / len(shown[0])


def scorer(net: ResNetClassifier, *, precision: str, window_px: int | None = None) -> Callable[[Tensor], Tensor]:
    """The net as `probabilities` calls it: on its own device, under autocast for bf16 and fp16.

    window_px: side of the training crops, for the fully-convolutional form: each place that a crop's features would
    fill gets its own probabilities, and their mean is returned. To pool the whole map instead is another net at every
    other size than the training's: the object drowns in its surroundings, the more so the larger the image is.
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
        sides = [min(window, side) for side in features.shape[2:]]  # a scale may be smaller than a training crop
        places = F.avg_pool2d(features.float(), sides, stride=1).flatten(2).transpose(1, 2)
        return net.fc(places).softmax(2).mean(1)

    return score
