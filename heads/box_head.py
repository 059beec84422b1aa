"""The box head: two hidden layers, class logits and class-specific deltas; its losses, and the selection of detections.

Glossary: N images, R regions of one image, S regions of the batch, K classes; logit K is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from resnet_backbone.norm import conv_layer, initialise_convs

from . import boxes as B
from .conventions import Conventions
from .matching import match, mean_over_processes, sample
from .settings import require_fraction, require_norm, require_not_negative, require_positive
from .structures import Detections, ImageSize, Proposals, Targets

WEIGHTS: B.BoxWeights = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class BoxHeadSpec:
    """Settings of the box head; the default is detectron2's R50-FPN recipe: no convolutions, two hidden layers.

    convs: 3x3 convolutions of `conv_channels` before the hidden layers, with `norm` behind each ("none": biases).
    hidden_layers 0: the mean over the region instead (C4). keep_best, with `Conventions.best_anchor_switches`: the best
    region of a truth answers for it, even where it overlaps another truth more (mmdetection's Mask R-CNN).
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


@dataclass(frozen=True)
class Assigned:
    """Sampled regions of one image: boxes (R, 4); labels (R,), K for background; truth (R,) index into the targets."""

    boxes: Tensor
    labels: Tensor
    truth: Tensor


class BoxHead(nn.Module):
    """Region features (S, C, P, P) -> logits (S, K + 1) and deltas (S, K * 4), at least float32."""

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
        initialise_convs(self.convs)
        for layer in self.hidden:
            nn.init.kaiming_uniform_(cast(nn.Linear, layer).weight, a=1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (*self.hidden, self.logits, self.deltas):
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        x = regions
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        x = x.flatten(1) if len(self.hidden) else x.mean(dim=(2, 3))
        for layer in self.hidden:
            x = F.relu(layer(x), inplace=True)
        return B.promote(self.logits(x)), B.promote(self.deltas(x))

    @torch.no_grad()
    def assign(self, proposals: Sequence[Proposals], targets: Sequence[Targets]) -> list[Assigned]:
        """Proposals and the ground truth itself, matched at `positive_iou` and sampled."""
        assigned = []
        for proposal, truth in zip(proposals, targets):
            boxes = torch.cat([proposal.boxes, truth.boxes.to(proposal.boxes.dtype)])
            threshold = self.spec.positive_iou
            best = threshold if self.spec.keep_best else None
            switches = self.conventions.best_anchor_switches
            matched, roles = match(
                B.iou(truth.boxes, boxes), low=threshold, high=threshold, best_from=best, best_switches=switches
            )
            positive, negative = sample(roles, self.spec.samples_per_image, self.spec.positive_fraction)
            chosen = torch.cat([positive, negative])
            labels = torch.full_like(chosen, self.num_classes)
            labels[: len(positive)] = truth.labels[matched[positive]]
            assigned.append(Assigned(boxes[chosen], labels, matched[chosen]))
        return assigned

    def positives(self, assigned: Sequence[Assigned]) -> list[Assigned]:
        """The foreground regions: the only ones from which an instance head learns."""
        kept = [a.labels < self.num_classes for a in assigned]
        return [Assigned(a.boxes[k], a.labels[k], a.truth[k]) for a, k in zip(assigned, kept)]

    def losses(
        self, logits: Tensor, deltas: Tensor, assigned: Sequence[Assigned], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Cross-entropy over all sampled regions, smooth L1 over the positive ones; both are divided by the number
        of sampled regions (Fast R-CNN, Girshick 2015, equation 1, as detectron2 normalises it)."""
        labels = torch.cat([a.labels for a in assigned])
        divisor = mean_over_processes(len(labels), logits.device).to(logits.dtype)
        positive = (labels < self.num_classes).nonzero().flatten()
        boxes = torch.cat([a.boxes for a in assigned])[positive]
        goals = torch.cat([_true_boxes(a, t) for a, t in zip(assigned, targets)])[positive]
        own = deltas.reshape(len(deltas), self.num_classes, 4)[positive, labels[positive]]
        regression = B.smooth_l1_sum(own, B.encode(goals, boxes, WEIGHTS), self.conventions.box_smooth_l1_beta)
        classification = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss_cls": classification / divisor, "loss_box_reg": regression / divisor}

    @torch.no_grad()
    def select(
        self, logits: Tensor, deltas: Tensor, proposals: Sequence[Proposals], sizes: Sequence[ImageSize]
    ) -> list[Detections]:
        """Decode, threshold, NMS within a class, best `max_detections`: N detections, best first."""
        counts = [len(p) for p in proposals]
        scores = F.softmax(logits, dim=1)[:, : self.num_classes].split(counts)
        per_class = deltas.reshape(len(deltas), self.num_classes, 4).split(counts)
        parts = zip(scores, per_class, proposals, sizes)
        return [self._select_one(s, d, proposal.boxes, size) for s, d, proposal, size in parts]

    def _select_one(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: ImageSize) -> Detections:
        finite = scores.isfinite().all(1) & deltas.isfinite().all(2).all(1)
        # only what passes the threshold is decoded: a few hundred boxes instead of R * K
        region, label = ((scores > self.spec.min_score) & finite[:, None]).nonzero().unbind(1)
        bound = self.conventions.bound_shrinking
        found = B.clip(B.decode(deltas[region, label], boxes[region], WEIGHTS, bound_shrinking=bound), size)
        score = scores[region, label]
        if self.conventions.min_detection_px:
            large = B.larger_than(found, self.conventions.min_detection_px)
            found, score, label = found[large], score[large], label[large]
        kept = batched_nms(found, score, label, self.spec.nms_iou)[: self.spec.max_detections]
        return Detections(found[kept], score[kept], label[kept])


def _true_boxes(assigned: Assigned, truth: Targets) -> Tensor:
    """(R, 4): each region's ground truth; the region itself where the image has none (no positive reads it)."""
    return truth.boxes[assigned.truth].to(assigned.boxes.dtype) if len(truth) else assigned.boxes
