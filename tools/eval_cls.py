"""Score a classifier: python tools/eval_cls.py RUN_OR_WEIGHTS [CONFIG] [--set a.b=c ...]

Top-1 and top-5 by one crop, ten, or the whole image at several scales (eval.views); writes scores.json. Weights of
others (torchvision's, timm's, the published CIFAR nets) need a CONFIG, which names their net.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from heads.images import UnreadableImage
from resnet_backbone import ResNetClassifier, load_weights
from resnet_backbone.errors import InvalidValue, MissingFile
from resnet_backbone.specs import spec_from_dict
from resnet_backbone.weights.load import read_weights
from tools import cli
from tools.config.classification import ClassifierRunConfig, LabelledSplitConfig, load_config
from tools.data.labelled import LabelledData, LabelledImage, load_labelled
from tools.engine.train import pick_device, pick_precision
from tools.evaluation.multi_crop import Views, probabilities, scorer
from tools.evaluation.topk import ClassScores, classes_table, score_labels


def load_split(split: LabelledSplitConfig) -> LabelledData:
    """A split, restricted as its settings say."""
    return load_labelled(split.images, split.part, split.class_index).spread(split.max_images)


def load_val(config: ClassifierRunConfig) -> LabelledData:
    """The split to score on."""
    if config.data.val is None:
        raise InvalidValue("there is nothing to score on: set data.val.images")
    data = load_split(config.data.val)
    return data.kept_in_memory() if config.data.keep_decoded else data


def predict(
    net: ResNetClassifier,
    data: LabelledData,
    config: ClassifierRunConfig,
    *,
    share: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> tuple[Tensor, list[int]]:
    """Probabilities (N, K) and labels of the images of one process (share: its number, and how many there are)."""
    precision = pick_precision(config.train.precision, next(net.parameters()).device.type)
    rule = config.input
    views = Views(config.eval.views, rule.test_short_side_px, rule.crop_px, config.eval.scales_px)
    score = scorer(net.eval(), precision=precision, window_px=rule.crop_px if views.kind == "multi-scale" else None)
    records = data.records[share[0] :: share[1]]
    size = 1 if views.kind == "multi-scale" else config.eval.batch_size
    chunks = [records[i : i + size] for i in range(0, len(records), size)]
    found, labels = [torch.zeros(0, net.fc.out_features)], []
    for chunk in track(chunks, "score", console=cli.CONSOLE, disable=quiet or not cli.CONSOLE.is_terminal):
        readable = [(r, image) for r in chunk if (image := _read(data, r, config)) is not None]
        if readable:
            found.append(probabilities(score, [image for _, image in readable], views, net.preprocess))
            labels += [record.label for record, _ in readable]
    return torch.cat(found), labels


def _read(data: LabelledData, record: LabelledImage, config: ClassifierRunConfig) -> np.ndarray | None:
    try:
        return data.read(record)
    except UnreadableImage as error:
        if config.data.on_bad_image == "stop":
            raise
        cli.CONSOLE.print(f"skipped: {error}")
        return None


def load_classifier(
    weights: str, config: ClassifierRunConfig, class_names: tuple[str, ...]
) -> tuple[ResNetClassifier, tuple[str, ...]]:
    """The net and the names of its classes: a certified file says both, of another's the configuration says the net
    and the data the classes. Raises ValueError where the classes are other ones than the data's."""
    file = read_weights(weights, net=config.model.net)
    if file.meta is None:
        net = ResNetClassifier(config.model.spec, num_classes=len(class_names))
        load_weights(net, file, source=config.weights_source)
        return net, class_names
    if file.meta["kind"] != "classifier":
        raise InvalidValue(f"{file} holds a {file.meta['kind']}, no classifier: train_cls.py writes those")
    names = tuple(file.meta["class_names"])
    if names != class_names:
        raise InvalidValue(
            f"{file} knows {len(names)} classes ({', '.join(names[:3])} ...), the data has {len(class_names)} "
            f"({', '.join(class_names[:3])} ...): score it on its own classes, in their order"
        )
    facts = file.meta["net"]
    net = ResNetClassifier(spec_from_dict(facts["spec"]), num_classes=len(names), norm=facts["norm"])
    load_weights(net, file)
    return net, names


def write_scores(folder: Path, scores: ClassScores, views: str) -> Path:
    """scores.json, or scores_10-crop.json and the like."""
    path = folder / ("scores.json" if views == "1-crop" else f"scores_{views}.json")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"views": views, **scores.to_json()}, indent=1) + "\n", encoding="utf-8")
    return path


def main() -> int:
    parser = cli.parser(__doc__ or "", config=ClassifierRunConfig)
    parser.add_argument("run_or_weights", help="a run's folder, a file, or a published name (imagenet1k_v1)")
    parser.add_argument("config", type=Path, nargs="?", help="YAML; default: the run's own config.yaml")
    parser.add_argument("--out", type=Path, help="folder for scores.json; default: the run's folder")
    args = parser.parse_args()
    given = Path(args.run_or_weights)
    is_run = given.is_dir()
    if args.config is None and not is_run:
        raise MissingFile(f"{given} has no config.yaml to say what to score on: name a CONFIG after the weights")
    config = load_config(args.config or given / "config.yaml", args.set)
    data = load_val(config)
    net, _ = load_classifier(str(given), config, data.class_names)
    net.to(pick_device(config.train.device))
    found, labels = predict(net, data, config)
    scores = score_labels(found, labels, data.class_names)
    cli.CONSOLE.print(classes_table(scores, f"{given}, {config.eval.views}"))
    if args.out or is_run:
        cli.CONSOLE.print(f"written: {write_scores(args.out or given, scores, config.eval.views)}")
    return 0


if __name__ == "__main__":
    cli.run(main)
