"""Weight decay by parameter, and learning rates equal to those of torch's schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, ReduceLROnPlateau

from heads.build import DetectorRecipe, assemble, empty_backbone
from tools.config.classification import load_config as load_cls_config
from tools.config.detection import load_config
from tools.config.settings import OptimiserConfig, ScheduleConfig
from tools.engine.optim import Plateau, Schedule, make_optimiser, make_schedule

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(("norm", "frozen_stages"), [("bn", 0), ("bn", 2), ("gn", 3), ("frozen_bn", 2)])
def test_norms_have_no_weight_decay_and_frozen_parameters_are_left_out(
    norm: str, frozen_stages: int, kind: str
) -> None:
    recipe = DetectorRecipe("resnet18", norm=norm, frozen_stages=frozen_stages, pyramid_channels=8)
    model = assemble(recipe, 3, empty_backbone(recipe))
    optimiser = make_optimiser(model, OptimiserConfig(kind=kind, weight_decay=0.125), lr=0.5)  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in optimiser.param_groups)
    for name, parameter in model.named_parameters():
        is_norm = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d | nn.GroupNorm)
        expected = (0.0 if is_norm else 0.125) if parameter.requires_grad else None
        assert decay.get(id(parameter)) == expected, name
    norms = sum(value == 0.0 for value in decay.values())
    assert (norms > 0) == (norm != "frozen_bn")
    assert "backbone.conv1.weight" in {
        n for n, p in model.named_parameters() if (id(p) in decay) == (frozen_stages < 1)
    }


@pytest.mark.parametrize("beta2", [0.9, 0.999])
def test_adamw_is_that_of_torch_with_momentum_and_beta2(beta2: float) -> None:
    settings = OptimiserConfig(kind="adamw", momentum=0.8, beta2=beta2, weight_decay=0.1)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimisers = [
        make_optimiser(ours, settings, lr=0.1),
        torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.8, beta2), weight_decay=0.1),
    ]
    for _ in range(4):
        x = torch.randn(5, 3)
        for model, optimiser in zip((ours, theirs), optimisers):
            optimiser.zero_grad()
            model(x).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_weight_decay_shrinks_weights_but_not_norms() -> None:
    """SGD with a gradient of zero: w <- w - lr * decay * w; norms do not change."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = make_optimiser(model, OptimiserConfig(weight_decay=0.5, momentum=0.0), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] * (0.95 if name.startswith("0.") else 1.0))


def test_decay_norms_gives_norms_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimiser = make_optimiser(model, OptimiserConfig(weight_decay=0.5, decay_norms=True), lr=0.1)
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0.5}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 4


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_decays_when_torchs_scheduler_does(patience: int) -> None:
    scores = [0.9, 0.8, 0.8, 0.85, 0.7, 0.71, 0.72, 0.73, 0.74, float("nan"), 0.69, 0.7, 0.7, 0.7, 0.7]
    optimiser = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = ReduceLROnPlateau(optimiser, factor=0.1, patience=patience - 1, threshold=0.0, eps=0.0)
    ours, schedule = Plateau(patience), Schedule(1.0, 100, 0, ScheduleConfig(iters=100, kind="plateau"))
    for score in scores:
        theirs.step(score)
        ours.see(score)
        assert schedule.lr(50, ours.decays) == pytest.approx(optimiser.param_groups[0]["lr"])
    resumed = Plateau(patience)
    resumed.load(vars(ours))
    assert resumed == ours and ours.decays > 1


def test_a_constant_warm_up_has_one_learning_rate() -> None:
    """The paper's ResNet-110: 0.01 for 400 steps, then 0.1 up to 32,000, 0.01 up to 48,000 and 0.001."""
    config = load_cls_config(ROOT / "configs" / "cifar_resnet110.yaml")
    schedule = make_schedule(config, steps_per_epoch=391)
    rates = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {step: pytest.approx(schedule.lr(step)) for step in rates} == rates
    assert schedule.total == 64_000


def test_the_default_schedule_is_detectron2s_1x() -> None:
    """Linear warm-up over 1,000 steps from 0.001 * lr; decays by 0.1 after 60,000 and 80,000 of 90,000 steps."""
    config = load_config(None, ["out=x", "model=mask_rcnn_r50_fpn", "schedule.iters=90000", "optimiser.lr=0.02"])
    schedule = make_schedule(config, steps_per_epoch=7330)
    assert schedule.lr(0) == pytest.approx(0.02 * 0.001)
    assert schedule.lr(500) == pytest.approx(0.02 * (0.001 + 0.999 * 0.5))
    steps = {1000: 0.02, 59999: 0.02, 60000: 0.002, 79999: 0.002, 80000: 0.0002, 89999: 0.0002}
    for step, lr in steps.items():
        assert schedule.lr(step) == pytest.approx(lr, rel=1e-12), step


def test_configs_of_mmdetection_have_its_1x_schedule() -> None:
    """12 epochs, with decays after 8 and 11."""
    paths = sorted((ROOT / "configs").glob("mmdet_*_1x.yaml"))
    assert len(paths) == 4
    for path in paths:
        schedule = make_schedule(load_config(path), steps_per_epoch=7330)
        decays = [at for at in (8, 11) if schedule.lr(at * 7330) < schedule.lr(at * 7330 - 1) * 0.2]
        assert (schedule.total, decays) == (12 * 7330, [8, 11]), path.name


def test_our_configs_have_the_1x_schedule_of_90_000_steps() -> None:
    for path in sorted((ROOT / "configs").glob("[fm]a*_rcnn_*_1x.yaml")):
        schedule = make_schedule(load_config(path), steps_per_epoch=7330)
        decays = [step for step in (60000, 80000) if schedule.lr(step) < schedule.lr(step - 1) * 0.2]
        assert (schedule.total, decays) == (90000, [60000, 80000]), path.name


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_learning_rates_equal_those_of_torchs_schedulers(kind: str) -> None:
    total, warmup, peak = 300, 40, 0.3
    settings = ScheduleConfig(iters=total, kind=kind, warmup_iters=warmup, warmup_factor=0.01)  # type: ignore[arg-type]
    schedule = Schedule(peak, total, warmup, settings)
    optimiser = SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    decay: torch.optim.lr_scheduler.LRScheduler
    if kind == "step":
        decay = MultiStepLR(optimiser, [200, 267], gamma=0.1)
    else:
        decay = CosineAnnealingLR(optimiser, T_max=total)
    # the factors of warm-up and decay are multiplied, as in torch's chainable schedulers
    warm_up = LinearLR(optimiser, start_factor=0.01, total_iters=warmup) if kind == "step" else None
    for step in range(total):
        if kind == "step" or step >= warmup:
            assert abs(schedule.lr(step) - optimiser.param_groups[0]["lr"]) < 1e-9, step
        optimiser.step()
        decay.step()
        if warm_up is not None:
            warm_up.step()


def test_warm_up_is_linear_and_cosine_ends_near_zero() -> None:
    settings = ScheduleConfig(iters=1000, kind="step", decay_at=(), warmup_iters=100, warmup_factor=0.2)
    schedule = Schedule(2.0, 1000, 100, settings)
    increments = [schedule.lr(step + 1) - schedule.lr(step) for step in range(100)]
    assert increments == pytest.approx([2.0 * 0.8 / 100] * 100)
    assert schedule.lr(0) == pytest.approx(0.4) and schedule.lr(100) == schedule.lr(999) == 2.0
    cosine = Schedule(2.0, 1000, 0, ScheduleConfig(iters=1000, kind="cosine", warmup_iters=0))
    rates = [cosine.lr(step) for step in range(1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 2.0 and rates[500] == pytest.approx(1.0) and 0 < rates[-1] < 1e-5


def test_a_run_shorter_than_its_warm_up_consists_of_warm_up() -> None:
    config = load_config(None, ["out=x", "model=mask_rcnn_r50_fpn", "schedule={iters: 10, decay_at: []}"])
    schedule = make_schedule(config, steps_per_epoch=1)
    assert (schedule.total, schedule.warmup) == (10, 10)
    assert [schedule.lr(s) for s in range(10)] == sorted(schedule.lr(s) for s in range(10))
