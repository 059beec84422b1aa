"""Train a detector: python tools/train_det.py CONFIG [--resume | --overwrite] [--set a.b=c ...]

Several GPUs: torchrun --nproc-per-node 8 tools/train_det.py CONFIG. Everything a run writes lies in its folder (`out`):
config.yaml, data.txt, training_images.png, metrics.jsonl, tensorboard/, checkpoints/last.pt, results.json, scores.json,
loss_curve.png, predictions.png.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console

from heads.build import assemble, check_frozen_head_norms, empty_backbone, fine_tune
from heads.detector import RCNN
from heads.files import load_detector
from heads.masks import BitMasks, PolygonMasks
from heads.predictor import Predictor
from heads.structures import Targets
from resnet_backbone import WeightReport, load_weights
from resnet_backbone.backbone import check_frozen_has_weights
from resnet_backbone.errors import InvalidValue
from tools import cli
from tools.config.detection import RunConfig
from tools.data.augment import Augment
from tools.data.coco import CocoData
from tools.data.loader import BatchPlan, TrainingImages, read_checked
from tools.engine.tasks import Detection
from tools.eval_det import kinds_of, load_split, load_val, predict_results, score, write_scores
from tools.evaluation.table import scores_table
from tools.jobs import runs
from tools.predict import picture
from tools.report.curves import write_loss_curve
from tools.report.draw import draw_instances
from tools.report.page import write_page
from tools.report.summary import data_summary_table
from tools.report.weights import weights_table


def main() -> int:
    return runs.main(
        __doc__ or "", RunConfig, lambda config, accelerator, resume: train(config, accelerator, resume=resume)
    )


def train(config: RunConfig, accelerator: Accelerator, *, resume: bool) -> RCNN:
    """The whole run, from data to pictures; the trained detector."""
    say = runs.speaker(accelerator)
    torch.manual_seed(config.train.seed)
    data = load_train(config)
    if accelerator.is_main_process:
        show_data(data, config)
    val = load_val(config) if config.data.val is not None else None
    detector = make_detector(config, data, say).to(accelerator.device)
    runs.fit(
        detector,
        Detection(config.model, detector.preprocess),
        training_images(config, data, detector.preprocess.resize),
        config,
        accelerator,
        resume=resume,
        evaluate=None if val is None else lambda step: evaluate(detector, val, config, accelerator, say),
        goal=lambda values: -(values.get("bbox/AP") or 0.0),
    )
    if accelerator.is_main_process:
        finish(detector, val, config)
    return detector


def load_train(config: RunConfig) -> CocoData:
    """The training split, restricted as the settings say."""
    if config.data.train is None:
        raise InvalidValue("there is nothing to train on: set data.train.images and data.train.annotations")
    split = config.data.train
    return load_split(
        split,
        masks=config.model.mask is not None,
        min_box_px=config.data.min_box_px,
        keep_empty=config.data.empty_images == "keep",
        skip_missing=config.data.on_bad_image == "skip",
    )


def training_images(config: RunConfig, data: CocoData, resize: str = "pillow") -> TrainingImages:
    rules, masks = config.input, config.model.mask is not None
    augment = Augment(rules.short_side_px, rules.long_side_px, rules.flip_probability, masks, resize)
    return TrainingImages(data, augment, seed=config.train.seed, on_bad_image=config.data.on_bad_image)


def make_detector(config: RunConfig, data: CocoData, say: Console) -> RCNN:
    """From scratch, around pretrained weights, or from another run; what stays at its initial value is said."""
    backbone, loaded = empty_backbone(config.model), set[str]()
    if config.init_from is None:
        check_frozen_has_weights(config.backbone_weights is not None, config.model.norm, config.model.frozen_stages)
        check_frozen_head_norms(config.model)
        if config.backbone_weights is not None:
            patterns = [pattern.removeprefix("backbone.") for pattern in config.allow_missing]
            source = config.backbone_source
            report = load_weights(backbone, config.backbone_weights, allow_missing=patterns, source=source)
            loaded = {f"backbone.{key}" for key in report.loaded}
    detector = assemble(config.model, len(data.class_names), backbone)
    detector.class_names = data.class_names
    if config.init_from is not None:
        other, _ = load_detector(cli.checkpoint_of(config.init_from))
        report = fine_tune(detector, other.state_dict(), config.allow_missing)
        loaded, detector.preprocess = set(report.loaded), other.preprocess
        _refuse_other_order(report, other, data)
    origin = str(config.init_from or config.backbone_weights or "nowhere")
    runs.say_and_keep(weights_table(detector.state_dict(), loaded, origin), config.out / "weights.txt", say)
    detector.preprocess = replace(
        detector.preprocess,
        resize=config.input.resize or detector.preprocess.resize,
        short_side_px=config.input.test_short_side_px,
        long_side_px=config.input.long_side_px,
        pad_to_multiple_px=config.input.pad_to_multiple_px,
    )
    return detector


def _refuse_other_order(report: WeightReport, source: RCNN, data: CocoData) -> None:
    if not any(key.startswith("box_head.logits") for key in report.kept_initial) and (
        source.class_names != data.class_names
    ):
        raise InvalidValue(
            f"{len(data.class_names)} classes here and in the weights, with other names or another order "
            f"({', '.join(source.class_names[:4])} ... against {', '.join(data.class_names[:4])} ...): bring the "
            "categories into the same order"
        )


def show_data(data: CocoData, config: RunConfig) -> None:
    """The summary, on the screen and in data.txt, and a page of augmented training images with their ground truth."""
    runs.say_and_keep(data_summary_table(data.summary()), config.out / "data.txt", cli.CONSOLE)
    images = training_images(config, data)
    plan = BatchPlan(data, batch_size=min(12, len(images)), seed=config.train.seed, span=(0, 1))
    tiles, captions = [], []
    for draw in next(iter(plan)):
        pixels, targets, image_id, _ = images[draw]
        tiles.append(_truth_picture(pixels, targets, data.class_names))
        captions.append(f"image {image_id}, {pixels.shape[2]}x{pixels.shape[1]}")
    path = config.out / "training_images.png"
    write_page(path, tiles, captions, title="augmented training images with their ground truth")
    cli.CONSOLE.print(f"look at {path}: are the boxes where the objects are?")


def _truth_picture(pixels: torch.Tensor, targets: Targets, names: tuple[str, ...]) -> np.ndarray:
    height, width = pixels.shape[1:]
    bits = targets.masks.bits if isinstance(targets.masks, BitMasks) else None
    if isinstance(targets.masks, PolygonMasks):
        bits = targets.masks.rasterise(height, width).bits
    labels = [names[label] for label in targets.labels.tolist()]
    masks = None if bits is None else bits.numpy()
    return draw_instances(pixels.permute(1, 2, 0).numpy(), targets.boxes.numpy(), labels, masks=masks, min_side_px=320)


def evaluate(
    detector: RCNN, data: CocoData, config: RunConfig, accelerator: Accelerator, say: Console
) -> dict[str, float | None]:
    """Score with all processes; the main one writes results.json and scores.json."""
    share = (accelerator.process_index, accelerator.num_processes)
    results = gather_object(predict_results(detector, data, config, share=share, quiet=True))
    values: list[dict[str, float | None]] = [{}]
    if accelerator.is_main_process:
        scores = score(results, data, config, kinds_of(detector))
        write_scores(config.out, results, scores)
        say.print(scores_table(scores))
        values = [
            {f"{kind}/{name}": kinds.figures[name] for kind, kinds in scores.kinds.items() for name in ("AP", "AP50")}
        ]
    broadcast_object_list(values)
    return values[0]


def finish(detector: RCNN, data: CocoData | None, config: RunConfig) -> None:
    """The loss curve, a page of predictions, and where to look."""
    write_loss_curve(config.out / "metrics.jsonl", config.out / "loss_curve.png")
    written = ["loss_curve.png"]
    if data is not None:
        step = max(1, len(data.records) // 12)
        predictor = Predictor(detector)
        tiles, captions = [], []
        for record in data.records[::step][:12]:
            image = read_checked(record)
            found = predictor([image])[0]
            tiles.append(picture(image, found, detector.class_names, min_score=0.5, min_side_px=320))
            captions.append(f"image {record.image_id}, {len(record.boxes)} objects")
        write_page(config.out / "predictions.png", tiles, captions, title="predictions of score 0.5 and more")
        written += ["predictions.png", "scores.json", "results.json"]
    cli.CONSOLE.print(
        f"\ndone. Look at {config.out}/: {', '.join(written)}, training_images.png, metrics.jsonl\n"
        f"next:  python tools/predict.py {config.out} IMAGE... --out {config.out}/seen\n"
        f"       python tools/eval_det.py {config.out}\n"
        f"       tensorboard --logdir {config.out}/tensorboard"
    )


if __name__ == "__main__":
    cli.run(main)
