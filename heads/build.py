"""DetectorRecipe: a detector as data; DETECTORS: the named ones; build_detector: recipe -> RCNN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, cast

from torch import Tensor, nn

from resnet_backbone import RESNETS, FeatureSpec, Preprocess, ResNetBackbone, WeightReport, load_weights
from resnet_backbone.backbone import refuse_to_freeze_nothing
from resnet_backbone.norm import NORMS
from resnet_backbone.suggest import unknown
from resnet_backbone.weights.load import read_content

from .anchors import AnchorGrid
from .box_head import BoxHead, BoxHeadSpec
from .conventions import Conventions
from .detector import RCNN
from .fpn import FeaturePyramid
from .mask_head import MaskHead, MaskHeadSpec
from .roi_pool import RegionPooler
from .rpn import RPN, RPNSpec
from .settings import require_positive

# what depends on the number of classes: re-made where a detector is fine-tuned on another list
CLASS_LAYERS = ("box_head.logits.*", "box_head.deltas.*", "mask_head.logits.*")


@dataclass(frozen=True)
class DetectorRecipe:
    """A detector's architecture and settings. backbone: a row of `RESNETS`; mask: None for boxes only."""

    backbone: str = "resnet50"
    norm: str = "frozen_bn"
    frozen_stages: int = 2
    pyramid_channels: int = 256
    rpn: RPNSpec = field(default_factory=RPNSpec)
    box: BoxHeadSpec = field(default_factory=BoxHeadSpec)
    mask: MaskHeadSpec | None = None
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        if self.backbone not in RESNETS:
            raise ValueError(f"backbone={self.backbone!r} is no ResNet: {unknown(self.backbone, RESNETS)}")
        if len(RESNETS[self.backbone].depths) != 4:
            raise ValueError(f"backbone={self.backbone!r} has no C5: a pyramid needs one of the ImageNet nets")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is unknown: {unknown(self.norm, NORMS)}")
        if not 0 <= self.frozen_stages <= 5:
            raise ValueError(
                f"frozen_stages={self.frozen_stages}: give 0 (nothing), 1 (stem), ... 5 (the whole backbone)"
            )
        require_positive(self, "pyramid_channels")
        if len(self.rpn.anchor_sizes_px) != 5:
            raise ValueError(
                f"rpn.anchor_sizes_px has {len(self.rpn.anchor_sizes_px)} levels, the pyramid five (P2..P6): "
                "one tuple a level"
            )


DETECTORS: dict[str, DetectorRecipe] = {
    f"{kind}_rcnn_r{depth}_fpn": DetectorRecipe(f"resnet{depth}", mask=MaskHeadSpec() if kind == "mask" else None)
    for kind in ("faster", "mask")
    for depth in (18, 34, 50, 101, 152)
}


def build_detector(
    recipe: str | DetectorRecipe,
    *,
    num_classes: int,
    weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    backbone: nn.Module | None = None,
) -> RCNN:
    """A detector from a name in `DETECTORS` or a recipe, for labels 0..num_classes - 1.

    weights: a whole detector's file or state dict, loaded strictly; a file that we wrote also brings its `Preprocess`
    and class names. backbone: a module with `feature_specs` for
    c2..c5 (`build_backbone(..., weights="imagenet1k_v1")`); without it the recipe's own is built.
    Raises ValueError for unknown names, or where norms or stages would be frozen that nobody has trained;
    `WeightMismatch` where the weights do not fit.
    """
    if isinstance(recipe, str):
        if recipe not in DETECTORS:
            raise ValueError(f"no detector is called {recipe!r}: {unknown(recipe, DETECTORS)}")
        recipe = DETECTORS[recipe]
    if backbone is None:
        refuse_to_freeze_nothing(weights is not None, recipe.norm, recipe.frozen_stages)
        backbone = empty_backbone(recipe)
    detector = assemble(recipe, num_classes, backbone)
    if weights is not None:
        content = read_content(weights)
        load_weights(detector, content)  # type: ignore[arg-type]  # it says itself what it cannot read
        if isinstance(content, Mapping) and "meta" in content:
            adopt(detector, content["meta"])
    return detector


def adopt(detector: RCNN, meta: Mapping[str, Any]) -> None:
    """Take over what travelled with a file's weights: how images are to be prepared, and the classes' names."""
    detector.preprocess = Preprocess(**meta["preprocess"])
    detector.class_names = tuple(meta["class_names"])


def empty_backbone(recipe: DetectorRecipe) -> ResNetBackbone:
    """The recipe's backbone at its initial values, for weights that are loaded later."""
    spec = RESNETS[recipe.backbone]
    eps = recipe.conventions.norm_eps
    return ResNetBackbone(spec, norm=recipe.norm, norm_eps=eps, frozen_stages=recipe.frozen_stages)


def assemble(recipe: DetectorRecipe, num_classes: int, backbone: nn.Module) -> RCNN:
    """The recipe's parts around a backbone. Raises ValueError for num_classes below one, or missing levels."""
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: a detector needs at least one class (the background is its own)")
    neck = FeaturePyramid(cast("Mapping[str, FeatureSpec]", backbone.feature_specs), channels=recipe.pyramid_channels)
    specs, conventions = neck.feature_specs, recipe.conventions
    strides = {level: spec.stride for level, spec in specs.items()}
    sizes = dict(zip(specs, recipe.rpn.anchor_sizes_px))
    anchors = AnchorGrid(sizes, recipe.rpn.anchor_ratios, strides, conventions)
    pooled = list(specs)[:-1]  # P6 only proposes
    instance_heads = {}
    if recipe.mask is not None:
        pooler = RegionPooler(specs, pooled, size=recipe.mask.pool_size, conventions=conventions)
        instance_heads["mask"] = (pooler, MaskHead(recipe.pyramid_channels, num_classes, recipe.mask))
    return RCNN(
        backbone,
        neck,
        RPN(recipe.pyramid_channels, anchors, recipe.rpn, conventions),
        RegionPooler(specs, pooled, size=recipe.box.pool_size, conventions=conventions),
        BoxHead(recipe.pyramid_channels, num_classes, recipe.box, conventions),
        instance_heads,
    )


def fine_tune(detector: RCNN, source: str | PathLike[str] | Mapping[str, Tensor]) -> WeightReport:
    """Load another detector's weights; layers that depend on the number of classes keep their initial values where
    it differs (`WeightReport.kept_initial`). Raises `WeightMismatch` for any other difference."""
    return load_weights(detector, source, allow_missing=CLASS_LAYERS)
