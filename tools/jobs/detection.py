"""Training, scoring and predicting with detectors, as functions for commands, tests and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from heads.detector import RCNN
from heads.files import load_detector, read_detector
from heads.inference import compile_for_training
from resnet_backbone.errors import InvalidValue, MissingFile
from tools.config.detection import RunConfig, load_config
from tools.config.settings import load_values
from tools.console import CONSOLE
from tools.data.coco import CocoData
from tools.devices import pick_device, use_tf32
from tools.evaluation.backends import choose_backend
from tools.evaluation.interface import Backend
from tools.evaluation.scores import Scores
from tools.evaluation.table import scores_table
from tools.report.curves import write_loss_curve
from tools.report.summary import data_summary_table

from . import runs
from .detection_data import Data, load_data, load_train, load_val
from .detection_pictures import write_prediction_page, write_training_page
from .detection_scores import SCORE_FILES, Predicted, predict_results, score, write_scores
from .detection_setup import make_detector, open_detector, training_images
from .evaluated import check_scores, evaluation_of_detector
from .plan import default_out, plan_for_folder, weight_settings, yaml_text
from .prediction import Prediction, UnreadableImages, predict

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Prediction",
    "UnreadableImages",
    "evaluate",
    "load_data",
    "load_run_config",
    "load_train",
    "load_val",
    "make_detector",
    "open_detector",
    "predict",
    "run_folder",
    "train",
    "training_config",
    "training_images",
]


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> RCNN:
    """Train a detector. The run is written to `config.out`.

    Args:
        config: the settings of the run.
        resume: continue the run in `config.out` from its last checkpoint.
        overwrite: replace an earlier run in `config.out`; it is deleted after the first step of this one.

    Returns:
        The trained detector.

    Raises:
        UserError: a setting, the data or the weights cannot be used; the folder holds another run; a loss is not
            finite.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    # not at the top: the engine imports accelerate and tensorboard, which scoring and predicting do not need
    from tools.engine.tasks import Detection

    with runs.started(config, resume=resume, overwrite=overwrite) as accelerator:
        console = runs.main_console(accelerator)
        torch.manual_seed(config.train.seed)
        splits = load_data(config)
        data, val = splits.train, splits.val
        assert data is not None
        runs.check_resumed_classes(config, data.class_names, resume=resume)
        if accelerator.is_main_process:
            _show_data(splits, config)
        backends = {} if val is None else _scoring_backends(config, console)
        setup = runs.initial_weights(config, resume=resume)
        # a resumed run keeps its weights.txt
        detector = make_detector(setup, data, Console(quiet=True) if resume else console).to(accelerator.device)
        if config.train.compile:
            compile_for_training(detector)
        runs.fit(
            detector,
            Detection(config.model, detector.preprocess, len(data.class_names)),
            training_images(config, data, detector.preprocess.resize),
            config,
            accelerator,
            resume=resume,
            evaluate=None
            if val is None
            else lambda final: _score_in_training(detector, val, config, accelerator, backends[final]),
            goal=lambda figures: -(figures.get("bbox/AP") or 0.0),
        )
        detector.compiled_dense = None
        if accelerator.is_main_process:
            _finish(detector, val, config)
    return detector


def training_config(
    config: Path | None,
    data: Path | None,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
) -> RunConfig:
    """Load or choose the settings of a run.

    Args:
        config: a YAML file; None to choose the settings by the data.
        data: the folder of a data set; it replaces the data of the file.
        weights: weights to start from; they replace those of the file.
        overrides: settings such as "train.batch_size=2".
        resume: the run exists: without a file, its own settings are used.

    Returns:
        The settings. A plan is printed with its reasons.

    Raises:
        InvalidValue: neither a file nor a folder was given.
        UserError: as for `load_config` and `plan_for_folder`.
    """
    if config is None and data is None:
        raise InvalidValue("nothing to train on: give a configuration (CONFIG), or a data set (--data FOLDER)")
    if config is not None:
        given = [] if data is None else [f"data.folder={yaml_text(str(data))}"]
        given += [] if weights is None else weight_settings(weights)
        return load_config(config, [*given, *overrides])
    assert data is not None
    chosen = load_values(RunConfig, None, overrides)
    saved = Path(chosen.get("out") or default_out(data)) / "config.yaml"
    if resume and saved.is_file():
        weight_overrides = [] if weights is None else weight_settings(weights)
        return load_config(saved, [f"data.folder={yaml_text(str(data))}", *weight_overrides, *overrides])
    plan = plan_for_folder(data, weights=weights, overrides=overrides)
    CONSOLE.print(plan.table())
    for note in plan.notes:
        CONSOLE.print(note, markup=False)
    return plan.config


def run_folder(run_or_weights: str | PathLike[str]) -> Path:
    """The folder of a run, given the folder or a file in it."""
    path = Path(run_or_weights)
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def load_run_config(
    run_or_weights: str | PathLike[str], config: Path | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Load the settings to score with.

    Args:
        run_or_weights: the folder of a run, or a file.
        config: a YAML file; None for the config.yaml of the run.
        overrides: settings such as "eval.batch_size=4".

    Returns:
        The settings.

    Raises:
        MissingFile: no file was given and the run has none.
        ConfigError: as for `load_config`.
    """
    saved = run_folder(run_or_weights) / "config.yaml"
    if config is None and not saved.is_file():
        raise MissingFile(
            f"{saved} does not exist, so the data to score on is unknown: give a configuration (CONFIG, after the "
            "weights, on the command line)"
        )
    return load_config(config or saved, overrides)


def evaluate(
    run_or_weights: str | PathLike[str],
    config: RunConfig | None = None,
    *,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
) -> Scores:
    """Score a detector on the validation split, and write results.json and scores.json.

    Args:
        run_or_weights: the folder of a run, or a file, as for `load_detector`.
        config: the settings; `data.val`, `eval`, `train.device` and `train.precision` are used. None for those of the
            run.
        out: folder for the two files; None for the folder of the run.
        overwrite: replace the scores of another evaluation (other weights, data or settings). Those of the same one
            are always replaced.

    Returns:
        The scores of boxes and, for a detector with a mask head, of masks.

    Raises:
        AlreadyExists: the folder holds the scores of another evaluation. Nothing was predicted.
        UserError: as for `load_run_config`, `load_detector`, `load_val`, `choose_backend` and `predict_results`.
    """
    if config is None:
        config = load_run_config(run_or_weights)
    file = read_detector(run_or_weights)
    runs.note_missing_certificate(file)
    detector, recipe = load_detector(file)
    detector.to(pick_device(config.train.device))
    use_tf32(config.train.tf32)
    data = load_val(config, masks="mask" in detector.instance_heads)
    Data(None, data).say(CONSOLE)
    folder = run_folder(run_or_weights) if out is None else Path(out)
    evaluation = evaluation_of_detector(detector, recipe, data, config)
    check_scores(folder, SCORE_FILES, evaluation, overwrite=overwrite)
    backend, reason = choose_backend(config.eval.backend, final=True)
    if config.eval.backend != "auto":
        CONSOLE.print(f"scored by {backend.label}, {reason}", markup=False, soft_wrap=True)
    predicted = predict_results(detector, data, config)
    scores = score(detector, predicted, data, config, backend)
    write_scores(folder, predicted.results, scores, evaluation)
    return scores


def _show_data(splits: Data, config: RunConfig) -> None:
    """Print what was found in the data and their summary, and write data.txt and a page of augmented images."""
    assert splits.train is not None
    splits.say(CONSOLE)
    runs.print_and_save(data_summary_table(splits.train.summary()), config.out / "data.txt", CONSOLE)
    with open(config.out / "data.txt", "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in splits.lines())
    path = config.out / "training_images.png"
    write_training_page(path, training_images(config, splits.train), splits.train, seed=config.train.seed)
    CONSOLE.print(f"look at {path}: are the boxes around the objects?", markup=False)


def _scoring_backends(config: RunConfig, console: Console) -> dict[bool, Backend]:
    """The library that computes the scores of the run (True) and those during training (False); says why."""
    backends = {}
    for final in (False, True) if config.eval.every_epochs is not None else (True,):
        backends[final], reason = choose_backend(config.eval.backend, final=final)
        what = "final scores" if final else "scores during training"
        console.print(f"{what}: {backends[final].label}, {reason}", markup=False, soft_wrap=True)
    return backends


def _score_in_training(
    detector: RCNN, data: CocoData, config: RunConfig, accelerator: Accelerator, backend: Backend
) -> runs.Figures:
    """Score with all processes; the main one prints a table and writes results.json and scores.json."""

    def score_all(parts: list[Any]) -> runs.Figures:
        predicted = Predicted.joined(parts)
        scores = score(detector, predicted, data, config, backend)
        evaluation = evaluation_of_detector(detector, config.model, data, config)
        write_scores(config.out, predicted.results, scores, evaluation)
        runs.main_console(accelerator).print(scores_table(scores))
        return {
            f"{kind}/{name}": kinds.figures[name] for kind, kinds in scores.kinds.items() for name in ("AP", "AP50")
        }

    rank, world = accelerator.process_index, accelerator.num_processes
    predicted = predict_results(detector, data, config, rank=rank, world=world, quiet=True)
    return runs.score_together(accelerator, [predicted], score_all)


def _finish(detector: RCNN, data: CocoData | None, config: RunConfig) -> None:
    """Write the loss curve and a page of predictions, and print what to do next."""
    write_loss_curve(config.out / "metrics.jsonl", config.out / "loss_curve.png")
    written = ["model.safetensors", "loss_curve.png"]
    if data is not None:
        write_prediction_page(config.out / "predictions.png", detector, data, config)
        written += ["predictions.png", "scores.json", "results.json"]
    CONSOLE.print(
        f"\ndone. Look at {config.out}/: {', '.join(written)}, training_images.png, metrics.jsonl\n"
        f"next:  python tools/predict.py {config.out} IMAGE... --out {config.out}/predictions\n"
        f"       python tools/eval_det.py {config.out}\n"
        f"       tensorboard --logdir {config.out}/tensorboard",
        markup=False,
    )
