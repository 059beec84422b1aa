"""The analyses of the paper, as functions: training curves, layer statistics, and the size and cost of nets.

Every analysis writes a plot and its data into a folder, returns the data, and has a function that makes a table of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from resnet_backbone import RESNETS, ResNetClassifier
from resnet_backbone.errors import InvalidValue, MissingFile
from tools.config.classification import ClassifierRunConfig, load_config
from tools.data.loader import Draw
from tools.devices import pick_device
from tools.evaluation.counts import NetCounts, count
from tools.evaluation.layer_statistics import gradient_norms, response_std
from tools.report.nets import read_run, write_counts_plot, write_layer_plot, write_run_curves

from .classification import load_classifier, load_train, training_images

FINAL_PART = 0.05  # final figures of a run are means over this fraction of its steps, the last ones
GRADIENT_BATCH = 128  # images

Curves = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Subject:
    """A net to measure.

    Attributes:
        weights: a file, or the folder of a run.
        config: the settings; they name the net and the training images.
    """

    weights: str
    config: ClassifierRunConfig


@dataclass(frozen=True)
class LayerStatistics:
    """One figure for every layer of every net.

    Attributes:
        title: what was measured.
        quantity: name of the figure.
        images: number of images.
        runs: net -> one entry per seed: layer -> figure.
    """

    title: str
    quantity: str
    images: int
    runs: Mapping[str, Sequence[Mapping[str, float]]]

    @property
    def mean(self) -> dict[str, dict[str, float]]:
        """Net -> layer -> mean over the seeds."""
        return {
            net: {layer: float(np.mean([seed[layer] for seed in seeds])) for layer in seeds[0]}
            for net, seeds in sorted(self.runs.items())
        }


def find_subjects(names: Sequence[str], config: Path | None = None, overrides: Sequence[str] = ()) -> list[Subject]:
    """Find the nets to measure.

    Args:
        names: folders of runs, or NET=FILE for other weights, with a row of `RESNETS`.
        config: YAML file that names the training images for NET=FILE.
        overrides: settings such as "data.workers=0", for all of them.

    Returns:
        One subject per name.

    Raises:
        InvalidValue: NET=FILE without a configuration, or a configuration that cannot be used.
        MissingFile: a folder holds no run.
    """
    subjects = []
    for name in names:
        net, equals, file = name.partition("=")
        if equals and net in RESNETS:
            if config is None:
                raise InvalidValue(
                    f"{name} needs --config: a YAML file of settings that names the training images to measure on"
                )
            subjects.append(Subject(file, load_config(config, [f"model={net}", *overrides])))
        else:
            subjects.append(Subject(name, load_config(_file_of(Path(name), "config.yaml"), overrides)))
    return subjects


def _file_of(run: Path, name: str) -> Path:
    """A file in the folder of a run."""
    if not (run / name).is_file():
        raise MissingFile(f"no run in {run} (it has no {name}): name folders that tools/train_cls.py wrote")
    return run / name


def curves(run_folders: Sequence[Path], out: Path) -> Curves:
    """Compare the training curves of runs: training loss, training error and test error.

    Args:
        run_folders: folders of runs.
        out: folder for curves.png and curves.json.

    Returns:
        Net -> its runs, with their curves and final figures.

    Raises:
        MissingFile: a folder holds no run.
        InvalidValue: a run has logged no step, or is not of a classifier.
    """
    by_net: Curves = {}
    for folder in run_folders:
        config = load_config(_file_of(folder, "config.yaml"))
        run = read_run(_file_of(folder, "metrics.jsonl")) | {"run": folder.name, "seed": config.train.seed}
        train, val = run["train"], run["val"]
        since = train["step"][-1] * (1 - FINAL_PART)
        last = [i for i, step in enumerate(train["step"]) if step > since]
        run["final"] = {
            "step": train["step"][-1],
            "train_loss": float(np.mean([train["loss"][i] for i in last])),
            "train_error": float(np.mean([train["error"][i] for i in last])),
            "test_error": val["error"][-1] if val["error"] else None,
        }
        by_net.setdefault(config.model.net, []).append(run)
    by_net = dict(sorted(by_net.items()))
    write_run_curves(by_net, out / "curves.png", "training loss and errors")
    _write(out / "curves.json", by_net)
    return by_net


def curves_table(by_net: Curves) -> Table:
    """Make a table of the final figures of runs; `by_net` is the result of `curves`."""
    table = Table("run", "net", "steps", "training loss", "training error, %", "test error, %", title="final figures")
    for net, net_runs in by_net.items():
        for run in net_runs:
            final = run["final"]
            test_error = "" if final["test_error"] is None else f"{100 * final['test_error']:.2f}"
            figures = f"{final['train_loss']:.4f}", f"{100 * final['train_error']:.2f}", test_error
            table.add_row(run["run"], net, str(final["step"]), *figures)
    return table


def responses(subjects: Sequence[Subject], out: Path, *, images: int = 1024, initial: bool = False) -> LayerStatistics:
    """Measure the standard deviation of the responses of every layer (the paper, figure 7).

    Args:
        subjects: the nets; seeds of one net are averaged.
        out: folder for responses.png and responses.json (responses_initial with `initial`).
        images: number of training images, augmented as in training.
        initial: measure the nets before training, with new random weights.

    Returns:
        The statistics.

    Raises:
        UserError: as for `load_train` and `load_classifier` of `jobs.classification`, and for `response_std`.
    """
    statistics = LayerStatistics(
        f"responses of the layers (after the norm){_state(initial)}",
        "standard deviation",
        images,
        _measure(subjects, images, initial, lambda net, pixels, labels: response_std(net, pixels)),
    )
    _write_layers(statistics, out / _file_name("responses", initial), logarithmic=False)
    return statistics


def gradients(subjects: Sequence[Subject], out: Path, *, images: int = 1024, initial: bool = False) -> LayerStatistics:
    """Measure the norm of the gradient of every layer's weights (the paper, section 4.1).

    Args:
        subjects: the nets; seeds of one net are averaged.
        out: folder for gradients.png and gradients.json (gradients_initial with `initial`).
        images: number of training images, augmented as in training.
        initial: measure the nets before training, with new random weights.

    Returns:
        The statistics.

    Raises:
        UserError: as for `load_train` and `load_classifier` of `jobs.classification`.
    """

    def measure(net: ResNetClassifier, pixels: Tensor, labels: Tensor) -> dict[str, float]:
        return gradient_norms(net, list(zip(pixels.split(GRADIENT_BATCH), labels.split(GRADIENT_BATCH))))

    statistics = LayerStatistics(
        f"gradients of the layers' weights{_state(initial)}",
        "L2 norm",
        images,
        _measure(subjects, images, initial, measure),
    )
    _write_layers(statistics, out / _file_name("gradients", initial), logarithmic=True)
    return statistics


def layers_table(statistics: LayerStatistics) -> Table:
    """Make a table of layer statistics: of every net mean and median over the layers, and the first and last layer."""
    title = f"{statistics.title}: {statistics.quantity}"
    table = Table("net", "layers", "mean", "median", "first", "last", title=title)
    for net, by_layer in statistics.mean.items():
        values = list(by_layer.values())
        figures = (float(np.mean(values)), float(np.median(values)), values[0], values[-1])
        table.add_row(net, str(len(values)), *(f"{figure:.4g}" for figure in figures))
    return table


def _state(initial: bool) -> str:
    return ", before training" if initial else ""


def _file_name(kind: str, initial: bool) -> str:
    return f"{kind}_initial" if initial else kind


def _measure(
    subjects: Sequence[Subject],
    images: int,
    initial: bool,
    measure: Callable[[ResNetClassifier, Tensor, Tensor], dict[str, float]],
) -> dict[str, list[dict[str, float]]]:
    """Net -> one entry per subject: layer -> figure."""
    if images < 1:
        raise InvalidValue(f"images={images}: measure on at least one training image")
    by_net: dict[str, list[dict[str, float]]] = {}
    for subject in subjects:
        figures = measure(*_net_and_images(subject, images, initial))
        by_net.setdefault(subject.config.model.net, []).append(figures)
    return by_net


def _net_and_images(subject: Subject, images: int, initial: bool) -> tuple[ResNetClassifier, Tensor, Tensor]:
    """The net, pixels (N, 3, H, W), normalised, and labels (N,), on the device of the settings."""
    config = subject.config
    data = load_train(config)
    if initial:
        torch.manual_seed(config.train.seed)
        net = ResNetClassifier(config.model.spec, num_classes=len(data.class_names), norm=config.model.norm)
    else:
        net = load_classifier(subject.weights, config, data.class_names)
    source = training_images(config, data, net.preprocess)
    # in random order: the gradient of a batch of one class is not typical
    order = np.random.default_rng(0).permutation(len(data.records))[:images].tolist()
    samples = [source[Draw(index, epoch=0)][:2] for index in order]
    pixels, labels = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
    device = pick_device(config.train.device)
    return net.to(device), net.preprocess.normalise(pixels).to(device), labels.to(device)


def _write_layers(statistics: LayerStatistics, path: Path, *, logarithmic: bool) -> None:
    """Plot and data; `path` has no suffix."""
    quantity, mean = statistics.quantity, statistics.mean
    write_layer_plot(mean, path.with_suffix(".png"), title=statistics.title, quantity=quantity, logarithmic=logarithmic)
    _write(path.with_suffix(".json"), {"images": statistics.images, "mean": mean, "runs": statistics.runs})


def counts(nets: Sequence[str], out: Path) -> list[NetCounts]:
    """Count parameters and multiply-adds (the paper, tables 1 and 6).

    Args:
        nets: rows of `RESNETS`; none stands for all.
        out: folder for counts.png and counts.json.

    Returns:
        The counts, one entry per net.

    Raises:
        InvalidValue: no such row.
    """
    rows = [count(name) for name in nets or RESNETS]
    write_counts_plot([row.to_json() for row in rows], out / "counts.png")
    _write(out / "counts.json", [row.to_json() for row in rows])
    return rows


def counts_table(rows: Sequence[NetCounts]) -> Table:
    """Make a table of counts, with the figures of the paper and the differences from them."""
    table = Table("net", "parameters", "paper", "difference", "multiply-adds", "paper", "difference")
    for row in rows:
        parameters = _against_paper(row.parameters, row.paper_parameters, 1e6, "M")
        multiply_adds = _against_paper(row.multiply_adds, row.paper_multiply_adds, 1e9, "G")
        table.add_row(row.net, *parameters, *multiply_adds)
    return table


def _against_paper(value: int, paper: float | None, unit: float, letter: str) -> list[str]:
    if paper is None:
        return [f"{value:,}", "", ""]
    return [f"{value:,}", f"{paper / unit:g} {letter}", f"{100 * (value / paper - 1):+.1f} %"]


def _write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
