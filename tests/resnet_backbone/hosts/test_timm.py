"""timm: `create_model`, `pretrained_cfg`, `checkpoint_path` and `feature_info`, compared with the ResNets of timm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_backbone import WeightMismatch, register

timm = pytest.importorskip("timm", reason="timm is not installed")
Photos = Callable[[int, int, int], Tensor]


@pytest.fixture(autouse=True)
def registered() -> None:
    register("timm")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes the weights of timm's net of that name, with running statistics of a random batch."""

    def write(name: str) -> Path:
        net = timm.create_model(name).train()
        with torch.no_grad():
            net(torch.randn(4, 3, 64, 64))
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    return write


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d"])
def test_checkpoints_of_timm_give_the_logits_and_features_of_timm(
    name: str, checkpoint: Callable, photos: Photos
) -> None:
    """Logits of the classifier and five features, loaded from the same file."""
    file, pixels = checkpoint(name), photos(2, 97, 130)
    settings = {"checkpoint_path": str(file)}
    reference, ours = timm.create_model(name, **settings), timm.create_model(f"resnet_backbone_{name}", **settings)
    with torch.inference_mode():
        assert torch.allclose(ours.eval()(pixels), reference.eval()(pixels), atol=1e-4, rtol=1e-4)
        expected = reference.forward_intermediates(pixels, intermediates_only=True)
        extractor = timm.create_model(f"resnet_backbone_{name}", features_only=True, **settings).eval()
        for features in (extractor(pixels), ours.forward_intermediates(pixels, intermediates_only=True)):
            assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(features, expected))
    assert ours.forward_features(pixels).shape == reference.forward_features(pixels).shape


@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (1, 2, 3, 4), (2, 4), (-1,), 2])
def test_feature_info_equals_that_of_timms_resnet(indices: object, photos: Photos) -> None:
    settings = {"features_only": True, "out_indices": indices}
    reference = timm.create_model("resnet50", **settings)
    ours = timm.create_model("resnet_backbone_resnet50", **settings).eval()
    assert ours.feature_info.reduction() == reference.feature_info.reduction()
    assert ours.feature_info.channels() == reference.feature_info.channels()
    features = ours(photos(1, 64, 96))
    assert [x.shape[1] for x in features] == ours.feature_info.channels()
    assert [64 // x.shape[2] for x in features] == ours.feature_info.reduction()


def test_pretrained_cfg_loads_strictly(checkpoint: Callable, photos: Photos) -> None:
    """timm loads with strict=False if the number of classes differs; here only the classifier may differ."""
    file = checkpoint("resnet18")
    reference = timm.create_model("resnet18", checkpoint_path=str(file)).eval()
    cfg = {"file": str(file), "num_classes": 1000, "classifier": "fc", "first_conv": "conv1"}
    pixels = photos(1, 64, 64)
    for settings in ({"features_only": True}, {"num_classes": 7}, {}):
        net = timm.create_model("resnet_backbone_resnet18", pretrained=True, pretrained_cfg=cfg, **settings).eval()
        with torch.inference_mode():
            features = net(pixels)[-1] if "features_only" in settings else net.forward_features(pixels)
            assert torch.allclose(features, reference.forward_features(pixels), atol=1e-4, rtol=1e-4)
    state = torch.load(file, weights_only=True)
    del state["layer3.0.conv1.weight"]
    torch.save(state, file)
    with pytest.raises(WeightMismatch, match="layer3.0.conv1.weight"):
        timm.create_model("resnet_backbone_resnet18", pretrained=True, pretrained_cfg=cfg, num_classes=7)


def test_pretrained_cfg_has_the_url_and_mean_of_the_published_weights() -> None:
    cfg = timm.create_model("resnet_backbone_resnet50").pretrained_cfg
    assert cfg["url"].endswith("/resnet50-0676ba61.pth")
    assert timm.data.resolve_data_config(cfg)["mean"] == (0.485, 0.456, 0.406)


def test_num_classes_and_in_chans_are_supported_and_output_stride_is_refused() -> None:
    net = timm.create_model("resnet_backbone_resnet18", num_classes=0, in_chans=1)
    assert net(torch.rand(2, 1, 64, 64)).shape == (2, 512)
    net.reset_classifier(5)
    assert net(torch.rand(2, 1, 64, 64)).shape == (2, 5) and net.get_classifier().out_features == 5
    with pytest.raises(ValueError, match="c5_dilation"):
        timm.create_model("resnet_backbone_resnet18", features_only=True, output_stride=16)
    with pytest.raises(ValueError, match="0 .C1. to 4 .C5."):
        timm.create_model("resnet_backbone_resnet18", features_only=True, out_indices=(1, 5))


def step(net: Any, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor], int]:
    """The loss, the gradients, the buffers after the step, and the bytes saved for the backward pass."""
    saved_bytes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        saved_bytes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = torch.stack([output.square().mean() for output in net(pixels)]).sum()
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return loss.detach(), gradients, dict(net.named_buffers()), sum(saved_bytes.values())


@pytest.mark.parametrize("features_only", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients_nor_statistics(features_only: bool) -> None:
    plain = timm.create_model("resnet_backbone_resnet18", features_only=features_only).double().train()
    checkpointed = copy.deepcopy(plain)
    plain.set_grad_checkpointing(enable=False)
    checkpointed.set_grad_checkpointing(enable=True)
    assert checkpointed.grad_checkpointing and not plain.grad_checkpointing
    pixels = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, gradients, buffers, saved_bytes = step(plain, pixels)
    checkpointed_loss, checkpointed_gradients, checkpointed_buffers, checkpointed_bytes = step(checkpointed, pixels)
    assert torch.equal(loss, checkpointed_loss) and checkpointed_bytes < saved_bytes / 2
    for expected, actual in zip(gradients, checkpointed_gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(checkpointed_buffers[name], buffer) for name, buffer in buffers.items())
