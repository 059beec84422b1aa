"""Our backbone in torchvision's detectors: training of five families, and parity with torchvision's ResNet."""

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


def build_fpn(file: Path, pyramid: str, kind: str) -> TorchvisionBackbone:
    """Our ResNet-18 with the pyramid of torchvision or ours and the levels that the detector family needs."""
    levels = ("c3", "c4", "c5") if kind in ("RetinaNet", "FCOS") else ("c2", "c3", "c4", "c5")
    body = build_backbone("resnet18", weights=file, source="torchvision", out_levels=levels)
    if pyramid == "ours":
        return torchvision_backbone(body, pyramid=FeaturePyramid(body.feature_specs, levels=levels, channels=64))
    extra = LastLevelP6P7(64, 64) if len(levels) == 3 else None
    return torchvision_backbone(body, channels=64, extra_blocks=extra)


def build_family(kind: str, backbone: TorchvisionBackbone) -> nn.Module:
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
    target = {"boxes": boxes, "labels": torch.tensor([1, 2] if kind != "KeypointRCNN" else [1, 1])}
    if kind == "MaskRCNN":
        target["masks"] = torch.zeros(2, *pixels.shape[-2:], dtype=torch.uint8)
        target["masks"][:, 25:85, 35:95] = 1
    if kind == "KeypointRCNN":
        target["keypoints"] = torch.tensor([40.0, 40.0, 1.0]).repeat(2, 17, 1)
    return [target for _ in pixels]


@pytest.mark.parametrize("pyramid", ["torchvision", "ours"])
@pytest.mark.parametrize("kind", ["FasterRCNN", "MaskRCNN", "RetinaNet", "FCOS", "KeypointRCNN"])
def test_every_detector_family_reduces_the_loss(
    kind: str, pyramid: str, imagenet_weights: Path, photos: Photos
) -> None:
    """A few steps on two photographs; the predicted boxes lie inside the images."""
    model = build_family(kind, build_fpn(imagenet_weights / "resnet18-imagenet.pth", pyramid, kind)).train()
    pixels = photos(2, 128, 160)
    rate = 5e-4 if kind in ("RetinaNet", "FCOS") else 2e-4
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(8 if kind in ("RetinaNet", "FCOS") else 4):
        torch.manual_seed(0)  # every step samples the same anchors and proposals, so that losses are comparable
        loss = sum(model(list(pixels), targets(pixels, kind)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert min(losses) < 0.95 * losses[0]  # with an initial score of 0.01 the loss may rise in single steps of AdamW
    detections = model.eval()(list(pixels))
    boxes = torch.cat([d["boxes"] for d in detections])
    assert bool((boxes >= 0).all()) and bool((boxes[:, 2] <= 160).all()) and bool((boxes[:, 3] <= 128).all())


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn"])
def test_torchvision_checkpoint_gives_the_same_detections_with_our_backbone(kind: str, photos: Photos) -> None:
    """Both detectors load one state dict strictly; float64, because folding the norms changes the rounding."""
    torch.manual_seed(0)
    build = getattr(detection, f"{kind}_resnet50_fpn")
    settings = {"weights": None, "weights_backbone": None, "num_classes": 5, "box_score_thresh": 0.0, **SMALL}
    reference = build(**settings).double().eval()
    for norm in reference.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_var.uniform_(0.5, 1.5)
            norm.running_mean.normal_(std=0.1)
            norm.weight.uniform_(0.4, 0.7)
    nn.init.normal_(reference.roi_heads.box_predictor.cls_score.weight, std=0.05)
    body = build_backbone("resnet50", weights=body_weights(reference), source="torchvision", frozen_stages=2)
    family = {"fasterrcnn": "FasterRCNN", "maskrcnn": "MaskRCNN"}[kind]
    ours = getattr(detection, family)(torchvision_backbone(body), num_classes=5, box_score_thresh=0.0, **SMALL)
    ours = ours.double().eval()
    ours.load_state_dict(reference.state_dict())
    pixels = list(photos(2, 128, 160).double())
    with torch.inference_mode():
        for a, b in zip(reference(pixels), ours(pixels)):
            assert len(a["boxes"]) == len(b["boxes"]) > 20
            assert torch.allclose(a["boxes"], b["boxes"], atol=1e-6) and torch.allclose(
                a["scores"], b["scores"], atol=1e-8
            )
            assert torch.equal(a["labels"], b["labels"])


def body_weights(detector: nn.Module) -> dict[str, Tensor]:
    """The weights of the ResNet in a detector of torchvision, in float32."""
    prefix = "backbone.body."
    return {key.removeprefix(prefix): x.float() for key, x in detector.state_dict().items() if key.startswith(prefix)}


def test_pyramid_levels_have_torchvisions_names(imagenet_weights: Path, photos: Photos) -> None:
    file = imagenet_weights / "resnet18-imagenet.pth"
    for pyramid in ("torchvision", "ours"):
        features = build_fpn(file, pyramid, "FasterRCNN")(photos(1, 128, 160))
        assert list(features) == ["0", "1", "2", "3", "pool"] and {x.shape[1] for x in features.values()} == {64}
    assert list(build_fpn(file, "torchvision", "FCOS")(photos(1, 128, 160))) == ["0", "1", "2", "p6", "p7"]


def test_registered_classifier_gives_torchvisions_logits(imagenet_weights: Path, photos: Photos) -> None:
    register("torchvision")
    file = imagenet_weights / "resnet18-imagenet.pth"
    net = torchvision.models.get_model("resnet_backbone_resnet18", weights=file, source="torchvision").eval()
    reference = torchvision.models.get_model("resnet18").eval()
    reference.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        assert torch.allclose(net(photos(2, 96, 96)), reference(photos(2, 96, 96)), atol=1e-4)
    assert "resnet_backbone_resnet18_fpn" in torchvision.models.list_models(include="resnet_backbone_*")


def test_backbone_with_bgr_preprocessing_is_refused() -> None:
    body = build_backbone("resnet18", norm="bn", frozen_stages=0)
    body.preprocess = Preprocess(channel_order="bgr", value_range=255, std=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="BGR pixels of 0 to 255.*RGB of 0 to 1"):
        torchvision_backbone(body)
