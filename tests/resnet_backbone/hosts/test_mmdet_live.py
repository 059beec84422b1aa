"""Our backbone in mmdetection: Mask R-CNN, runner and freezing; skipped if it is not installed (`make test-mmdet`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from resnet_backbone import register

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="mmdet is not installed")


@pytest.fixture(autouse=True)
def registered() -> None:
    register("mmdet")
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)


def config() -> Any:
    import mmdet
    from mmengine.config import Config

    return Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")


def detectors(file: Path, **changes: Any) -> list[nn.Module]:
    """mmdetection's Mask R-CNN with its own ResNet-50 and with ours; the configuration is otherwise the same."""
    from mmdet.registry import MODELS

    models = []
    for kind in ("ResNet", "ResNetBackbone"):
        cfg = config().model
        cfg.backbone.update(type=kind, init_cfg={"type": "Pretrained", "checkpoint": str(file)}, **changes)
        models.append(MODELS.build(cfg))
        models[-1].backbone.init_weights()
    return models


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_features_and_detections_equal_those_with_the_resnet_of_mmdetection(
    style: str, imagenet_weights: Path, coco_mini: Path
) -> None:
    import mmcv
    from mmdet.structures import DetDataSample

    reference, ours = detectors(imagenet_weights / "resnet50-imagenet.pth", style=style)
    nn.init.normal_(reference.roi_head.bbox_head.fc_cls.weight, std=0.05)
    ours.load_state_dict(reference.state_dict(), strict=False)
    assert {k for k in reference.state_dict() if "num_batches" not in k} == {
        k for k in ours.state_dict() if "num_batches" not in k
    }
    models = [model.eval() for model in (reference, ours)]
    # the backbones run in float64, so that results do not depend on their rounding; mmdetection supports only float32
    for model in models:
        model.backbone.double()
        model.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        model.neck.register_forward_pre_hook(lambda _, inputs: (tuple(x.float() for x in inputs[0]),))
    for file in sorted((coco_mini / "val2017").glob("*.jpg"))[:3]:
        image = torch.from_numpy(mmcv.imread(str(file))[::2, ::2].transpose(2, 0, 1).copy())
        shape = tuple(image.shape[-2:])
        outputs = []
        for model in models:
            sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
            batch = model.data_preprocessor({"inputs": [image], "data_samples": [sample]})
            pixels = batch["inputs"]
            with torch.no_grad():
                levels = model.backbone(pixels)
                outputs.append((levels, model.predict(pixels, batch["data_samples"])[0].pred_instances))
        (expected_levels, expected), (actual_levels, actual) = outputs
        for a, b in zip(expected_levels, actual_levels):
            assert torch.allclose(a, b, atol=1e-9 * float(a.abs().max()))
        assert len(expected) == len(actual) > 10 and torch.equal(expected.labels, actual.labels)
        assert torch.allclose(expected.bboxes, actual.bboxes, atol=1e-3)
        assert torch.allclose(expected.scores, actual.scores, atol=1e-6)
        differing = (expected.masks != actual.masks).flatten(1).sum(1)
        assert int(differing.max()) <= 2


@pytest.mark.parametrize("frozen", [-1, 0, 1, 3, 4])
@pytest.mark.parametrize("norm_eval", [True, False])
def test_frozen_stages_and_norm_eval_freeze_the_same_tensors_as_in_mmdetection(
    frozen: int, norm_eval: bool, imagenet_weights: Path
) -> None:
    """A training step changes the same parameters and statistics as in mmdetection's ResNet."""
    file = imagenet_weights / "resnet50-imagenet.pth"
    changes = []
    for model in detectors(file, frozen_stages=frozen, norm_eval=norm_eval):
        net = model.backbone
        net.train()
        before = {key: x.clone() for key, x in net.state_dict().items()}
        loss = torch.stack([x.square().mean() for x in net(torch.rand(2, 3, 64, 64))]).sum()
        if loss.requires_grad:
            loss.backward()
            torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3).step()
        after = net.state_dict()
        changes.append({k for k in before if "num_batches" not in k and not torch.equal(before[k], after[k])})
    assert changes[0] == changes[1]
    assert bool(changes[0]) == (frozen < 4)


def test_mask_rcnn_reduces_the_loss_on_coco_in_the_runner(
    imagenet_weights: Path, coco_mini: Path, tmp_path: Path
) -> None:
    """50 steps of mmdetection's Mask R-CNN with our ResNet-18; init_cfg loads the ImageNet weights."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    class Losses(Hook):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.losses.append(float(outputs["loss"]))

    cfg = config()
    file = str(imagenet_weights / "resnet18-imagenet.pth")
    cfg.model.backbone.update(type="ResNetBackbone", depth=18, init_cfg={"type": "Pretrained", "checkpoint": file})
    cfg.model.neck.update(in_channels=[64, 128, 256, 512], out_channels=64)
    cfg.model.rpn_head.update(in_channels=64, feat_channels=64)
    for extractor in (cfg.model.roi_head.bbox_roi_extractor, cfg.model.roi_head.mask_roi_extractor):
        extractor.out_channels = 64
    cfg.model.roi_head.bbox_head.update(in_channels=64, fc_out_channels=256)
    cfg.model.roi_head.mask_head.update(in_channels=64, conv_out_channels=64)
    cfg.model.train_cfg.rcnn.sampler.num = 128
    data = cfg.train_dataloader
    data.update(num_workers=0, persistent_workers=False, batch_size=2)
    data.sampler = {"type": "InfiniteSampler", "shuffle": True}
    data.pop("batch_sampler", None)
    data.dataset.update(
        data_root="",
        ann_file=str(coco_mini / "annotations" / "instances_train2017.json"),
        data_prefix={"img": str(coco_mini / "train2017")},
    )
    for step in data.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (384, 256)
    cfg.update(
        work_dir=str(tmp_path),
        param_scheduler=[],
        randomness={"seed": 1},
        log_level="WARNING",
    )
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 50, "val_interval": 1000}
    for key in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        cfg[key] = None
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.optim_wrapper.clip_grad = {"max_norm": 10.0}
    runner = Runner.from_cfg(cfg)
    hook = Losses()
    runner.register_hook(hook)
    runner.train()
    losses = hook.losses
    print(f"loss, median of the first and the last five: {median(losses[:5]):.3f}, {median(losses[-5:]):.3f}")
    assert len(losses) == 50 and median(losses[-5:]) <= 0.8 * median(losses[:5])
    loaded = torch.load(file, weights_only=True)
    after = runner.model.backbone.state_dict()
    frozen = ("conv1.", "bn1.", "layer1.")  # frozen_stages=1
    statistics = [key for key in after if "running" in key]
    assert all(torch.equal(after[key], loaded[key]) for key in after if key.startswith(frozen) or key in statistics)
    trained = [key for key in after if not key.startswith(frozen) and "running" not in key and "num_batches" not in key]
    assert not any(torch.equal(after[key], loaded[key]) for key in trained)
