"""Stopping and resuming a run: weights, log, checkpoint and the certified file of a finished run."""

from __future__ import annotations

import copy
import signal
from pathlib import Path

import pytest
import torch

from heads.files import load_detector
from heads.fingerprint import detector_fingerprint
from resnet_backbone.build import open_weights
from resnet_backbone.weights.certificate import certify
from resnet_backbone.weights.read import read_weights, save_atomically
from tests.tools.engine.tiny_training import (
    QUIET,
    Tiny,
    finite_checkpoint,
    lines,
    make_trainer,
    max_difference,
    run,
    stop_at,
)
from tools.engine.log import RunLog
from tools.engine.train import Stopped


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    more = f"optimiser.kind={kind}", "optimiser.lr=0.002", "train.checkpoint_every_iters=100"
    whole_config, config = tiny(*more, f"out={tmp_path / 'whole'}"), tiny(*more, f"out={tmp_path / 'parts'}")
    before = signal.getsignal(signal.SIGTERM)
    whole = run(whole_config)
    with pytest.raises(Stopped, match=r"stopped at step 3 of 6; saved .*last.pt"):
        run(config, stop_at(3))
    assert signal.getsignal(signal.SIGTERM) == before
    # as of a run that was killed after it had logged a step that it had not saved, in the middle of a line
    with open(config.out / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 4, "loss": 77.0}\n{"kind": "train", "st')
    resumed = run(config, resume=True)
    assert max_difference(whole, resumed) <= 1e-6
    assert (
        [line["step"] for line in lines(config)] == [line["step"] for line in lines(whole_config)] == list(range(1, 7))
    )
    for a, b in zip(lines(whole_config), lines(config)):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["lr"] == b["lr"]


def test_a_run_that_was_killed_while_it_was_scored_is_scored_when_resumed(tiny: Tiny) -> None:
    config = tiny("schedule.iters=1")
    trainer, loader = make_trainer(config)

    def interrupted(step: int) -> dict[str, float | None]:
        raise KeyboardInterrupt

    trainer.evaluate = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run(loader, None)
    resumed, rest = make_trainer(config, resume=True)
    resumed.evaluate = lambda step: {"bbox/AP": 0.25}
    with RunLog(config.out, 1, 1, QUIET) as log:
        resumed.run(rest, log)
    assert lines(config) == [{"kind": "val", "step": 1, "bbox/AP": 0.25}]


def test_a_run_that_was_killed_after_its_last_step_gets_its_certified_file_when_resumed(tiny: Tiny) -> None:
    config = tiny("schedule.iters=1")
    run(config)
    result = config.out / "model.safetensors"
    complete = result.read_bytes()
    result.unlink()
    resumed, rest = make_trainer(config, resume=True)
    resumed.run(rest, None)
    assert result.read_bytes() == complete and read_weights(result).certified


def test_resuming_a_finished_run_for_more_steps_removes_its_certified_file_first(tiny: Tiny) -> None:
    run(tiny("schedule.iters=2"))
    config = tiny("schedule.iters=4")
    result = config.out / "model.safetensors"
    assert open_weights(config.out).path == result
    with pytest.raises(Stopped):
        run(config, stop_at(1), resume=True)
    assert open_weights(config.out).path == config.out / "checkpoints" / "last.pt"
    run(config, resume=True)
    assert open_weights(config.out).path == result and finite_checkpoint(config)["step"] == 4


def test_a_run_without_a_certified_file_is_resumed_from_a_checkpoint_with_a_certificate(tiny: Tiny) -> None:
    """Checkpoints of earlier versions had certificates."""
    config = tiny("schedule.iters=2")
    with pytest.raises(Stopped):
        run(config, stop_at(1))
    path = config.out / "checkpoints" / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    detector, _ = load_detector(path)
    meta = certify(checkpoint["meta"], checkpoint["model"], detector_fingerprint(detector))
    save_atomically({**checkpoint, "meta": meta}, path)
    assert read_weights(path).certified
    run(config, resume=True)
    assert not read_weights(path).certified and finite_checkpoint(config)["step"] == 2


def test_saving_a_checkpoint_neither_runs_nor_copies_the_model(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = make_trainer(tiny())

    def forbidden(*arguments: object) -> None:
        raise AssertionError("a checkpoint must not do this")

    for module in trainer.model.modules():
        module.register_forward_pre_hook(forbidden)
    monkeypatch.setattr(copy, "deepcopy", forbidden)
    trainer.save()
    assert not read_weights(trainer.checkpoint).certified
