"""Fine-tuning keeps the rows of shared classes, found by name, and the heads that both detectors have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models import detection as tv

from heads import DETECTORS, RCNN, DetectorRecipe, ImageBatch, build_detector
from heads.build import assemble, empty_backbone, fine_tune
from heads.class_lists import COCO_80
from heads.class_rows import rows_by_name
from heads.conventions import CONVENTIONS
from heads.files import save_detector
from heads.keymaps import to_layout
from resnet_backbone import WeightMismatch, load_weights

LAYERS = ("box_head.logits", "box_head.deltas", "mask_head.logits")
Names = Sequence[str]
NAMES = st.lists(st.sampled_from([*"abcdefgh", "N/A", "A"]), min_size=1, max_size=6)


@pytest.fixture
def recipe(small_recipe: DetectorRecipe) -> DetectorRecipe:
    return replace(small_recipe, norm="gn")


@pytest.fixture
def make(recipe: DetectorRecipe) -> Callable[..., RCNN]:
    """A function from class names to a detector whose class layers have random values everywhere."""

    def detector(names: Names, **changes: object) -> RCNN:
        made = build_detector(replace(recipe, **changes), num_classes=len(names))  # type: ignore[arg-type]
        for key, value in made.state_dict().items():
            if key.startswith(LAYERS):
                value.copy_(torch.randn(value.shape) * 0.1)
        made.class_names = tuple(names)
        return made

    return detector


def by_class(detector: RCNN | dict[str, Tensor], layer: str, names: Names) -> dict[str, Tensor]:
    """Name -> the rows of a layer's weight, and of the background where it has some."""
    weight = (detector if isinstance(detector, dict) else detector.state_dict())[f"{layer}.weight"].flatten(1)
    rows = [*names, "background"] if layer == "box_head.logits" else list(names)
    return dict(zip(rows, weight.reshape(len(rows), -1).clone(), strict=True))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("cat", "dog", "cow"), ("cow", "cat", "dog")),  # another order
        (("cat", "dog", "cow"), ("sheep", "dog", "pig")),  # as many, others
        (("cat", "dog", "cow"), ("dog",)),  # fewer
        (("cat", "dog"), ("pig", "dog", "sheep", "cat")),  # more
        (("cat", "dog", "cow"), ("pig", "hen", "fox")),  # none in common
        (("Traffic_Light", "dog"), ("dog", "traffic light")),  # another spelling
    ],
)
def test_rows_of_shared_names_are_those_of_the_weights(old: Names, new: Names, make: Callable[..., RCNN]) -> None:
    source, detector = make(old), make(new)
    shared = {name: name if name in old else "Traffic_Light" for name in new if name in old or name == "traffic light"}
    expected = {layer: by_class(detector, layer, new) for layer in LAYERS}
    theirs = {layer: by_class(source, layer, old) for layer in LAYERS}
    report = fine_tune(detector, source.state_dict(), class_names=old)
    for layer in LAYERS:
        rows = by_class(detector, layer, new)
        for name, value in rows.items():
            kept = name in shared or name == "background"
            right = theirs[layer][shared.get(name, name)] if kept else expected[layer][name]
            assert torch.equal(value, right), (layer, name)
    assert detector.class_names == tuple(new) and report.complete
    assert f"{len(shared)} of {len(new)} classes are in the weights" in report.notes[0]
    others = [layer for layer in LAYERS if layer != "box_head.logits"]
    assert ("mask_head.logits.weight" in report.kept_initial) == (not shared)
    whole = len(shared) == len(new)
    assert all((f"{layer}.weight" in report.loaded) == whole for layer in LAYERS)
    assert all((f"{layer}.bias" in report.partly_loaded) == (not whole and bool(shared)) for layer in others)


@given(old=NAMES, new=NAMES)
def test_any_lists_of_names_give_the_rows_of_a_dictionary(old: list[str], new: list[str]) -> None:
    """Duplicated names, torchvision's N/A and other spellings included."""

    def spelled(names: list[str]) -> list[str]:
        return [name.casefold() for name in names]

    def state(names: list[str], start: float) -> dict[str, Tensor]:
        count = len(names)
        sizes = {"box_head.logits.bias": count + 1, "box_head.deltas.bias": 4 * count, "mask_head.logits.bias": count}
        return {key: start + torch.arange(float(size)) for key, size in sizes.items()}

    initial, theirs = state(new, -1000.0), state(old, 1.0)
    rows = rows_by_name(initial, theirs, old, new)
    if spelled(old) == spelled(new) and (old == new or len({*spelled(old)} - {"n/a"}) == len(old)):
        assert not rows.state and not rows.left
        return
    at = {name: i for i, name in enumerate(spelled(old)) if spelled(old).count(name) == 1 and name != "n/a"}
    for label, name in enumerate(spelled(new)):
        known = name in at and spelled(new).count(name) == 1
        for key, size in (("box_head.logits.bias", 1), ("box_head.deltas.bias", 4), ("mask_head.logits.bias", 1)):
            made = rows.state.get(key, initial[key])[size * label : size * label + size]
            origin = theirs[key][size * at[name] :][:size] if known else initial[key][size * label :][:size]
            assert torch.equal(made, origin)
    assert rows.state["box_head.logits.bias"][-1] == theirs["box_head.logits.bias"][-1]


def test_torchvisions_coco_detector_gives_the_rows_of_cocos_names() -> None:
    """Its background comes first, also in deltas and masks; its unused ids are no classes."""
    theirs = tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    for key in theirs:
        if "predictor" in key:
            theirs[key] = torch.randn(theirs[key].shape)
    recipe = DETECTORS["maskrcnn_resnet50_fpn"]
    detector = assemble(recipe, 3, empty_backbone(recipe))
    detector.class_names = ("forklift", "toothbrush", "bicycle")
    report = fine_tune(detector, {"model": theirs}, source="torchvision")  # type: ignore[dict-item]
    assert "2 of 3 classes are in the weights (toothbrush, bicycle), initial values for forklift" in str(report)
    ours, box, mask = detector.state_dict(), "roi_heads.box_predictor.", "roi_heads.mask_predictor."
    bicycle, toothbrush = 2, 90  # COCO's ids, which are torchvision's labels
    assert torch.equal(ours["box_head.logits.bias"][1:], theirs[box + "cls_score.bias"][[toothbrush, bicycle, 0]])
    deltas = theirs[box + "bbox_pred.weight"].reshape(91, 4, -1)[[toothbrush, bicycle]].flatten(0, 1)
    assert torch.equal(ours["box_head.deltas.weight"][4:], deltas)
    masks = theirs[mask + "mask_fcn_logits.weight"][[toothbrush, bicycle]]
    assert torch.equal(ours["mask_head.logits.weight"][1:], masks)
    assert detector.class_names == ("forklift", "toothbrush", "bicycle") and detector.preprocess.resize == "torch"


@pytest.mark.parametrize(("layout", "classes"), [("detectron2", COCO_80), ("mmdetection", COCO_80)])
def test_other_projects_detectors_give_the_rows_of_cocos_names(
    layout: str, classes: Names, make: Callable[..., RCNN]
) -> None:
    conventions = CONVENTIONS[layout]
    source = make(classes, conventions=conventions)
    detector = make(["toothbrush", "forklift"], conventions=conventions)
    source_name = "detectron2_rgb" if layout == "detectron2" else layout
    file = {f"module.{key}": value for key, value in to_layout(source.state_dict(), layout, {}).items()}
    report = fine_tune(detector, file, source=source_name)
    assert report.notes[0] == f"prefix 'module.' removed from all {len(file)} keys"
    theirs, ours = source.state_dict()["box_head.logits.weight"], detector.state_dict()["box_head.logits.weight"]
    assert torch.equal(ours[[0, 2]], theirs[[79, 80]]) and detector.class_names == ("toothbrush", "forklift")


def test_weights_without_names_are_taken_by_position_and_that_is_said(make: Callable[..., RCNN]) -> None:
    source, detector = make(["a", "b"]), make(["c", "d"])
    report = fine_tune(detector, source.state_dict())
    assert report.notes == ("class layers taken by position: the names of the classes are unknown",)
    assert torch.equal(detector.state_dict()["box_head.logits.bias"], source.state_dict()["box_head.logits.bias"])
    assert detector.class_names == ("c", "d")


def test_a_wrong_number_of_names_is_refused(make: Callable[..., RCNN]) -> None:
    with pytest.raises(ValueError, match="class_names has 3 names, the given weights has 2 classes"):
        fine_tune(make(["c"]), make(["a", "b"]).state_dict(), class_names=["a", "b", "c"])


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["ours", "certified", "detectron2", "torchvision", "mmdetection"])
def test_the_mask_head_of_weights_for_a_box_model_is_left_out_and_reported(
    kind: str, recipe: DetectorRecipe, tmp_path: Path, make: Callable[..., RCNN], make_batch: Callable[..., ImageBatch]
) -> None:
    project = kind if kind in CONVENTIONS else "torchvision"
    recipe = replace(recipe, conventions=CONVENTIONS[project])
    source, boxes_only = make(["a", "b"], conventions=recipe.conventions).eval(), replace(recipe, mask=None)
    state = source.state_dict() if kind in ("ours", "certified") else to_layout(source.state_dict(), kind, {})
    save_detector(source, recipe, tmp_path / "mask.pth", source="a test")
    weights = tmp_path / "mask.pth" if kind == "certified" else state
    source_name = {"detectron2": "detectron2_rgb", "torchvision": "torchvision", "mmdetection": "mmdetection"}.get(kind)
    built = build_detector(boxes_only, num_classes=2, weights=weights, source=source_name).eval()
    report = load_weights(built, weights, source=source_name)
    masks = [key for key in state if "mask_" in key]
    assert set(report.unused_by_design) == set(masks) and len(masks) == 12
    tuned = fine_tune(build_detector(boxes_only, num_classes=2), weights, source=source_name)
    assert f"12 tensors of a mask head, first {masks[0]}, are not used: this detector has none" in tuned.notes
    built.preprocess = source.preprocess
    batch = make_batch()
    for a, b in zip(source.detect(batch), built.detect(batch), strict=True):
        assert len(a) and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and b.masks is None


def test_a_mask_head_that_the_weights_lack_keeps_its_initial_values_in_fine_tuning_alone(
    make: Callable[..., RCNN],
) -> None:
    boxes, detector = make(["a", "b"], mask=None), make(["a", "b"])
    with pytest.raises(WeightMismatch, match=r"missing \(12\): mask_head.convs.0.weight"):
        load_weights(detector, boxes.state_dict())
    initial = {key: value.clone() for key, value in detector.state_dict().items() if key.startswith("mask_head.")}
    report = fine_tune(detector, boxes.state_dict(), class_names=["a", "b"])
    assert report.notes == ("the weights have no mask_head: it keeps its initial values",)
    assert set(report.kept_initial) == set(initial)
    assert all(torch.equal(detector.state_dict()[key], value) for key, value in initial.items())
    partial = boxes.state_dict() | {"mask_head.convs.0.bias": initial["mask_head.convs.0.bias"]}
    with pytest.raises(WeightMismatch, match="missing .*mask_head.convs.0.weight"):
        fine_tune(detector, partial)


def test_a_lacking_mask_head_with_fixed_norms_is_refused(make: Callable[..., RCNN], recipe: DetectorRecipe) -> None:
    boxes = make(["a", "b"], mask=None).state_dict()
    frozen = replace(recipe, mask=replace(recipe.mask, norm="frozen_bn"))  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"no mask_head, .*norms with fixed statistics.*mask.norm 'bn'"):
        fine_tune(assemble(frozen, 2, empty_backbone(frozen)), boxes)
