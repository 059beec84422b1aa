"""The cases of the conformance suite: how each host builds, trains, saves and loads our backbone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone import load_weights, register
from resnet_backbone.backbone import ResNetBody
from resnet_backbone.hosts import HOSTS
from resnet_backbone.weights.keymaps import body_in_layout

LEVELS = ("c2", "c3", "c4", "c5")
NETS = {"resnet18": 18, "resnet50": 50, "resnet101": 101}
Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Case:
    """The functions and limits of one host.

    Attributes:
        build: (net, file or None, norm=, frozen=, levels=) -> the host's model around our backbone, with the weights of
            the file.
        features: (model, pixels) -> the features that the host reads, by level.
        body: model -> the part of it that is our net.
        training: model -> a trainable model of the host that contains it, and a function from pixels to its loss.
        reload: (model, folder, function that builds another model) -> the model that the host loads after saving.
        norms: the norms that the host can set.
        depth_only: whether only the number of levels can be set, counted from the finest.
    """

    build: Build
    features: Callable[[nn.Module, Tensor], dict[str, Tensor]]
    body: Callable[[nn.Module], ResNetBody]
    training: Callable[[nn.Module], tuple[nn.Module, Callable[[Tensor], Tensor]]]
    reload: Callable[[nn.Module, Path, Callable[[], nn.Module]], nn.Module]
    norms: tuple[str, ...] = ("frozen_bn", "bn")
    depth_only: bool = False


def identity(model: Any) -> ResNetBody:
    return model


def mean_square(tensors: Any) -> Tensor:
    """A loss that depends on every output."""
    return torch.stack([x.float().square().mean() for x in tensors]).sum()


def plain_training(model: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The model itself and a loss of its outputs, for hosts without a model around the backbone."""

    def loss(pixels: Tensor) -> Tensor:
        outputs = model(pixels)
        return mean_square(outputs.values() if isinstance(outputs, Mapping) else outputs)

    return model, loss


def targets(pixels: Tensor) -> list[dict[str, Tensor]]:
    """Two boxes with labels for every image, in the format of torchvision's detectors."""
    height, width = pixels.shape[-2:]
    boxes = torch.tensor([[4.0, 4.0, width - 40.0, height - 30.0], [30.0, 20.0, 90.0, 80.0]])
    return [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in pixels]


def body_state(file: Path, layout: str) -> dict[str, Tensor]:
    """The weights of a file with the keys of another layout, without the classifier."""
    state = torch.load(file, weights_only=True)
    return body_in_layout({key: x for key, x in state.items() if not key.startswith("fc.")}, layout)


# torchvision


def torchvision_build(net: str, file: Path | None, *, norm: str, frozen: int, levels: Any = LEVELS) -> nn.Module:
    import torchvision

    settings = {} if file is None else {"weights": file, "source": "torchvision"}
    return torchvision.models.get_model(
        f"resnet_backbone_{net}_fpn", norm=norm, frozen_stages=frozen, out_levels=levels, channels=64, **settings
    )


def torchvision_training(model: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from torchvision.models.detection import FasterRCNN

    detector = FasterRCNN(model, num_classes=5, min_size=128, max_size=256)
    return detector, lambda pixels: sum(detector(list(pixels), targets(pixels)).values())  # type: ignore[return-value]


def state_dict_reload(model: nn.Module, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    torch.save(model.state_dict(), folder / "model.pth")
    loaded = build()
    loaded.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    return loaded


# timm


def timm_build(net: str, file: Path | None, *, norm: str, frozen: int, levels: Any = LEVELS) -> nn.Module:
    import timm

    indices = [("c1", *LEVELS).index(level) for level in levels]
    return timm.create_model(
        f"resnet_backbone_{net}",
        features_only=True,
        out_indices=indices,
        checkpoint_path="" if file is None else str(file),
        norm=norm,
        frozen_stages=frozen,
    )


def timm_features(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    levels = {2: "c1", 4: "c2", 8: "c3", 16: "c4", 32: "c5"}
    return dict(zip([levels[stride] for stride in model.feature_info.reduction()], model(pixels)))


def timm_reload(model: Any, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    from timm.models import load_checkpoint
    from timm.utils import CheckpointSaver

    saver = CheckpointSaver(model, torch.optim.SGD([torch.zeros(1, requires_grad=True)]), checkpoint_dir=str(folder))
    saver.save_checkpoint(0, 1.0)
    loaded = build()
    load_checkpoint(loaded, str(folder / "last.pth.tar"), weights_only=False)
    return loaded


# detectron2


def detectron2_build(net: str, file: Path | None, *, norm: str, frozen: int, levels: Any = LEVELS) -> nn.Module:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "resnet_backbone", frozen
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.STRIDE_IN_1X1, resnets.NORM = NETS[net], False, {"frozen_bn": "FrozenBN", "bn": "BN"}[norm]
    resnets.OUT_FEATURES = [f"res{level[1:]}" for level in levels]
    resnets.RES2_OUT_CHANNELS = 64 if net == "resnet18" else 256
    model = build_backbone(cfg)
    if file is not None:
        converted = file.with_name(f"detectron2-{file.name}")
        torch.save({"model": body_state(file, "detectron2")}, converted)
        DetectionCheckpointer(model).load(str(converted))
    return model


def detectron2_reload(model: nn.Module, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    from detectron2.checkpoint import DetectionCheckpointer

    DetectionCheckpointer(model, str(folder)).save("model")
    loaded = build()
    DetectionCheckpointer(loaded).load(str(folder / "model.pth"))
    return loaded


# mmdetection, with the registry and checkpoints of mmengine


def mmdet_build(net: str, file: Path | None, *, norm: str, frozen: int, levels: Any = LEVELS) -> nn.Module:
    from mmengine.registry import MODELS

    norms = {"frozen_bn": ({"type": "BN", "requires_grad": False}, True), "bn": ({"type": "BN"}, False)}
    norm_cfg, norm_eval = norms[norm]
    init = None if file is None else {"type": "Pretrained", "checkpoint": str(file)}
    model = MODELS.build(
        {
            "type": "ResNetBackbone",
            "depth": NETS[net],
            "out_indices": [LEVELS.index(level) for level in levels],
            "frozen_stages": frozen - 1,
            "norm_cfg": norm_cfg,
            "norm_eval": norm_eval,
            "init_cfg": init,
        }
    )
    model.init_weights()
    return model


def mmdet_reload(model: nn.Module, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    from mmengine.runner import load_checkpoint, save_checkpoint
    from mmengine.runner.checkpoint import get_state_dict

    save_checkpoint({"state_dict": get_state_dict(model), "meta": {}}, str(folder / "model.pth"))
    loaded = build()
    load_checkpoint(loaded, str(folder / "model.pth"), strict=True)
    return loaded


# transformers

STAGES = {"c2": "stage1", "c3": "stage2", "c4": "stage3", "c5": "stage4"}


def transformers_build(net: str, file: Path | None, *, norm: str, frozen: int, levels: Any = LEVELS) -> nn.Module:
    from transformers import AutoBackbone, AutoConfig

    config = AutoConfig.for_model(
        "resnet_backbone",
        name=net,
        norm=norm,
        frozen_stages=frozen,
        out_features=[STAGES[level] for level in levels],
    )
    model = AutoBackbone.from_config(config)
    if file is not None:
        load_weights(model.body, file, source="torchvision")
    return model


def transformers_features(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    levels = {stage: level for level, stage in STAGES.items()}
    return dict(zip([levels[name] for name in model.out_features], model(pixels).feature_maps))


def transformers_training(model: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=model.config,
        hidden_size=32,
        num_labels=4,
        use_auxiliary_head=True,
        auxiliary_in_channels=model.channels[2],
        auxiliary_channels=32,
    )
    segmenter = UperNetForSemanticSegmentation(config)
    segmenter.backbone = model

    def loss(pixels: Tensor) -> Tensor:
        labels = torch.randint(0, 4, (len(pixels), *pixels.shape[-2:]))
        return segmenter(pixel_values=pixels, labels=labels).loss

    return segmenter, loss


def transformers_reload(model: Any, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    from transformers import AutoModel

    model.save_pretrained(folder)
    return AutoModel.from_pretrained(str(folder))


# segmentation-models-pytorch


def smp_build(net: str, file: Path | None, *, norm: str, frozen: int, levels: Any = LEVELS) -> nn.Module:
    import segmentation_models_pytorch as smp

    depth, channels = len(levels) + 1, (64, 32, 16, 16, 8)
    name = f"resnet_backbone-{net}"
    model = smp.Unet(name, encoder_weights=None, encoder_depth=depth, decoder_channels=channels[:depth], classes=4)
    if file is not None:
        load_weights(model.encoder, file, source="torchvision")
    model.encoder.freeze(frozen)
    return model


def smp_features(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    return dict(zip(("pixels", "c1", *LEVELS), model.encoder(pixels)))


def smp_training(model: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    return model, lambda pixels: F.cross_entropy(model(pixels), torch.randint(0, 4, (len(pixels), *pixels.shape[-2:])))


def smp_reload(model: Any, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    import segmentation_models_pytorch as smp

    model.save_pretrained(str(folder))
    return smp.from_pretrained(str(folder))


CASES: dict[str, Case] = {
    "torchvision": Case(
        torchvision_build, lambda m, x: m.body(x), lambda m: m.body, torchvision_training, state_dict_reload
    ),
    "timm": Case(timm_build, timm_features, identity, plain_training, timm_reload),
    "detectron2": Case(
        detectron2_build,
        lambda m, x: {f"c{name[3:]}": y for name, y in m(x).items()},
        identity,
        plain_training,
        detectron2_reload,
    ),
    "mmdet": Case(mmdet_build, lambda m, x: dict(zip(m.out_levels, m(x))), identity, plain_training, mmdet_reload),
    "transformers": Case(
        transformers_build, transformers_features, lambda m: m.body, transformers_training, transformers_reload
    ),
    "smp": Case(smp_build, smp_features, lambda m: m.encoder, smp_training, smp_reload, norms=("bn",), depth_only=True),
}


def case_of(host: str) -> Case:
    """Register the host and return its case; skip the test if the host is not installed."""
    if importlib.util.find_spec(HOSTS[host].package) is None:
        pytest.skip(f"{HOSTS[host].package} is not installed")
    register(host)
    return CASES[host]
