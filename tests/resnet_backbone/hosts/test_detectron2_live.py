"""Inside detectron2 itself, wherever it is installed: its detections, its trainer, yaml, LazyConfig, freezing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from resnet_backbone import register
from resnet_backbone.norm import FrozenBatchNorm2d
from tests.resnet_backbone.hosts.cases import body_state

pytestmark = pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed")


@pytest.fixture(autouse=True)
def registered() -> None:
    register("detectron2")


def config(depth: int, *, ours: bool) -> Any:
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.BACKBONE.NAME = "resnet_backbone_fpn" if ours else "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = depth, False
    if depth == 18:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return cfg


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("family", ["fpn", "c4"])
def test_the_same_detections_as_on_its_own_resnet(
    depth: int, family: str, imagenet_weights: Path, coco_mini: Path
) -> None:
    """One state dict, loaded strictly into both; the bodies run in float64, so that nothing hangs on their rounding
    (the rest of detectron2 knows float32 alone)."""
    from detectron2.data.detection_utils import read_image
    from detectron2.modeling import build_model

    if (depth, family) == (18, "c4"):
        pytest.skip("its C4 head is built of bottlenecks")
    models = []
    for ours in (False, True):
        cfg = config(depth, ours=ours)
        if family == "c4":
            cfg.MODEL.BACKBONE.NAME = "resnet_backbone" if ours else "build_resnet_backbone"
            cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
            cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = "Res5ROIHeads", 14
            cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        models.append(build_model(cfg).eval())
    theirs, ours_ = models
    body = theirs.backbone.bottom_up if family == "fpn" else theirs.backbone
    missing = body.load_state_dict(
        body_state(imagenet_weights / f"resnet{depth}-imagenet.pth", "detectron2"), strict=False
    )
    assert not missing.missing_keys
    nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.weight, std=0.05)
    ours_.load_state_dict(theirs.state_dict(), strict=True)
    for model in models:
        part = model.backbone.bottom_up if family == "fpn" else model.backbone
        part.double()
        part.register_forward_pre_hook(lambda _, given: (given[0].double(),))
        part.register_forward_hook(lambda _, given, found: {name: x.float() for name, x in found.items()})
    for file in sorted((coco_mini / "val2017").glob("*.jpg"))[:3]:
        image = torch.as_tensor(read_image(str(file), "RGB").transpose(2, 0, 1).copy()).float()[:, ::2, ::2]
        with torch.no_grad():
            want, got = (model([{"image": image}])[0]["instances"] for model in (theirs, ours_))
        assert len(want) == len(got) > 10 and torch.equal(want.pred_classes, got.pred_classes)
        assert torch.allclose(want.pred_boxes.tensor, got.pred_boxes.tensor, atol=1e-2)
        assert torch.allclose(want.scores, got.scores, atol=1e-5)


def test_its_trainer_learns_coco(imagenet_weights: Path, coco_mini: Path, tmp_path: Path) -> None:
    """Fifty steps of its DefaultTrainer from ImageNet weights, read by its own checkpointer."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer

    state = body_state(imagenet_weights / "resnet18-imagenet.pth", "detectron2")
    torch.save({"model": state, "matching_heuristics": True}, tmp_path / "r18.pth")  # as its model zoo's files are read
    data = "coco_mini_of_the_tests"
    register_coco_instances(
        data, {}, str(coco_mini / "annotations" / "instances_train2017.json"), str(coco_mini / "train2017")
    )
    cfg = config(18, ours=True)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "r18.pth"), str(tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = (data,), (), 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (256,), 384
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 128, 128
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 2, 0.01, 50
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS, cfg.SEED = 5, (), 1
    try:
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        body = trainer.model.backbone.bottom_up
        assert all(torch.equal(x, state[key]) for key, x in body.state_dict().items())
        trainer.train()
    finally:
        DatasetCatalog.remove(data)
        MetadataCatalog.remove(data)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    print(f"total loss, median of the first and the last five: {median(losses[:5]):.3f}, {median(losses[-5:]):.3f}")
    assert len(losses) == 50 and median(losses[-5:]) <= 0.8 * median(losses[:5])
    # what was frozen is what was loaded, what was not has moved
    after = body.state_dict()
    frozen = [key for key in state if key.startswith(("stem.", "res2.")) or ".norm." in key]
    assert all(torch.equal(after[key], state[key]) for key in frozen if key in after)
    assert not any(torch.equal(after[key], state[key]) for key in state if key in after and key not in frozen)


def test_lazy_config_and_shapes(imagenet_weights: Path) -> None:
    from detectron2.config import LazyCall, instantiate
    from detectron2.modeling import FPN, Backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    from resnet_backbone.hosts.detectron2 import Detectron2ResNet

    lazy = LazyCall(FPN)(
        bottom_up=LazyCall(Detectron2ResNet)(net="resnet18", out_features=["res3", "res4", "res5"], freeze_at=0),
        in_features=["res3", "res4", "res5"],
        out_channels=64,
        top_block=LazyCall(LastLevelMaxPool)(),
    )
    model = instantiate(lazy)
    shapes = {name: (s.channels, s.stride) for name, s in model.bottom_up.output_shape().items()}
    assert shapes == {"res3": (128, 8), "res4": (256, 16), "res5": (512, 32)}
    assert isinstance(model.bottom_up, Backbone) and model.size_divisibility == 32
    assert model.bottom_up.size_divisibility == 0 and model.bottom_up.padding_constraints == {}
    found = model(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in found.values()] == [(8, 12), (4, 6), (2, 3), (1, 2)]


def test_freezing_later(imagenet_weights: Path) -> None:
    from resnet_backbone.hosts.detectron2 import Detectron2ResNet

    net = Detectron2ResNet("resnet18", norm="BN", freeze_at=0)
    net.load_state_dict(body_state(imagenet_weights / "resnet18-imagenet.pth", "detectron2"), strict=False)
    before = {key: x.clone() for key, x in net.state_dict().items()}
    assert net.freeze(2) is net
    assert isinstance(net.bn1, FrozenBatchNorm2d) and not any(p.requires_grad for p in net.layer1.parameters())
    assert all(p.requires_grad for p in net.layer2.parameters())
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("NUM_GROUPS", 32, "NUM_GROUPS=32 is not supported: set it to 1 for a ResNet-50"),
        ("DEPTH", 77, "DEPTH=77 is not supported"),
        ("NORM", "LN", "'LN' is not supported: give one of FrozenBN"),
        ("DEFORM_ON_PER_STAGE", [False, True, True, True], "deformable"),
    ],
)
def test_what_a_yaml_may_not_ask(key: str, value: object, said: str) -> None:
    from detectron2.modeling import build_backbone

    cfg = config(50, ours=True)
    cfg.MODEL.RESNETS[key] = value
    with pytest.raises(ValueError, match=said):
        build_backbone(cfg)
