"""segmentation-models-pytorch (smp) with our encoder, against the same models with the ResNet of smp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_backbone import register

smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
Photos = Callable[[int, int, int], Tensor]


def pair(kind: str, file: Path, **settings: Any) -> tuple[Any, Any]:
    """A model of smp with its own ResNet-18 and one with ours, with the same weights."""
    register("smp")
    reference, ours = (
        getattr(smp, kind)(encoder, encoder_weights=None, classes=3, **settings).eval()
        for encoder in ("resnet18", "resnet_backbone-resnet18")
    )
    reference.encoder.load_state_dict(torch.load(file, weights_only=True), strict="encoder_depth" not in settings)
    state = reference.state_dict()
    our_state = ours.state_dict()
    # the encoder of smp also builds stages beyond encoder_depth, which it does not use
    ours.load_state_dict({key: x for key, x in state.items() if key in our_state})
    assert {key for key in state if key not in our_state} <= {key for key in state if ".layer" in key}
    return reference, ours


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Unet", {}),
        ("Unet", {"encoder_depth": 4, "decoder_channels": (64, 32, 16, 8)}),
        ("Unet", {"encoder_depth": 3, "decoder_channels": (64, 32, 16)}),
        ("FPN", {}),
        ("FPN", {"encoder_depth": 4}),
        ("FPN", {"encoder_depth": 3}),
        ("DeepLabV3Plus", {}),
        ("DeepLabV3Plus", {"encoder_depth": 4}),
        ("DeepLabV3Plus", {"encoder_depth": 3}),
        ("DeepLabV3Plus", {"encoder_output_stride": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_outputs_equal_those_with_the_resnet_of_smp(
    kind: str, settings: dict[str, Any], imagenet_weights: Path, photos: Photos
) -> None:
    reference, ours = pair(kind, imagenet_weights / "resnet18-imagenet.pth", **settings)
    assert list(ours.encoder.out_channels) == list(reference.encoder.out_channels)
    with torch.inference_mode():
        expected, actual = reference(photos(2, 96, 128)), ours(photos(2, 96, 128))
    assert expected.std() > 1e-3 and torch.allclose(actual, expected, atol=1e-4 * float(expected.abs().max()))


def test_set_in_channels_converts_the_first_convolution_as_smp_does(imagenet_weights: Path, photos: Photos) -> None:
    reference, ours = pair("Unet", imagenet_weights / "resnet18-imagenet.pth")
    for encoder in (reference.encoder, ours.encoder):
        encoder.set_in_channels(1, pretrained=True)
    grey = photos(1, 64, 64)[:, :1]
    with torch.inference_mode():
        expected, actual = reference.encoder(grey), ours.encoder(grey)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(expected, actual))
    assert ours.encoder.out_channels[0] == 1


def test_pretrained_settings_are_those_of_smp_and_output_stride_4_is_refused() -> None:
    register("smp")
    settings = smp.encoders.encoders
    assert settings["resnet_backbone-resnet50"]["pretrained_settings"] == settings["resnet50"]["pretrained_settings"]
    with pytest.raises(ValueError, match="give 8 or 16"):
        smp.Unet("resnet_backbone-resnet18", encoder_weights=None).encoder.make_dilated(4)
