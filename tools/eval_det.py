"""Score a detector with COCO-eval: python tools/eval_det.py RUN_OR_WEIGHTS [CONFIG] [--set a.b=c ...]

Writes results.json (COCO's result format) and scores.json, and prints the twelve figures and AP by category.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.progress import track

from heads.detector import RCNN
from heads.files import load_detector
from heads.images import UnreadableImage
from heads.predictor import Predictor
from resnet_backbone.errors import InvalidValue, MissingFile
from tools import cli
from tools.config.detection import RunConfig, SplitConfig, load_config
from tools.data.coco import CocoData, ImageRecord, load_coco, restrict
from tools.data.loader import read_checked
from tools.engine.train import pick_device, pick_precision
from tools.evaluation.classes import match_categories
from tools.evaluation.results import coco_results, write_results
from tools.evaluation.scores import Scores, score_coco
from tools.evaluation.table import scores_table


def load_val(config: RunConfig) -> CocoData:
    """The split to score on, with images that have no boxes: a false alarm counts there too."""
    if config.data.val is None:
        raise InvalidValue("there is nothing to score on: set data.val.images and data.val.annotations")
    return load_split(config.data.val, skip_missing=config.data.on_bad_image == "skip")


def load_split(split: SplitConfig, **options: Any) -> CocoData:
    """A split, restricted as its settings say; options as in `load_coco`."""
    data = load_coco(split.images, split.annotations, **options)
    return restrict(data, objects=split.objects, max_images=split.max_images)


def predict_results(
    detector: RCNN, data: CocoData, config: RunConfig, *, share: tuple[int, int] = (0, 1), quiet: bool = False
) -> list[dict[str, Any]]:
    """COCO results of the images of one process (share: its number, and how many there are)."""
    match = match_categories(detector.class_names, list(zip(data.category_ids, data.class_names)))
    precision = pick_precision(config.train.precision, next(detector.parameters()).device.type)
    predictor = Predictor(detector, precision=precision, batch_size=config.eval.batch_size)
    records = data.records[share[0] :: share[1]]
    results: list[dict[str, Any]] = []
    size = config.eval.batch_size
    chunks = [records[i : i + size] for i in range(0, len(records), size)]
    for chunk in track(chunks, "score", console=cli.CONSOLE, disable=quiet or not cli.CONSOLE.is_terminal):
        readable = [(record, image) for record in chunk if (image := _read(record, config)) is not None]
        for (record, _), found in zip(readable, predictor([image for _, image in readable])):
            results += coco_results(record.image_id, found, match.category_ids)
    return results


def _read(record: ImageRecord, config: RunConfig) -> Any:
    try:
        return read_checked(record)
    except UnreadableImage as error:
        if config.data.on_bad_image == "stop":
            raise
        cli.CONSOLE.print(f"skipped: {error}")
        return None


def score(results: list[dict[str, Any]], data: CocoData, config: RunConfig, kinds: tuple[str, ...]) -> Scores:
    assert config.data.val is not None
    ids = [record.image_id for record in data.records]
    return score_coco(config.data.val.annotations, results, kinds=kinds, image_ids=ids)


def kinds_of(detector: RCNN) -> tuple[str, ...]:
    return ("bbox", "segm") if any(True for _ in detector.instance_heads) else ("bbox",)


def write_scores(folder: Path, results: list[dict[str, Any]], scores: Scores) -> None:
    write_results(folder / "results.json", results)
    (folder / "scores.json").write_text(json.dumps(scores.to_json(), indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = cli.parser(__doc__.splitlines()[0], config=RunConfig)
    parser.add_argument("run_or_weights", type=Path, help="a run's folder, or a file that train_det.py wrote")
    parser.add_argument("config", type=Path, nargs="?", help="YAML; default: the run's own config.yaml")
    parser.add_argument("--out", type=Path, help="folder for results.json and scores.json; default: the run's folder")
    args = parser.parse_args()
    checkpoint = cli.checkpoint_of(args.run_or_weights)
    run = args.run_or_weights if args.run_or_weights.is_dir() else checkpoint.parent
    if args.config is None and not (run / "config.yaml").is_file():
        raise MissingFile(f"{run} has no config.yaml to say what to score on: name a CONFIG after the weights")
    config = load_config(args.config or run / "config.yaml", args.set)
    detector, _ = load_detector(checkpoint)
    detector.to(pick_device(config.train.device))
    data = load_val(config)
    results = predict_results(detector, data, config)
    scores = score(results, data, config, kinds_of(detector))
    write_scores(args.out or run, results, scores)
    cli.CONSOLE.print(scores_table(scores))
    cli.CONSOLE.print(f"written: {args.out or run}/scores.json and results.json")
    return 0


if __name__ == "__main__":
    cli.run(main)
