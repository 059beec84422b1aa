"""Inside torchvision's own detectors: the same detections as its own body gives, and every family trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from heads.fpn import FeaturePyramid
from resnet_backbone import Preprocess, build_backbone, register
from resnet_backbone.hosts.torchvision import TorchvisionBackbone, torchvision_backbone

Photos = Callable[[int, int, int], Tensor]
SMALL = {"min_size": 128, "max_size": 256}


def ours(file: Path, pyramid: str, kind: str) -> TorchvisionBackbone:
    levels = ("c3", "c4", "c5") if kind in ("RetinaNet", "FCOS") else ("c2", "c3", "c4", "c5")
    body = build_backbone("resnet18", weights=file, source="torchvision", out_levels=levels)
    if pyramid == "ours":
        return torchvision_backbone(body, pyramid=FeaturePyramid(body.feature_specs, levels=levels, channels=64))
    extra = LastLevelP6P7(64, 64) if len(levels) == 3 else None
    return torchvision_backbone(body, channels=64, extra_blocks=extra)


def model_of(kind: str, backbone: TorchvisionBackbone) -> nn.Module:
    settings: dict[str, object] = dict(SMALL)
    if kind.endswith("RCNN"):
        settings |= {"box_batch_size_per_image": 32, "box_detections_per_img": 10}
    if kind in ("RetinaNet", "FCOS") and isinstance(backbone.fpn, FeaturePyramid):  # four levels, P3..P6
        sizes = [(s,) for s in (32, 64, 128, 256)]
        ratios = ((0.5, 1.0, 2.0),) if kind == "RetinaNet" else ((1.0,),)
        settings["anchor_generator"] = detection.anchor_utils.AnchorGenerator(tuple(sizes), ratios * 4)
    return getattr(detection, kind)(backbone, num_classes=5, **settings)


def targets(pixels: Tensor, kind: str) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[4.0, 4.0, 100.0, 90.0], [30.0, 20.0, 120.0, 110.0]])
    truth = {"boxes": boxes, "labels": torch.tensor([1, 2] if kind != "KeypointRCNN" else [1, 1])}
    if kind == "MaskRCNN":
        truth["masks"] = torch.zeros(2, *pixels.shape[-2:], dtype=torch.uint8)
        truth["masks"][:, 25:85, 35:95] = 1
    if kind == "KeypointRCNN":
        truth["keypoints"] = torch.tensor([40.0, 40.0, 1.0]).repeat(2, 17, 1)
    return [truth for _ in pixels]


@pytest.mark.parametrize("pyramid", ["torchvision", "ours"])
@pytest.mark.parametrize("kind", ["FasterRCNN", "MaskRCNN", "RetinaNet", "FCOS", "KeypointRCNN"])
def test_every_family_learns(kind: str, pyramid: str, imagenet_weights: Path, photos: Photos) -> None:
    """The loss of two photographs falls in a few steps, and prediction gives boxes inside them."""
    model = model_of(kind, ours(imagenet_weights / "resnet18-imagenet.pth", pyramid, kind)).train()
    pixels = photos(2, 128, 160)
    rate = 5e-4 if kind in ("RetinaNet", "FCOS") else 2e-4
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(8 if kind in ("RetinaNet", "FCOS") else 4):
        torch.manual_seed(0)  # the same anchors and proposals are sampled: the fall is not luck
        loss = sum(model(list(pixels), targets(pixels, kind)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert min(losses) < 0.95 * losses[0]  # AdamW's first steps from a prior of 0.01 may go up and down
    found = model.eval()(list(pixels))
    boxes = torch.cat([d["boxes"] for d in found])
    assert bool((boxes >= 0).all()) and bool((boxes[:, 2] <= 160).all()) and bool((boxes[:, 3] <= 128).all())


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn"])
def test_its_own_checkpoint_gives_its_own_detections(kind: str, photos: Photos) -> None:
    """torchvision's detector and the same one around our body, from one state dict: the same key names, the same
    detections (up to folding the norms, in float64)."""
    torch.manual_seed(0)
    build = getattr(detection, f"{kind}_resnet50_fpn")
    settings = {"weights": None, "weights_backbone": None, "num_classes": 5, "box_score_thresh": 0.0, **SMALL}
    theirs = build(**settings).double().eval()
    for norm in theirs.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_var.uniform_(0.5, 1.5)
            norm.running_mean.normal_(std=0.1)
            norm.weight.uniform_(0.4, 0.7)
    nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.weight, std=0.05)
    body = build_backbone("resnet50", weights=torch_names(theirs), source="torchvision", frozen_stages=2)
    family = {"fasterrcnn": "FasterRCNN", "maskrcnn": "MaskRCNN"}[kind]
    mine = getattr(detection, family)(torchvision_backbone(body), num_classes=5, box_score_thresh=0.0, **SMALL)
    mine = mine.double().eval()
    mine.load_state_dict(theirs.state_dict())
    pixels = list(photos(2, 128, 160).double())
    with torch.inference_mode():
        for a, b in zip(theirs(pixels), mine(pixels)):
            assert len(a["boxes"]) == len(b["boxes"]) > 20
            assert torch.allclose(a["boxes"], b["boxes"], atol=1e-6) and torch.allclose(
                a["scores"], b["scores"], atol=1e-8
            )
            assert torch.equal(a["labels"], b["labels"])


def torch_names(detector: nn.Module) -> dict[str, Tensor]:
    mark = "backbone.body."
    return {key.removeprefix(mark): x.float() for key, x in detector.state_dict().items() if key.startswith(mark)}


def test_levels_have_torchvisions_names(imagenet_weights: Path, photos: Photos) -> None:
    file = imagenet_weights / "resnet18-imagenet.pth"
    for pyramid in ("torchvision", "ours"):
        found = ours(file, pyramid, "FasterRCNN")(photos(1, 128, 160))
        assert list(found) == ["0", "1", "2", "3", "pool"] and {x.shape[1] for x in found.values()} == {64}
    assert list(ours(file, "torchvision", "FCOS")(photos(1, 128, 160))) == ["0", "1", "2", "p6", "p7"]


def test_the_registered_classifier_is_ours(imagenet_weights: Path, photos: Photos) -> None:
    register("torchvision")
    file = imagenet_weights / "resnet18-imagenet.pth"
    net = torchvision.models.get_model("resnet_backbone_resnet18", weights=file, source="torchvision").eval()
    theirs = torchvision.models.get_model("resnet18").eval()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        assert torch.allclose(net(photos(2, 96, 96)), theirs(photos(2, 96, 96)), atol=1e-4)
    assert "resnet_backbone_resnet18_fpn" in torchvision.models.list_models(include="resnet_backbone_*")


def test_weights_of_other_pixels_are_refused() -> None:
    body = build_backbone("resnet18", norm="bn", frozen_stages=0)
    body.preprocess = Preprocess(channel_order="bgr", value_range=255, std=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="BGR pixels of 0 to 255.*RGB of 0 to 1"):
        torchvision_backbone(body)
