"""Detectors, an adapted backbone and the classifier on the pretend device; `test_pretend.py` reads the lines of JSON.

Each runs on the CPU too. fp16 is compared with bf16 there: a CPU has no autocast for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from heads import RCNN, Detections, Predictor
from heads.structures import ImageBatch
from resnet_backbone import RESNETS, Preprocess, ResNetClassifier, as_backbone
from tests.tools.pretend.device import DEVICE, waits
from tests.tools.pretend.training import make_detector
from tools.engine.tasks import Classification
from tools.evaluation.multi_crop import CropRule, probabilities, scorer

PRECISIONS = ("fp32", "bf16", "fp16")


def some_detector() -> RCNN:
    """A detector whose scores differ, so that rounding decides nothing."""
    detector, _ = make_detector()
    for layer in ("box_head.logits", "rpn.objectness", "mask_head.logits"):
        nn.init.normal_(detector.get_parameter(f"{layer}.weight"), std=0.5)
    detector.preprocess = Preprocess(short_side_px=64, long_side_px=128)
    return detector


def images(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(count)]


def described(detections: Sequence[Detections]) -> list[Any]:
    return [[d.boxes.tolist(), d.scores.tolist(), d.labels.tolist()] for d in detections]


def predicted(precision: str, fast: bool) -> dict[str, Any]:
    """Detections of both devices."""
    results = {}
    for device in (DEVICE, torch.device("cpu")):
        if precision == "fp16" and device.type == "cpu":
            precision = "bf16"
        detector = copy.deepcopy(some_detector()).to(device)
        found = Predictor(detector, precision=precision, batch_size=2, fast=fast)(images(3))
        results[device.type] = described(found)
    return results


def waits_of_inference(count: int) -> dict[str, int]:
    predictor = Predictor(some_detector().to(DEVICE), batch_size=count, fast=True)
    with waits() as counted:
        predictor(images(count))
    return {f"{what} at {line}": number for (what, line), number in counted.items()}


def adapted() -> dict[str, Any]:
    """Levels of a body of torchvision."""
    torch.manual_seed(0)
    body = torchvision.models.resnet18(weights=None).eval()
    backbone = as_backbone(create_feature_extractor(body, {"layer2": "c3", "layer3": "c4"}))
    levels = {}
    for device in (DEVICE, torch.device("cpu")):
        batch = ImageBatch.from_images([torch.full((3, 64, 64), 90, dtype=torch.uint8).to(device)], Preprocess())
        with torch.inference_mode():
            outputs = copy.deepcopy(backbone).to(device)(batch.pixels)
        levels[device.type] = {name: level.mean().item() for name, level in outputs.items()}
    return levels


def classified() -> dict[str, Any]:
    """A training step of the classifier, and its probabilities with ten crops."""
    results = {}
    for device in (DEVICE, torch.device("cpu")):
        torch.manual_seed(0)
        net = ResNetClassifier(RESNETS["resnet18"], num_classes=4, norm="bn").to(device)
        batch = _Labelled([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(4)])
        loss = Classification(Preprocess(), list("abcd")).outcome(net, batch, device).losses["loss_cls"]
        loss.backward()
        rule = CropRule("10-crop", 64, 56, ())
        scores = probabilities(scorer(net.eval(), precision="fp32"), images(2), rule, Preprocess())
        results[device.type] = [loss.item(), *scores.flatten().tolist()]
    return results


class _Labelled:
    def __init__(self, pixels: list[torch.Tensor]) -> None:
        self.images = [image.pin_memory() for image in pixels]
        self.targets = list(range(len(pixels)))
        self.image_ids: list[int | str] = list(range(len(pixels)))
        self.skipped: list[str] = []


if __name__ == "__main__":
    for count in (1, 3):
        print(json.dumps({"waits": waits_of_inference(count), "images": count}), flush=True)
    for precision in PRECISIONS:
        for fast in (False, True):
            print(json.dumps({"predictor": [precision, fast], **predicted(precision, fast)}), flush=True)
    print(json.dumps({"as_backbone": True, **adapted()}), flush=True)
    print(json.dumps({"classifier": True, **classified()}), flush=True)
