"""DetectorRecipe: the architecture and settings of a detector as data; DETECTORS: the named recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from resnet_backbone.errors import InvalidValue, did_you_mean
from resnet_backbone.norm import NORMS
from resnet_backbone.specs import RESNETS, ResNetSpec

from .box_head import BoxHeadSpec
from .conventions import CONVENTIONS, Conventions
from .mask_head import MaskHeadSpec
from .rpn import RPNSpec
from .settings import require_norm, require_positive

Neck = Literal["fpn", "c4", "dc5"]


@dataclass(frozen=True)
class DetectorRecipe:
    """A detector's architecture and settings.

    Attributes:
        backbone: a row of `RESNETS` with C2..C5.
        stride_on: the convolution of a bottleneck that carries the stride: "3x3" (torchvision) or "1x1" (the paper,
            detectron2's MSRA weights).
        norm: norm of the backbone, a name in `NORMS`.
        frozen_stages: stages of the backbone that do not train: 0 nothing, 1 the stem, 2 the stem and C2, ... 5
            everything.
        neck: "fpn", a pyramid P2..P6; "c4", RPN and heads read C4, and C5 runs on the pooled regions (Ren et al.,
            *Faster R-CNN*, 2015); "dc5", RPN and heads read a C5 that is dilated to the stride of C4.
        pyramid_channels: channels of every level of the pyramid.
        pyramid_norm: norm behind the convolutions of the pyramid, a name in `NORMS`, or "none" for biases.
        rpn: settings of the region proposal network.
        box: settings of the box head.
        mask: settings of the mask head; None for a detector of boxes only.
        conventions: what the projects do differently.

    Raises:
        InvalidValue: settings that no code supports, or that contradict one another.
    """

    backbone: str = "resnet50"
    stride_on: Literal["3x3", "1x1"] = "3x3"
    norm: str = "frozen_bn"
    frozen_stages: int = 2
    neck: Neck = "fpn"
    pyramid_channels: int = 256
    pyramid_norm: str = "none"
    rpn: RPNSpec = field(default_factory=RPNSpec)
    box: BoxHeadSpec = field(default_factory=BoxHeadSpec)
    mask: MaskHeadSpec | None = None
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        self._check_backbone()
        require_positive(self, "pyramid_channels")
        require_norm(self, "pyramid_norm")
        self._check_neck()

    def _check_backbone(self) -> None:
        if self.backbone not in RESNETS:
            raise InvalidValue(f"backbone={self.backbone!r} is no ResNet: {did_you_mean(self.backbone, RESNETS)}")
        if len(RESNETS[self.backbone].depths) != 4:
            raise InvalidValue(f"backbone={self.backbone!r} has no C5: a pyramid needs one of the ImageNet nets")
        if self.norm not in NORMS:
            raise InvalidValue(f"norm={self.norm!r} is unknown: {did_you_mean(self.norm, NORMS)}")
        if not 0 <= self.frozen_stages <= 5:
            raise InvalidValue(
                f"frozen_stages={self.frozen_stages}: give 0 (nothing), 1 (stem), ... 5 (the whole backbone)"
            )

    def _check_neck(self) -> None:
        if self.neck not in NECKS:
            raise InvalidValue(f"neck={self.neck!r} is unknown: {did_you_mean(self.neck, NECKS)}")
        self.spec  # noqa: B018  (raises if the blocks have no convolution for the stride)
        count, expected = len(self.rpn.anchor_sizes_px), 5 if self.neck == "fpn" else 1
        if count != expected:
            levels = "the pyramid has five (P2..P6)" if self.neck == "fpn" else f"a {self.neck} detector has one"
            raise InvalidValue(f"rpn.anchor_sizes_px has {count} levels, {levels}: give one tuple per level")
        if self.neck == "c4" and (self.box.convs or self.box.hidden_layers):
            raise InvalidValue(
                f"in a c4 detector C5 takes the place of box.convs={self.box.convs} and "
                f"box.hidden_layers={self.box.hidden_layers}: set both to 0"
            )
        if self.neck == "c4" and self.mask is not None and self.mask.pool_size != self.box.pool_size:
            raise InvalidValue(
                f"the heads of a c4 detector share their regions: mask.pool_size={self.mask.pool_size} must be "
                f"box.pool_size={self.box.pool_size}"
            )

    @property
    def spec(self) -> ResNetSpec:
        """The architecture of the backbone."""
        row = RESNETS[self.backbone]
        return replace(row, stride_on=self.stride_on, c5_dilation=2 if self.neck == "dc5" else 1)


# neck -> the levels of the backbone that it reads
NECKS: dict[str, tuple[str, ...]] = {"fpn": ("c2", "c3", "c4", "c5"), "c4": ("c4", "c5"), "dc5": ("c5",)}
_ONE_LEVEL = ((32.0, 64.0, 128.0, 256.0, 512.0),)
# settings of detectron2's COCO-Detection and COCO-InstanceSegmentation configurations
_RPNS: dict[Neck, RPNSpec] = {
    "fpn": RPNSpec(),
    "c4": RPNSpec(_ONE_LEVEL, keep_before_nms_train=12000, keep_after_nms_train=2000, keep_before_nms_test=6000),
}
_RPNS["dc5"] = _RPNS["c4"]
_BOXES: dict[Neck, BoxHeadSpec] = {
    "fpn": BoxHeadSpec(),
    "c4": BoxHeadSpec(pool_size=14, hidden_layers=0),
    "dc5": BoxHeadSpec(),
}
_MASKS: dict[Neck, MaskHeadSpec] = {"fpn": MaskHeadSpec(), "c4": MaskHeadSpec(convs=0), "dc5": MaskHeadSpec()}

_DEPTHS: dict[Neck, tuple[int, ...]] = {"fpn": (18, 34, 50, 101, 152), "c4": (50, 101), "dc5": (50, 101)}

DETECTORS: dict[str, DetectorRecipe] = {
    f"{kind}_rcnn_r{depth}_{neck}": DetectorRecipe(
        f"resnet{depth}",
        neck=neck,
        rpn=_RPNS[neck],
        box=_BOXES[neck],
        mask=_MASKS[neck] if kind == "mask" else None,
    )
    for neck, depths in _DEPTHS.items()
    for kind in ("faster", "mask")
    for depth in depths
}

# torchvision's builders: their names, settings and conventions
_TORCHVISION_V1 = DetectorRecipe(rpn=RPNSpec(keep_after_nms_train=2000), conventions=CONVENTIONS["torchvision"])
_TORCHVISION_V2 = replace(
    _TORCHVISION_V1,
    norm="bn",
    pyramid_norm="bn",
    rpn=replace(_TORCHVISION_V1.rpn, convs=2),
    box=BoxHeadSpec(convs=4, norm="bn", hidden_layers=1),
)
DETECTORS |= {
    "fasterrcnn_resnet50_fpn": _TORCHVISION_V1,
    "maskrcnn_resnet50_fpn": replace(_TORCHVISION_V1, mask=MaskHeadSpec()),
    "fasterrcnn_resnet50_fpn_v2": _TORCHVISION_V2,
    "maskrcnn_resnet50_fpn_v2": replace(_TORCHVISION_V2, mask=MaskHeadSpec(norm="bn")),
}
