"""From recipes and files to detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from resnet_backbone.adapt import check_backbone
from resnet_backbone.backbone import ResNetBackbone
from resnet_backbone.blocks import Bottleneck
from resnet_backbone.build import check_frozen_has_weights, open_weights, verify
from resnet_backbone.errors import InvalidValue, did_you_mean
from resnet_backbone.norm import FixedStatsBatchNorm2d, FrozenBatchNorm2d
from resnet_backbone.protocols import Backbone, FeatureSpec
from resnet_backbone.specs import RESNETS
from resnet_backbone.weights.certificate import check_hashes
from resnet_backbone.weights.keymaps import Renamed
from resnet_backbone.weights.load import WeightReport, load_file, source_of
from resnet_backbone.weights.read import WeightFile, Weights
from resnet_backbone.weights.sources import WeightSource

from .anchors import AnchorGrid
from .box_head import BoxHead
from .class_lists import class_names_in
from .class_rows import CLASS_LAYERS, default_names, rows_by_name
from .detector import RCNN
from .fingerprint import check_outputs
from .fpn import FeaturePyramid
from .keymaps import candidates_of, layout_of
from .mask_head import MaskHead
from .recipes import DETECTORS, NECKS, DetectorRecipe
from .roi_pool import RegionPooler
from .roi_stage import BOX_DELTA_WEIGHTS, InstanceStage, RoIStage
from .rpn import RPN
from .weights import MASK_KEYS, conventions_for, count_classes, num_classes_in


def build_detector(
    recipe: str | DetectorRecipe,
    *,
    num_classes: int,
    weights: Weights | None = None,
    source: str | None = None,
    backbone: Backbone | None = None,
) -> RCNN:
    """Build a detector, with the weights of a whole detector or with initial values.

    Args:
        recipe: a name in `DETECTORS` or a recipe. Conventions are taken from the weights; stride placement too, if the
            recipe is given by its name.
        num_classes: number of classes K, for labels 0..K - 1; the background is not counted.
        weights: a whole detector's weights, in the layout of any project: a file, the folder of a run, or a state dict.
            They also bring pixel format, image size and class names. The mask head of a Mask R-CNN is left out where
            the recipe has none.
        source: where the weights come from (a key of `SOURCES`), if the file does not identify it.
        backbone: a backbone with its weights, for the levels that the recipe reads; `build_backbone(...)` and
            `as_backbone(...)` make one. None builds the recipe's own.

    Returns:
        The detector.

    Raises:
        InvalidValue: an unknown name, norms or stages that would be frozen at initial values, another number of classes
            than the weights have, or a backbone that does not return what it publishes.
        WeightMismatch: the weights do not fit; as for `load_weights`.
        CertificateMismatch: a certified file does not match its certificate.
    """
    if backbone is not None and not isinstance(backbone, ResNetBackbone):
        check_backbone(cast(nn.Module, backbone))
    file = None if weights is None else open_weights(weights)
    recipe = resolve_recipe(recipe, file, source=source)
    if backbone is None:
        check_frozen_has_weights(file is not None, norm=recipe.norm, frozen_stages=recipe.frozen_stages)
    if file is None:
        check_frozen_head_norms(recipe)
        return assemble(recipe, num_classes, empty_backbone(recipe) if backbone is None else backbone)
    _check_num_classes(file, num_classes)
    detector = assemble(recipe, num_classes, empty_backbone(recipe) if backbone is None else backbone)
    load_certified(detector, file, source=source)
    return detector


def resolve_recipe(recipe: str | DetectorRecipe, file: WeightFile | None, *, source: str | None) -> DetectorRecipe:
    """Adapt a recipe to the weights that it will be built for.

    Args:
        recipe: a name in `DETECTORS` or a recipe.
        file: the weights; None leaves the recipe as it is.
        source: where the weights come from (a key of `SOURCES`), if the file does not identify it.

    Returns:
        The recipe with the conventions of the weights and, if it was given by its name, their stride placement.

    Raises:
        InvalidValue: an unknown name.
        AmbiguousWeights: the source cannot be identified.
    """
    by_name = isinstance(recipe, str)
    if isinstance(recipe, str):
        if recipe not in DETECTORS:
            raise InvalidValue(f"no detector is called {recipe!r}: {did_you_mean(recipe, DETECTORS)}")
        recipe = DETECTORS[recipe]
    weight_source = None if file is None else detector_source(file, source)
    if file is None or weight_source is None:
        return recipe
    recipe = replace(recipe, conventions=conventions_for(weight_source, file))
    if by_name and issubclass(RESNETS[recipe.backbone].block, Bottleneck):
        recipe = replace(recipe, stride_on=weight_source.stride_on)
    if file.meta is None and weight_source.project == "mmdetection":  # a setting of its Mask R-CNN
        recipe = replace(recipe, box=replace(recipe.box, keep_best=recipe.mask is not None))
    return recipe


def detector_source(file: WeightFile, source: str | None) -> WeightSource | None:
    """Tell what a whole detector's weights were trained with; arguments and errors as for `source_of`."""
    return source_of(file, Renamed({}, candidates_of(file.state)), source)


def load_certified(detector: RCNN, file: WeightFile, *, source: str | None = None) -> WeightReport:
    """Load a whole detector's weights; for a certified file, check hashes and the outputs of every stage.

    Args:
        detector: a fresh detector; after an error it must not be used.
        file: the weights.
        source: where the weights come from (a key of `SOURCES`), if the file does not identify it.

    Returns:
        What happened to every key.

    Raises:
        CertificateMismatch: the file does not match its certificate.
        WeightMismatch: the weights do not fit.
    """
    if file.meta is not None and file.certified:
        check_hashes(file.state, file.meta["tensors"], str(file))
    report = load_file(detector, file, source=source)
    if file.meta is not None and file.certified:
        check_outputs(detector, file.meta, str(file))
    return report


def check_frozen_head_norms(recipe: DetectorRecipe) -> None:
    """Refuse norms behind the backbone that would keep initial statistics.

    Args:
        recipe: the recipe of a detector that is built without a whole detector's weights.

    Raises:
        InvalidValue: a norm of the pyramid or a head has fixed statistics.
    """
    norms = {"pyramid_norm": recipe.pyramid_norm, "box.norm": recipe.box.norm}
    norms |= {} if recipe.mask is None else {"mask.norm": recipe.mask.norm}
    for name, norm in norms.items():
        if norm in ("frozen_bn", "bn_eval"):
            raise InvalidValue(
                f"{name}={norm!r} without a detector's weights would freeze initial statistics: give the weights of a "
                "whole detector, or 'bn', 'gn' or 'none'"
            )


def _check_num_classes(file: WeightFile, num_classes: int) -> None:
    classes = num_classes_in(file)
    if layout_of(file.state) is not None and classes is not None and classes != num_classes:
        raise InvalidValue(
            f"{file}: these weights have {classes} classes and the background, num_classes={num_classes} was given: "
            f"build with num_classes={classes} (the background is not counted), then fine_tune() another one from it"
        )


def empty_backbone(recipe: DetectorRecipe) -> ResNetBackbone:
    """The recipe's backbone at initial values, for weights that are loaded later."""
    return ResNetBackbone(
        recipe.spec,
        norm=recipe.norm,
        norm_eps=recipe.conventions.norm_eps,
        out_levels=NECKS[recipe.neck],
        frozen_stages=recipe.frozen_stages,
    )


def assemble(recipe: DetectorRecipe, num_classes: int, backbone: Backbone) -> RCNN:
    """Put the recipe's parts together around a backbone.

    Args:
        recipe: the recipe; a "c4" recipe takes the last stage out of the backbone.
        num_classes: number of classes, without the background.
        backbone: a backbone with the levels that the recipe reads.

    Returns:
        The detector; everything but the backbone has initial values.

    Raises:
        InvalidValue: num_classes below one, or a backbone without the levels.
    """
    if num_classes < 1:
        raise InvalidValue(f"num_classes={num_classes}: a detector needs at least one class besides the background")
    conventions = recipe.conventions
    stage, stage_spec = _take_c5(backbone) if recipe.neck == "c4" else (None, None)
    neck, specs, pooled = _make_neck(recipe, backbone)
    rpn_channels = specs[pooled[0]].channels
    head_channels = rpn_channels if stage_spec is None else stage_spec.channels
    sizes = dict(zip(specs, recipe.rpn.anchor_sizes_px))
    strides = {level: spec.stride for level, spec in specs.items()}
    anchors = AnchorGrid(sizes, recipe.rpn.anchor_ratios, strides, conventions)

    def pooler(size: int) -> RegionPooler:
        return RegionPooler(specs, pooled, size=size, conventions=conventions, stage=stage)

    box_pooler = pooler(recipe.box.pool_size)
    box_stage = RoIStage(box_pooler, BoxHead(head_channels, num_classes, recipe.box, conventions), BOX_DELTA_WEIGHTS)
    instance_heads = {}
    if recipe.mask is not None:
        mask_pooler = box_pooler if stage is not None else pooler(recipe.mask.pool_size)
        mask_head = MaskHead(head_channels, num_classes, recipe.mask, conventions)
        instance_heads["mask"] = InstanceStage(mask_pooler, mask_head)
    return RCNN(backbone, neck, RPN(rpn_channels, anchors, recipe.rpn, conventions), [box_stage], instance_heads)


def _make_neck(recipe: DetectorRecipe, backbone: Backbone) -> tuple[nn.Module, dict[str, FeatureSpec], list[str]]:
    """The neck, the levels that it returns, and those of them from which regions are pooled."""
    given = backbone.feature_specs
    if recipe.neck == "fpn":
        neck = FeaturePyramid(given, channels=recipe.pyramid_channels, norm=recipe.pyramid_norm)
        return neck, neck.feature_specs, list(neck.feature_specs)[:-1]  # P6 is for proposals only
    level = NECKS[recipe.neck][0]
    if level not in given:
        raise InvalidValue(f"a {recipe.neck} detector reads {level.upper()}, the backbone gives {list(given)}")
    return nn.Identity(), {level: given[level]}, [level]


def _take_c5(backbone: Backbone) -> tuple[nn.Module, FeatureSpec]:
    if not isinstance(backbone, ResNetBackbone) or not {"c4", "c5"} <= set(backbone.out_levels):
        given = list(backbone.feature_specs)
        raise InvalidValue(
            f"a c4 detector takes C5 out of a ResNetBackbone with levels c4 and c5; this one has {given}"
        )
    return backbone.take_last_stage()


def fine_tune(
    detector: RCNN,
    weights: Weights,
    *,
    source: str | None = None,
    allow_missing: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
) -> WeightReport:
    """Load another detector's weights as the start of a training on other classes.

    Args:
        detector: the detector to train. Its `class_names` are the classes that it will learn: set them before.
        weights: the other detector's weights, as for `load_weights`.
        source: where the weights come from (a key of `SOURCES`), if the file does not identify it.
        allow_missing: patterns of further keys that may keep their initial values.
        class_names: the classes of the weights, in the order of their labels; None for those in the file, or COCO's
            for the published detectors of another project.

    Returns:
        What happened to every key. In layers that depend on the classes (logits, box deltas, mask logits), the rows of
        classes that both detectors have are found by name and kept, with that of the background; the others keep
        their initial values (`partly_loaded`, `kept_initial` and `notes` say which). Where the classes of one of the
        two are unknown, the layers are loaded if the numbers of classes are equal. A mask head that the weights lack
        keeps its initial values too.

    Raises:
        InvalidValue: another number of names than the weights have classes, or a mask head that the weights lack with
            norms of fixed statistics.
        WeightMismatch: any other difference.
    """
    file = open_weights(weights)
    verify(file)
    native = detector.to_native_keys(file.state)
    lacking = [f"{name}_head." for name in detector.instance_heads if not _has(native.state, f"{name}_head.")]
    _check_lacking(detector, lacking)
    count = count_classes(native.state)
    if class_names is not None and count is not None and len(class_names) != count:
        raise InvalidValue(f"class_names has {len(class_names)} names, {file} has {count} classes: give one for each")
    names = class_names if class_names is not None else class_names_in(file.content, count or 0, native.layout)
    new_names = detector.class_names
    report = load_file(
        detector,
        file,
        source=source,
        allow_missing=(*CLASS_LAYERS, *(f"{head}*" for head in lacking), *allow_missing),
        choose_rows=lambda renamed: rows_by_name(detector.state_dict(), renamed.state, names, new_names),
    )
    if new_names != default_names(len(new_names)):
        detector.class_names = new_names
    heads = [f"the weights have no {head.removesuffix('.')}: it keeps its initial values" for head in lacking]
    if masks := [key for key in report.unused_by_design if MASK_KEYS.match(key)]:
        heads.append(f"{len(masks)} tensors of a mask head, first {masks[0]}, are not used: this detector has none")
    return replace(report, notes=(*report.notes, *heads))


def _has(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state)


def _check_lacking(detector: RCNN, heads: Sequence[str]) -> None:
    """Refuse a head whose norms would be fixed at initial statistics."""
    for head in heads:
        module = detector.get_submodule(head.removesuffix("."))
        if any(isinstance(part, (FrozenBatchNorm2d, FixedStatsBatchNorm2d)) for part in module.modules()):
            raise InvalidValue(
                f"these weights have no {head.removesuffix('.')}, and the detector's has norms with fixed statistics, "
                "which would stay at initial values: build it with mask.norm 'bn', 'gn' or 'none'"
            )
