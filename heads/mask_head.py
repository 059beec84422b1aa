"""The mask head: four 3x3 convolutions, a 2x transposed one, a mask for each class (He et al., *Mask R-CNN*, 2017).

Glossary: S regions of the batch, K classes, M = 2 * pool_size the side of a mask.
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
from .masks import RoiMasks
from .matching import SampledRegions, mean_over_processes
from .settings import require_norm, require_not_negative, require_positive
from .structures import Detections, Targets

CPU_BATCH = 16  # regions; on a CPU, their number is rounded up to a multiple


@dataclass(frozen=True)
class MaskHeadSpec:
    """Settings of the mask head; the default is detectron2's R50-FPN recipe. norm: behind each convolution of `convs`
    ("none": biases)."""

    pool_size: int = 14
    convs: int = 4
    channels: int = 256
    norm: str = "none"

    def __post_init__(self) -> None:
        require_positive(self, "pool_size", "channels")
        require_not_negative(self, "convs")
        require_norm(self, "norm")


class MaskHead(nn.Module):
    """Region features (S, C, P, P) -> mask logits (S, K, 2P, 2P)."""

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
        # a live batch norm would count the added regions in its statistics
        self.may_pad = spec.norm not in ("bn", "sync_bn")

    def forward(self, regions: Tensor) -> Tensor:
        count, x = len(regions), regions
        if x.device.type == "cpu" and (self.may_pad or not self.training):
            # oneDNN makes new kernels for every batch size that it meets, which costs as much as running them
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -count % CPU_BATCH))
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return self.logits(F.relu(self.upsample(x), inplace=True))[:count]

    def losses(
        self, outputs: Tensor, positives: Sequence[SampledRegions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy on the mask of the true class, averaged over the positive regions' pixels.

        Raises ValueError for targets without masks.
        """
        goals = []
        for region, truth in zip(positives, targets):
            if truth.masks is None:
                raise InvalidValue(
                    "this detector learns masks, these targets have none: give masks, or a recipe without a mask head"
                )
            soft = self.conventions.soft_bitmap_targets
            goals.append(truth.masks[region.matched].crop_to(region.boxes, outputs.shape[-1], soft_bitmaps=soft))
        labels = torch.cat([region.labels for region in positives])
        own = B.promote(outputs[torch.arange(len(labels), device=labels.device), labels])
        total = F.binary_cross_entropy_with_logits(own, torch.cat(goals).to(own.dtype), reduction="sum")
        divisor = mean_over_processes(len(labels), own.device).to(own.dtype) * outputs.shape[-1] ** 2
        return {"loss_mask": total / divisor}

    @torch.no_grad()
    def detect(self, regions: Tensor, detections: Sequence[Detections]) -> list[Detections]:
        """regions: features of the detections' boxes -> the detections with `RoiMasks` of their classes."""
        labels = torch.cat([d.labels for d in detections])
        logits = self(regions)
        own = B.promote(logits[torch.arange(len(labels), device=labels.device), labels]).sigmoid()
        split = own.split([len(d) for d in detections])
        return [replace(d, masks=RoiMasks(m, self.conventions.mask_paste)) for d, m in zip(detections, split)]
