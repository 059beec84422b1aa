"""Classification commands on a small data set: the files of a run, how they are used, and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from resnet_backbone import RESNETS, CertificateMismatch, ResNetClassifier, build_backbone, load_weights
from resnet_backbone.build import open_weights
from resnet_backbone.weights.read import read_file, read_weights, save_atomically
from tests.tools.conftest import Said
from tools import analyse, convert_weights, doctor, eval_cls, train_cls
from tools.config.classification import load_config
from tools.config.detection import RunConfig
from tools.data.labelled import load_labelled
from tools.jobs import classification, detection

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., Said]
Tiny = Callable[..., RunConfig]
CLASSES = ("across", "down", "plain")


@pytest.fixture(scope="session")
def tiny_labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,test}/{across,down,plain}/*.png, 44x40: horizontal, vertical or no stripes, in random colours."""
    root = tmp_path_factory.mktemp("tiny_labelled")
    generator = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 6)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                dark, bright = generator.integers(0, 100, 3), generator.integers(150, 256, 3)
                rows, columns = np.mgrid[:40, :44]
                place = {"across": rows // 5 % 2, "down": columns // 5 % 2, "plain": np.zeros_like(rows)}[name]
                image = np.where(place[..., None] == 1, dark, bright).astype(np.uint8)
                Image.fromarray(image).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def cls_yaml(tiny_labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings for twelve steps of a ResNet-20 on the striped images; `out` must be set."""
    values: dict[str, Any] = {
        "out": "unset",
        "model": "resnet20_cifar_b",
        "data": {
            name: {"images": str(tiny_labelled), "part": part} for name, part in (("train", "train"), ("val", "test"))
        }
        | {"workers": 0},
        "input": {"short_side_px": None, "pad_px": 2, "crop_px": 32, "colour_pca_std": 0.1, "test_short_side_px": 36},
        "optimiser": {"lr": 0.05, "decay_norms": True},
        "schedule": {"iters": 12, "warmup_iters": 0},
        "train": {"batch_size": 12, "device": "cpu", "log_every_iters": 1},
        "eval": {"every_epochs": 1, "batch_size": 4},
    }
    path = tmp_path_factory.mktemp("cls") / "cls.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(*arguments: object, launcher: tuple[str, ...] = ()) -> str:
    """Run a command in its own process; what it printed."""
    line = [sys.executable, *launcher, *(str(a) for a in arguments)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def run(cls_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cls_run") / "run"
    printed = command("tools/train_cls.py", cls_yaml, "--set", f"out={folder}")
    assert "12 steps of 12 images" in printed and "next:" in printed
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(open_weights(folder).state)


def test_a_run_writes_logs_scores_and_pictures(run: Path) -> None:
    train, val = ([line for line in lines(run) if line["kind"] == kind] for kind in ("train", "val"))
    assert [line["step"] for line in train] == list(range(1, 13)) and [line["step"] for line in val] == [4, 8, 12]
    assert all(line["loss"] == line["losses/loss_cls"] and 0 <= line["train_error"] <= 1 for line in train)
    assert np.mean([line["loss"] for line in train[-3:]]) < 0.8 * np.log(3)
    scores = json.loads((run / "scores.json").read_text())
    assert scores["images"] == 18 and scores["crops"] == "1-crop"
    assert val[-1]["error"] == pytest.approx(1 - scores["top1"] / 18) and scores["top1"] >= 9
    assert "plain" in (run / "data.txt").read_text()
    for name in ("training_images.png", "loss_curve.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100


def test_a_finished_run_is_certified_and_its_checkpoint_is_not(run: Path, call: Call, tmp_path: Path) -> None:
    result, checkpoint = (read_weights(run / name) for name in ("model.safetensors", "checkpoints/last.pt"))
    assert result.certified and not checkpoint.certified
    assert result.meta is not None and tuple(result.meta["class_names"]) == CLASSES
    assert all(torch.equal(tensor, checkpoint.state[key]) for key, tensor in result.state.items())
    note = "is a checkpoint without a certificate: its tensors and outputs are not checked"
    assert note not in call(eval_cls, run, "--out", tmp_path / "run").out
    said = call(eval_cls, checkpoint.path, run / "config.yaml", "--out", tmp_path / "checkpoint")
    assert said.code == 0 and said.out.count(note) == 1
    assert (tmp_path / "run" / "scores.json").read_text() == (tmp_path / "checkpoint" / "scores.json").read_text()


def test_scoring_starts_without_the_training_engine() -> None:
    """accelerate, tensorboard and albumentations take seconds to import."""
    code = "import sys, tools.eval_cls; print(*{'accelerate', 'albumentations', 'tools.engine'} & set(sys.modules))"
    assert command("-c", code).strip() == ""


def test_scores_equal_those_of_eval_cls_and_of_a_loop_over_the_images(run: Path, call: Call, tmp_path: Path) -> None:
    said = call(eval_cls, run, "--out", tmp_path)
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads((run / "scores.json").read_text())
    config = load_config(run / "config.yaml")
    assert config.data.val is not None
    data = load_labelled(config.data.val.images, "test")
    net = classification.load_classifier(run, config, data.class_names)
    correct = 0
    for record in data.records:
        image = Image.fromarray(data.read(record)).resize((39, 36), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image)[2:34, 4:36].copy()).permute(2, 0, 1)
        correct += int(net.eval()(net.preprocess.normalise(pixels)[None]).argmax()) == record.label
    assert data.class_names == CLASSES and correct == json.loads((run / "scores.json").read_text())["top1"]


def test_scores_of_other_crops_have_a_file_of_their_own(run: Path, call: Call, tmp_path: Path) -> None:
    for crops in ("10-crop", "multi-scale"):
        said = call(
            eval_cls, run, "--out", tmp_path, "--set", f"eval.crops={crops}", "--set", "eval.scales_px=[36, 48]"
        )
        assert said.code == 0, said.err
        scores = json.loads((tmp_path / f"scores_{crops}.json").read_text())
        assert scores["crops"] == crops and scores["top1"] >= 9


def test_a_resumed_run_equals_an_uninterrupted_one(run: Path, cls_yaml: Path, tmp_path: Path, call: Call) -> None:
    sets = ("--set", f"out={tmp_path / 'run'}")
    assert call(train_cls, cls_yaml, *sets, "--set", "schedule={iters: 12, decay_at: []}").code == 0
    whole = state(tmp_path / "run")
    again = ("--set", f"out={tmp_path / 'parts'}", "--set")
    assert call(train_cls, cls_yaml, *again, "schedule={iters: 5, decay_at: []}").code == 0
    said = call(train_cls, cls_yaml, "--resume", *again, "schedule={iters: 12, decay_at: []}")
    assert said.code == 0 and "at step 5 of 12" in said.out
    for key, tensor in state(tmp_path / "parts").items():
        torch.testing.assert_close(tensor, whole[key], rtol=1e-4, atol=1e-5)
    assert [line["step"] for line in lines(tmp_path / "parts") if line["kind"] == "train"] == list(range(1, 13))


def test_a_plateau_lowers_the_learning_rate_also_after_a_resume(cls_yaml: Path, tmp_path: Path, call: Call) -> None:
    """A learning rate of 1e-9 and a norm without running statistics: the scores never improve."""
    out = f"out={tmp_path / 'run'}"
    flat = "optimiser={lr: 1.0e-9}", "schedule={iters: %d, kind: plateau, plateau_patience: 1, warmup_iters: 0}"
    sets = [
        part for one in (out, flat[0], flat[1] % 16, "model.norm=gn", "eval.every_epochs=1") for part in ("--set", one)
    ]
    assert call(train_cls, cls_yaml, *sets).code == 0
    rates = {line["step"]: line["lr"] for line in lines(tmp_path / "run") if line["kind"] == "train"}
    assert [rates[step] for step in (1, 4, 8, 9, 12, 13)] == pytest.approx([1e-9] * 3 + [1e-10] * 2 + [1e-11])
    sets[5] = flat[1] % 18
    assert call(train_cls, cls_yaml, "--resume", *sets).code == 0
    assert lines(tmp_path / "run")[-2]["lr"] == pytest.approx(1e-11)
    said = call(train_cls, cls_yaml, "--overwrite", *sets[:-2], "--set", "eval.every_epochs=null")
    assert said.code == 2 and "set eval.every_epochs" in said.err


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_train_and_score_like_one(cls_yaml: Path, tmp_path: Path) -> None:
    """With a norm that is independent of the batch, and a learning rate at which rounding errors stay small."""
    sets = ["--set", "model.norm=gn", "--set", "schedule={iters: 2, warmup_iters: 0}", "--set", "optimiser.lr=0.005"]
    sets.append("--set")
    command("tools/train_cls.py", cls_yaml, *sets, f"out={tmp_path / 'one'}")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = command("tools/train_cls.py", cls_yaml, *sets, f"out={tmp_path / 'two'}", launcher=launcher)
    assert "2 process(es)" in printed
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-5, atol=1e-5)
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    assert scores[0]["images"] == scores[1]["images"] == 18 and scores[0]["top1"] == scores[1]["top1"]


@torch.inference_mode()
def test_a_backbone_from_a_run_has_the_outputs_of_the_classifier(run: Path) -> None:
    net = classification.load_classifier(run, load_config(run / "config.yaml"), CLASSES)
    pixels = torch.randn(2, 3, 40, 56)
    expected = net.eval().all_levels(pixels)
    levels = ("c2", "c3", "c4")
    for weights in (run, run / "model.safetensors", run / "checkpoints" / "last.pt"):
        live = build_backbone("resnet20_cifar_b", weights=weights, norm="bn", out_levels=levels, frozen_stages=0).eval()
        features = live(pixels)
        assert list(features) == list(levels)
        assert all(torch.equal(features[level], expected[level]) for level in levels)
        folded = build_backbone("resnet20_cifar_b", weights=weights, out_levels=levels)(pixels)
        for level in levels:
            assert float((folded[level] - expected[level]).abs().max()) <= 1e-5 * float(expected[level].abs().max())


def test_a_detector_starts_from_a_run_of_a_classifier(cls_yaml: Path, tmp_path: Path, tiny: Tiny) -> None:
    """A ResNet-18, trained by a call of the job: C2..C5 of the detector equal those of the classifier."""
    sets = ("model=resnet18", "schedule={iters: 2, warmup_iters: 0}", f"out={tmp_path / 'r18'}", "train.batch_size=4")
    net = classification.train(load_config(cls_yaml, sets))
    config = tiny(f"backbone_weights={tmp_path / 'r18'}", f"out={tmp_path / 'det'}")
    (tmp_path / "det").mkdir()
    detector = detection.make_detector(config, detection.load_train(config), Console(quiet=True)).eval()
    pixels = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        expected, features = net.eval().all_levels(pixels), detector.backbone(pixels)
    assert list(features) == ["c2", "c3", "c4", "c5"]
    assert all(torch.equal(features[level], expected[level]) for level in features)


def test_a_run_of_another_net_is_refused_and_the_stride_placement_is_that_of_the_run(
    run: Path, cls_yaml: Path, tmp_path: Path, call: Call
) -> None:
    with pytest.raises(ValueError, match=r"do not fit|Another depth"):
        build_backbone("resnet56_cifar_b", weights=run, out_levels=["c4"])
    sets = (
        "model={net: resnet50, stride_on: 1x1}",
        "schedule={iters: 1}",
        f"out={tmp_path / 'r50'}",
        "data.val=null",
        "train.batch_size=2",
    )
    assert call(train_cls, cls_yaml, *(part for one in sets for part in ("--set", one))).code == 0
    assert build_backbone("resnet50", weights=tmp_path / "r50").spec.stride_on == "1x1"
    with pytest.raises(ValueError, match="trained with the stride on the 1x1"):
        build_backbone(replace(RESNETS["resnet50"], stride_on="3x3"), weights=tmp_path / "r50")


def test_a_plain_net_stays_plain_in_files(cls_yaml: Path, tmp_path: Path, call: Call) -> None:
    """Its tensors have the names and shapes of the residual net: metadata and fingerprint tell them apart."""
    sets = ("model=plain20_cifar", "schedule={iters: 2}", f"out={tmp_path / 'run'}")
    assert call(train_cls, cls_yaml, *(part for one in sets for part in ("--set", one))).code == 0
    out = tmp_path / "plain.safetensors"
    assert call(convert_weights, tmp_path / "run", out).code == 0
    assert read_weights(out).meta["net"]["spec"]["block"] == "PlainBasicBlock"  # type: ignore[index]
    assert "PlainBasicBlock" in call(doctor, "weights", out).out
    said = call(eval_cls, out, tmp_path / "run" / "config.yaml")
    assert (
        said.code == 0 and f"top-1 {json.loads((tmp_path / 'run' / 'scores.json').read_text())['top1']} 18" in said.out
    )
    content: Any = read_file(tmp_path / "run" / "model.safetensors")
    content["meta"]["net"]["spec"]["block"] = "BasicBlock"
    save_atomically(content, tmp_path / "forged.safetensors")
    with pytest.raises(CertificateMismatch, match="c2 is the first stage"):
        load_weights(ResNetClassifier("resnet20_cifar", num_classes=3), tmp_path / "forged.safetensors")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["model=resnet20_cifr"], "no ResNet is called 'resnet20_cifr': did you mean 'resnet20_cifar'"),
        (["model.nett=resnet18"], "model.nett: no such setting: did you mean 'net'"),
        (["input.crop=3"], "input.crop: no such setting"),
        (
            ["input.crop_px=60", "input.test_short_side_px=null"],
            "is 44x40, padded by 2 px: too small for a crop of 60 px",
        ),
        (["input.short_side_px=[40, 36]"], "short_side_px=[40, 36]: give the smallest and the largest side"),
        (["input.short_side_px=[20, 36]"], "20 + 2 * 2 px, must be at least crop_px=32"),
        (["input.test_short_side_px=30"], "test_short_side_px=30 is smaller than crop_px=32"),
        (["model.norm=frozen_bn"], "norm='frozen_bn' without weights would freeze initial values"),
        (["model.stride_on=1x1"], "stride_on='1x1' needs a bottleneck"),
        (["eval.crops=5-crop"], "eval.crops: got '5-crop'"),
        (["weights=/nowhere/a.pth"], "no weights at /nowhere/a.pth"),
        (["data.train=null"], "nothing to train on: set data.train.images"),
        (["data.train.images=/nowhere"], "no images at /nowhere"),
        (["data.train.part=tset"], "no folder 'tset'"),
        (["data.val.part=test/down"], "expected one folder per class"),
        (["train.group_by_aspect=true"], "train.group_by_aspect: no such setting"),
        (["schedule.kind=plateau", "data.val=null"], "needs scores: set data.val"),
    ],
)
def test_wrong_settings_are_errors_without_a_traceback(
    sets: list[str], message: str, cls_yaml: Path, tmp_path: Path, call: Call
) -> None:
    said = call(train_cls, cls_yaml, *(p for one in (f"out={tmp_path / 'x'}", *sets) for p in ("--set", one)))
    assert said.code == 2
    assert said.err.startswith("error: ") and message in said.err and "Traceback" not in said.err


def test_wrong_files_are_errors_of_eval_cls_and_analyse(run: Path, cls_yaml: Path, tmp_path: Path, call: Call) -> None:
    broken = tmp_path / "broken"
    (broken / "test" / "across").mkdir(parents=True)
    (broken / "test" / "across" / "a.png").write_text("no image")
    others = tmp_path / "others"
    (others / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(others / "cat" / "a.png")
    index = tmp_path / "index.json"
    index.write_text('{"across": 0, "down": 1, "plain": 2}')
    for module, arguments, message in [
        (eval_cls, [tmp_path / "nothing.pt", cls_yaml], "no weights at"),
        (eval_cls, [run / "checkpoints" / "last.pt"], "name a CONFIG after the weights"),
        (eval_cls, [tmp_path], "no configuration at"),
        (
            eval_cls,
            [run, "--set", f"data.val={{images: {others}, part: ''}}"],
            "has 3 classes (across, down, plain), the data has 1 class (cat): score it on images",
        ),
        (
            eval_cls,
            [run, "--out", broken, "--set", f"data.val={{images: {broken}, part: test, class_index: {index}}}"],
            "cannot be read as an image",
        ),
        (eval_cls, [run, "--set", "data.val=null"], "nothing to score on: set data.val.images"),
        (analyse, ["curves", "--out", tmp_path], "curves needs the folders of runs"),
        (analyse, ["curves", tmp_path, "--out", tmp_path], "name folders that tools/train_cls.py wrote"),
        (analyse, ["responses", "resnet20_cifar=a.th", "--out", tmp_path], "resnet20_cifar=a.th needs --config"),
        (analyse, ["curves", run, "--set", "train.seed=1", "--out", tmp_path], "--set are for responses"),
        (analyse, ["counts", "resnet19", "--out", tmp_path], "no ResNet is called 'resnet19'"),
        (analyse, ["responses", run, "--images", "0", "--out", tmp_path], "images=0: measure on at least one"),
    ]:
        said = call(module, *arguments)
        assert said.code == 2 and said.err.startswith("error: ") and message in said.err, (arguments, said)


def test_analyses_write_plots_and_their_data(run: Path, tmp_path: Path, call: Call) -> None:
    assert "final figures" in call(analyse, "curves", run, "--out", tmp_path).out
    curve = json.loads((tmp_path / "curves.json").read_text())["resnet20_cifar_b"][0]
    logged = [line for line in lines(run) if line["kind"] == "train"]
    assert curve["train"]["loss"] == [line["loss"] for line in logged]
    assert curve["final"]["train_loss"] == pytest.approx(logged[-1]["loss"])
    for what, more in (("responses", []), ("gradients", []), ("gradients", ["--initial"])):
        assert call(analyse, what, run, "--out", tmp_path, "--images", 24, *more).code == 0
        name = f"{what}{'_initial' if more else ''}"
        mean = json.loads((tmp_path / f"{name}.json").read_text())["mean"]["resnet20_cifar_b"]
        assert len(mean) == 19
        assert all(value > 0 for value in mean.values())
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 1000
    assert call(analyse, "counts", "resnet50", "plain20_cifar", "--out", tmp_path).code == 0
    assert [row["net"] for row in json.loads((tmp_path / "counts.json").read_text())] == ["resnet50", "plain20_cifar"]
