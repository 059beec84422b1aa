"""The region proposal network: proposals and their losses (Ren et al., *Faster R-CNN*, 2015; over levels as in FPN).

Glossary: N images, L levels, A anchors a cell, T = sum over levels of h * w * A anchors an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from . import boxes as B
from .anchors import AnchorGrid
from .conventions import Conventions
from .matching import NEGATIVE, POSITIVE, match, mean_over_processes, sample
from .settings import require_fraction, require_positive
from .structures import ImageSize, Proposals, Targets

WEIGHTS: B.BoxWeights = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class RPNSpec:
    """Settings of the RPN; the default is detectron2's R50-FPN recipe.

    anchor_sizes_px: one tuple a level, fine to coarse. keep_*: proposals kept a level before, and an image after,
    non-maximum suppression.
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
            raise ValueError(f"negative_iou={self.negative_iou} must not exceed positive_iou={self.positive_iou}")
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise ValueError(f"anchor_ratios={self.anchor_ratios} must be positive, and at least one")
        if any(not sizes or min(sizes) <= 0 for sizes in self.anchor_sizes_px):
            raise ValueError(f"anchor_sizes_px={self.anchor_sizes_px} must be positive, at least one a level")


class RPN(nn.Module):
    """3x3 convolutions and two 1x1 siblings shared by all levels: objectness (A) and deltas (4A)."""

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

    def forward(
        self,
        levels: Mapping[str, Tensor],
        sizes: Sequence[ImageSize],
        padded: tuple[int, int],
        targets: Sequence[Targets],
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Training: N proposals (without gradient), and {"loss_rpn_cls", "loss_rpn_loc"}."""
        logits, deltas = self.predict(levels)
        anchors = self.anchors(levels, padded)
        own = self.anchors.within(levels, sizes) if self.conventions.own_padding_px else [slice(None)] * len(sizes)
        losses = self.losses(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), targets, own)
        keep = self.spec.keep_before_nms_train, self.spec.keep_after_nms_train
        return self.select(logits, deltas, anchors, sizes, keep), losses

    def propose(
        self, levels: Mapping[str, Tensor], sizes: Sequence[ImageSize], padded: tuple[int, int]
    ) -> list[Proposals]:
        """Inference: N proposals, best first."""
        logits, deltas = self.predict(levels)
        keep = self.spec.keep_before_nms_test, self.spec.keep_after_nms_test
        return self.select(logits, deltas, self.anchors(levels, padded), sizes, keep)

    def predict(self, levels: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L of logits (N, h * w * A) and L of deltas (N, h * w * A, 4), at least float32, in the anchors' order."""
        logits, deltas = [], []
        for level in self.anchors.levels:
            hidden = levels[level]
            for conv in self.convs:
                hidden = F.relu(conv(hidden), inplace=True)
            # (N, A, h, w) -> (N, h, w, A): channels_last memory makes this free
            logits.append(B.promote(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)))
            deltas.append(B.promote(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4)))
        return logits, deltas

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        targets: Sequence[Targets],
        own: Sequence[Tensor | slice],
    ) -> dict[str, Tensor]:
        """logits (N, T), deltas (N, T, 4), anchors (T, 4); own: which anchors each image learns from.

        Both sums are divided by N * samples_per_image, or by how many were drawn (`Conventions.rpn_divisor`).
        """
        spec, conventions, drawn = self.spec, self.conventions, 0
        classification, regression = logits[:, :0].sum(), deltas[:, :0].sum()
        for all_logits, all_deltas, truth, mine in zip(logits, deltas, targets, own):
            image_logits, image_deltas, image_anchors = all_logits[mine], all_deltas[mine], anchors[mine]
            matched, roles = match(
                B.iou(truth.boxes, image_anchors),
                low=spec.negative_iou,
                high=spec.positive_iou,
                best_from=conventions.best_anchor_min_iou,
                best_switches=conventions.best_anchor_switches,
            )
            positive, negative = sample(roles, spec.samples_per_image, spec.positive_fraction)
            drawn += len(positive) + len(negative)
            for sampled, role in ((positive, POSITIVE), (negative, NEGATIVE)):
                want = torch.full_like(image_logits[sampled], float(role))
                classification = classification + F.binary_cross_entropy_with_logits(
                    image_logits[sampled], want, reduction="sum"
                )
            if len(positive):
                goal = B.encode(truth.boxes[matched[positive]], image_anchors[positive], WEIGHTS)
                beta = conventions.rpn_smooth_l1_beta
                regression = regression + B.smooth_l1_sum(image_deltas[positive], goal, beta)
        total: float | Tensor = len(targets) * spec.samples_per_image
        if conventions.rpn_divisor == "sampled":
            total = mean_over_processes(drawn, logits.device).to(logits.dtype)
        return {"loss_rpn_cls": classification / total, "loss_rpn_loc": regression / total}

    @torch.no_grad()
    def select(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[ImageSize],
        keep: tuple[int, int],
    ) -> list[Proposals]:
        """Best `keep[0]` a level, decoded, clipped, freed of empty ones, NMS within a level, best `keep[1]` an
        image."""
        scores, boxes, level_of = [], [], []
        for index, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors)):
            top, where = level_logits.topk(min(keep[0], level_logits.shape[1]), dim=1)
            scores.append(top)
            chosen = level_deltas.gather(1, where[..., None].expand(-1, -1, 4))
            decoded = B.decode(
                chosen.reshape(-1, 4),
                level_anchors[where].reshape(-1, 4),
                WEIGHTS,
                bound_shrinking=self.conventions.bound_shrinking,
            )
            boxes.append(decoded.reshape(len(top), -1, 4))
            level_of.append(where.new_full((top.shape[1],), index))
        all_scores, all_boxes, all_levels = torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(level_of)
        return [
            self._suppress(image_scores, image_boxes, all_levels, size, keep[1])
            for image_scores, image_boxes, size in zip(all_scores, all_boxes, sizes)
        ]

    def _suppress(self, scores: Tensor, boxes: Tensor, level_of: Tensor, size: ImageSize, keep: int) -> Proposals:
        finite = boxes.isfinite().all(1) & scores.isfinite()
        boxes = B.clip(boxes, size)
        good = finite & B.larger_than(boxes, self.conventions.min_proposal_px)
        scores, boxes, level_of = scores[good], boxes[good], level_of[good]
        kept = batched_nms(boxes, scores, level_of, self.spec.nms_iou)[:keep]
        return Proposals(boxes[kept], scores[kept])
