"""torchvision's own detectors, live: the same weights give the same detections, masks, losses and gradients.

Its models are built with `FrozenBatchNorm2d`, random weights scaled so that scores spread, and norm statistics that are
not trivial; images are coco-mini's. In float64 what is left is rounding, so tolerances are tight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.ops import FrozenBatchNorm2d

from heads.build import DETECTORS, DetectorRecipe, assemble, empty_backbone
from heads.detector import RCNN
from heads.images import read_image, resize, resized_size
from heads.masks import BitMasks, decode_segmentation
from heads.predictor import Predictor
from heads.structures import ImageBatch, ImageSize, Targets
from resnet_backbone import load_weights

EVERYTHING = 1_000_000
NAMES = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2")
LIMITS = {"short_side_px": 320, "long_side_px": 480}


def recipe_of(name: str, proposals: int) -> DetectorRecipe:
    """Ours for one of torchvision's builders, with every anchor and region sampled and so many proposals."""
    recipe = DETECTORS[name]
    rpn = replace(
        recipe.rpn,
        samples_per_image=EVERYTHING,
        positive_fraction=1.0,
        keep_after_nms_train=proposals,
        keep_after_nms_test=proposals,
    )
    head_norm = "frozen_bn" if recipe.pyramid_norm == "bn" else "none"  # v2's, frozen as torchvision's are here
    box = replace(recipe.box, samples_per_image=EVERYTHING, positive_fraction=1.0, norm=head_norm)
    mask = recipe.mask and replace(recipe.mask, norm=head_norm)
    return replace(recipe, norm="frozen_bn", pyramid_norm=head_norm, rpn=rpn, box=box, mask=mask)


def pair(
    name: str,
    proposals: int,
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, int] = LIMITS,
) -> tuple[Any, RCNN]:
    """torchvision's detector with calibrated random weights, and ours with the same ones, in float64."""
    torch.manual_seed(1)
    # without weights the builders make live batch norms, whose output hangs on the batch; the keys are the same
    with monkeypatch.context() as patch:
        patch.setattr(nn, "BatchNorm2d", FrozenBatchNorm2d)
        theirs: Any = getattr(tv, name)(
            weights=None,
            weights_backbone=None,
            num_classes=91,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            rpn_batch_size_per_image=EVERYTHING,
            rpn_positive_fraction=1.0,
            box_batch_size_per_image=EVERYTHING,
            box_positive_fraction=1.0,
            min_size=limits["short_side_px"],
            max_size=limits["long_side_px"],
        )
    for key, parameter in theirs.backbone.body.named_parameters():
        parameter.requires_grad_(key.startswith(("layer2", "layer3", "layer4")))
    calibrate(theirs, images)
    recipe = recipe_of(name, proposals)
    ours = assemble(recipe, 90, empty_backbone(recipe))
    assert load_weights(ours, theirs.state_dict(), origin="torchvision").complete
    ours.preprocess = replace(ours.preprocess, **limits)
    in_double(theirs, monkeypatch)
    return theirs.double(), ours.double()


def in_double(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two float32 corners that would round its float64 results: the RPN's labels, which make that loss float32, and
    the ratio by which boxes are brought back to the image."""
    assign = theirs.rpn.assign_targets_to_anchors

    def assign_in_double(*args: Any) -> Any:
        labels, boxes = assign(*args)
        return [label.double() for label in labels], boxes

    theirs.rpn.assign_targets_to_anchors = assign_in_double

    def resize_boxes(boxes: Tensor, before: Any, after: Any) -> Tensor:
        return boxes * boxes.new_tensor([after[1] / before[1], after[0] / before[0]] * 2)

    for module in (tv.transform, tv.generalized_rcnn, tv.roi_heads):
        if hasattr(module, "resize_boxes"):
            monkeypatch.setattr(module, "resize_boxes", resize_boxes)


@torch.no_grad()
def calibrate(model: Any, images: list[np.ndarray]) -> None:
    """Norm statistics near those of real activations, affine terms off one and zero, and heads whose scores spread."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
            module.register_forward_hook(_take_statistics)
    with_std = {"rpn.head.cls_logits": 0.03, "rpn.head.bbox_pred": 0.005, "cls_score": 0.15, "bbox_pred": 0.05}
    with_std |= {"mask_fcn_logits": 0.3}
    for name, module in model.named_modules():
        if name.startswith("rpn.head.conv") and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        for ending, std in with_std.items():
            if name.endswith(ending):
                nn.init.normal_(module.weight, std=std)
                nn.init.normal_(module.bias, std=0.1)
    model.eval()(tensors(images, torch.float32))
    for module in model.modules():
        module._forward_hooks.clear()


def _take_statistics(norm: FrozenBatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    x = inputs[0]
    if len(x):
        norm.running_mean.copy_(x.mean(dim=(0, 2, 3)) + 0.1 * torch.randn(x.shape[1]))
        norm.running_var.copy_(x.var(dim=(0, 2, 3)) * torch.empty(x.shape[1]).uniform_(0.7, 1.5) + 1e-3)
    return norm.forward(x)


def tensors(images: list[np.ndarray], dtype: torch.dtype) -> list[Tensor]:
    """What torchvision's detectors take: (3, H, W) from 0 to 1."""
    return [torch.tensor(image).permute(2, 0, 1).to(dtype) / 255 for image in images]


@pytest.fixture(scope="module")
def photos(coco_mini: Path) -> tuple[list[np.ndarray], list[dict[str, Tensor]]]:
    """Two images, one upright and one lying, and torchvision's kind of targets for them."""
    coco = COCO(str(coco_mini / "annotations" / "instances_val2017.json"))
    images, targets, wanted = [], [], [lambda r: r["height"] > r["width"], lambda r: r["height"] < r["width"]]
    for row in coco.loadImgs(sorted(coco.getImgIds())):
        anns = coco.loadAnns(coco.getAnnIds(row["id"], iscrowd=False))
        if not wanted or not wanted[0](row) or not 3 <= len(anns) <= 8:
            continue
        wanted.pop(0)
        images.append(read_image(coco_mini / "val2017" / row["file_name"]))
        boxes = torch.tensor([ann["bbox"] for ann in anns], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        bits = [decode_segmentation(ann["segmentation"], row["height"], row["width"]) for ann in anns]
        masks = torch.from_numpy(np.stack(bits).astype(np.uint8))
        targets.append({"boxes": boxes, "labels": torch.tensor([ann["category_id"] for ann in anns]), "masks": masks})
    assert len(images) == 2
    return images, targets


@pytest.fixture(scope="module")
def patcher() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, photos: Any, patcher: pytest.MonkeyPatch) -> tuple[Any, RCNN]:
    return pair(request.param, 300, photos[0], patcher)


def test_every_detection_and_mask_is_torchvisions(both: tuple[Any, RCNN], photos: Any) -> None:
    theirs, ours = both
    images, _ = photos
    with torch.inference_mode():
        wanted = theirs.eval()(tensors(images, torch.float64))
    for want, found in zip(wanted, Predictor(ours, batch_size=2)(images), strict=True):
        assert len(found) == len(want["boxes"]) > 20
        assert len(found.labels.unique()) > 3 and float(found.scores.max() - found.scores.min()) > 0.1
        assert torch.equal(found.labels + 1, want["labels"])
        torch.testing.assert_close(found.boxes, want["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.scores, want["scores"], rtol=0, atol=1e-8)
        if "masks" in want:
            assert isinstance(found.masks, BitMasks)
            assert torch.equal(found.masks.bits, want["masks"][:, 0] > 0.5)


def test_losses_and_gradients_are_torchvisions(both: tuple[Any, RCNN], photos: Any) -> None:
    theirs, ours = both
    images, targets = photos
    batch, truths = as_ours(theirs, ours, images, targets)
    theirs.train().zero_grad()
    ours.train().zero_grad()
    wanted = theirs(tensors(images, torch.float64), targets)
    found = ours(batch, truths)
    assert {LOSSES[name] for name in found} == set(wanted)
    for name, loss in found.items():
        assert loss.item() == pytest.approx(wanted[LOSSES[name]].item(), rel=1e-9), name
    torch.stack(list(wanted.values())).sum().backward()
    torch.stack(list(found.values())).sum().backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    want_of = ours.our_names(gradients).state
    trained = {key: p.grad for key, p in ours.named_parameters() if p.requires_grad}
    assert set(trained) == set(want_of)
    for key, gradient in trained.items():
        assert gradient is not None
        assert float((gradient - want_of[key]).norm()) <= 1e-8 * float(want_of[key].norm()), key


LOSSES = {"loss_rpn_cls": "loss_objectness", "loss_rpn_loc": "loss_rpn_box_reg", "loss_cls": "loss_classifier"}
LOSSES |= {"loss_box_reg": "loss_box_reg", "loss_mask": "loss_mask"}


def as_ours(
    theirs: Any, ours: RCNN, images: list[np.ndarray], targets: list[dict[str, Tensor]]
) -> tuple[ImageBatch, list[Targets]]:
    """Our batch, made by our own resize and normalisation, which must be torchvision's; its targets, resized by it."""
    rule, planes = ours.preprocess, []
    for image in images:
        limits = {"short_side_px": rule.short_side_px, "long_side_px": rule.long_side_px}
        size = resized_size(ImageSize(*image.shape[:2]), **limits, how="torch")
        planes.append(torch.tensor(resize(image, size, how="torch", precise=True)).permute(2, 0, 1))
    batch = ImageBatch.from_images(planes, rule)
    listed, moved = theirs.transform(tensors(images, torch.float64), [dict(t) for t in targets])
    torch.testing.assert_close(batch.pixels, listed.tensors, rtol=0, atol=1e-12)
    assert [(s.height, s.width) for s in batch.sizes] == listed.image_sizes
    masked = any(key.startswith("mask_head") for key in ours.state_dict())
    return batch, [Targets(t["boxes"], t["labels"] - 1, BitMasks(t["masks"].bool()) if masked else None) for t in moved]


def test_twenty_steps_of_sgd_end_at_torchvisions_weights(photos: Any, patcher: pytest.MonkeyPatch) -> None:
    """The same order, the same flips, the same optimiser: weights stay together to 1e-6 and do move."""
    limits = {"short_side_px": 128, "long_side_px": 192}
    theirs, ours = pair("maskrcnn_resnet50_fpn", 100, photos[0], patcher, limits)
    start = {key: value.clone() for key, value in ours.state_dict().items()}
    optimisers = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9, weight_decay=1e-4)
        for model in (theirs.train(), ours.train())
    ]
    for step in range(20):
        image, truth = photos[0][step % 2], photos[1][step % 2]
        if step % 3 == 0:
            image, truth = flipped(image, truth)
        batch, truths = as_ours(theirs, ours, [image], [truth])
        for losses, optimiser in zip(
            (theirs(tensors([image], torch.float64), [truth]), ours(batch, truths)), optimisers
        ):
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimiser.step()
    want = ours.our_names(theirs.state_dict()).state
    for key, parameter in ours.named_parameters():
        assert float((parameter.detach() - want[key]).norm()) <= 1e-6 * float(want[key].norm()), key
        assert torch.equal(parameter, start[key]) != parameter.requires_grad, key


def flipped(image: np.ndarray, truth: dict[str, Tensor]) -> tuple[np.ndarray, dict[str, Tensor]]:
    boxes = truth["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return np.ascontiguousarray(image[:, ::-1]), {**truth, "boxes": boxes, "masks": truth["masks"].flip(-1)}
