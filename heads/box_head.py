"""The box head: hidden layers, class logits and class-specific box deltas (Girshick, *Fast R-CNN*, 2015).

S regions of the batch, K classes; logit K is the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.norm import conv_layer, initialise_convs

from . import boxes as B
from .conventions import Conventions
from .settings import require_fraction, require_norm, require_not_negative, require_positive


@dataclass(frozen=True)
class BoxHeadSpec:
    """Settings of the box head; the defaults are those of detectron2's R50-FPN configurations.

    Attributes:
        pool_size: side of a pooled region, in bins.
        convs: number of 3x3 convolutions before the hidden layers.
        conv_channels: channels of every convolution.
        norm: norm behind every convolution, a name in `NORMS`, or "none" for biases.
        hidden_layers: number of linear layers. 0 averages the region instead (C4 detectors).
        hidden: features of every linear layer.
        samples_per_image: regions of an image that are sampled for the losses.
        positive_fraction: largest share of positive regions among them, 0 to 1.
        positive_iou: a region is positive if its IoU with a ground-truth box is at least this, otherwise it is
            background; 0 to 1.
        keep_best: whether the best regions of a ground-truth box are matched with that box even if they overlap another
            one more (mmdetection's Mask R-CNN). It takes effect with `Conventions.best_anchor_switches`, for regions
            with an IoU of at least `positive_iou`.
        min_score: detections need a class probability above this, 0 to 1.
        nms_iou: non-maximum suppression drops a detection if its IoU with a better one of its class exceeds this, 0 to
            1.
        max_detections: largest number of detections of an image.

    Raises:
        InvalidValue: a value that is out of range.
    """

    pool_size: int = 7
    convs: int = 0
    conv_channels: int = 256
    norm: str = "none"
    hidden_layers: int = 2
    hidden: int = 1024
    samples_per_image: int = 512
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    keep_best: bool = False
    min_score: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        require_positive(self, "pool_size", "conv_channels", "hidden", "samples_per_image", "max_detections")
        require_fraction(self, "positive_fraction", "positive_iou", "min_score", "nms_iou")
        require_not_negative(self, "convs", "hidden_layers")
        require_norm(self, "norm")


class BoxHead(nn.Module):
    """Class logits and box deltas of pooled regions.

    Args:
        channels: C, channels of the regions.
        num_classes: K, without the background.
        spec: settings of the head.
        conventions: what the projects do differently.
    """

    def __init__(self, channels: int, num_classes: int, spec: BoxHeadSpec, conventions: Conventions) -> None:
        super().__init__()
        self.spec, self.num_classes, self.conventions = spec, num_classes, conventions
        widths = [channels, *[spec.conv_channels] * spec.convs]
        self.convs = nn.ModuleList(conv_layer(a, b, 3, spec.norm) for a, b in pairwise(widths))
        width = widths[-1] * (spec.pool_size**2 if spec.hidden_layers else 1)
        widths = [width, *[spec.hidden] * spec.hidden_layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.logits = nn.Linear(widths[-1], num_classes + 1)
        self.deltas = nn.Linear(widths[-1], num_classes * 4)
        self.reads_channels_last = False
        initialise_convs(self.convs)
        for layer in self.hidden:
            nn.init.kaiming_uniform_(cast(nn.Linear, layer).weight, a=1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (*self.hidden, self.logits, self.deltas):
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    @torch.no_grad()
    def read_channels_last(self) -> None:
        """Reorder the weights of the first linear layer, so that regions in channels_last memory need not be copied.

        The state dict no longer has the order of the other projects: for copies that are made for inference.
        """
        if self.reads_channels_last or not len(self.hidden):
            return
        layer = cast(nn.Linear, self.hidden[0])
        by_channel = layer.weight.reshape(len(layer.weight), -1, self.spec.pool_size**2)
        layer.weight = nn.Parameter(by_channel.transpose(1, 2).flatten(1), layer.weight.requires_grad)
        self.reads_channels_last = True

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Run the head.

        Args:
            regions: (S, C, P, P), P = `BoxHeadSpec.pool_size`.

        Returns:
            Logits (S, K + 1) and deltas (S, K * 4), float32 or float64.
        """
        x = regions
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        if self.reads_channels_last:
            x = x.permute(0, 2, 3, 1)
        x = x.flatten(1) if len(self.hidden) else x.mean(dim=(2, 3))
        for layer in self.hidden:
            x = F.relu(layer(x), inplace=True)
        return B.promote(self.logits(x)), B.promote(self.deltas(x))
