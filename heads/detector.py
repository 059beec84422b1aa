"""RCNN: an image's path from pixels to detections: dense -> propose -> RoI stages -> select -> instance heads.

N images; levels: name -> (N, C, h, w); regions: pooled features of boxes; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue
from resnet_backbone.preprocess import Preprocess
from resnet_backbone.protocols import Backbone

from .boxes import BoxWeights, larger_than, promote
from .class_rows import default_names
from .inference import prepare
from .roi_stage import InstanceStage, RoIStage, StageOutput, without_empty
from .rpn import RPN, RPNOutput
from .selection import select_detections
from .structures import Detections, ImageBatch, ImageSize, Proposals, Targets
from .weights import DetectorWeights


class DenseOutput(NamedTuple):
    """What is computed for whole images.

    Attributes:
        features: level -> (N, C, h, w), what the neck returns.
        rpn: objectness logits, deltas and anchors of every level.
    """

    features: dict[str, Tensor]
    rpn: RPNOutput


class RCNN(DetectorWeights):
    """Faster R-CNN; with instance heads, Mask R-CNN; with several RoI stages, Cascade R-CNN.

    Args:
        backbone: pixels -> levels.
        neck: levels -> levels, a pyramid or nothing.
        rpn: the region proposal network.
        roi_stages: the stages in their order. The modules of the first are `box_regions` and `box_head`, those of a
            later one carry its number: `box_regions2`, `box_head2`.
        instance_heads: name -> pooler and head for detected instances; they become the modules `<name>_regions` and
            `<name>_head`. A pooler that an RoI stage has too is shared.

    Attributes:
        preprocess: the pixel format and image size that the weights expect.
        class_names: names of the classes, in the order of their labels.
        compiled_dense: what `dense` calls in its place; made by `heads.inference.compile_dense`.
        compile_s: seconds that compiling took; None if nothing was compiled.
        is_copy_for_inference: whether `for_inference` made this detector.
    """

    rpn: RPN

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        rpn: RPN,
        roi_stages: Sequence[RoIStage],
        instance_heads: Mapping[str, InstanceStage],
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = cast(nn.Module, backbone), neck, rpn
        poolers: dict[int, str] = {}  # id -> module name
        self._stages: list[tuple[str, str, BoxWeights]] = []  # names of the modules, delta weights
        for index, stage in enumerate(roi_stages):
            number = str(index + 1) if index else ""
            pooler = poolers.setdefault(id(stage.pooler), f"box_regions{number}")
            self.add_module(pooler, stage.pooler)
            self.add_module(f"box_head{number}", stage.head)
            self._stages.append((pooler, f"box_head{number}", stage.delta_weights))
        self._instances: dict[str, tuple[str, str]] = {}
        for name, instance in instance_heads.items():
            pooler = poolers.setdefault(id(instance.pooler), f"{name}_regions")
            self.add_module(pooler, instance.pooler)
            self.add_module(f"{name}_head", cast(nn.Module, instance.head))
            self._instances[name] = pooler, f"{name}_head"
        self.compiled_dense: Callable[[Tensor], DenseOutput] | None = None
        self.compile_s: float | None = None
        self.is_copy_for_inference = False
        self.preprocess = getattr(backbone, "preprocess", Preprocess())
        self.class_names = default_names(self.box_head.num_classes)
        self.background = {}

    @property
    def roi_stages(self) -> list[RoIStage]:
        """The RoI stages, in their order."""
        return [RoIStage(getattr(self, pooler), getattr(self, head), w) for pooler, head, w in self._stages]

    @property
    def instance_heads(self) -> dict[str, InstanceStage]:
        """Name -> pooler and head for detected instances."""
        return {
            name: InstanceStage(getattr(self, pooler), getattr(self, head))
            for name, (pooler, head) in self._instances.items()
        }

    def forward(self, batch: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: N images.
            targets: N targets, boxes in pixels of the batch's images.

        Returns:
            loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg (a later stage adds `_stage2`, ...) and the losses of the
            instance heads (loss_mask): the same names for every batch. A loss that has nothing to learn from is zero,
            with zero gradients.

        Raises:
            InvalidValue: images and targets differ in number, a label is not in 0..K - 1, or a box is empty.
        """
        check_targets(targets, self.box_head.num_classes, len(batch.sizes))
        dense = self.dense(batch.pixels)
        losses = self.rpn.losses(dense.rpn, dense.features, batch, targets)
        proposals = self.propose(dense, batch, self.rpn.spec.keep_train)
        features = self._for_regions(dense.features)
        stages = self.roi_stages
        for index, stage in enumerate(stages):
            samples = stage.assign(proposals, targets)
            output = stage(features, [s.boxes for s in samples])
            suffix = f"_stage{index + 1}" if index else ""
            losses |= {name + suffix: loss for name, loss in stage.losses(output, samples, targets).items()}
            if index + 1 < len(stages):
                proposals = without_empty(stage.next_proposals(output, batch.sizes))
        positives = [s.foreground() for s in samples]
        for instance in self.instance_heads.values():
            if instance.pooler is stages[-1].pooler:  # its regions were pooled already
                per_image = zip(output.per_image(output.regions), samples)
                regions = torch.cat([r[: s.positives] for r, s in per_image])
            else:
                regions = instance.pooler(features, [p.boxes for p in positives])
            losses |= instance.head.losses(regions, positives, targets)
        return losses

    def detect(self, batch: ImageBatch) -> list[Detections]:
        """Detect objects. Call under `torch.inference_mode()`, in inference mode.

        Args:
            batch: N images.

        Returns:
            N detections in pixels of the batch's images, best first.
        """
        dense = self.dense(batch.pixels)
        boxes = [p.boxes for p in self.propose(dense, batch, self.rpn.spec.keep_test)]
        features = self._for_regions(dense.features)
        outputs: list[StageOutput] = []
        stages = self.roi_stages
        for index, stage in enumerate(stages):
            outputs.append(stage(features, boxes))
            if index + 1 < len(stages):
                boxes = [p.boxes for p in stage.next_proposals(outputs[-1], batch.sizes)]
        detections = self.select(outputs, batch.sizes)
        for instance in self.instance_heads.values():
            regions = instance.pooler(features, [d.boxes for d in detections])
            detections = instance.head.detect(regions, detections)
        return detections

    def dense(self, pixels: Tensor) -> DenseOutput:
        """Backbone, neck and RPN head: tensors to tensors, without decisions on data.

        Args:
            pixels: (N, 3, H, W), normalised and padded.

        Returns:
            Features and the outputs of the RPN head.
        """
        if self.compiled_dense is not None:
            return self.compiled_dense(pixels)
        return self.plain_dense(pixels)

    def plain_dense(self, pixels: Tensor) -> DenseOutput:
        """`dense` as it is compiled: it does not look for a compiled form of itself."""
        features = self.neck(self.backbone(pixels))
        return DenseOutput(features, self.rpn(features, (pixels.shape[-2], pixels.shape[-1])))

    def for_inference(self, *, dtype: torch.dtype | None = None, compile: bool = False) -> RCNN:
        """Make a copy that only detects, and detects faster. This detector stays as it is.

        Constant norms are folded into convolutions, and weights are laid out as channels_last. Without `dtype` and
        `compile` the detections are the same up to rounding.

        Args:
            dtype: precision of the weights and features, such as torch.bfloat16; boxes, and the positions in RoIAlign,
                are computed in at least float32. None keeps the precision of the weights.
            compile: compile `dense` (backbone, neck and RPN head) with torch.compile, once for all image sizes. It
                takes about a minute (`compile_s`); torch keeps what it compiled in its cache directory
                (TORCHINDUCTOR_CACHE_DIR).

        Returns:
            The copy, in inference mode, on the same device. It cannot be trained, and not be saved as weights.

        Raises:
            InvalidValue: another dtype than a floating-point one.
            CannotCompile: there is no C++ compiler, for example.
        """
        return prepare(self, dtype, compiled=compile)

    def _for_regions(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The levels that regions are pooled from, converted once for all poolers to the precision that they need."""
        poolers = [stage.pooler for stage in self.roi_stages]
        poolers += [stage.pooler for stage in self.instance_heads.values()]
        levels = {level for pooler in poolers for level in pooler.levels}
        keep = all(pooler.keep_half for pooler in poolers)
        return {name: f if keep else promote(f) for name, f in features.items() if name in levels}

    def propose(self, dense: DenseOutput, batch: ImageBatch, keep: tuple[int, int]) -> list[Proposals]:
        """Choose proposals; arguments and result as for `RPN.propose`."""
        return self.rpn.propose(dense.rpn, batch, keep)

    @torch.no_grad()
    def select(self, outputs: Sequence[StageOutput], sizes: Sequence[ImageSize]) -> list[Detections]:
        """Turn the outputs of the RoI stages into detections: threshold, decoding, suppression, top-k.

        Args:
            outputs: one per stage; boxes are decoded from the last.
            sizes: N image sizes without padding.

        Returns:
            N detections, best first.
        """
        return select_detections(outputs, self.roi_stages[-1], sizes)


def check_targets(targets: Sequence[Targets], num_classes: int, num_images: int) -> None:
    """Check targets. On a GPU, the check stops the kernels with an error and the host does not wait for it.

    To get the whole message, check targets before they are moved to the GPU.

    Args:
        targets: one per image.
        num_classes: K, classes of the detector.
        num_images: N, images of the batch.

    Raises:
        InvalidValue: images and targets differ in number, a label is not in 0..K - 1, or a box is empty.
    """
    if len(targets) != num_images:
        raise InvalidValue(f"{num_images} images came with {len(targets)} targets: give one per image")
    for target in targets:
        labels, boxes = target.labels, target.boxes
        good_boxes, good_labels = larger_than(boxes, 0), (labels >= 0) & (labels < num_classes)
        if boxes.device.type != "cpu":
            torch._assert_async(good_boxes.all() & good_labels.all(), "a target has an empty box or an unknown label")
            continue
        if not bool(good_labels.all()):
            raise InvalidValue(
                f"labels run from {int(labels.min())} to {int(labels.max())}, this detector has "
                f"0..{num_classes - 1}: map category ids to labels where the data is read"
            )
        if not bool(good_boxes.all()):
            empty = boxes[~good_boxes][0].tolist()
            raise InvalidValue(
                f"a target box has no area or is not finite, {empty}: drop such boxes when reading the data"
            )
