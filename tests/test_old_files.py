"""Files written by an earlier version load and give the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from heads import BitMasks, Predictor, load_detector
from resnet_backbone import RESNETS, CertificateMismatch, ResNetSpec, build_backbone, load_weights
from resnet_backbone.blocks import BasicBlock, Bottleneck
from resnet_backbone.build import from_metadata
from resnet_backbone.weights.read import read_file, read_weights, save_atomically

FIXTURES = Path(__file__).parent / "fixtures"
CIFAR = ResNetSpec(BasicBlock, depths=(1, 1, 1), widths=(8, 16, 32), stem="cifar", shortcut="A")


@pytest.fixture(autouse=True)
def narrow_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the narrow net of the detector fixture to RESNETS; a full net would make the fixture too large."""
    monkeypatch.setitem(RESNETS, "narrow", ResNetSpec(Bottleneck, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16)))


@pytest.fixture
def outputs() -> dict[str, Any]:
    """The outputs that the earlier version computed."""
    values: dict[str, Any] = json.loads((FIXTURES / "outputs.json").read_text())
    return values


@pytest.fixture
def image() -> np.ndarray:
    """A deterministic (90, 130, 3) test pattern."""
    y, x = torch.meshgrid(torch.arange(90), torch.arange(130), indexing="ij")
    planes = [x * 3 + y, y * 5, (x // 9 + y // 7) % 2 * 200]
    return np.asarray((torch.stack(planes, -1) % 256).to(torch.uint8).numpy())


def test_old_certified_detector_gives_the_same_detections(outputs: dict[str, Any], image: np.ndarray) -> None:
    detector, recipe = load_detector(FIXTURES / "detector.safetensors")
    expected = outputs["detector"]
    (detections,) = Predictor(detector)([image])
    torch.testing.assert_close(detections.boxes, torch.tensor(expected["boxes"]), rtol=0, atol=1e-3)
    torch.testing.assert_close(detections.scores, torch.tensor(expected["scores"]), rtol=0, atol=1e-5)
    assert detections.labels.tolist() == expected["labels"]
    assert isinstance(detections.masks, BitMasks)
    for bits, rle in zip(detections.masks.bits.numpy(), expected["masks_rle"], strict=True):
        assert (bits != coco.decode(rle).astype(bool)).sum() <= 2
    assert detector.class_names == ("circle", "N/A", "star") and recipe.stride_on == "1x1"
    assert detector.preprocess.channel_order == "bgr" and detector.preprocess.short_side_px == 96
    assert torch.equal(detector.background["box_head.deltas.bias"], torch.arange(4.0))


def test_certificate_of_an_old_detector_is_checked(tmp_path: Path) -> None:
    content: Any = read_file(FIXTURES / "detector.safetensors")
    content["model"]["rpn.objectness.bias"] += 1e-6
    save_atomically(content, tmp_path / "edited.safetensors")
    with pytest.raises(CertificateMismatch, match="rpn.objectness.bias is not the tensor that was certified"):
        load_detector(tmp_path / "edited.safetensors")


def test_old_checkpoint_gives_the_same_classifier_and_backbone(outputs: dict[str, Any], image: np.ndarray) -> None:
    path = FIXTURES / "run_checkpoint.pt"
    file = read_weights(path)
    assert file.certified and file.meta is not None and file.meta["class_names"] == ["ant", "bee", "cat", "dog"]
    net = from_metadata(file.meta, num_classes=4).eval()
    assert load_weights(net, file).complete
    pixels = net.preprocess.normalise(torch.from_numpy(image[:64, :64]).permute(2, 0, 1)[None])
    levels = build_backbone(CIFAR, weights=path, out_levels=("c2", "c3", "c4"))(pixels)
    with torch.inference_mode():
        torch.testing.assert_close(net(pixels)[0], torch.tensor(outputs["classifier"]["logits"]), rtol=1e-4, atol=1e-5)
    for level, mean in outputs["classifier"]["levels_mean"].items():
        assert float(levels[level].double().mean()) == pytest.approx(mean, rel=1e-4)


def test_old_checkpoint_holds_the_state_of_a_resumed_run() -> None:
    content: Any = read_file(FIXTURES / "run_checkpoint.pt")
    assert content["step"] == 3 and content["plateau"]["best"] == 0.5
    net = from_metadata(content["meta"], num_classes=4)
    net.load_state_dict(content["model"])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimiser.load_state_dict(content["optimiser"])
    assert len(optimiser.state) == len(list(net.parameters()))
