"""The paper's analyses: python tools/analyse.py {curves | responses | gradients | counts} [RUN ...] --out DIR

Each writes a plot and its data. curves: training loss, and the errors of training and test images, of several runs,
those of one net in one colour. responses: standard deviation of every layer's responses (figure 7). gradients: norm of
the gradient that reaches every layer's weights; with --initial, before training. counts: parameters and multiply-adds
(tables 1 and 6). RUN is a folder that train_cls.py wrote; responses and gradients also take other people's weights, as
NET=FILE, on the training images of --config.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from resnet_backbone import RESNETS, ResNetClassifier
from resnet_backbone.errors import InvalidValue, MissingFile
from tools import cli
from tools.config.classification import ClassifierRunConfig, load_config
from tools.data.loader import Draw
from tools.engine.train import pick_device
from tools.eval_cls import load_classifier
from tools.evaluation.counts import count
from tools.evaluation.layer_statistics import gradient_norms, response_std
from tools.report.nets import read_run, write_counts_plot, write_layer_plot, write_run_curves
from tools.train_cls import load_train, training_images

LAST = 0.05  # of a run's steps: what its final figures are the mean of


def curves(runs: Sequence[Path], out: Path) -> None:
    """curves.png, curves.json, and the final figures of every run."""
    found: dict[str, list[dict[str, Any]]] = {}
    table = Table("run", "net", "steps", "training loss", "training error, %", "test error, %", title="final figures")
    for run in runs:
        config = load_config(run / "config.yaml")
        read = read_run(run / "metrics.jsonl") | {"run": run.name, "seed": config.train.seed}
        train, val = read["train"], read["val"]
        since = train["step"][-1] * (1 - LAST)
        last = [i for i, step in enumerate(train["step"]) if step > since]
        read["final"] = {
            "step": train["step"][-1],
            "train_loss": float(np.mean([train["loss"][i] for i in last])),
            "train_error": float(np.mean([train["error"][i] for i in last])),
            "test_error": val["error"][-1] if val["error"] else None,
        }
        final = read["final"]
        tested = "" if final["test_error"] is None else f"{100 * final['test_error']:.2f}"
        figures = f"{final['train_loss']:.4f}", f"{100 * final['train_error']:.2f}", tested
        table.add_row(run.name, config.model.net, str(final["step"]), *figures)
        found.setdefault(config.model.net, []).append(read)
    nets = dict(sorted(found.items()))
    write_run_curves(nets, out / "curves.png", "training loss and errors")
    _write(out / "curves.json", nets)
    cli.CONSOLE.print(table)


def subjects(
    names: Sequence[str], config: Path | None, overrides: Sequence[str]
) -> list[tuple[str, ClassifierRunConfig]]:
    """Runs, or weights as NET=FILE with a configuration -> (what to load, its configuration) each."""
    found: list[tuple[str, ClassifierRunConfig]] = []
    for name in names:
        net, sign, file = name.partition("=")
        if sign and net in RESNETS:
            if config is None:
                raise InvalidValue(
                    f"{name} needs --config: a configuration that names the training images to measure on"
                )
            found.append((file, load_config(config, [f"model={net}", *overrides])))
        else:
            found.append((name, load_config(_run(name) / "config.yaml", overrides)))
    return found


def _run(name: str) -> Path:
    if not (Path(name) / "config.yaml").is_file():
        raise MissingFile(f"no run in {name}: name folders that train_cls.py wrote")
    return Path(name)


def layers(
    subjects: Sequence[tuple[str, ClassifierRunConfig]], out: Path, kind: str, *, images: int, initial: bool
) -> None:
    """responses.png and .json, or gradients.png and .json (gradients_initial with `initial`); of several seeds of a net
    the mean."""
    measure: Callable[[ResNetClassifier, Tensor, Tensor], dict[str, float]] = (
        (lambda net, pixels, labels: response_std(net, pixels))
        if kind == "responses"
        else (lambda net, pixels, labels: gradient_norms(net, list(zip(pixels.split(128), labels.split(128)))))
    )
    found: dict[str, list[dict[str, float]]] = {}
    for weights, config in subjects:
        net, pixels, labels = _net_and_images(weights, config, images, initial)
        found.setdefault(config.model.net, []).append(measure(net, pixels, labels))
    mean = {
        net: {layer: float(np.mean([one[layer] for one in seeds])) for layer in seeds[0]}
        for net, seeds in sorted(found.items())
    }
    state = ", before training" if initial else ""
    name = kind + ("_initial" if initial else "")
    title, quantity = {
        "responses": (f"responses of the layers (after the norm){state}", "standard deviation"),
        "gradients": (f"gradients of the layers' weights{state}", "L2 norm"),
    }[kind]
    write_layer_plot(mean, out / f"{name}.png", title=title, quantity=quantity, logarithmic=kind == "gradients")
    _write(out / f"{name}.json", {"images": images, "mean": mean, "runs": found})
    table = Table("net", "layers", "mean", "median", "first", "last", title=f"{title}: {quantity}")
    for net_name, values in mean.items():
        along = list(values.values())
        figures = (float(np.mean(along)), float(np.median(along)), along[0], along[-1])
        table.add_row(net_name, str(len(along)), *(f"{figure:.4g}" for figure in figures))
    cli.CONSOLE.print(table)


def _net_and_images(
    weights: str, config: ClassifierRunConfig, images: int, initial: bool
) -> tuple[ResNetClassifier, Tensor, Tensor]:
    """The net (as it began, where `initial`) and training images, augmented as in training."""
    data = load_train(config)
    if initial:
        torch.manual_seed(config.train.seed)
        net = ResNetClassifier(config.model.spec, num_classes=len(data.class_names), norm=config.model.norm)
    else:
        net, _ = load_classifier(weights, config, data.class_names)
    source = training_images(config, data, net)
    # drawn at random: a batch of one class has no typical gradient
    order = np.random.default_rng(0).permutation(len(data.records))[:images].tolist()
    samples = [source[Draw(index, epoch=0)][:2] for index in order]
    pixels, labels = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
    device = pick_device(config.train.device)
    return net.to(device), net.preprocess.normalise(pixels).to(device), labels.to(device)


def counts(nets: Sequence[str], out: Path) -> None:
    """counts.png and counts.json."""
    rows = [count(name) for name in nets]
    write_counts_plot([row.to_json() for row in rows], out / "counts.png")
    _write(out / "counts.json", [row.to_json() for row in rows])
    table = Table("net", "parameters", "the paper's", "off by", "multiply-adds", "the paper's", "off by")
    for row in rows:
        cells: list[str] = []
        for ours, theirs, unit in (
            (row.parameters, row.paper_parameters, "M"),
            (row.multiply_adds, row.paper_multiply_adds, "G"),
        ):
            size = 1e6 if unit == "M" else 1e9
            said = ["", ""] if theirs is None else [f"{theirs / size:g} {unit}", f"{100 * (ours / theirs - 1):+.1f} %"]
            cells += [f"{ours:,}", *said]
        table.add_row(row.net, *cells)
    cli.CONSOLE.print(table)


def _write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    cli.CONSOLE.print(f"written: {path} and {path.with_suffix('.png').name}")


def main() -> int:
    parser = cli.parser(__doc__ or "", config=ClassifierRunConfig)
    parser.add_argument("what", choices=("curves", "responses", "gradients", "counts"))
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run folders, or NET=FILE; for counts, nets (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the plot and its data")
    parser.add_argument("--config", type=Path, help="responses, gradients: the YAML that goes with NET=FILE")
    parser.add_argument("--images", type=int, default=1024, help="responses, gradients: training images (default 1024)")
    parser.add_argument("--initial", action="store_true", help="responses, gradients: the nets before training")
    args = parser.parse_args()
    if args.what in ("counts", "curves") and (args.config or args.set):
        raise InvalidValue(f"{args.what} reads what is written: --config and --set are for responses and gradients")
    if args.what == "counts":
        counts(args.runs or list(RESNETS), args.out)
        return 0
    if not args.runs:
        raise InvalidValue(f"{args.what} needs the folders of runs: name at least one")
    if args.what == "curves":
        curves([_run(run) for run in args.runs], args.out)
    else:
        found = subjects(args.runs, args.config, args.set)
        layers(found, args.out, args.what, images=args.images, initial=args.initial)
    return 0


if __name__ == "__main__":
    cli.run(main)
