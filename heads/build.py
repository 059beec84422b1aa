"""DetectorRecipe: a detector as data; DETECTORS: the named ones; build_detector: recipe -> RCNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Literal, cast

from torch import Tensor, nn

from resnet_backbone import RESNETS, FeatureSpec, ResNetBackbone, ResNetSpec, WeightReport, load_weights
from resnet_backbone.backbone import check_frozen_has_weights
from resnet_backbone.blocks import Bottleneck
from resnet_backbone.adapt import check_backbone
from resnet_backbone.norm import NORMS
from resnet_backbone.errors import did_you_mean
from resnet_backbone.weights.keymaps import Renamed
from resnet_backbone.weights.load import WeightFile, source_of, read_weights
from resnet_backbone.weights.sources import WeightSource

from .anchors import AnchorGrid
from .box_head import BoxHead, BoxHeadSpec
from .conventions import CONVENTIONS, Conventions, certified_conventions, conventions_of
from .detector import RCNN
from .keymaps import candidates_of, layout_of
from .fpn import FeaturePyramid
from .mask_head import MaskHead, MaskHeadSpec
from .roi_pool import RegionPooler
from .rpn import RPN, RPNSpec
from .settings import require_norm, require_positive

# what depends on the number of classes: re-made where a detector is fine-tuned on another list
CLASS_LAYERS = ("box_head.logits.*", "box_head.deltas.*", "mask_head.logits.*")


@dataclass(frozen=True)
class DetectorRecipe:
    """A detector's architecture and settings. backbone: a row of `RESNETS`, with the stride of its bottlenecks on the
    3x3 (torchvision) or the first 1x1 (the paper, detectron2's MSRA weights); mask: None for boxes only.

    neck: "fpn" (P2..P6); "c4" (Faster R-CNN's own: everything is read from C4, and C5 runs on the pooled regions); or
    "dc5" (everything is read from a C5 dilated to C4's stride).
    """

    backbone: str = "resnet50"
    stride_on: Literal["3x3", "1x1"] = "3x3"
    norm: str = "frozen_bn"
    frozen_stages: int = 2
    neck: Literal["fpn", "c4", "dc5"] = "fpn"
    pyramid_channels: int = 256
    pyramid_norm: str = "none"
    rpn: RPNSpec = field(default_factory=RPNSpec)
    box: BoxHeadSpec = field(default_factory=BoxHeadSpec)
    mask: MaskHeadSpec | None = None
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        if self.backbone not in RESNETS:
            raise ValueError(f"backbone={self.backbone!r} is no ResNet: {did_you_mean(self.backbone, RESNETS)}")
        if len(RESNETS[self.backbone].depths) != 4:
            raise ValueError(f"backbone={self.backbone!r} has no C5: a pyramid needs one of the ImageNet nets")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is unknown: {did_you_mean(self.norm, NORMS)}")
        if not 0 <= self.frozen_stages <= 5:
            raise ValueError(
                f"frozen_stages={self.frozen_stages}: give 0 (nothing), 1 (stem), ... 5 (the whole backbone)"
            )
        require_positive(self, "pyramid_channels")
        require_norm(self, "pyramid_norm")
        if self.neck not in NECKS:
            raise ValueError(f"neck={self.neck!r} is unknown: {did_you_mean(self.neck, NECKS)}")
        self.spec  # noqa: B018  a stride that the blocks cannot carry is refused here
        count, wanted = len(self.rpn.anchor_sizes_px), 5 if self.neck == "fpn" else 1
        if count != wanted:
            levels = "the pyramid has five (P2..P6)" if self.neck == "fpn" else f"a {self.neck} detector has one"
            raise ValueError(f"rpn.anchor_sizes_px has {count} levels, {levels}: one tuple a level")
        if self.neck == "c4" and (self.box.convs or self.box.hidden_layers):
            raise ValueError(
                f"a c4 detector's C5 takes the place of box.convs={self.box.convs} and "
                f"box.hidden_layers={self.box.hidden_layers}: set both to 0"
            )
        if self.neck == "c4" and self.mask is not None and self.mask.pool_size != self.box.pool_size:
            raise ValueError(
                f"a c4 detector's heads share their regions: mask.pool_size={self.mask.pool_size} must be "
                f"box.pool_size={self.box.pool_size}"
            )

    @property
    def spec(self) -> ResNetSpec:
        """The backbone's architecture."""
        row = RESNETS[self.backbone]
        return replace(row, stride_on=self.stride_on, c5_dilation=2 if self.neck == "dc5" else 1)


# what each neck takes from the backbone
NECKS: dict[str, tuple[str, ...]] = {"fpn": ("c2", "c3", "c4", "c5"), "c4": ("c4", "c5"), "dc5": ("c5",)}
_ONE_LEVEL = ((32.0, 64.0, 128.0, 256.0, 512.0),)
# detectron2's COCO-Detection and COCO-InstanceSegmentation configurations
_RPNS = {
    "fpn": RPNSpec(),
    "c4": RPNSpec(_ONE_LEVEL, keep_before_nms_train=12000, keep_after_nms_train=2000, keep_before_nms_test=6000),
}
_RPNS["dc5"] = _RPNS["c4"]
_BOXES = {"fpn": BoxHeadSpec(), "c4": BoxHeadSpec(pool_size=14, hidden_layers=0), "dc5": BoxHeadSpec()}
_MASKS = {"fpn": MaskHeadSpec(), "c4": MaskHeadSpec(convs=0), "dc5": MaskHeadSpec()}

DETECTORS: dict[str, DetectorRecipe] = {
    f"{kind}_rcnn_r{depth}_{neck}": DetectorRecipe(
        f"resnet{depth}",
        neck=neck,  # type: ignore[arg-type]
        rpn=_RPNS[neck],
        box=_BOXES[neck],
        mask=_MASKS[neck] if kind == "mask" else None,
    )
    for neck, depths in (("fpn", (18, 34, 50, 101, 152)), ("c4", (50, 101)), ("dc5", (50, 101)))
    for kind in ("faster", "mask")
    for depth in depths
}

# torchvision's own builders: its names, settings and conventions
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


def build_detector(
    recipe: str | DetectorRecipe,
    *,
    num_classes: int,
    weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    source: str | None = None,
    backbone: nn.Module | None = None,
) -> RCNN:
    """A detector from a name in `DETECTORS` or a recipe, for labels 0..num_classes - 1.

    weights: a whole detector's file or state dict, ours, torchvision's, detectron2's or mmdetection's, loaded strictly.
    The detector is built with the conventions and the epsilon of the weights, and takes over their `Preprocess` and
    class names; a recipe given by its name also takes their stride placement, a `DetectorRecipe` means what it says.
    source: whose weights they are (a key of `weights.sources.SOURCES`) where the file does not tell.
    backbone: a module with `feature_specs` for the levels of `NECKS` that the recipe takes
    (`build_backbone(..., weights="imagenet1k_v1")` has c2..c5, `resnet_backbone.adapt.as_backbone` makes them of
    timm's and torchvision's nets), not ours are asked for a blank image; without it the recipe's own is built.
    Raises ValueError for unknown names, where norms or stages would be frozen that nobody has trained, for another
    number of classes, or a backbone that does not give what it publishes; otherwise as `load_weights` does.
    """
    if backbone is not None and not isinstance(backbone, ResNetBackbone):
        check_backbone(backbone)
    by_name = isinstance(recipe, str)
    if isinstance(recipe, str):
        if recipe not in DETECTORS:
            raise ValueError(f"no detector is called {recipe!r}: {did_you_mean(recipe, DETECTORS)}")
        recipe = DETECTORS[recipe]
    if backbone is None:
        check_frozen_has_weights(weights is not None, recipe.norm, recipe.frozen_stages)
    if weights is None:
        check_frozen_head_norms(recipe)
        return assemble(recipe, num_classes, empty_backbone(recipe) if backbone is None else backbone)
    file = read_weights(weights)
    meaning = source_of(file, Renamed({}, candidates_of(file.state)), source)
    if meaning is not None:
        recipe = adopted(recipe, meaning, file, with_stride=by_name)
        if file.meta is None:
            _require_classes(file, num_classes)
    detector = assemble(recipe, num_classes, empty_backbone(recipe) if backbone is None else backbone)
    load_weights(detector, file, source=source)
    return detector


def check_frozen_head_norms(recipe: DetectorRecipe) -> None:
    """Raises ValueError where a norm behind the backbone would keep statistics that nobody has taken: only a whole
    detector's weights bring them."""
    norms = {"pyramid_norm": recipe.pyramid_norm, "box.norm": recipe.box.norm}
    norms |= {} if recipe.mask is None else {"mask.norm": recipe.mask.norm}
    for name, norm in norms.items():
        if norm in ("frozen_bn", "bn_eval"):
            raise ValueError(
                f"{name}={norm!r} without a detector's weights would freeze initial statistics: give the weights of a "
                "whole detector, or 'bn', 'gn' or 'none'"
            )


def adopted(recipe: DetectorRecipe, meaning: WeightSource, file: WeightFile, *, with_stride: bool) -> DetectorRecipe:
    """The recipe with what the weights were trained with; with_stride: the placement of the stride too."""
    recipe = replace(recipe, conventions=certified_conventions(file) or conventions_of(meaning))
    if with_stride and issubclass(RESNETS[recipe.backbone].block, Bottleneck):
        recipe = replace(recipe, stride_on=meaning.stride_on)
    if file.meta is None and meaning.project == "mmdetection":  # its Mask R-CNN's own setting
        recipe = replace(recipe, box=replace(recipe.box, keep_best=recipe.mask is not None))
    return recipe


def _require_classes(file: WeightFile, num_classes: int) -> None:
    layout = layout_of(file.state)
    rows = next((len(v) for k, v in file.state.items() if k.endswith(("cls_score.bias", "fc_cls.bias"))), 0)
    if layout is not None and rows and rows != num_classes + 1:
        raise ValueError(
            f"{file} knows {rows - 1} classes and the background, num_classes={num_classes} was asked for: build it "
            f"with num_classes={rows - 1} (the background is not counted), then fine_tune() another one from it"
        )


def empty_backbone(recipe: DetectorRecipe) -> ResNetBackbone:
    """The recipe's backbone at its initial values, for weights that are loaded later."""
    return ResNetBackbone(
        recipe.spec,
        norm=recipe.norm,
        norm_eps=recipe.conventions.norm_eps,
        out_levels=NECKS[recipe.neck],
        frozen_stages=recipe.frozen_stages,
    )


def assemble(recipe: DetectorRecipe, num_classes: int, backbone: nn.Module) -> RCNN:
    """The recipe's parts around a backbone; a c4 recipe takes the backbone's last stage out of it.

    Raises ValueError for num_classes below one, or missing levels.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: a detector needs at least one class (the background is its own)")
    conventions = recipe.conventions
    stage, after = _take_c5(backbone) if recipe.neck == "c4" else (None, None)
    given = cast("Mapping[str, FeatureSpec]", backbone.feature_specs)
    neck: nn.Module = nn.Identity()
    if recipe.neck == "fpn":
        neck = pyramid = FeaturePyramid(given, channels=recipe.pyramid_channels, norm=recipe.pyramid_norm)
        specs, pooled = pyramid.feature_specs, list(pyramid.feature_specs)[:-1]  # P6 only proposes
    else:
        level = NECKS[recipe.neck][0]
        if level not in given:
            raise ValueError(f"a {recipe.neck} detector reads {level.upper()}, the backbone gives {list(given)}")
        specs, pooled = {level: given[level]}, [level]
    read = specs[pooled[0]].channels  # what the RPN reads; the heads read what a stage makes of it
    channels = read if after is None else after.channels
    sizes = dict(zip(specs, recipe.rpn.anchor_sizes_px))
    strides = {level: spec.stride for level, spec in specs.items()}
    anchors = AnchorGrid(sizes, recipe.rpn.anchor_ratios, strides, conventions)

    def regions(size: int) -> RegionPooler:
        return RegionPooler(specs, pooled, size=size, conventions=conventions, stage=stage)

    box_regions = regions(recipe.box.pool_size)
    instance_heads = {}
    if recipe.mask is not None:
        mask_regions = box_regions if stage is not None else regions(recipe.mask.pool_size)
        instance_heads["mask"] = (mask_regions, MaskHead(channels, num_classes, recipe.mask, conventions))
    return RCNN(
        backbone,
        neck,
        RPN(read, anchors, recipe.rpn, conventions),
        box_regions,
        BoxHead(channels, num_classes, recipe.box, conventions),
        instance_heads,
    )


def _take_c5(backbone: nn.Module) -> tuple[nn.Module, FeatureSpec]:
    if not isinstance(backbone, ResNetBackbone) or not {"c4", "c5"} <= set(backbone.out_levels):
        given = list(cast("Mapping[str, FeatureSpec]", backbone.feature_specs))
        raise ValueError(f"a c4 detector takes C5 out of a ResNetBackbone of levels c4 and c5; this one gives {given}")
    return backbone.take_last_stage()


def fine_tune(
    detector: RCNN, source: str | PathLike[str] | Mapping[str, Tensor], allow_missing: Sequence[str] = ()
) -> WeightReport:
    """Load another detector's weights; layers that depend on the number of classes keep their initial values where
    it differs (`WeightReport.kept_initial`), and so may those that allow_missing names. Raises `WeightMismatch` for any
    other difference."""
    return load_weights(detector, source, allow_missing=(*CLASS_LAYERS, *allow_missing))
