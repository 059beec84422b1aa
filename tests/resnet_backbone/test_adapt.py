"""`as_backbone`: nets of timm and torchvision as backbones of our detectors, and which nets are refused."""

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
    """Two photographs with at least three objects, the longer side resized to 192 pixels, and their targets."""
    data = json.loads((coco_mini / "annotations" / "instances_train2017.json").read_text())
    class_indices = {row["id"]: index for index, row in enumerate(data["categories"])}
    images, targets = [], []
    for row in data["images"]:
        annotations = [
            a for a in data["annotations"] if a["image_id"] == row["id"] and not a["iscrowd"] and a["area"] > 3000
        ]
        if len(annotations) < 3:
            continue
        scale = 192 / max(row["width"], row["height"])
        size = (round(row["width"] * scale), round(row["height"] * scale))
        images.append(np.array(Image.open(coco_mini / "train2017" / row["file_name"]).convert("RGB").resize(size)))
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]) * scale
        targets.append(Targets(boxes, torch.tensor([class_indices[a["category_id"]] for a in annotations])))
        if len(images) == 2:
            break
    return images, targets


def train(detector: RCNN, images: list[np.ndarray], targets: list[Targets], steps: int = 20) -> list[float]:
    """Train on one batch and return the loss of every step."""
    preprocess = detector.preprocess
    normalised = [preprocess.normalise(torch.from_numpy(image).permute(2, 0, 1)) for image in images]
    sizes = [ImageSize(height=image.shape[0], width=image.shape[1]) for image in images]
    batch = ImageBatch(preprocess.pad(normalised), sizes)
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=5e-4, weight_decay=0)
    losses = []
    detector.train()
    for _ in range(steps):
        loss = torch.stack(list(detector(batch, targets).values())).sum()
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
def test_detectors_with_timm_backbones_reduce_the_loss(
    name: str, settings: dict[str, object], two_images: tuple[list[np.ndarray], list[Targets]]
) -> None:
    import timm

    backbone = as_backbone(timm.create_model(name, features_only=True, **settings))
    assert {"c2", "c3", "c4", "c5"} <= set(backbone.feature_specs)
    detector = build_detector(SMALL, num_classes=80, backbone=backbone)
    losses = train(detector, *two_images)
    assert median(losses[-5:]) <= 0.8 * median(losses[:5])
    detections = Predictor(detector.eval())(two_images[0])
    assert all(bool(d.boxes.isfinite().all()) for d in detections)


@needs_timm
@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224", "resnet50d"])
def test_levels_equal_the_features_of_the_timm_model(name: str, photos: Photos) -> None:
    """Features that timm returns channels last (Swin) are permuted to (N, C, H, W)."""
    import timm

    settings = {"strict_img_size": False} if name.startswith("swin") else {}
    model = timm.create_model(name, features_only=True, **settings).eval()
    backbone = as_backbone(model)
    pixels = photos(1, 160, 224)
    with torch.inference_mode():
        features, timm_features = backbone(pixels), model(pixels)
    for (level, spec), x in zip(backbone.feature_specs.items(), timm_features):
        expected = x if x.shape[1] == spec.channels else x.permute(0, 3, 1, 2)
        assert torch.equal(features[level], expected)
        assert features[level].shape == (1, spec.channels, -(-160 // spec.stride), -(-224 // spec.stride))


@needs_timm
def test_preprocessing_comes_from_timm_and_models_without_a_pyramid_are_refused() -> None:
    import timm

    model = timm.create_model("inception_v3", features_only=True)
    assert model.pretrained_cfg["mean"] != (0.485, 0.456, 0.406)
    mixer = timm.create_model("mixer_b16_224")  # returns a sequence of tokens, no feature maps
    with pytest.raises(ValueError, match="must take any size"):
        as_backbone(mixer)
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


def test_torchvision_nets_become_backbones_with_four_levels(two_images: tuple[list[np.ndarray], list[Targets]]) -> None:
    """`IntermediateLayerGetter`, which torchvision's detectors use, and a feature extractor of `torch.fx`.

    ConvNeXt computes in channels last internally.
    """
    nodes = {"features.1": "0", "features.3": "1", "features.5": "2", "features.7": "3"}
    graph = as_backbone(create_feature_extractor(torchvision.models.convnext_tiny(), nodes))
    assert [spec.channels for spec in graph.feature_specs.values()] == [96, 192, 384, 768]
    layers = {f"layer{i}": str(i) for i in range(1, 5)}
    backbone = as_backbone(IntermediateLayerGetter(torchvision.models.resnet18(), layers))
    assert list(backbone.feature_specs) == list(graph.feature_specs) == ["c2", "c3", "c4", "c5"]
    losses = train(build_detector(SMALL, num_classes=80, backbone=backbone), *two_images)
    assert median(losses[-5:]) <= 0.8 * median(losses[:5])


def test_adapted_torchvision_resnet_gives_the_same_detections_as_our_backbone(
    imagenet_weights: Path, photos: Photos
) -> None:
    """Two detectors with the same weights in neck and heads: one with torchvision's net, one with our backbone."""
    file = imagenet_weights / "resnet18-imagenet.pth"
    net = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    net.load_state_dict({k: x for k, x in torch.load(file, weights_only=True).items() if "num_batches" not in k})
    adapted = as_backbone(IntermediateLayerGetter(net, {f"layer{i}": str(i) for i in range(1, 5)}))
    backbone = build_backbone("resnet18", weights=file, source="torchvision")
    reference = build_detector(SMALL, num_classes=3, backbone=backbone).double().eval()
    detector = build_detector(SMALL, num_classes=3, backbone=adapted).double().eval()
    heads = {key: x for key, x in reference.state_dict().items() if not key.startswith("backbone.")}
    assert not [key for key in detector.load_state_dict(heads, strict=False).missing_keys if "backbone." not in key]
    batch = ImageBatch(photos(1, 128, 160).double(), [ImageSize(height=128, width=160)])
    with torch.inference_mode():
        (a,), (b,) = reference.detect(batch), detector.detect(batch)
    assert len(a) == len(b) and torch.allclose(a.boxes, b.boxes, atol=1e-6) and torch.equal(a.labels, b.labels)


class FakeBackbone(nn.Module):
    """A module with the given `feature_specs` that returns `outputs(pixels)`."""

    def __init__(self, specs: object, outputs: object) -> None:
        super().__init__()
        self.feature_specs, self.outputs = specs, outputs
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels: Tensor) -> object:
        return self.outputs(self.norm(pixels))  # type: ignore[operator]


def feature_maps(pixels: Tensor) -> dict[str, Tensor]:
    return {f"c{i}": pixels.new_zeros(len(pixels), 8, *(side >> i for side in pixels.shape[-2:])) for i in range(2, 6)}


SPECS = {f"c{i}": FeatureSpec(8, 2**i) for i in range(2, 6)}


@pytest.mark.parametrize(
    ("specs", "outputs", "message"),
    [
        (None, feature_maps, "no feature_specs.*as_backbone"),
        (SPECS, lambda x: list(feature_maps(x).values()), "gives a list, a backbone gives a dict"),
        (SPECS, lambda x: {k: v for k, v in feature_maps(x).items() if k != "c4"}, r"does not give \['c4'\]"),
        (
            {**SPECS, "c3": FeatureSpec(16, 8)},
            feature_maps,
            "publishes c3 with 16 channels at stride 8.*channels=8, stride=8",
        ),
        ({**SPECS, "c5": FeatureSpec(8, 16)}, feature_maps, "publishes c5 with 8 channels at stride 16.*stride=32"),
        ({k: v for k, v in SPECS.items() if k != "c2"}, feature_maps, 'P2 needs C2.*add "c2"'),
    ],
)
def test_backbone_with_missing_or_wrong_feature_specs_is_refused(specs: object, outputs: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_detector(SMALL, num_classes=2, backbone=FakeBackbone(specs, outputs))


def test_probing_a_module_changes_neither_its_state_nor_its_mode_nor_the_random_state() -> None:
    """`as_backbone` runs the module on a blank image to read its output shapes."""
    module = FakeBackbone(SPECS, feature_maps).train()
    before = {key: x.clone() for key, x in module.state_dict().items()}
    torch.manual_seed(1)
    as_backbone(module)
    sample = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(sample, torch.rand(3))
    assert module.training and module.norm.training
    assert all(torch.equal(x, before[key]) for key, x in module.state_dict().items())


def test_level_names_and_preprocess_can_be_given() -> None:
    module = FakeBackbone(SPECS, lambda x: [*feature_maps(x).values(), feature_maps(x)["c5"]])
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32, 32\].*levels="):
        as_backbone(module)
    preprocess = Preprocess(mean=(0.5, 0.5, 0.5))
    backbone = as_backbone(module, levels=["c2", "c3", "c4", "c5", "top"], preprocess=preprocess)
    assert list(backbone.feature_specs)[-1] == "top" and backbone.preprocess is preprocess
