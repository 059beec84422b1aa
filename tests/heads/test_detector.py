"""RCNN: losses and gradients of every batch, boxes in at least float32, frozen parts, detections, a second stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads import DETECTORS, RCNN, DetectorRecipe, ImageBatch, ImageSize, RoiMasks, Targets, build_detector
from heads import boxes as B
from heads.box_head import BoxHead
from heads.roi_stage import RoIStage
from resnet_backbone import build_backbone

Hashes = Callable[[Mapping[str, Tensor]], dict[str, str]]
MakeBatch = Callable[..., ImageBatch]
MakeTargets = Callable[..., Targets]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
OBJECTS = [[10.0, 8.0, 50.0, 40.0], [30.0, 20.0, 90.0, 60.0]]


def precision(name: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or no autocast."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if name == "bf16" else nullcontext()


def check_gradients(detector: RCNN, losses: dict[str, Tensor]) -> None:
    """Losses are finite and in float32, and every trainable parameter gets a finite gradient."""
    assert set(losses) == LOSSES and all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient: DistributedDataParallel would hang"
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("content", ["no boxes", "only empty masks", "mixed"])
def test_every_batch_gives_every_parameter_a_finite_gradient(
    content: str, dtype: str, small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    targets = {
        "no boxes": [make_targets([]), make_targets([])],
        "only empty masks": [
            make_targets(OBJECTS, empty_bits=(64, 96)),
            make_targets(OBJECTS[:1], empty_bits=(64, 96)),
        ],
        "mixed": [make_targets([]), make_targets(OBJECTS, labels=[0, 2])],
    }[content]
    detector = build_detector(small_recipe, num_classes=3).train()
    with precision(dtype):
        losses = detector(make_batch(), targets)
    check_gradients(detector, losses)
    for name in ("loss_rpn_loc", "loss_box_reg", "loss_mask"):
        assert (losses[name] == 0) == (content == "no boxes")


@pytest.mark.parametrize("neck", ["c4", "dc5"])
@pytest.mark.parametrize("content", ["no boxes", "mixed"])
def test_detectors_without_a_pyramid_train_on_every_batch(
    neck: str, content: str, small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    recipe, full_recipe = small_recipe, DETECTORS[f"mask_rcnn_r50_{neck}"]
    box = replace(full_recipe.box, hidden=64, samples_per_image=32)
    rpn = replace(recipe.rpn, anchor_sizes_px=full_recipe.rpn.anchor_sizes_px)
    recipe = replace(recipe, neck=neck, norm="gn", rpn=rpn, box=box, mask=replace(full_recipe.mask, channels=32))
    detector = build_detector(recipe, num_classes=3).train()
    calls = []
    if detector.box_regions.stage is not None:
        detector.box_regions.stage.register_forward_hook(lambda *_: calls.append(1))
    targets = [make_targets([]), make_targets(OBJECTS if content == "mixed" else [], labels=None)]
    check_gradients(detector, detector(make_batch(), targets))
    assert len(calls) == (neck == "c4")  # once, on the regions that both heads share
    with torch.inference_mode():
        for detections in detector.eval().detect(make_batch()):
            assert detections.masks is not None and len(detections.masks) == len(detections)


def test_a_detector_without_a_mask_head_has_no_mask_loss_and_no_masks(
    small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    detector = build_detector(replace(small_recipe, mask=None), num_classes=3)
    assert set(detector(make_batch(), [make_targets(OBJECTS), make_targets([])])) == LOSSES - {"loss_mask"}
    with torch.inference_mode():
        assert all(detections.masks is None for detections in detector.eval().detect(make_batch()))


def test_a_small_box_far_from_the_origin_is_empty_in_bfloat16() -> None:
    """The reason why boxes are never in half precision: near 900 px, bfloat16 values are 4 px apart."""
    box = torch.tensor([[900.2, 20.3, 901.7, 21.8]])
    assert B.area(box.bfloat16()).item() == 0 and B.area(box).item() == pytest.approx(2.25, rel=1e-3)


def test_small_boxes_far_from_the_origin_train_under_bfloat16(
    small_recipe: DetectorRecipe, make_targets: MakeTargets
) -> None:
    """Ground-truth boxes are regions too: in bfloat16, the width would be 0 and its logarithm infinite."""
    detector = build_detector(small_recipe, num_classes=3).train()
    batch = ImageBatch(torch.randn(2, 3, 64, 1024), (ImageSize(60, 1001), ImageSize(64, 1024)))
    targets = [make_targets([[900.2, 20.3, 901.7, 21.8]]), make_targets([[950.1, 3.2, 951.6, 4.7], [1.0, 1, 2.5, 2.5]])]
    with precision("bf16"):
        losses = detector(batch, targets)
    assert losses["loss_mask"] > 0  # the box was sampled as a positive region
    check_gradients(detector, losses)


def test_exactly_the_trainable_parameters_change_in_training(
    small_recipe: DetectorRecipe,
    imagenet_weights: Path,
    make_batch: MakeBatch,
    make_targets: MakeTargets,
    hashes: Hashes,
) -> None:
    backbone = build_backbone(
        "resnet18", weights=imagenet_weights / "resnet18-imagenet.pth", source="torchvision", frozen_stages=2
    )
    detector = build_detector(small_recipe, num_classes=3, backbone=backbone).train()
    trainable = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.conv1", "backbone.layer1")) or ".bn" in name for name in trainable)
    before = hashes(detector.state_dict())
    optimiser = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(2):
        optimiser.zero_grad()
        losses = detector(make_batch(), [make_targets(OBJECTS), make_targets(OBJECTS[:1], labels=[2])])
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    after = hashes(detector.state_dict())
    assert {key for key in after if after[key] != before[key]} == trainable


def test_detections_have_masks_and_lie_inside_the_unpadded_image(
    small_recipe: DetectorRecipe, make_batch: MakeBatch
) -> None:
    detector = build_detector(replace(small_recipe, norm="gn"), num_classes=3).eval()
    sizes = (ImageSize(50, 96), ImageSize(64, 70))
    with torch.inference_mode():
        detections_of_images = detector.detect(replace(make_batch(), sizes=sizes))
    for detections, size in zip(detections_of_images, sizes):
        assert 0 < len(detections) <= 100 and isinstance(detections.masks, RoiMasks)
        assert detections.masks.probabilities.shape == (len(detections), 28, 28)
        assert detections.boxes.min() >= 0 and detections.labels.max() < 3
        assert detections.boxes[:, 2].max() <= size.width and detections.boxes[:, 3].max() <= size.height


def test_forward_returns_the_same_losses_in_train_and_eval_mode(
    small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    recipe = replace(small_recipe, norm="gn", box=replace(small_recipe.box, samples_per_image=10**6))
    detector = build_detector(replace(recipe, rpn=replace(recipe.rpn, samples_per_image=10**6)), num_classes=3)
    batch, targets = make_batch(), [make_targets(OBJECTS), make_targets([])]
    with torch.no_grad():
        torch.testing.assert_close(detector.train()(batch, targets), detector.eval()(batch, targets))


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_outside_the_classes_is_refused(
    label: int, small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    detector = build_detector(small_recipe, num_classes=3)
    with pytest.raises(ValueError, match=f"labels run from {min(label, 0)} to {max(label, 0)}, this detector has 0..2"):
        detector(make_batch(), [make_targets([]), make_targets(OBJECTS, labels=[0, label])])


@pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 20.0], [20.0, 5.0, 10.0, 15.0], [float("nan"), 1.0, 5.0, 5.0]])
def test_a_target_box_without_area_is_refused(
    box: list[float], small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    """Its regression target would contain the logarithm of zero."""
    targets = [make_targets([]), replace(make_targets(OBJECTS), boxes=torch.tensor([OBJECTS[0], box]))]
    with pytest.raises(ValueError, match="a target box has no area or is not finite"):
        build_detector(small_recipe, num_classes=3)(make_batch(), targets)


def test_targets_without_masks_are_refused_by_a_mask_rcnn(
    small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    detector = build_detector(small_recipe, num_classes=3)
    with pytest.raises(ValueError, match="this detector learns masks, these targets have none"):
        detector(make_batch(), [replace(make_targets(OBJECTS), masks=None)] * 2)


def test_a_wrong_number_of_targets_is_refused(
    small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    with pytest.raises(ValueError, match="2 images came with 1 targets: give one per image"):
        build_detector(small_recipe, num_classes=3)(make_batch(), [make_targets([])])


def two_stage_detector(recipe: DetectorRecipe) -> RCNN:
    """A detector with a second box stage that needs a larger IoU for positives, as in Cascade R-CNN."""
    detector = build_detector(recipe, num_classes=3)
    (first_stage,) = detector.roi_stages
    head = BoxHead(32, 3, replace(first_stage.head.spec, positive_iou=0.6), first_stage.head.conventions)
    second_stage = RoIStage(first_stage.pooler, head, (20.0, 20.0, 10.0, 10.0))
    return RCNN(detector.backbone, detector.neck, detector.rpn, [first_stage, second_stage], detector.instance_heads)


def test_a_second_stage_adds_keys_and_losses(
    small_recipe: DetectorRecipe, make_batch: MakeBatch, make_targets: MakeTargets
) -> None:
    single = build_detector(small_recipe, num_classes=3)
    cascade = two_stage_detector(small_recipe).train()
    added = set(cascade.state_dict()) - set(single.state_dict())
    assert set(single.state_dict()) <= set(cascade.state_dict()) and {key.split(".")[0] for key in added} == {
        "box_head2"
    }
    losses = cascade(make_batch(), [make_targets(OBJECTS), make_targets([])])
    assert set(losses) == LOSSES | {"loss_cls_stage2", "loss_box_reg_stage2"}
    torch.stack(list(losses.values())).sum().backward()
    without_gradient = [name for name, p in cascade.named_parameters() if p.requires_grad and p.grad is None]
    assert not without_gradient


def test_an_equal_second_stage_with_zero_deltas_does_not_change_detections(
    small_recipe: DetectorRecipe, make_batch: MakeBatch
) -> None:
    """Both stages score the same regions equally, and the mean of equal scores is that score."""
    cascade = two_stage_detector(replace(small_recipe, norm="gn")).eval()
    torch.nn.init.normal_(cascade.box_head.logits.weight, std=0.1)
    torch.nn.init.zeros_(cascade.box_head.deltas.weight)
    cascade.get_submodule("box_head2").load_state_dict(cascade.box_head.state_dict())
    single = RCNN(cascade.backbone, cascade.neck, cascade.rpn, cascade.roi_stages[:1], cascade.instance_heads).eval()
    batch = make_batch()
    with torch.inference_mode():
        for a, b in zip(single.detect(batch), cascade.detect(batch), strict=True):
            assert len(a) and torch.equal(a.labels, b.labels)
            torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(a.scores, b.scores)
