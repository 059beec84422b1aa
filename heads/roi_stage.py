"""A stage of the detector that works on regions: pooling, a box head, its losses, and the proposals for the next stage.

Faster R-CNN has one stage, Cascade R-CNN (Cai and Vasconcelos, CVPR 2018) several. N images, R regions of one image, S
regions of the batch, K classes; logit K is the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import boxes as B
from .box_head import BoxHead
from .matching import SampledRegions, match, mean_over_processes, sample
from .protocols import InstanceHead
from .roi_pool import RegionPooler
from .structures import ImageSize, Proposals, Targets

BOX_DELTA_WEIGHTS: B.BoxWeights = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class StageOutput:
    """What a stage computes for a batch.

    Attributes:
        boxes: N of (R, 4) xyxy, the regions, in pixels of the batch's images.
        regions: (S, C, P, P) their pooled features.
        logits: (S, K + 1), at least float32.
        deltas: (S, K, 4), at least float32.
    """

    boxes: Sequence[Tensor]
    regions: Tensor
    logits: Tensor
    deltas: Tensor

    def per_image(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split values of the S regions into N tensors of R."""
        return torch.split(values, [len(boxes) for boxes in self.boxes])


@dataclass(frozen=True)
class RoIStage:
    """A pooler with its box head. The modules belong to `RCNN`; this is a view of them.

    Attributes:
        pooler: features and boxes -> pooled regions.
        head: pooled regions -> logits and deltas.
        delta_weights: what deltas are multiplied by, for x, y, width and height.
    """

    pooler: RegionPooler
    head: BoxHead
    delta_weights: B.BoxWeights

    def __call__(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> StageOutput:
        """Pool the regions and run the head.

        Args:
            features: level -> (N, C, h, w).
            boxes: N of (R, 4) xyxy, pixels.

        Returns:
            Logits and deltas, with the regions they belong to.
        """
        regions = self.pooler(features, boxes)
        logits, deltas = self.head(regions)
        return StageOutput(boxes, regions, logits, deltas.reshape(len(deltas), self.head.num_classes, 4))

    @torch.no_grad()
    def assign(self, proposals: Sequence[Proposals], targets: Sequence[Targets]) -> list[SampledRegions]:
        """Match proposals and the ground-truth boxes themselves with the ground truth, and sample them.

        Args:
            proposals: N proposals.
            targets: N targets.

        Returns:
            N samples of regions, positive ones first.
        """
        head, spec = self.head, self.head.spec
        candidates = [torch.cat([p.boxes, t.boxes.to(p.boxes.dtype)]) for p, t in zip(proposals, targets)]
        matches = [
            match(
                B.iou(target.boxes, boxes),
                low=spec.positive_iou,
                high=spec.positive_iou,
                best_from=spec.positive_iou if spec.keep_best else None,
                best_switches=head.conventions.best_anchor_switches,
            )
            for target, boxes in zip(targets, candidates)
        ]
        chosen_of_images = sample([roles for _, roles in matches], spec.samples_per_image, spec.positive_fraction)
        samples = []
        for boxes, target, (matched, _), (positive, negative) in zip(candidates, targets, matches, chosen_of_images):
            chosen = torch.cat([positive, negative])
            labels = torch.full_like(chosen, head.num_classes)
            labels[: len(positive)] = target.labels[matched[positive]]
            samples.append(SampledRegions(boxes[chosen], labels, matched[chosen], len(positive)))
        return samples

    def losses(
        self, output: StageOutput, samples: Sequence[SampledRegions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Cross-entropy over all sampled regions and smooth L1 over the positive ones.

        Both are divided by the number of sampled regions (Girshick, Fast R-CNN, 2015, equation 1, as detectron2
        normalises it).

        Args:
            output: of the sampled regions.
            samples: N samples of regions.
            targets: N targets.

        Returns:
            "loss_cls" and "loss_box_reg".
        """
        labels = torch.cat([s.labels for s in samples])
        divisor = mean_over_processes(len(labels), output.logits.device).to(output.logits.dtype)
        positives = [s.foreground() for s in samples]
        boxes = torch.cat([p.boxes for p in positives])
        goals = torch.cat([t.boxes[p.matched].to(p.boxes.dtype) for p, t in zip(positives, targets)])
        positive_labels = torch.cat([p.labels for p in positives])
        rows = torch.arange(len(positive_labels), device=boxes.device)
        deltas = torch.cat([d[: s.positives] for d, s in zip(output.per_image(output.deltas), samples)])
        deltas = deltas[rows, positive_labels]
        beta = self.head.conventions.box_smooth_l1_beta
        regression = B.smooth_l1_sum(deltas, B.encode(goals, boxes, self.delta_weights), beta)
        classification = F.cross_entropy(output.logits, labels, reduction="sum")
        return {"loss_cls": classification / divisor, "loss_box_reg": regression / divisor}

    @torch.no_grad()
    def next_proposals(self, output: StageOutput, sizes: Sequence[ImageSize]) -> list[Proposals]:
        """The regions moved by the deltas of their best foreground class, for the next stage.

        Args:
            output: of this stage.
            sizes: N image sizes without padding.

        Returns:
            N proposals, one per region and in the same order, clipped to their image; scores are the logits of the best
            foreground class. A region whose deltas are not finite stays where it is. In training, `without_empty`
            removes regions that became empty.
        """
        proposals = []
        parts = zip(output.per_image(output.logits), output.per_image(output.deltas), output.boxes, sizes)
        for logits, deltas, boxes, size in parts:
            scores, labels = logits[:, : self.head.num_classes].max(dim=1)
            decoded = self.decode(deltas[torch.arange(len(deltas), device=deltas.device), labels], boxes)
            finite = decoded.isfinite().all(dim=1, keepdim=True)
            proposals.append(Proposals(B.clip(torch.where(finite, decoded, boxes), size), scores))
        return proposals

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas (M, 4) to boxes (M, 4), with this stage's weights and conventions -> (M, 4)."""
        return B.decode(deltas, boxes, self.delta_weights, bound_shrinking=self.head.conventions.bound_shrinking)


@dataclass(frozen=True)
class InstanceStage:
    """A pooler with a head for detected instances, such as the mask head.

    Attributes:
        pooler: features and boxes -> pooled regions; C4 detectors share that of the box stage.
        head: pooled regions -> one prediction per instance.
    """

    pooler: RegionPooler
    head: InstanceHead


def without_empty(proposals: Sequence[Proposals]) -> list[Proposals]:
    """Proposals with a positive width and height: an empty one has no regression target."""
    return [p[B.larger_than(p.boxes, 0).nonzero().flatten()] for p in proposals]
