"""Equal weights give the detections, masks, losses and gradients of torchvision's detectors, which run in the tests.

torchvision's detectors have `FrozenBatchNorm2d` with non-trivial statistics, and random weights scaled so that scores
spread. Images are from coco-mini. Both run in float64, so differences are rounding only and tolerances are tight.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch import Tensor

from heads.detector import RCNN
from heads.images import read_image
from heads.masks import BitMasks, decode_segmentation
from heads.predictor import Predictor
from heads.structures import ImageBatch, Targets
from tests.heads.torchvision_pairs import NAMES, batch_of, in_double, pair, tensors


@pytest.fixture(scope="module")
def photos(coco_mini: Path) -> tuple[list[np.ndarray], list[dict[str, Tensor]]]:
    """A portrait and a landscape image, with targets in torchvision's format."""
    coco = COCO(str(coco_mini / "annotations" / "instances_val2017.json"))
    images, targets, orientations = [], [], [lambda r: r["height"] > r["width"], lambda r: r["height"] < r["width"]]
    for row in coco.loadImgs(sorted(coco.getImgIds())):
        anns = coco.loadAnns(coco.getAnnIds(row["id"], iscrowd=False))
        if not orientations or not orientations[0](row) or not 3 <= len(anns) <= 8:
            continue
        orientations.pop(0)
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
def detectors(request: pytest.FixtureRequest, photos: Any, patcher: pytest.MonkeyPatch) -> tuple[Any, RCNN]:
    """torchvision's detector and ours with the same weights, in float64."""
    return in_double(*pair(request.param, 200, photos[0], patcher), patcher)


def test_detections_and_masks_equal_torchvision(detectors: tuple[Any, RCNN], photos: Any) -> None:
    reference, ours = detectors
    images, _ = photos
    with torch.inference_mode():
        expected_detections = reference.eval()(tensors(images, torch.float64))
    for expected, detections in zip(expected_detections, Predictor(ours, batch_size=2)(images), strict=True):
        assert len(detections) == len(expected["boxes"]) > 20
        assert len(detections.labels.unique()) > 3 and float(detections.scores.max() - detections.scores.min()) > 0.1
        assert torch.equal(detections.labels + 1, expected["labels"])
        torch.testing.assert_close(detections.boxes, expected["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(detections.scores, expected["scores"], rtol=0, atol=1e-8)
        if "masks" in expected:
            assert isinstance(detections.masks, BitMasks)
            assert torch.equal(detections.masks.bits, expected["masks"][:, 0] > 0.5)


def test_losses_and_gradients_equal_torchvision(detectors: tuple[Any, RCNN], photos: Any) -> None:
    reference, ours = detectors
    images, targets = photos
    batch, our_targets = as_ours(reference, ours, images, targets)
    reference.train().zero_grad()
    ours.train().zero_grad()
    expected_losses = reference(tensors(images, torch.float64), targets)
    losses = ours(batch, our_targets)
    assert {LOSSES[name] for name in losses} == set(expected_losses)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected_losses[LOSSES[name]].item(), rel=1e-9), name
    torch.stack(list(expected_losses.values())).sum().backward()
    torch.stack(list(losses.values())).sum().backward()
    gradients = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    expected_gradients = ours.to_native_keys(gradients).state
    our_gradients = {key: p.grad for key, p in ours.named_parameters() if p.requires_grad}
    assert set(our_gradients) == set(expected_gradients)
    for key, gradient in our_gradients.items():
        assert gradient is not None
        assert float((gradient - expected_gradients[key]).norm()) <= 1e-8 * float(expected_gradients[key].norm()), key


LOSSES = {"loss_rpn_cls": "loss_objectness", "loss_rpn_loc": "loss_rpn_box_reg", "loss_cls": "loss_classifier"}
LOSSES |= {"loss_box_reg": "loss_box_reg", "loss_mask": "loss_mask"}


def as_ours(
    reference: Any, ours: RCNN, images: list[np.ndarray], targets: list[dict[str, Tensor]]
) -> tuple[ImageBatch, list[Targets]]:
    """Our batch and targets for torchvision's images and targets.

    Our resize and normalisation must equal torchvision's, which resizes the targets.
    """
    batch = batch_of(images, ours.preprocess)
    expected_images, resized_targets = reference.transform(tensors(images, torch.float64), [dict(t) for t in targets])
    torch.testing.assert_close(batch.pixels, expected_images.tensors, rtol=0, atol=1e-12)
    assert [(s.height, s.width) for s in batch.sizes] == expected_images.image_sizes
    masked = any(key.startswith("mask_head") for key in ours.state_dict())
    return batch, [
        Targets(t["boxes"], t["labels"] - 1, BitMasks(t["masks"].bool()) if masked else None) for t in resized_targets
    ]


def test_twenty_sgd_steps_give_torchvisions_weights(photos: Any, patcher: pytest.MonkeyPatch) -> None:
    """With equal images, flips and optimisers, weights stay within 1e-6 of torchvision's, and they do change."""
    limits = {"short_side_px": 128, "long_side_px": 192}
    reference, ours = in_double(*pair("maskrcnn_resnet50_fpn", 100, photos[0], patcher, limits), patcher)
    start = {key: value.clone() for key, value in ours.state_dict().items()}
    optimisers = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9, weight_decay=1e-4)
        for model in (reference.train(), ours.train())
    ]
    for step in range(20):
        image, target = photos[0][step % 2], photos[1][step % 2]
        if step % 3 == 0:
            image, target = flipped(image, target)
        batch, our_targets = as_ours(reference, ours, [image], [target])
        for losses, optimiser in zip(
            (reference(tensors([image], torch.float64), [target]), ours(batch, our_targets)), optimisers
        ):
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimiser.step()
    expected = ours.to_native_keys(reference.state_dict()).state
    for key, parameter in ours.named_parameters():
        assert float((parameter.detach() - expected[key]).norm()) <= 1e-6 * float(expected[key].norm()), key
        assert torch.equal(parameter, start[key]) != parameter.requires_grad, key


def flipped(image: np.ndarray, target: dict[str, Tensor]) -> tuple[np.ndarray, dict[str, Tensor]]:
    """The image and its target, flipped horizontally."""
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return np.ascontiguousarray(image[:, ::-1]), {**target, "boxes": boxes, "masks": target["masks"].flip(-1)}
