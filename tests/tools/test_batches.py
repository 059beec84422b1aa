"""Batches of COCO images with crowds only or without annotations, through the loader and the backward pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from heads.build import DETECTORS, assemble, empty_backbone
from heads.mask_head import MaskHeadSpec
from heads.structures import ImageBatch
from tools.annotations.reader import ReadOptions
from tools.data.augment import Augment
from tools.data.coco import load_coco, restrict
from tools.data.loader import BatchPlan, TrainingImages, make_loader


def annotations(coco_mini: Path, kind: str) -> dict[str, Any]:
    """Two images with crowds and other objects: all annotations, only the crowds, or none. A third has an object."""
    content = json.loads((coco_mini / "annotations" / "instances_train2017.json").read_text())
    crowded = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    chosen = sorted(crowded)[:2]
    last = max(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    content["images"] = [image for image in content["images"] if image["id"] in [*chosen, last]]
    keep = {"mixed": lambda a: True, "crowds": lambda a: a["iscrowd"], "empty": lambda a: False}[kind]
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] == last or (a["image_id"] in chosen and keep(a))
    ]
    return dict(content)


@pytest.mark.parametrize("kind", ["mixed", "crowds", "empty"])
def test_batches_without_objects_give_every_parameter_a_finite_gradient(
    kind: str, coco_mini: Path, tmp_path: Path
) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations(coco_mini, kind)))
    options = ReadOptions(masks=True, crowds="crowds")
    data = restrict(load_coco(coco_mini / "train2017", path, options), objects=None, max_images=2)
    assert sum(record.crowds for record in data.records) == (0 if kind == "empty" else 2)
    images = TrainingImages(data, Augment((96,), 160, 0.5, masks=True), seed=0, on_bad_image="stop")
    batch = next(iter(make_loader(images, BatchPlan(data, batch_size=2, seed=0, span=(0, 1)), workers=0)))
    assert (sum(len(target) for target in batch.targets) > 0) == (kind == "mixed")
    recipe = DETECTORS["mask_rcnn_r18_fpn"]
    recipe = replace(
        recipe,
        norm="bn",
        frozen_stages=0,
        pyramid_channels=16,
        box=replace(recipe.box, hidden=32, samples_per_image=32),
        mask=MaskHeadSpec(channels=16),
    )
    detector = assemble(recipe, len(data.class_names), empty_backbone(recipe))
    losses = detector(ImageBatch.from_images(batch.images, detector.preprocess), batch.targets)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
