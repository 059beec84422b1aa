"""RCNN: the whole journey of an image on one screen.

Glossary: N images; levels: name -> (N, C, h, w); regions: pooled features of boxes; K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from resnet_backbone import Preprocess

from .box_head import BoxHead
from .boxes import larger_than
from .mask_head import MaskHead
from .roi_pool import RegionPooler
from .rpn import RPN
from .structures import Detections, ImageBatch, Targets


class RCNN(nn.Module):
    """Faster R-CNN; with instance heads, Mask R-CNN.

    Args: the parts, in the order in which an image meets them. instance_heads: name -> (pooler, head) of what is
    asked of every detected instance; they become the modules `<name>_regions` and `<name>_head`.
    `preprocess` and `class_names` travel with the weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        box_regions: RegionPooler,
        box_head: BoxHead,
        instance_heads: Mapping[str, tuple[RegionPooler, MaskHead]],
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.box_regions, self.box_head = box_regions, box_head
        self._instances = tuple(instance_heads)
        for name, (regions_of, head) in instance_heads.items():
            if regions_of is not box_regions:  # a C4 detector's heads share theirs
                self.add_module(f"{name}_regions", regions_of)
            self.add_module(f"{name}_head", head)
        self.preprocess = Preprocess()
        self.class_names: tuple[str, ...] = tuple(f"class {i}" for i in range(box_head.num_classes))

    @property
    def instance_heads(self) -> Iterator[tuple[RegionPooler, MaskHead]]:
        for name in self._instances:
            yield getattr(self, f"{name}_regions", self.box_regions), getattr(self, f"{name}_head")

    def forward(self, batch: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses of a batch, the same names every time: loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg and,
        with a mask head, loss_mask. Where there is nothing to learn from a loss is zero, with zero gradients.

        Raises ValueError where targets and images differ in number, a label is not below K, or a box is empty.
        """
        self._check(batch, targets)
        levels = self.neck(self.backbone(batch.pixels))
        proposals, losses = self.rpn(levels, batch.sizes, _padded(batch), targets)
        assigned = self.box_head.assign(proposals, targets)
        regions = self.box_regions(levels, [a.boxes for a in assigned])
        logits, deltas = self.box_head(regions)
        losses |= self.box_head.losses(logits, deltas, assigned, targets)
        positives = self.box_head.positives(assigned)
        for regions_of, head in self.instance_heads:
            if regions_of is self.box_regions:
                own = regions[torch.cat([a.labels for a in assigned]) < self.box_head.num_classes]
            else:
                own = regions_of(levels, [p.boxes for p in positives])
            losses |= head.losses(head(own), positives, targets)
        return losses

    def detect(self, batch: ImageBatch) -> list[Detections]:
        """N detections in pixels of the batch's images, best first. Call under `torch.inference_mode()`."""
        levels = self.neck(self.backbone(batch.pixels))
        proposals = self.rpn.propose(levels, batch.sizes, _padded(batch))
        logits, deltas = self.box_head(self.box_regions(levels, [p.boxes for p in proposals]))
        detections = self.box_head.select(logits, deltas, proposals, batch.sizes)
        for regions_of, head in self.instance_heads:
            detections = head.detect(regions_of(levels, [d.boxes for d in detections]), detections)
        return detections

    def _check(self, batch: ImageBatch, targets: Sequence[Targets]) -> None:
        if len(targets) != len(batch.sizes):
            raise ValueError(f"{len(batch.sizes)} images came with {len(targets)} targets: one Targets an image")
        classes = self.box_head.num_classes
        for truth in targets:
            if len(truth) and not 0 <= int(truth.labels.min()) <= int(truth.labels.max()) < classes:
                raise ValueError(
                    f"labels run from {int(truth.labels.min())} to {int(truth.labels.max())}, this detector knows "
                    f"0..{classes - 1}: category ids are mapped to labels where the data is read"
                )
            if not bool(larger_than(truth.boxes, 0).all()):
                empty = truth.boxes[~larger_than(truth.boxes, 0)][0].tolist()
                raise ValueError(
                    f"a target box has no area or is not finite, {empty}: drop such boxes when reading the data"
                )


def _padded(batch: ImageBatch) -> tuple[int, int]:
    return batch.pixels.shape[-2], batch.pixels.shape[-1]
