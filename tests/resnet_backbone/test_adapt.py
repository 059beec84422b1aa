"""The way back: other projects' nets under our heads, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor

from heads import DETECTORS, RCNN, ImageBatch, ImageSize, Predictor, Targets, build_detector
from resnet_backbone import FeatureSpec, Preprocess, build_backbone
from resnet_backbone.adapt import as_backbone

Photos = Callable[[int, int, int], Tensor]
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
SMALL = replace(
    DETECTORS["faster_rcnn_r18_fpn"],
    pyramid_channels=64,
    rpn=replace(DETECTORS["faster_rcnn_r18_fpn"].rpn, keep_after_nms_train=200),
    box=replace(DETECTORS["faster_rcnn_r18_fpn"].box, hidden=128, samples_per_image=64),
)


@pytest.fixture(scope="module")
def two_images(coco_mini: Path) -> tuple[list[np.ndarray], list[Targets]]:
    """Two photographs with several objects, brought to 192 pixels, and their truth."""
    data = json.loads((coco_mini / "annotations" / "instances_train2017.json").read_text())
    order = {row["id"]: index for index, row in enumerate(data["categories"])}
    images, truth = [], []
    for row in data["images"]:
        own = [a for a in data["annotations"] if a["image_id"] == row["id"] and not a["iscrowd"] and a["area"] > 3000]
        if len(own) < 3:
            continue
        scale = 192 / max(row["width"], row["height"])
        size = (round(row["width"] * scale), round(row["height"] * scale))
        images.append(np.array(Image.open(coco_mini / "train2017" / row["file_name"]).convert("RGB").resize(size)))
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]) * scale
        truth.append(Targets(boxes, torch.tensor([order[a["category_id"]] for a in own])))
        if len(images) == 2:
            break
    return images, truth


def learn(detector: RCNN, images: list[np.ndarray], truth: list[Targets], steps: int = 20) -> list[float]:
    rule = detector.preprocess
    normalised = [rule.normalise(torch.from_numpy(image).permute(2, 0, 1)) for image in images]
    sizes = [ImageSize(height=image.shape[0], width=image.shape[1]) for image in images]
    batch = ImageBatch(rule.pad(normalised), sizes)
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=5e-4, weight_decay=0)
    losses = []
    detector.train()
    for _ in range(steps):
        loss = torch.stack(list(detector(batch, truth).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        losses.append(float(loss))
    return losses


@needs_timm
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("convnext_atto", {}),
        ("efficientnet_b0", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 256, "strict_img_size": False}),
        ("resnet50d", {}),
    ],
)
def test_timms_bodies_learn_under_our_heads(
    name: str, settings: dict[str, object], two_images: tuple[list[np.ndarray], list[Targets]]
) -> None:
    import timm

    backbone = as_backbone(timm.create_model(name, features_only=True, **settings))
    assert {"c2", "c3", "c4", "c5"} <= set(backbone.feature_specs)
    detector = build_detector(SMALL, num_classes=80, backbone=backbone)
    losses = learn(detector, *two_images)
    assert median(losses[-5:]) <= 0.8 * median(losses[:5])
    found = Predictor(detector.eval())(two_images[0])
    assert all(bool(d.boxes.isfinite().all()) for d in found)


@needs_timm
@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224", "resnet50d"])
def test_levels_are_timms_features(name: str, photos: Photos) -> None:
    """Level by level what timm's model returns, whatever it names and however it lays it out."""
    import timm

    settings = {"strict_img_size": False} if name.startswith("swin") else {}
    model = timm.create_model(name, features_only=True, **settings).eval()
    backbone = as_backbone(model)
    pixels = photos(1, 160, 224)
    with torch.inference_mode():
        found, theirs = backbone(pixels), model(pixels)
    for (level, spec), x in zip(backbone.feature_specs.items(), theirs):
        own = x if x.shape[1] == spec.channels else x.permute(0, 3, 1, 2)
        assert torch.equal(found[level], own)
        assert found[level].shape == (1, spec.channels, -(-160 // spec.stride), -(-224 // spec.stride))


@needs_timm
def test_the_pixels_are_those_that_timm_trained_with() -> None:
    import timm

    model = timm.create_model("inception_v3", features_only=True)
    assert model.pretrained_cfg["mean"] != (0.485, 0.456, 0.406)
    plain = timm.create_model("mixer_b16_224")  # no maps: a sequence
    with pytest.raises(ValueError, match="must take any size"):
        as_backbone(plain)
    net = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=256, dynamic_img_size=True)
    with pytest.raises(ValueError, match="16, 16.*levels="):
        as_backbone(net)
    resnet = timm.create_model("resnetv2_50x1_bit", features_only=True)
    backbone = as_backbone(resnet)
    assert (
        backbone.preprocess.mean
        == (0.5, 0.5, 0.5)
        == build_detector(SMALL, num_classes=2, backbone=backbone).preprocess.std
    )


def test_torchvisions_bodies(two_images: tuple[list[np.ndarray], list[Targets]]) -> None:
    """A dict of outputs, as its detectors take them out of a net; and a graph of one, channels last inside."""
    nodes = {"features.1": "0", "features.3": "1", "features.5": "2", "features.7": "3"}
    graph = as_backbone(create_feature_extractor(torchvision.models.convnext_tiny(), nodes))
    assert [spec.channels for spec in graph.feature_specs.values()] == [96, 192, 384, 768]
    layers = {f"layer{i}": str(i) for i in range(1, 5)}
    backbone = as_backbone(IntermediateLayerGetter(torchvision.models.resnet18(), layers))
    assert list(backbone.feature_specs) == list(graph.feature_specs) == ["c2", "c3", "c4", "c5"]
    losses = learn(build_detector(SMALL, num_classes=80, backbone=backbone), *two_images)
    assert median(losses[-5:]) <= 0.8 * median(losses[:5])


def test_torchvisions_resnet_is_the_same_detector_as_ours(imagenet_weights: Path, photos: Photos) -> None:
    """Their body behind the adapter against our own backbone, one state of the heads: the same detections."""
    file = imagenet_weights / "resnet18-imagenet.pth"
    net = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    net.load_state_dict({k: x for k, x in torch.load(file, weights_only=True).items() if "num_batches" not in k})
    theirs = as_backbone(IntermediateLayerGetter(net, {f"layer{i}": str(i) for i in range(1, 5)}))
    ours = build_backbone("resnet18", weights=file, source="torchvision")
    one = build_detector(SMALL, num_classes=3, backbone=ours).double().eval()
    other = build_detector(SMALL, num_classes=3, backbone=theirs).double().eval()
    heads = {key: x for key, x in one.state_dict().items() if not key.startswith("backbone.")}
    assert not [key for key in other.load_state_dict(heads, strict=False).missing_keys if "backbone." not in key]
    batch = ImageBatch(photos(1, 128, 160).double(), [ImageSize(height=128, width=160)])
    with torch.inference_mode():
        (a,), (b,) = one.detect(batch), other.detect(batch)
    assert len(a) == len(b) and torch.allclose(a.boxes, b.boxes, atol=1e-6) and torch.equal(a.labels, b.labels)


class Liar(nn.Module):
    """Publishes one thing and gives another."""

    def __init__(self, specs: object, gives: object) -> None:
        super().__init__()
        self.feature_specs, self.gives = specs, gives
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels: Tensor) -> object:
        return self.gives(self.norm(pixels))  # type: ignore[operator]


def maps(pixels: Tensor) -> dict[str, Tensor]:
    return {f"c{i}": pixels.new_zeros(len(pixels), 8, *(side >> i for side in pixels.shape[-2:])) for i in range(2, 6)}


GOOD = {f"c{i}": FeatureSpec(8, 2**i) for i in range(2, 6)}


@pytest.mark.parametrize(
    ("specs", "gives", "said"),
    [
        (None, maps, "no feature_specs.*as_backbone"),
        (GOOD, lambda x: list(maps(x).values()), "gives a list, a backbone gives a dict"),
        (GOOD, lambda x: {k: v for k, v in maps(x).items() if k != "c4"}, r"does not give \['c4'\]"),
        ({**GOOD, "c3": FeatureSpec(16, 8)}, maps, "publishes c3 with 16 channels at stride 8.*channels=8, stride=8"),
        ({**GOOD, "c5": FeatureSpec(8, 16)}, maps, "publishes c5 with 8 channels at stride 16.*stride=32"),
        ({k: v for k, v in GOOD.items() if k != "c2"}, maps, 'P2 needs C2.*add "c2"'),
    ],
)
def test_a_backbone_that_is_not_what_it_says_is_refused(specs: object, gives: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_detector(SMALL, num_classes=2, backbone=Liar(specs, gives))


def test_asking_leaves_no_trace() -> None:
    """The blank image neither moves statistics nor modes nor the random numbers after it."""
    liar = Liar(GOOD, maps).train()
    before = {key: x.clone() for key, x in liar.state_dict().items()}
    torch.manual_seed(1)
    as_backbone(liar)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert liar.training and liar.norm.training
    assert all(torch.equal(x, before[key]) for key, x in liar.state_dict().items())


def test_levels_and_pixels_may_be_named() -> None:
    doubled = Liar(GOOD, lambda x: [*maps(x).values(), maps(x)["c5"]])
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32, 32\].*levels="):
        as_backbone(doubled)
    pixels = Preprocess(mean=(0.5, 0.5, 0.5))
    backbone = as_backbone(doubled, levels=["c2", "c3", "c4", "c5", "top"], preprocess=pixels)
    assert list(backbone.feature_specs)[-1] == "top" and backbone.preprocess is pixels
