"""torchvision's own detectors, live: the same weights give the same detections, masks, losses and gradients.

Its models are built with `FrozenBatchNorm2d`, random weights scaled so that scores spread, and norm statistics that are
not trivial; images are coco-mini's. In float64 what is left is rounding, so tolerances are tight.
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
    return in_double(*pair(request.param, 200, photos[0], patcher), patcher)


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
    want_of = ours.to_native_keys(gradients).state
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
    batch = batch_of(images, ours.preprocess)
    listed, moved = theirs.transform(tensors(images, torch.float64), [dict(t) for t in targets])
    torch.testing.assert_close(batch.pixels, listed.tensors, rtol=0, atol=1e-12)
    assert [(s.height, s.width) for s in batch.sizes] == listed.image_sizes
    masked = any(key.startswith("mask_head") for key in ours.state_dict())
    return batch, [Targets(t["boxes"], t["labels"] - 1, BitMasks(t["masks"].bool()) if masked else None) for t in moved]


def test_twenty_steps_of_sgd_end_at_torchvisions_weights(photos: Any, patcher: pytest.MonkeyPatch) -> None:
    """The same order, the same flips, the same optimiser: weights stay together to 1e-6 and do move."""
    limits = {"short_side_px": 128, "long_side_px": 192}
    theirs, ours = in_double(*pair("maskrcnn_resnet50_fpn", 100, photos[0], patcher, limits), patcher)
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
    want = ours.to_native_keys(theirs.state_dict()).state
    for key, parameter in ours.named_parameters():
        assert float((parameter.detach() - want[key]).norm()) <= 1e-6 * float(want[key].norm()), key
        assert torch.equal(parameter, start[key]) != parameter.requires_grad, key


def flipped(image: np.ndarray, truth: dict[str, Tensor]) -> tuple[np.ndarray, dict[str, Tensor]]:
    boxes = truth["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return np.ascontiguousarray(image[:, ::-1]), {**truth, "boxes": boxes, "masks": truth["masks"].flip(-1)}
