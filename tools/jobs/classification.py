"""Training and scoring classifiers, as functions for commands, tests and notebooks."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from resnet_backbone import ResNetClassifier
from resnet_backbone.weights.read import Weights
from tools.config.classification import ClassifierRunConfig
from tools.console import CONSOLE
from tools.data.labelled import LabelledData
from tools.data.loader import BatchPlan, TrainingImages
from tools.devices import pick_device, pick_precision, use_tf32
from tools.evaluation.multi_crop import CropRule, probabilities, scorer
from tools.evaluation.topk import ClassScores, classes_table, score_labels
from tools.files import write_text
from tools.report.curves import write_loss_curve
from tools.report.page import write_page
from tools.report.summary import classes_summary_table

from . import runs
from .classification_setup import (
    check_same_classes,
    load_classifier,
    load_train,
    load_val,
    make_classifier,
    training_images,
)
from .evaluated import Evaluation, check_scores, evaluation_of_classifier, record_scores

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "evaluate",
    "load_classifier",
    "load_train",
    "load_val",
    "make_classifier",
    "predict",
    "scores_path",
    "train",
    "training_images",
    "write_scores",
]


def train(config: ClassifierRunConfig, *, resume: bool = False, overwrite: bool = False) -> ResNetClassifier:
    """Train a classifier. The run is written to `config.out`.

    Args:
        config: the settings of the run.
        resume: continue the run in `config.out` from its last checkpoint.
        overwrite: replace an earlier run in `config.out`; it is deleted after the first step of this one.

    Returns:
        The trained classifier.

    Raises:
        UserError: a setting, the data or the weights cannot be used; the folder holds another run; a loss is not
            finite.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    # here and not above: the engine needs accelerate and tensorboard, which scoring would have to wait for
    from tools.engine.tasks import Classification

    with runs.started(config, resume=resume, overwrite=overwrite) as accelerator:
        console = runs.main_console(accelerator)
        torch.manual_seed(config.train.seed)
        data = load_train(config)
        runs.check_resumed_classes(config, data.class_names, resume=resume)
        val = load_val(config) if config.data.val is not None else None
        check_same_classes(data, val)
        setup = runs.initial_weights(config, resume=resume)
        # a resumed run keeps its weights.txt
        quiet = Console(quiet=True) if resume else console
        net = make_classifier(setup, data.class_names, quiet).to(accelerator.device)
        images = training_images(config, data, net.preprocess)
        if accelerator.is_main_process:
            _show_data(images, data, config)
        runs.fit(
            net,
            Classification(net.preprocess, data.class_names),
            images,
            config,
            accelerator,
            resume=resume,
            evaluate=None if val is None else lambda _: _score_in_training(net, val, config, accelerator, console),
            goal=lambda figures: float("nan") if figures["error"] is None else figures["error"],
        )
        if accelerator.is_main_process:
            _finish(config)
    return net


def evaluate(
    weights: Weights,
    config: ClassifierRunConfig,
    *,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
) -> ClassScores:
    """Score a classifier on the validation split.

    Args:
        weights: as for `load_classifier`.
        config: the settings; `data.val`, `input` and `eval` are used, and what `load_classifier` uses.
        out: folder to write the scores to, as `write_scores`; None writes nothing.
        overwrite: replace the scores of another evaluation (other weights, data or settings). Those of the same one
            are always replaced.

    Returns:
        The scores.

    Raises:
        AlreadyExists: the folder holds the scores of another evaluation. Nothing was predicted.
        UserError: as for `load_val`, `load_classifier` and `predict`.
    """
    data = load_val(config)
    net = load_classifier(weights, config, data.class_names).to(pick_device(config.train.device))
    use_tf32(config.train.tf32)
    evaluation = None if out is None else evaluation_of_classifier(net, data, config)
    if out is not None and evaluation is not None:
        names = [scores_path(Path(out), config.eval.crops).name]
        check_scores(Path(out), names, evaluation, overwrite=overwrite)
    scores = score_labels(*predict(net, data, config), data.class_names)
    if out is not None:
        write_scores(Path(out), scores, config.eval.crops, evaluation)
    return scores


def predict(
    net: ResNetClassifier,
    data: LabelledData,
    config: ClassifierRunConfig,
    *,
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
) -> tuple[Tensor, list[int]]:
    """Compute class probabilities of the images of a split, or of the share of one process.

    Args:
        net: the classifier, on its device; it is put into inference mode.
        data: the split.
        config: the settings; `input`, `eval`, `train.precision` and `data.on_bad_image` are used.
        rank: index of this process.
        world: number of processes; each takes every world-th image.
        quiet: show no progress.

    Returns:
        Probabilities (N, K) float32 on the CPU, and N labels. Images that cannot be read are left out with
        `data.on_bad_image` "skip".

    Raises:
        UnreadableImage: an image cannot be read and `data.on_bad_image` is "stop".
        InvalidValue: an image is smaller than the crop.
    """
    precision = pick_precision(config.train.precision, next(net.parameters()).device.type)
    settings = config.input
    rule = CropRule(config.eval.crops, settings.test_short_side_px, settings.crop_px, config.eval.scales_px)
    multi_scale = rule.kind == "multi-scale"
    score = scorer(net.eval(), precision=precision, window_px=settings.crop_px if multi_scale else None)
    batch_size = 1 if multi_scale else config.eval.batch_size
    records = data.records[rank::world]
    batches = [records[i : i + batch_size] for i in range(0, len(records), batch_size)]
    parts, labels = [torch.zeros(0, net.fc.out_features)], []
    for batch in track(batches, "score", console=CONSOLE, disable=quiet or not CONSOLE.is_terminal):
        readable = list(runs.read_images(data.read, batch, config))
        if readable:
            parts.append(probabilities(score, [image for _, image in readable], rule, net.preprocess))
            labels += [record.label for record, _ in readable]
    return torch.cat(parts), labels


def scores_path(folder: Path, crops: str) -> Path:
    """The file for scores.

    Args:
        folder: its folder.
        crops: the setting `eval.crops`.

    Returns:
        scores.json for "1-crop", otherwise scores_10-crop.json or scores_multi-scale.json.
    """
    return folder / ("scores.json" if crops == "1-crop" else f"scores_{crops}.json")


def write_scores(folder: Path, scores: ClassScores, crops: str, evaluation: Evaluation | None = None) -> Path:
    """Write scores as JSON.

    Args:
        folder: where to; it is made.
        scores: the scores.
        crops: the setting `eval.crops`.
        evaluation: what was evaluated; it is noted in evaluated.json.

    Returns:
        The file, as `scores_path`.
    """
    path = scores_path(folder, crops)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"crops": crops, **scores.to_json()}, indent=1) + "\n")
    if evaluation is not None:
        record_scores(folder, [path.name], evaluation)
    return path


def _score_in_training(
    net: ResNetClassifier, data: LabelledData, config: ClassifierRunConfig, accelerator: Accelerator, console: Console
) -> runs.Figures:
    """Score with all processes; the main one prints a table and writes scores.json."""

    def score(parts: list[Any]) -> runs.Figures:
        labels = [label for _, labels in parts for label in labels]
        scores = score_labels(torch.cat([part for part, _ in parts]), labels, data.class_names)
        write_scores(config.out, scores, config.eval.crops, evaluation_of_classifier(net, data, config))
        console.print(classes_table(scores, f"{scores.images:,} images, {config.eval.crops}"))
        return {"error": scores.error, "error_top5": 1 - scores.top5 / scores.images, "loss": scores.cross_entropy}

    rank, world = accelerator.process_index, accelerator.num_processes
    predictions = predict(net, data, config, rank=rank, world=world, quiet=True)
    return runs.score_together(accelerator, [predictions], score)


def _show_data(images: TrainingImages, data: LabelledData, config: ClassifierRunConfig) -> None:
    """Print the classes, and write data.txt and a page of augmented training images."""
    runs.print_and_save(classes_summary_table(data.summary()), config.out / "data.txt", CONSOLE)
    plan = BatchPlan(data, batch_size=min(24, len(images)), seed=config.train.seed, span=(0, 1), group_by_aspect=False)
    tiles, captions = [], []
    for draw in next(iter(plan)):
        pixels, label, image_id, _ = images[draw]
        tiles.append(pixels.permute(1, 2, 0).numpy())
        captions.append(f"{data.class_names[label]} ({image_id})")
    path = config.out / "training_images.png"
    write_page(path, tiles, captions, columns=6, tile_px=160, title="augmented training images with their classes")
    CONSOLE.print(f"look at {path}: are the classes right?", markup=False)


def _finish(config: ClassifierRunConfig) -> None:
    """Write the loss curve, and print what to do next."""
    write_loss_curve(config.out / "metrics.jsonl", config.out / "loss_curve.png")
    written = ["model.safetensors", "loss_curve.png", *([] if config.data.val is None else ["scores.json"])]
    CONSOLE.print(
        f"\ndone. Look at {config.out}/: {', '.join(written)}, training_images.png, metrics.jsonl\n"
        f"next:  python tools/eval_cls.py {config.out} --set eval.crops=10-crop\n"
        f'       build_backbone("{config.model.net}", weights="{config.out}"), or in the configuration of a detector\n'
        f"       backbone_weights: {config.out}",
        markup=False,
    )
