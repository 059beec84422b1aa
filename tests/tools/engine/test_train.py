"""The training loop on a tiny data set: what it refuses, what it survives, and that a resumed run is the whole run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from heads.build import assemble, empty_backbone
from heads.detector import RCNN
from heads.files import load_detector
from resnet_backbone import RESNETS, ResNetClassifier, WeightMismatch
from resnet_backbone.weights.keymaps import body_in_layout
from tools import train_det
from tools.config.detection import RunConfig
from tools.data.coco import CocoData
from tools.data.loader import Batch, BatchPlan, make_loader
from tools.engine.log import RunLog
from tools.engine.optim import make_optimiser, make_schedule
from tools.engine.tasks import Detection
from tools.engine.train import NonFiniteLoss, Stopped, Trainer, make_accelerator, pick_device, pick_precision

Tiny = Callable[..., RunConfig]
QUIET = Console(quiet=True)
# nothing in a step is random, and an image's part in it does not depend on the others
PLAIN = (
    "model.norm=gn",
    "model.rpn.samples_per_image=100000",
    "model.box.samples_per_image=100000",
    "input.flip_probability=0",
    "input.short_side_px=[96]",
    "schedule.warmup_iters=0",
)


def make_trainer(config: RunConfig, data: CocoData | None = None, *, resume: bool = False) -> tuple[Trainer, Any]:
    """A trainer and its batches, put together as train_det.py does, without pictures and scores."""
    torch.manual_seed(config.train.seed)
    accelerator = make_accelerator(config)
    data = data or train_det.load_train(config)
    detector = train_det.make_detector(config, data, QUIET)
    per_step, accumulate = config.train.batch_size // config.train.accumulate, config.train.accumulate
    per_epoch = BatchPlan(data, batch_size=per_step, seed=0, span=(0, 0)).per_epoch
    schedule = make_schedule(config, -(-per_epoch // accumulate))
    optimiser = make_optimiser(detector, config.optimiser, schedule.peak_lr)
    trainer = Trainer(
        accelerator, detector, optimiser, schedule, config, Detection(config.model, detector.preprocess), per_epoch
    )
    if resume:
        trainer.resume()
    span = trainer.step * accumulate, schedule.total * accumulate
    plan = BatchPlan(data, batch_size=per_step, seed=config.train.seed, span=span)
    return trainer, make_loader(train_det.training_images(config, data), plan, workers=0)


def run(config: RunConfig, batches: Callable[[Iterable[Batch]], Iterable[Batch]] = iter, **more: Any) -> RCNN:
    """Trains with a log, and gives the detector."""
    config.out.mkdir(parents=True, exist_ok=True)
    trainer, loader = make_trainer(config, **more)
    with RunLog(config.out, trainer.schedule.total, trainer.step, QUIET) as log:
        trainer.run(batches(loader), log)
    assert isinstance(trainer.model, RCNN)
    return trainer.model


def lines(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def furthest(a: RCNN, b: RCNN, prefix: str = "") -> float:
    """The largest difference of any tensor, relative to the tensor's largest value."""
    one, two = a.state_dict(), b.state_dict()
    keys = [key for key in one if key.startswith(prefix)]
    assert keys and one.keys() == two.keys()
    return max(
        float((one[k].double() - two[k].double()).abs().max() / one[k].double().abs().max().clamp(min=1e-3))
        for k in keys
    )


def test_what_a_cpu_cannot_do_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU: on a CPU use bf16 or fp32"):
        make_accelerator(tiny("train.precision=fp16"))
    assert pick_precision("auto", "cpu") in ("bf16", "fp32") and pick_precision("fp32", "cpu") == "fp32"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="train.device=cuda.*no CUDA device: set train.device=cpu or auto"):
            make_accelerator(tiny("train.device=cuda"))
        assert pick_device("auto") == "cpu"


def test_sync_bn_on_a_cpu_is_refused_with_the_mend(tiny: Tiny) -> None:
    config = tiny("model.norm=sync_bn")
    with pytest.raises(ValueError, match="sync_bn trains on CUDA only.*use .*bn, gn or frozen_bn"):
        run(config)
    assert not (config.out / "checkpoints").exists()


def finite_checkpoint(config: RunConfig) -> dict[str, Any]:
    detector, _ = load_detector(config.out / "checkpoints" / "last.pt")
    assert all(bool(t.isfinite().all()) for t in detector.state_dict().values())
    return torch.load(config.out / "checkpoints" / "last.pt", weights_only=True)


def test_a_weight_gone_bad_stops_the_run_and_the_checkpoint_stays(tiny: Tiny) -> None:
    config = tiny()
    trainer, loader = make_trainer(config)
    seen: list[list[int]] = []

    def poisoned(batches: Iterable[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            seen.append(batch.image_ids)
            if number == 2:
                with torch.no_grad():
                    trainer.model.get_parameter("rpn.objectness.bias").fill_(float("nan"))
            yield batch

    with pytest.raises(NonFiniteLoss) as error:
        trainer.run(poisoned(loader), None)
    said = str(error.value)
    for name in (
        "step 2",
        "loss_rpn_cls=nan",
        "loss_cls=",
        "loss_mask=",
        f"images {seen[2]}",
        "optimiser.lr",
        "last.pt",
    ):
        assert name in said
    assert len(seen) == 3
    assert finite_checkpoint(config)["step"] == 2


def test_a_rate_far_too_high_stops_the_run_and_the_checkpoint_stays(tiny: Tiny) -> None:
    config = tiny("optimiser.lr=1e30", "schedule.warmup_iters=0")
    with pytest.raises(NonFiniteLoss, match=r"step \d: .*not finite|step \d: the gradient's norm"):
        run(config)
    saved = finite_checkpoint(config)
    assert 1 <= saved["step"] < 6
    assert {line["step"] for line in lines(config)} == set(range(1, saved["step"] + 1))


def stop_at(number: int) -> Callable[[Iterable[Batch]], Iterator[Batch]]:
    """Batches that ask the process to stop, as a scheduler's SIGTERM would, while this step is taken."""

    def batches(loader: Iterable[Batch]) -> Iterator[Batch]:
        for index, batch in enumerate(loader, start=1):
            if index == number:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    return batches


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_resumed_run_is_the_whole_run(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    more = f"optimiser.kind={kind}", "optimiser.lr=0.002", "train.checkpoint_every_iters=100"
    whole_config, config = tiny(*more, f"out={tmp_path / 'whole'}"), tiny(*more, f"out={tmp_path / 'parts'}")
    before = signal.getsignal(signal.SIGTERM)
    whole = run(whole_config)
    with pytest.raises(Stopped, match=r"stopped at step 3 of 6; saved .*last.pt"):
        run(config, stop_at(3))
    assert signal.getsignal(signal.SIGTERM) == before
    # a run killed after it logged a step that it had not saved, in the middle of a line
    with open(config.out / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 4, "loss": 77.0}\n{"kind": "train", "st')
    resumed = run(config, resume=True)
    assert furthest(whole, resumed) <= 1e-6
    assert (
        [line["step"] for line in lines(config)] == [line["step"] for line in lines(whole_config)] == list(range(1, 7))
    )
    for a, b in zip(lines(whole_config), lines(config)):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["lr"] == b["lr"]


def test_a_run_that_ended_while_it_was_scored_is_scored_when_resumed(tiny: Tiny) -> None:
    config = tiny("schedule.iters=1")
    trainer, loader = make_trainer(config)

    def dies(step: int) -> dict[str, float | None]:
        raise KeyboardInterrupt

    trainer.evaluate = dies
    with pytest.raises(KeyboardInterrupt):
        trainer.run(loader, None)
    resumed, rest = make_trainer(config, resume=True)
    resumed.evaluate = lambda step: {"bbox/AP": 0.25}
    with RunLog(config.out, 1, 1, QUIET) as log:
        resumed.run(rest, log)
    assert lines(config) == [{"kind": "val", "step": 1, "bbox/AP": 0.25}]


def test_gradients_add_up_over_accumulated_batches(tiny: Tiny, tmp_path: Path) -> None:
    """One image four times over: every part of a step then weighs the same, in every loss.

    A small learning rate: after a step of several times the weights' size, a rounding decides which proposals are kept.
    """
    small = *PLAIN, "schedule.iters=2", "optimiser.momentum=0", "optimiser.lr=0.001"
    data = train_det.load_train(tiny(*small))
    record = next(r for r in data.records if len(r.boxes) >= 3)
    four = CocoData((record,) * 4, data.category_ids, data.class_names, {})
    whole = run(tiny(*small, f"out={tmp_path / 'whole'}"), data=four)
    parts = run(tiny(*small, f"out={tmp_path / 'parts'}", "train.accumulate=2"), data=four)
    start = start_of(tiny(*small), data)
    assert furthest(start, whole) > 1e-3
    assert furthest(whole, parts) <= 1e-5


def test_the_proposal_losses_of_four_images_add_up_from_two_and_two(tiny: Tiny, tmp_path: Path) -> None:
    """Different images: the RPN divides by a constant an image, so its own weights take the very same step.

    All of one size: the RPN also learns from the padding that larger neighbours in a batch cause.
    """
    small = *PLAIN, "schedule.iters=1", "train.group_by_aspect=false", "optimiser.momentum=0"
    data = train_det.load_train(tiny(*small))
    square = [r for r in data.records if len(r.boxes) >= 2 and r.size.width == r.size.height]
    four = CocoData(tuple(square[:4]), data.category_ids, data.class_names, {})
    whole = run(tiny(*small, f"out={tmp_path / 'whole'}"), data=four)
    parts = run(tiny(*small, f"out={tmp_path / 'parts'}", "train.accumulate=2"), data=four)
    assert furthest(start_of(tiny(*small), data), whole, "rpn.") > 1e-4
    assert furthest(whole, parts, "rpn.") <= 1e-5


def start_of(config: RunConfig, data: CocoData) -> RCNN:
    torch.manual_seed(config.train.seed)
    return train_det.make_detector(config, data, QUIET)


def test_what_is_frozen_stays_bit_for_bit(tiny: Tiny, imagenet_weights: Path) -> None:
    config = tiny(
        "model.norm=frozen_bn",
        "model.frozen_stages=2",
        f"backbone_weights={imagenet_weights / 'resnet18-imagenet.pth'}",
        "backbone_source=torchvision",
        "schedule={iters: 2, warmup_iters: 0}",
        "optimiser.clip_norm=10",
    )
    data = train_det.load_train(config)
    source = torch.load(imagenet_weights / "resnet18-imagenet.pth", weights_only=True)
    source = source.get("state_dict", source)
    after = run(config, data=data).state_dict()
    before = start_of(config, data).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    norms = {key for key in before if ".bn" in key or "downsample.1" in key}
    stem_and_c2 = {key for key in before if key.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1."))}
    assert len(norms) > 60 and len(stem_and_c2) > 15
    assert not changed & (norms | stem_and_c2)
    assert changed == before.keys() - norms - stem_and_c2
    for key in norms | stem_and_c2:
        assert torch.equal(after[key], source[key.removeprefix("backbone.")].float()), key


def test_live_norms_learn_and_frozen_stages_keep_theirs(tiny: Tiny, imagenet_weights: Path) -> None:
    """norm: bn with two frozen stages: statistics of the frozen ones stay, of the others move."""
    config = tiny(
        "model.frozen_stages=2",
        f"backbone_weights={imagenet_weights / 'resnet18-imagenet.pth'}",
        "backbone_source=torchvision",
        "schedule={iters: 1, warmup_iters: 0}",
        "optimiser.lr=1e-3",
    )
    after = run(config).state_dict()
    before = start_of(config, train_det.load_train(config)).state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    statistics = {key for key in before if "running_" in key}
    kept = {key for key in statistics if key.startswith(("backbone.bn1", "backbone.layer1."))}
    assert kept and kept <= same and not (statistics - kept) & same


def test_an_empty_backbone_is_where_a_run_from_scratch_starts(tiny: Tiny) -> None:
    config = tiny()
    data = train_det.load_train(config)
    torch.manual_seed(config.train.seed)
    by_hand = assemble(config.model, len(data.class_names), empty_backbone(config.model))
    assert furthest(by_hand, start_of(config, data)) == 0.0


def test_a_run_from_msras_weights_sees_bgr_and_its_file_says_so(tiny: Tiny, tmp_path: Path) -> None:
    """Synthetic: a bottleneck net under the model zoo's names. The wrong stride is refused, naming the setting."""
    torch.manual_seed(1)
    net = ResNetClassifier(replace(RESNETS["resnet50"], stride_on="1x1"))
    theirs = {"model": body_in_layout(net.state_dict(), "detectron2"), "__author__": "Detectron2 Model Zoo"}
    torch.save(theirs, tmp_path / "R-50.pth")
    sets = (
        f"backbone_weights={tmp_path / 'R-50.pth'}",
        "model.backbone=resnet50",
        "schedule={iters: 1, warmup_iters: 0}",
        "data.val=null",
        "train.batch_size=1",
    )
    with pytest.raises(ValueError, match="stride on the 1x1, this net has it on the 3x3.*DetectorRecipe"):
        run(tiny(*sets))
    config = tiny(*sets, "model.stride_on=1x1", f"out={tmp_path / 'bgr'}")
    run(config)
    detector, _ = load_detector(config.out / "checkpoints" / "last.pt")
    assert detector.preprocess.channel_order == "bgr" and detector.preprocess.resize == "pillow"
    assert detector.preprocess.short_side_px == config.input.test_short_side_px


def test_allowed_gaps_are_named_at_the_start_and_in_the_runs_folder(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("schedule={iters: 1, warmup_iters: 0}", "data.val=null")
    detector = run(config)
    torch.manual_seed(0)
    state = {k: v for k, v in detector.state_dict().items() if k not in ("rpn.deltas.bias", "backbone.bn1.bias")}
    backbone = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    torch.save(backbone, tmp_path / "gap.pth")
    sets = f"backbone_weights={tmp_path / 'gap.pth'}", "backbone_source=torchvision", f"out={tmp_path / 'tuned'}"
    with pytest.raises(WeightMismatch, match="bn1.bias"):
        run(tiny(*sets))
    capsys.readouterr()
    config = tiny(*sets, "allow_missing=[backbone.bn1.*]", "schedule={iters: 1, warmup_iters: 0}", "data.val=null")
    config.out.mkdir(exist_ok=True)
    train_det.make_detector(config, train_det.load_train(config), Console())
    lines_of = [line.split() for line in (config.out / "weights.txt").read_text().splitlines()]
    rows = {line[0]: line[2:] for line in lines_of if len(line) == 4}
    assert rows["backbone"] == ["1", "bn1.bias"] and "bn1.bias" in capsys.readouterr().out
    assert all(rows[part][1] == "all" for part in ("neck", "rpn", "box_head"))
