"""The mask head: 3x3 convolutions, a transposed 2x2 convolution and one mask per class (He et al., *Mask R-CNN*, 2017).

S regions of the batch, K classes, P the side of a pooled region in bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue
from resnet_backbone.norm import conv_layer, initialise_convs

from . import boxes as B
from .conventions import Conventions
from .masks import crop_all
from .matching import SampledRegions, mean_over_processes
from .roi_masks import RoiMasks
from .settings import require_norm, require_not_negative, require_positive
from .structures import Detections, Targets


@dataclass(frozen=True)
class MaskHeadSpec:
    """Settings of the mask head; the defaults are those of detectron2's R50-FPN configurations.

    Attributes:
        pool_size: side of a pooled region, in bins; masks have twice as many cells per side.
        convs: number of 3x3 convolutions before the upsampling.
        channels: channels of every convolution.
        norm: norm behind every 3x3 convolution, a name in `NORMS`, or "none" for biases.

    Raises:
        InvalidValue: a value that is out of range.
    """

    pool_size: int = 14
    convs: int = 4
    channels: int = 256
    norm: str = "none"

    def __post_init__(self) -> None:
        require_positive(self, "pool_size", "channels")
        require_not_negative(self, "convs")
        require_norm(self, "norm")


class MaskHead(nn.Module):
    """Mask logits of pooled regions.

    Args:
        channels: C, channels of the regions.
        num_classes: K, without the background.
        spec: settings of the head.
        conventions: what the projects do differently.
    """

    def __init__(self, channels: int, num_classes: int, spec: MaskHeadSpec, conventions: Conventions) -> None:
        super().__init__()
        self.conventions = conventions
        widths = [channels, *[spec.channels] * spec.convs]
        self.convs = nn.ModuleList(conv_layer(a, b, 3, spec.norm) for a, b in pairwise(widths))
        self.upsample = nn.ConvTranspose2d(widths[-1], spec.channels, 2, stride=2)
        self.logits = nn.Conv2d(spec.channels, num_classes, 1)
        initialise_convs(self.convs)
        initialise_convs(self.upsample)
        assert self.logits.bias is not None
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """Run the head.

        Args:
            regions: (S, C, P, P), P = `MaskHeadSpec.pool_size`.

        Returns:
            (S, K, 2P, 2P) logits.
        """
        logits: Tensor = self.logits(self._upsampled(regions))
        return logits

    def _upsampled(self, regions: Tensor) -> Tensor:
        """The features of every cell of the masks, (S, channels, 2P, 2P)."""
        x = regions
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return F.relu(self.upsample(x), inplace=True)

    def class_logits(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Run the head for one class per region, without the masks of all others.

        Args:
            regions: (S, C, P, P).
            labels: (S,) int64, the class of each region.

        Returns:
            (S, 2P, 2P) logits, float32 or float64.
        """
        features = self._upsampled(regions).permute(0, 2, 3, 1)  # (S, M, M, channels)
        weight, bias = self.logits.weight.flatten(1)[labels], self.logits.bias
        assert bias is not None
        logits = torch.matmul(features.flatten(1, 2), weight[:, :, None]) + bias[labels][:, None, None]
        return B.promote(logits.reshape(features.shape[:3]))

    def losses(
        self, regions: Tensor, positives: Sequence[SampledRegions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Compute `mask_loss` of the ground-truth classes.

        Args:
            regions: (S, C, P, P), pooled features of the positive regions, image by image.
            positives: N samples that hold positive regions only.
            targets: N targets.

        Returns:
            "loss_mask".

        Raises:
            InvalidValue: targets without masks.
        """
        logits = self.class_logits(regions, torch.cat([region.labels for region in positives]))
        return {"loss_mask": mask_loss(logits, positives, targets, self.conventions)}

    @torch.no_grad()
    def detect(self, regions: Tensor, detections: Sequence[Detections]) -> list[Detections]:
        """Add masks to detections.

        Args:
            regions: (S, C, P, P), pooled features of the detected boxes, image by image.
            detections: N detections.

        Returns:
            N detections with the `RoiMasks` of their classes.
        """
        labels = torch.cat([d.labels for d in detections])
        probabilities = self.class_logits(regions, labels).sigmoid()
        per_image = torch.split(probabilities, [len(d) for d in detections])
        return [replace(d, masks=RoiMasks(m, self.conventions.mask_paste)) for d, m in zip(detections, per_image)]


def mask_loss(
    logits: Tensor, positives: Sequence[SampledRegions], targets: Sequence[Targets], conventions: Conventions
) -> Tensor:
    """Binary cross-entropy on the masks of the ground-truth classes, averaged over positive regions and cells.

    Args:
        logits: (S, M, M) of the positive regions, image by image, each of the region's class.
        positives: N samples that hold positive regions only.
        targets: N targets.
        conventions: how bitmaps are cropped.

    Returns:
        The loss, a scalar.

    Raises:
        InvalidValue: targets without masks.
    """
    masks = [target.masks for target in targets if target.masks is not None]
    if len(masks) < len(targets):
        raise InvalidValue(
            "this detector learns masks, these targets have none: give masks, or a recipe without a mask head"
        )
    goals = crop_all(
        masks,
        [region.matched for region in positives],
        [region.boxes for region in positives],
        logits.shape[-1],
        soft_bitmaps=conventions.soft_bitmap_targets,
    )
    total = F.binary_cross_entropy_with_logits(logits, goals.to(logits.dtype), reduction="sum")
    divisor = mean_over_processes(len(logits), logits.device).to(logits.dtype) * logits.shape[-1] ** 2
    return total / divisor
