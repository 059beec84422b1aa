"""RCNN: the whole journey of an image on one screen.

Glossary: N images; levels: name -> (N, C, h, w); regions: pooled features of boxes; K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from resnet_backbone import Preprocess, ResNetBackbone
from resnet_backbone.weights.keymaps import Renamed
from resnet_backbone.weights.load import WeightFile
from resnet_backbone.weights.sources import WeightSource

from .box_head import BoxHead
from .boxes import larger_than
from .class_lists import class_names_in
from .conventions import certified_conventions, conventions_of
from .keymaps import from_layout, layout_of
from .mask_head import MaskHead
from .roi_pool import RegionPooler
from .rpn import RPN
from .structures import Detections, ImageBatch, Targets


class RCNN(nn.Module):
    """Faster R-CNN; with instance heads, Mask R-CNN.

    Args: the parts, in the order in which an image meets them. instance_heads: name -> (pooler, head) of what is
    asked of every detected instance; they become the modules `<name>_regions` and `<name>_head`.
    `preprocess` and `class_names` travel with the weights, and so does `background`: rows that torchvision's layout has
    for it and no decision reads, kept for the way back.
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
        self.preprocess: Preprocess = getattr(backbone, "preprocess", Preprocess())
        self.class_names: tuple[str, ...] = tuple(f"class {i}" for i in range(box_head.num_classes))
        self.background: dict[str, Tensor] = {}

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

    def to_native_keys(self, state: Mapping[str, Tensor]) -> Renamed:
        """A whole detector's tensors in whatever layout (`keymaps.LAYOUTS`), under the names here."""
        layout = layout_of(state)
        if layout is not None:
            return from_layout(self.state_dict(), state, layout)
        mark = "background."
        kept = {key.removeprefix(mark): value for key, value in state.items() if key.startswith(mark)}
        return Renamed({key: value for key, value in state.items() if not key.startswith(mark)}, extra=kept)

    def check_source(self, meaning: WeightSource, file: WeightFile) -> None:
        """Raises ValueError where this detector computes otherwise than the one that the weights were trained in."""
        if isinstance(self.backbone, ResNetBackbone):
            self.backbone.check_source(meaning, file)
        wanted, mine = certified_conventions(file) or conventions_of(meaning), self.box_head.conventions
        differing = [name for name, value in vars(wanted).items() if getattr(mine, name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{file}: {len(differing)} conventions of these weights are not this detector's, first {name} "
                f"({getattr(wanted, name)} against {getattr(mine, name)}): build_detector(..., weights=...) adopts them"
            )

    def apply_source(self, meaning: WeightSource | None, file: WeightFile, renamed: Renamed) -> None:
        """Take over the weights' preprocessing and class names, and keep the background's rows for a way back."""
        self.background = dict(renamed.extra)
        if meaning is not None:
            self.preprocess = meaning.preprocess
            whole_pixels = file.meta is None and meaning.project == "detectron2" and isinstance(self.neck, nn.Identity)
            if whole_pixels:  # detectron2 pads for a pyramid alone
                self.preprocess = replace(meaning.preprocess, pad_to_multiple_px=1)
        names = class_names_in(file.content, self.box_head.num_classes, renamed.layout)
        self.class_names = names or self.class_names

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
