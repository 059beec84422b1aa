"""Train a classifier: python tools/train_cls.py CONFIG [--resume | --overwrite] [--set a.b=c ...]

Several GPUs: torchrun --nproc-per-node 8 tools/train_cls.py CONFIG. Everything a run writes lies in its folder (`out`):
config.yaml, weights.txt, data.txt, training_images.png, metrics.jsonl, tensorboard/, checkpoints/last.pt, scores.json,
loss_curve.png. build_backbone(weights=...) and a detector's backbone_weights take the folder, or its checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console

from resnet_backbone import ResNetClassifier, load_weights
from resnet_backbone.errors import InvalidValue
from tools import cli
from tools.config.classification import ClassifierRunConfig
from tools.data.crops import RandomCrop
from tools.data.labelled import LabelledData
from tools.data.loader import BatchPlan, TrainingImages
from tools.engine.tasks import Classification
from tools.eval_cls import load_split, load_val, predict, write_scores
from tools.evaluation.topk import classes_table, score_labels
from tools.jobs import runs
from tools.report.curves import write_loss_curve
from tools.report.page import write_page
from tools.report.summary import classes_summary_table
from tools.report.weights import weights_table


def main() -> int:
    return runs.main(
        __doc__ or "",
        ClassifierRunConfig,
        lambda config, accelerator, resume: train(config, accelerator, resume=resume),
    )


def train(config: ClassifierRunConfig, accelerator: Accelerator, *, resume: bool) -> ResNetClassifier:
    """The whole run, from data to curves; the trained classifier."""
    say = runs.speaker(accelerator)
    torch.manual_seed(config.train.seed)
    data = load_train(config)
    val = load_val(config) if config.data.val is not None else None
    if val is not None and val.class_names != data.class_names:
        raise InvalidValue(
            f"data.train has {len(data.class_names)} classes and data.val {len(val.class_names)}, or in another order: "
            "give both the same folders, or one class_index"
        )
    net = make_classifier(config, data, say).to(accelerator.device)
    images = training_images(config, data, net)
    if accelerator.is_main_process:
        show_data(images, data, config)
    runs.fit(
        net,
        Classification(net.preprocess, data.class_names),
        images,
        config,
        accelerator,
        resume=resume,
        evaluate=None if val is None else lambda step: evaluate(net, val, config, accelerator, say),
        goal=lambda values: float("nan") if values["error"] is None else values["error"],
    )
    if accelerator.is_main_process:
        write_loss_curve(config.out / "metrics.jsonl", config.out / "loss_curve.png")
        cli.CONSOLE.print(
            f"\ndone. Look at {config.out}/: loss_curve.png, training_images.png, metrics.jsonl"
            f"{'' if val is None else ', scores.json'}\n"
            f"next:  python tools/eval_cls.py {config.out} --set eval.views=10-crop\n"
            f'       build_backbone("{config.model.net}", weights="{config.out}"), or in a detector\'s configuration\n'
            f"       backbone_weights: {config.out}"
        )
    return net


def load_train(config: ClassifierRunConfig) -> LabelledData:
    """The training split, restricted and, for a check, with its labels dealt out anew."""
    if config.data.train is None:
        raise InvalidValue("there is nothing to train on: set data.train.images")
    data = load_split(config.data.train)
    if config.data.shuffle_labels:
        data = data.shuffled(config.train.seed)
    return data.kept_in_memory() if config.data.keep_decoded else data


def training_images(config: ClassifierRunConfig, data: LabelledData, net: ResNetClassifier) -> TrainingImages:
    rules = config.input
    crop = RandomCrop(
        rules.crop_px, rules.short_side_px, rules.pad_px, rules.flip_probability, rules.colour_pca_std, net.preprocess
    )
    return TrainingImages(data, crop, seed=config.train.seed, on_bad_image=config.data.on_bad_image, read=data.read)


def make_classifier(config: ClassifierRunConfig, data: LabelledData, say: Console) -> ResNetClassifier:
    """From scratch (He's initialisation), or from weights; what stays at its initial value is said."""
    net = ResNetClassifier(config.model.spec, num_classes=len(data.class_names), norm=config.model.norm)
    net.recompute = config.model.recompute
    loaded: set[str] = set()
    if config.weights is not None:
        report = load_weights(net, config.weights, allow_missing=config.allow_missing, source=config.weights_source)
        loaded = set(report.loaded)
    table = weights_table(net.state_dict(), loaded, config.weights or "nowhere")
    runs.say_and_keep(table, config.out / "weights.txt", say)
    return net


def show_data(images: TrainingImages, data: LabelledData, config: ClassifierRunConfig) -> None:
    """The classes, on the screen and in data.txt, and a page of augmented training images."""
    runs.say_and_keep(classes_summary_table(data.summary()), config.out / "data.txt", cli.CONSOLE)
    plan = BatchPlan(data, batch_size=min(24, len(images)), seed=config.train.seed, span=(0, 1), group_by_aspect=False)
    tiles, captions = [], []
    for draw in next(iter(plan)):
        pixels, label, image_id, _ = images[draw]
        tiles.append(pixels.permute(1, 2, 0).numpy())
        captions.append(f"{data.class_names[label]} ({image_id})")
    path = config.out / "training_images.png"
    write_page(path, tiles, captions, columns=6, tile_px=160, title="augmented training images with their classes")
    cli.CONSOLE.print(f"look at {path}: are the classes right?")


def evaluate(
    net: ResNetClassifier, data: LabelledData, config: ClassifierRunConfig, accelerator: Accelerator, say: Console
) -> dict[str, float | None]:
    """Score with all processes; the main one writes scores.json."""
    found, labels = predict(net, data, config, share=(accelerator.process_index, accelerator.num_processes), quiet=True)
    parts = gather_object([(found, labels)])
    values: list[dict[str, float | None]] = [{}]
    if accelerator.is_main_process:
        scores = score_labels(
            torch.cat([f for f, _ in parts]), [label for _, part in parts for label in part], data.class_names
        )
        write_scores(config.out, scores, config.eval.views)
        say.print(classes_table(scores, f"{scores.images:,} images, {config.eval.views}"))
        values = [{"error": scores.error, "error_top5": 1 - scores.top5 / scores.images, "loss": scores.cross_entropy}]
    broadcast_object_list(values)
    return values[0]


if __name__ == "__main__":
    cli.run(main)
