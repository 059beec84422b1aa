"""Our backbone in detectron2: detections, trainer, yaml, LazyConfig and freezing; skipped if it is not installed."""

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
def test_detections_equal_those_with_the_resnet_of_detectron2(
    depth: int, family: str, imagenet_weights: Path, coco_mini: Path
) -> None:
    """Both models load one state dict strictly.

    The ResNets run in float64, so that results do not depend on their rounding; detectron2 supports only float32.
    """
    from detectron2.data.detection_utils import read_image
    from detectron2.modeling import build_model

    if (depth, family) == (18, "c4"):
        pytest.skip("the C4 head of detectron2 needs bottlenecks")
    models = []
    for is_ours in (False, True):
        cfg = config(depth, ours=is_ours)
        if family == "c4":
            cfg.MODEL.BACKBONE.NAME = "resnet_backbone" if is_ours else "build_resnet_backbone"
            cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
            cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = "Res5ROIHeads", 14
            cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        models.append(build_model(cfg).eval())
    reference, ours = models
    body = reference.backbone.bottom_up if family == "fpn" else reference.backbone
    incompatible = body.load_state_dict(
        body_state(imagenet_weights / f"resnet{depth}-imagenet.pth", "detectron2"), strict=False
    )
    assert not incompatible.missing_keys
    nn.init.normal_(reference.roi_heads.box_predictor.cls_score.weight, std=0.05)
    ours.load_state_dict(reference.state_dict(), strict=True)
    for model in models:
        body = model.backbone.bottom_up if family == "fpn" else model.backbone
        body.double()
        body.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        body.register_forward_hook(lambda _, inputs, outputs: {name: x.float() for name, x in outputs.items()})
    for file in sorted((coco_mini / "val2017").glob("*.jpg"))[:3]:
        image = torch.as_tensor(read_image(str(file), "RGB").transpose(2, 0, 1).copy()).float()[:, ::2, ::2]
        with torch.no_grad():
            expected, actual = (model([{"image": image}])[0]["instances"] for model in (reference, ours))
        assert len(expected) == len(actual) > 10 and torch.equal(expected.pred_classes, actual.pred_classes)
        assert torch.allclose(expected.pred_boxes.tensor, actual.pred_boxes.tensor, atol=1e-2)
        assert torch.allclose(expected.scores, actual.scores, atol=1e-5)


def test_faster_rcnn_reduces_the_loss_on_coco_in_the_default_trainer(
    imagenet_weights: Path, coco_mini: Path, tmp_path: Path
) -> None:
    """50 steps of DefaultTrainer; detectron2's checkpointer loads the ImageNet weights."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer

    state = body_state(imagenet_weights / "resnet18-imagenet.pth", "detectron2")
    torch.save(
        {"model": state, "matching_heuristics": True}, tmp_path / "r18.pth"
    )  # the format of detectron2's model zoo
    dataset = "coco_mini_of_the_tests"
    register_coco_instances(
        dataset, {}, str(coco_mini / "annotations" / "instances_train2017.json"), str(coco_mini / "train2017")
    )
    cfg = config(18, ours=True)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "r18.pth"), str(tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = (dataset,), (), 0
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
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    print(f"total loss, median of the first and the last five: {median(losses[:5]):.3f}, {median(losses[-5:]):.3f}")
    assert len(losses) == 50 and median(losses[-5:]) <= 0.8 * median(losses[:5])
    # frozen tensors keep the loaded values, all others changed
    after = body.state_dict()
    frozen = [key for key in state if key.startswith(("stem.", "res2.")) or ".norm." in key]
    assert all(torch.equal(after[key], state[key]) for key in frozen if key in after)
    assert not any(torch.equal(after[key], state[key]) for key in state if key in after and key not in frozen)


def test_lazy_config_builds_a_backbone_with_the_published_shapes(imagenet_weights: Path) -> None:
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
    features = model(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in features.values()] == [(8, 12), (4, 6), (2, 3), (1, 2)]


def test_freeze_of_a_built_net_freezes_stages_and_keeps_all_values(imagenet_weights: Path) -> None:
    from resnet_backbone.hosts.detectron2 import Detectron2ResNet

    net = Detectron2ResNet("resnet18", norm="BN", freeze_at=0)
    net.load_state_dict(body_state(imagenet_weights / "resnet18-imagenet.pth", "detectron2"), strict=False)
    before = {key: x.clone() for key, x in net.state_dict().items()}
    assert net.freeze(2) is net
    assert isinstance(net.bn1, FrozenBatchNorm2d) and not any(p.requires_grad for p in net.layer1.parameters())
    assert all(p.requires_grad for p in net.layer2.parameters())
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_GROUPS", 32, "NUM_GROUPS=32 is not supported: set it to 1 for a ResNet-50"),
        ("DEPTH", 77, "DEPTH=77 is not supported"),
        ("NORM", "LN", "'LN' is not supported: give one of FrozenBN"),
        ("DEFORM_ON_PER_STAGE", [False, True, True, True], "deformable"),
    ],
)
def test_unsupported_yaml_settings_are_refused(key: str, value: object, message: str) -> None:
    from detectron2.modeling import build_backbone

    cfg = config(50, ours=True)
    cfg.MODEL.RESNETS[key] = value
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)
