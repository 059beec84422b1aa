"""The region proposal network (Ren et al., *Faster R-CNN*, 2015; on the levels of a pyramid as in FPN).

N images, L levels, A anchors per cell, T = sum over levels of h * w * A anchors per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue

from . import boxes as B
from .anchors import AnchorGrid
from .cell_patches import cell_patches
from .conventions import Conventions
from .kernels import grouped_nms
from .matching import NEGATIVE, POSITIVE, match, mean_over_processes, sample
from .settings import require_fraction, require_positive
from .structures import ImageBatch, ImageSize, Proposals, Targets

WEIGHTS: B.BoxWeights = (1.0, 1.0, 1.0, 1.0)
DENSE_FROM = 8  # from one sampled anchor per this number of cells on, computing all cells is quicker


@dataclass(frozen=True)
class RPNSpec:
    """Settings of the RPN; the defaults are those of detectron2's R50-FPN configurations.

    Attributes:
        anchor_sizes_px: per level, fine to coarse, the square roots of the anchors' areas, pixels.
        anchor_ratios: heights of the anchors divided by their widths.
        convs: number of 3x3 convolutions before the outputs.
        samples_per_image: anchors of an image that are sampled for the losses.
        positive_fraction: largest share of positive anchors among them, 0 to 1.
        positive_iou: an anchor is positive if its IoU with a ground-truth box is at least this, 0 to 1. The best
            anchors of every ground-truth box are positive too (`Conventions.best_anchor_min_iou`).
        negative_iou: any other anchor is negative if its IoU with every ground-truth box is below this, 0 to 1; anchors
            between both take no part in the losses.
        nms_iou: non-maximum suppression drops a proposal if its IoU with a better one of its level exceeds this, 0 to
            1.
        keep_before_nms_train: in training, proposals that are kept of a level before non-maximum suppression.
        keep_after_nms_train: in training, proposals that are kept of an image after it.
        keep_before_nms_test: in inference, proposals that are kept of a level before non-maximum suppression.
        keep_after_nms_test: in inference, proposals that are kept of an image after it.

    Raises:
        InvalidValue: a value that is out of range.
    """

    anchor_sizes_px: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    convs: int = 1
    samples_per_image: int = 256
    positive_fraction: float = 0.5
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    nms_iou: float = 0.7
    keep_before_nms_train: int = 2000
    keep_after_nms_train: int = 1000
    keep_before_nms_test: int = 1000
    keep_after_nms_test: int = 1000

    def __post_init__(self) -> None:
        require_fraction(self, "positive_fraction", "positive_iou", "negative_iou", "nms_iou")
        require_positive(self, "convs", "samples_per_image", "keep_before_nms_train", "keep_after_nms_train")
        require_positive(self, "keep_before_nms_test", "keep_after_nms_test")
        if self.negative_iou > self.positive_iou:
            raise InvalidValue(f"negative_iou={self.negative_iou} must not exceed positive_iou={self.positive_iou}")
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise InvalidValue(f"anchor_ratios={self.anchor_ratios} must be positive: give at least one")
        if any(not sizes or min(sizes) <= 0 for sizes in self.anchor_sizes_px):
            raise InvalidValue(f"anchor_sizes_px={self.anchor_sizes_px} must be positive: give at least one per level")

    @property
    def keep_train(self) -> tuple[int, int]:
        """Proposals kept in training: of a level before NMS, of an image after it."""
        return self.keep_before_nms_train, self.keep_after_nms_train

    @property
    def keep_test(self) -> tuple[int, int]:
        """Proposals kept in inference: of a level before NMS, of an image after it."""
        return self.keep_before_nms_test, self.keep_after_nms_test


class RPNOutput(NamedTuple):
    """What the RPN head computes, for L levels.

    Attributes:
        logits: L of (N, h * w * A), objectness.
        deltas: L of (N, h * w * A, 4).
        anchors: L of (h * w * A, 4) xyxy, pixels; constants for the size of the images.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RPN(nn.Module):
    """3x3 convolutions and two 1x1 outputs, shared by all levels: objectness (A) and box deltas (4A) of every cell.

    Args:
        channels: C, channels of every level.
        anchors: the anchors of the levels.
        spec: settings of the network.
        conventions: what the projects do differently.
    """

    def __init__(self, channels: int, anchors: AnchorGrid, spec: RPNSpec, conventions: Conventions) -> None:
        super().__init__()
        self.spec, self.conventions = spec, conventions
        self.anchors = anchors
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(spec.convs))
        self.objectness = nn.Conv2d(channels, anchors.per_cell, 1)
        self.deltas = nn.Conv2d(channels, anchors.per_cell * 4, 1)
        for conv in (*self.convs, self.objectness, self.deltas):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, levels: Mapping[str, Tensor], padded: tuple[int, int]) -> RPNOutput:
        """Run the head on every level that has anchors.

        Args:
            levels: level -> (N, C, h, w).
            padded: height and width of the images with their padding, px.

        Returns:
            Logits and deltas, float32 or float64, in the order of the anchors, and the anchors. They carry no gradient:
            `losses` computes those of the few sampled anchors again.
        """
        with torch.no_grad():
            logits, deltas = self._everywhere(levels)
        return RPNOutput(logits, deltas, self.anchors(levels, padded))

    def _everywhere(self, levels: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and deltas of all anchors, per level."""
        logits, deltas = [], []
        for level in self.anchors.levels:
            hidden = levels[level]
            for conv in self.convs:
                hidden = F.relu(conv(hidden), inplace=True)
            # (N, A, h, w) -> (N, h, w, A) copies nothing in channels_last memory
            logits.append(B.promote(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)))
            deltas.append(B.promote(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4)))
        return logits, deltas

    def at(self, levels: Mapping[str, Tensor], chosen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the head for chosen anchors only, with gradients.

        The losses of an image read 256 of some 200,000 anchors. Everywhere else the gradient is zero, and the gradient
        of the 3x3 convolution over all cells would be a fifth of the arithmetic of a training step.

        Args:
            levels: level -> (N, C, h, w).
            chosen: N of (S_i,) int64, indices of anchors, 0..T - 1.

        Returns:
            Logits (S,) and deltas (S, 4), S the sum of S_i, float32 or float64.
        """
        anchor = torch.cat(list(chosen))
        maps = [levels[level] for level in self.anchors.levels]
        if len(anchor) * DENSE_FROM > sum(len(m) * m.shape[2] * m.shape[3] for m in maps):
            logits, deltas = (torch.cat(parts, 1) for parts in self._everywhere(levels))
            return (
                torch.cat([of_image[index] for of_image, index in zip(logits, chosen)]),
                torch.cat([of_image[index] for of_image, index in zip(deltas, chosen)]),
            )
        image = torch.cat([torch.full_like(index, i) for i, index in enumerate(chosen)])
        x, inside = cell_patches(maps, image, anchor // self.anchors.per_cell, reach=len(self.convs))
        for conv in self.convs:
            # outside the image, a convolution over all cells reads zeros, and not what the one before gives there
            layer = cast(nn.Conv2d, conv)
            x = F.relu(F.conv2d(torch.where(inside[:, None], x, 0), layer.weight, layer.bias), inplace=True)
            inside = inside[:, 1:-1, 1:-1]
        number = anchor % self.anchors.per_cell
        rows = torch.arange(len(number), device=number.device)
        logits = self.objectness(x).flatten(1)[rows, number]
        deltas = self.deltas(x).reshape(len(rows), self.anchors.per_cell, 4)[rows, number]
        return B.promote(logits), B.promote(deltas)

    def losses(
        self, output: RPNOutput, levels: Mapping[str, Tensor], batch: ImageBatch, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy of the sampled anchors and smooth L1 of the positive ones.

        Both are divided by N * samples_per_image, or by the number of sampled anchors (`Conventions.rpn_divisor`).

        Args:
            output: of the head.
            levels: level -> (N, C, h, w), for the grids of the anchors (`Conventions.own_padding_px`).
            batch: the images.
            targets: N targets.

        Returns:
            "loss_rpn_cls" and "loss_rpn_loc".
        """
        spec = self.spec
        anchors = torch.cat(output.anchors)
        matches = self._match(anchors, levels, batch, targets)
        samples = sample([roles for _, roles in matches], spec.samples_per_image, spec.positive_fraction)
        logits, deltas = self.at(levels, [torch.cat(roles) for roles in samples])
        classification, regression, start = logits[:0].sum(), deltas[:0].sum(), 0
        for target, (matched, _), (positive, negative) in zip(targets, matches, samples):
            middle, stop = start + len(positive), start + len(positive) + len(negative)
            for chosen, role in ((logits[start:middle], POSITIVE), (logits[middle:stop], NEGATIVE)):
                goal = torch.full_like(chosen, float(role))
                classification = classification + F.binary_cross_entropy_with_logits(chosen, goal, reduction="sum")
            if len(positive):
                goal = B.encode(target.boxes[matched[positive]], anchors[positive], WEIGHTS)
                beta = self.conventions.rpn_smooth_l1_beta
                regression = regression + B.smooth_l1_sum(deltas[start:middle], goal, beta)
            start = stop
        total: float | Tensor = len(targets) * spec.samples_per_image
        if self.conventions.rpn_divisor == "sampled":
            sampled_anchors = sum(len(positive) + len(negative) for positive, negative in samples)
            total = mean_over_processes(sampled_anchors, logits.device).to(logits.dtype)
        return {"loss_rpn_cls": classification / total, "loss_rpn_loc": regression / total}

    def _match(
        self, anchors: Tensor, levels: Mapping[str, Tensor], batch: ImageBatch, targets: Sequence[Targets]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of every image, the matched ground-truth box and the role of every anchor; see `match`."""
        spec, conventions = self.spec, self.conventions
        usable: Sequence[Tensor | None] = [None] * len(targets)
        if conventions.own_padding_px:
            usable = self.anchors.within(levels, batch.sizes)
        return [
            match(
                B.iou(target.boxes, anchors),
                low=spec.negative_iou,
                high=spec.positive_iou,
                best_from=conventions.best_anchor_min_iou,
                best_switches=conventions.best_anchor_switches,
                usable=of_image,
            )
            for target, of_image in zip(targets, usable)
        ]

    @torch.no_grad()
    def propose(self, output: RPNOutput, batch: ImageBatch, keep: tuple[int, int]) -> list[Proposals]:
        """Decode the best anchors of every level, clip them, drop empty ones, and suppress within every level.

        Args:
            output: of the head.
            batch: the images.
            keep: how many to keep of a level before NMS, and of an image after it (`RPNSpec.keep_train`, `keep_test`).

        Returns:
            N proposals, best first.
        """
        scores, boxes, level_of = [], [], []
        for index, (level_logits, level_deltas, level_anchors) in enumerate(zip(*output)):
            top, indices = level_logits.topk(min(keep[0], level_logits.shape[1]), dim=1)
            scores.append(top)
            top_deltas = level_deltas.gather(1, indices[..., None].expand(-1, -1, 4))
            decoded = B.decode(
                top_deltas.reshape(-1, 4),
                level_anchors[indices].reshape(-1, 4),
                WEIGHTS,
                bound_shrinking=self.conventions.bound_shrinking,
            )
            boxes.append(decoded.reshape(len(top), -1, 4))
            level_of.append(indices.new_full((top.shape[1],), index))
        all_scores, all_boxes, all_levels = torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(level_of)
        return [
            self._suppress(image_scores, image_boxes, all_levels, size, keep[1])
            for image_scores, image_boxes, size in zip(all_scores, all_boxes, batch.sizes)
        ]

    def _suppress(self, scores: Tensor, boxes: Tensor, level_of: Tensor, size: ImageSize, keep: int) -> Proposals:
        """The proposals of one image; those that are not finite are dropped."""
        finite = boxes.isfinite().all(1) & scores.isfinite()
        boxes = B.clip(boxes, size)
        good = (finite & B.larger_than(boxes, self.conventions.min_proposal_px)).nonzero().flatten()
        scores, boxes = scores[good], boxes[good]
        kept = grouped_nms(boxes, scores, level_of[good], self.spec.nms_iou)[:keep]
        return Proposals(boxes[kept], scores[kept])
