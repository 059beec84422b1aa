"""What a resumed run may change: every setting has a rule, and config.yaml says what was used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_backbone.errors import InvalidValue
from tests.tools.conftest import Said
from tests.tools.engine.tiny_training import Tiny, make_trainer
from tests.tools.jobs.test_run_folder import tree
from tools import train_det
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig, load_config
from tools.config.settings import settings
from tools.engine.train import Stopped
from tools.jobs import detection, runs
from tools.jobs.resuming import RULES, Change, changes, check_settings, describe_changes, keep_settings

SHORT = ("schedule={iters: 1, warmup_iters: 0, decay_at: []}", "data.val=null", "model.mask=null", "train.batch_size=2")


def test_every_setting_has_a_rule_and_every_rule_a_setting() -> None:
    names = {name for kind in (RunConfig, ClassifierRunConfig) for name, _ in settings(kind)}
    in_model = {name for name in names if name.startswith("model.")}
    assert names - in_model - set(RULES) == set()
    assert set(RULES) - names == {"model"}
    assert all(reason for rule, reason in RULES.values() if rule == "refuse")
    assert {Change(name, 1, 2).rule[0] for name in in_model if name != "model.recompute"} == {"refuse"}


@pytest.mark.parametrize(
    "override",
    [
        "model.box.hidden=64",
        "model.mask=null",
        "model.norm=gn",
        "optimiser.kind=adamw",
        "train.seed=1",
        "train.batch_size=2",
        "train.group_by_aspect=false",
        "data.train.max_images=4",
        "data.empty_images=drop",
        "init_from=other",
        "backbone_weights=other.pth",
        "allow_missing=[box_head.*]",
    ],
)
def test_a_setting_that_a_resumed_run_cannot_change_is_refused_with_both_values(override: str, tiny: Tiny) -> None:
    runs.prepare_folder(tiny(), resume=False, overwrite=False)
    before = tree(tiny().out)
    name = override.partition("=")[0]
    with pytest.raises(InvalidValue, match=f"{name.split('.')[0]} differs from the run") as error:
        check_settings(tiny(override), tiny().out)
    assert f"\n  {name}" in str(error.value) and " in the run, now " in str(error.value)
    assert tree(tiny().out) == before


def test_all_refused_settings_are_listed_at_once(tiny: Tiny) -> None:
    runs.prepare_folder(tiny(), resume=False, overwrite=False)
    with pytest.raises(InvalidValue) as error:
        check_settings(tiny("train.seed=5", "optimiser.kind=adamw", "model.norm=gn", "data.workers=1"), tiny().out)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("optimiser, train, model differ from the run in ")
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["optimiser.kind", "train.seed", "model.norm"]


def test_what_results_depend_on_is_said_and_what_they_do_not_is_silent(tiny: Tiny) -> None:
    runs.prepare_folder(tiny(), resume=False, overwrite=False)
    silent = "data.workers=1", "train.log_every_iters=3", "eval.batch_size=1", "train.checkpoint_every_iters=7"
    said = describe_changes(tiny(*silent, "optimiser.lr=0.001", "schedule.iters=9", "data.val=null"), tiny().out)
    assert [line.split(": ")[1] for line in said] == [
        "optimiser.lr",
        "schedule.iters",
        "data.val.images",
        "data.val.annotations",
    ]
    assert "0.005 in the run, now 0.001" in said[0]
    assert describe_changes(tiny(*silent), tiny().out) == []


def test_config_yaml_is_what_is_used_and_the_earlier_one_is_kept_with_its_last_step(tiny: Tiny) -> None:
    runs.prepare_folder(tiny(), resume=False, overwrite=False)
    first = (tiny().out / "config.yaml").read_text()
    keep_settings(tiny("data.workers=1"), tiny().out, 3)
    assert not list(tiny().out.glob("config.*.yaml"))
    kept = (tiny().out / "config.yaml").read_text()
    assert kept != first
    for lr in ("0.001", "0.002"):  # resumed twice from step 3: the steps up to there had the first settings
        keep_settings(tiny(f"optimiser.lr={lr}"), tiny().out, 3)
        assert load_config(tiny().out / "config.yaml") == tiny(f"optimiser.lr={lr}")
        assert (tiny().out / "config.3.yaml").read_text() == kept
    assert sorted(path.name for path in tiny().out.iterdir()) == ["config.3.yaml", "config.yaml"]


def test_a_config_of_the_run_that_cannot_be_read_is_named(tiny: Tiny) -> None:
    runs.prepare_folder(tiny(), resume=False, overwrite=False)
    (tiny().out / "config.yaml").write_text("model: 3")
    with pytest.raises(InvalidValue, match="config.yaml, the settings of the run to resume, cannot be used"):
        check_settings(tiny(), tiny().out)
    (tiny().out / "config.yaml").unlink()
    with pytest.raises(InvalidValue, match="config.yaml, the settings of the run to resume, cannot be used"):
        check_settings(tiny(), tiny().out)


def test_gradient_checkpointing_may_change(tmp_path: Path) -> None:
    def config(**model: object) -> ClassifierRunConfig:
        values = {"out": tmp_path, "model": {"net": "resnet18", **model}, "schedule": {"iters": 3}}
        return ClassifierRunConfig.model_validate(values)

    assert [change.rule[0] for change in changes(config(), config(recompute=True))] == ["allow"]
    assert [change.rule[0] for change in changes(config(), config(norm="gn"))] == ["refuse"]


def swapped(tiny_shapes: Path, tmp_path: Path) -> Path:
    """The training annotations with the names of two categories exchanged."""
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    one, two = content["categories"][:2]
    one["name"], two["name"] = two["name"], one["name"]
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    return tmp_path / "swapped.json"


def test_a_run_is_resumed_with_a_longer_schedule_but_not_with_classes_in_another_order(
    tiny: Tiny, tiny_yaml: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    sets = [part for one in SHORT for part in ("--set", one)]
    assert call(train_det, tiny_yaml, *sets).code == 0
    out = tiny().out
    before = tree(out)
    longer = (*sets, "--set", "schedule.iters=2", "--set", "optimiser.lr=0.001")
    other = ("--set", f"data.train.annotations={swapped(tiny_shapes, tmp_path)}")
    printed = call(train_det, tiny_yaml, "--resume", *longer, *other)
    assert printed.code == 2 and "classes of the data differ from those of the run" in printed.err
    assert "label 0 was 'circle' and would be 'triangle'" in printed.err
    assert tree(out) == before

    printed = call(train_det, tiny_yaml, "--resume", *longer)
    assert printed.code == 0, printed.err
    assert "changed from here on: optimiser.lr: 0.005 in the run, now 0.001" in printed.out
    assert "changed from here on: schedule.iters: 1 in the run, now 2" in printed.out
    after = tree(out)
    assert after["config.1.yaml"] == before["config.yaml"] != after["config.yaml"]
    assert after["weights.txt"] == before["weights.txt"]  # which tensors the run began with
    assert load_config(out / "config.yaml").schedule.iters == 2
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["kind"] == "train"] == [0.005, pytest.approx(0.001)]


def test_a_run_is_resumed_without_the_weights_that_it_started_from(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny(*SHORT, f"out={tmp_path / 'source'}")
    detection.train(source)
    tuned = f"init_from={tmp_path / 'source'}", f"out={tmp_path / 'tuned'}"
    detection.train(tiny(*SHORT, *tuned))
    shutil.rmtree(tmp_path / "source")
    detection.train(tiny(*SHORT, *tuned, "schedule.iters=2"), resume=True)
    assert torch.load(tmp_path / "tuned" / "checkpoints" / "last.pt", weights_only=True)["step"] == 2


def test_a_resumed_optimiser_has_the_settings_of_the_configuration(tiny: Tiny) -> None:
    trainer, _ = make_trainer(tiny(*SHORT))
    trainer.save()
    more = "optimiser.weight_decay=0.03", "optimiser.momentum=0.5", "optimiser.decay_norms=true"
    resumed, _ = make_trainer(tiny(*SHORT, *more), resume=True)
    assert {(group["weight_decay"], group["momentum"]) for group in resumed.optimiser.param_groups} == {(0.03, 0.5)}


def test_a_training_split_of_another_size_is_said(tiny: Tiny) -> None:
    trainer, _ = make_trainer(tiny())
    trainer.save()
    resumed, _ = make_trainer(tiny("data.train.max_images=4"))
    assert resumed.resume() == ["the training split has changed: an epoch had 4 batches, now 1"]
    same, _ = make_trainer(tiny())
    assert same.resume() == []


def test_scoring_between_steps_is_stopped_at_once_and_repeated_when_resumed(tiny: Tiny) -> None:
    config = tiny("model.mask=null", "eval.every_epochs=1", "schedule.iters=8", "train.checkpoint_every_iters=100")
    trainer, loader = make_trainer(config)
    scored: list[int] = []

    def interrupted(step: int) -> dict[str, float | None]:
        import signal

        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal was not obeyed")

    def score(step: int) -> dict[str, float | None]:
        scored.append(step)
        return {"bbox/AP": 0.5}

    trainer.evaluate = interrupted
    with pytest.raises(Stopped, match=r"stopped while step 4 of 8 was scored; saved .*last.pt"):
        trainer.run(loader, None)
    resumed, rest = make_trainer(config, resume=True)
    assert resumed.step == 4
    resumed.evaluate = score
    resumed.run(rest, None)
    assert scored == [4, 8]
