"""segmentation-models-pytorch's decoders on our encoder, against the same decoders on its own resnet."""

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
    """smp's model on its own ResNet-18, and on ours, with one state dict."""
    register("smp")
    theirs, ours = (
        getattr(smp, kind)(encoder, encoder_weights=None, classes=3, **settings).eval()
        for encoder in ("resnet18", "resnet_backbone-resnet18")
    )
    theirs.encoder.load_state_dict(torch.load(file, weights_only=True), strict="encoder_depth" not in settings)
    state = theirs.state_dict()
    built = ours.state_dict()
    # its own encoder builds the stages below its depth and does not use them
    ours.load_state_dict({key: x for key, x in state.items() if key in built})
    assert {key for key in state if key not in built} <= {key for key in state if ".layer" in key}
    return theirs, ours


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
def test_the_same_answers_as_on_its_own_resnet(
    kind: str, settings: dict[str, Any], imagenet_weights: Path, photos: Photos
) -> None:
    theirs, ours = pair(kind, imagenet_weights / "resnet18-imagenet.pth", **settings)
    assert list(ours.encoder.out_channels) == list(theirs.encoder.out_channels)
    with torch.inference_mode():
        want, got = theirs(photos(2, 96, 128)), ours(photos(2, 96, 128))
    assert want.std() > 1e-3 and torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))


def test_other_input_channels_follow_its_rule(imagenet_weights: Path, photos: Photos) -> None:
    theirs, ours = pair("Unet", imagenet_weights / "resnet18-imagenet.pth")
    for encoder in (theirs.encoder, ours.encoder):
        encoder.set_in_channels(1, pretrained=True)
    grey = photos(1, 64, 64)[:, :1]
    with torch.inference_mode():
        want, got = theirs.encoder(grey), ours.encoder(grey)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(want, got))
    assert ours.encoder.out_channels[0] == 1


def test_its_own_pretrained_files_are_offered() -> None:
    register("smp")
    settings = smp.encoders.encoders
    assert settings["resnet_backbone-resnet50"]["pretrained_settings"] == settings["resnet50"]["pretrained_settings"]
    with pytest.raises(ValueError, match="give 8 or 16"):
        smp.Unet("resnet_backbone-resnet18", encoder_weights=None).encoder.make_dilated(4)
