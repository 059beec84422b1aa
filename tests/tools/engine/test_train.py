"""The training loop on a tiny data set: errors, diverging weights, gradient accumulation and frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from heads import BitMasks, ImageBatch, ImageSize, Targets
from tests.tools.conftest import GivenRecords
from tests.tools.engine.tiny_training import Tiny, finite_checkpoint, lines, make_trainer, max_difference, run, start_of
from tools.data.loader import Batch
from tools.devices import pick_device, pick_precision
from tools.engine.train import NonFiniteLoss, make_accelerator
from tools.jobs import detection

# no step is random, and the losses of an image do not depend on the other images of its batch
PLAIN = (
    "model.norm=gn",
    "model.rpn.samples_per_image=100000",
    "model.box.samples_per_image=100000",
    "input.flip_probability=0",
    "input.short_side_px=[96]",
    "schedule.warmup_iters=0",
)


def test_a_device_or_precision_that_is_not_available_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU: on a CPU use bf16 or fp32"):
        make_accelerator(tiny("train.precision=fp16"))
    assert pick_precision("auto", "cpu") in ("bf16", "fp32") and pick_precision("fp32", "cpu") == "fp32"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=cuda.*no CUDA device: use cpu or auto .train.device in"):
            make_accelerator(tiny("train.device=cuda"))
        assert pick_device("auto") == "cpu"


def test_sync_bn_on_a_cpu_is_refused(tiny: Tiny) -> None:
    config = tiny("model.norm=sync_bn")
    with pytest.raises(ValueError, match="sync_bn trains on CUDA only.*use .*bn, gn or frozen_bn"):
        run(config)
    assert not (config.out / "checkpoints").exists()


def test_a_nan_weight_stops_the_run_and_the_checkpoint_stays_finite(tiny: Tiny) -> None:
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
    for part in (
        "step 2",
        "loss_rpn_cls=nan",
        "loss_cls=",
        "loss_mask=",
        f"images {seen[2]}",
        "optimiser.lr",
        "last.pt",
    ):
        assert part in str(error.value)
    assert len(seen) == 3
    assert finite_checkpoint(config)["step"] == 2


def test_a_diverging_run_stops_and_the_checkpoint_stays_finite(tiny: Tiny) -> None:
    config = tiny("optimiser.lr=1e30", "schedule.warmup_iters=0")
    with pytest.raises(NonFiniteLoss, match=r"step \d: .*not finite|step \d: the gradient's norm"):
        run(config)
    saved = finite_checkpoint(config)
    assert 1 <= saved["step"] < 6
    assert {line["step"] for line in lines(config)} == set(range(1, saved["step"] + 1))


def test_gradients_add_up_over_accumulated_batches(tiny: Tiny, tmp_path: Path) -> None:
    """Four copies of one image, so that every part of a step has the same weight in every loss.

    The learning rate is small: large steps amplify rounding until other proposals are kept. At 0.001, where the largest
    weight changes by 81 %, one thread differs by 1.01e-5; at 0.0005 one and two threads differ by 8e-8.
    """
    small = *PLAIN, "schedule.iters=2", "optimiser.momentum=0", "optimiser.lr=0.0005"
    data = detection.load_train(tiny(*small))
    record = next(r for r in data.records if len(r.boxes) >= 3)
    four = GivenRecords.of([record] * 4, data)
    whole = run(tiny(*small, f"out={tmp_path / 'whole'}"), data=four)
    parts = run(tiny(*small, f"out={tmp_path / 'parts'}", "train.accumulate=2"), data=four)
    start = start_of(tiny(*small), data)
    assert max_difference(start, whole) > 1e-3
    assert max_difference(whole, parts) <= 1e-5


def test_the_proposal_losses_of_four_images_add_up_from_two_and_two(tiny: Tiny, tmp_path: Path) -> None:
    """With different images: the RPN divides its losses by a constant per image, so its weights take the same step.

    The images have one size: a batch is padded to its largest image, and anchors on the padding are negative examples.
    """
    small = *PLAIN, "schedule.iters=1", "train.group_by_aspect=false", "optimiser.momentum=0"
    data = detection.load_train(tiny(*small))
    square = [r for r in data.records if len(r.boxes) >= 2 and r.size.width == r.size.height]
    four = GivenRecords.of(square[:4], data)
    whole = run(tiny(*small, f"out={tmp_path / 'whole'}"), data=four)
    parts = run(tiny(*small, f"out={tmp_path / 'parts'}", "train.accumulate=2"), data=four)
    assert max_difference(start_of(tiny(*small), data), whole, "rpn.") > 1e-4
    assert max_difference(whole, parts, "rpn.") <= 1e-5


def test_frozen_weights_stay_bit_for_bit(tiny: Tiny, imagenet_weights: Path) -> None:
    config = tiny(
        "model.norm=frozen_bn",
        "model.frozen_stages=2",
        f"backbone_weights={imagenet_weights / 'resnet18-imagenet.pth'}",
        "backbone_source=torchvision",
        "schedule={iters: 2, warmup_iters: 0}",
        "optimiser.clip_norm=10",
    )
    data = detection.load_train(config)
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


def test_batch_norms_of_frozen_stages_keep_their_statistics(tiny: Tiny, imagenet_weights: Path) -> None:
    """norm: bn with two frozen stages: only the statistics of the other stages change."""
    config = tiny(
        "model.frozen_stages=2",
        f"backbone_weights={imagenet_weights / 'resnet18-imagenet.pth'}",
        "backbone_source=torchvision",
        "schedule={iters: 1, warmup_iters: 0}",
        "optimiser.lr=1e-3",
    )
    after = run(config).state_dict()
    before = start_of(config, detection.load_train(config)).state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    statistics = {key for key in before if "running_" in key}
    kept = {key for key in statistics if key.startswith(("backbone.bn1", "backbone.layer1."))}
    assert kept and kept <= same and not (statistics - kept) & same


def test_the_trained_detector_is_returned_without_autocast(tiny: Tiny) -> None:
    """accelerate wraps `forward`; whoever trains in a notebook gets the model as it was made."""
    config = tiny("train.precision=bf16", "schedule={iters: 1, warmup_iters: 0}", "data.val=null", "train.batch_size=2")
    detector = detection.train(config)
    dtypes: list[torch.dtype] = []
    detector.rpn.objectness.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    batch = ImageBatch(torch.randn(1, 3, 64, 64), (ImageSize(64, 64),))
    detector(
        batch, [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), BitMasks(torch.zeros(0, 64, 64) > 0))]
    )
    assert set(dtypes) == {torch.float32}


@pytest.mark.long
def test_a_compiled_run_trains_the_weights_of_a_plain_one(tiny: Tiny, tmp_path: Path) -> None:
    sets = ("schedule.iters=2", "data.val=null", "model.norm=gn", "train.log_every_iters=2")
    plain = detection.train(tiny(*sets, f"out={tmp_path / 'plain'}"))
    compiled = detection.train(tiny(*sets, f"out={tmp_path / 'compiled'}", "train.compile=true"))
    assert compiled.compiled_dense is None and max_difference(plain, compiled) < 1e-3
