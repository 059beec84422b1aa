"""What may change when a run is resumed: settings, classes and data, compared with those of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet_backbone.errors import InvalidValue
from resnet_backbone.weights.read import read_file
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.config.settings import load, to_yaml
from tools.files import write_text

TrainingConfig = RunConfig | ClassifierRunConfig
Rule = Literal["refuse", "say", "allow"]

# Why a resumed run cannot change a setting: the checkpoint does not fit it, or it would be claimed and not done.
MODEL = "the checkpoint holds this model"
WEIGHTS = "a resumed run takes its weights from its checkpoint"
STATE = "the checkpoint holds the state of this optimiser"
ORDER = "images of the current epoch would be repeated and others left out"
LENGTH = "steps taken so far would count as another number of epochs"

# Setting -> what happens if a resumed run changes it: "refuse" with the reason; "say": it holds from this step on, and
# is printed; "allow": results do not depend on it. `model` stands for all of its settings but those with an own row.
RULES: dict[str, tuple[Rule, str]] = {
    "out": ("allow", ""),
    "model": ("refuse", MODEL),
    "model.recompute": ("allow", ""),
    **dict.fromkeys(
        ("backbone_weights", "backbone_source", "init_from", "weights", "weights_source", "allow_missing"),
        ("refuse", WEIGHTS),
    ),
    # paths may have moved; classes and the number of images are compared apart
    **dict.fromkeys(
        (f"data.{split}.{name}" for split in ("train", "val") for name in ("images", "annotations", "class_index")),
        ("say", ""),
    ),
    **dict.fromkeys(
        (f"data.train.{name}" for name in ("objects", "max_images", "part")),
        ("refuse", LENGTH),
    ),
    **dict.fromkeys((f"data.val.{name}" for name in ("objects", "max_images", "part")), ("say", "")),
    "data.folder": ("say", ""),
    **dict.fromkeys(("data.val_fraction", "data.split_seed"), ("refuse", "images would move between train and val")),
    **dict.fromkeys(
        ("data.classes", "data.on_bad_annotation", "data.box_format", "data.crowds", "data.outside_images"),
        ("refuse", "the run so far was trained on other objects"),
    ),
    "data.empty_images": ("refuse", LENGTH),
    "data.min_box_px": ("say", ""),
    "data.shuffle_labels": ("refuse", "the labels of the run so far would be others"),
    "data.keep_decoded": ("allow", ""),
    "data.on_bad_image": ("say", ""),
    "data.max_image_mpx": ("say", ""),
    "data.workers": ("allow", ""),
    **dict.fromkeys(
        (
            "input.short_side_px",
            "input.long_side_px",
            "input.test_short_side_px",
            "input.pad_to_multiple_px",
            "input.flip_probability",
            "input.resize",
            "input.pad_px",
            "input.crop_px",
            "input.colour_pca_std",
        ),
        ("say", ""),
    ),
    "optimiser.kind": ("refuse", STATE),
    **dict.fromkeys(
        (f"optimiser.{name}" for name in ("lr", "momentum", "beta2", "weight_decay", "decay_norms", "clip_norm")),
        ("say", ""),
    ),
    # a longer schedule is a common wish: the checkpoint holds the step, the learning rate follows the new schedule
    **dict.fromkeys(
        (
            "schedule.epochs",
            "schedule.iters",
            "schedule.kind",
            "schedule.decay_at",
            "schedule.decay_factor",
            "schedule.plateau_patience",
            "schedule.warmup_iters",
            "schedule.warmup_factor",
            "schedule.warmup_kind",
            "schedule.auto_scale",
            "schedule.reference_batch",
        ),
        ("say", ""),
    ),
    "train.batch_size": ("refuse", LENGTH),
    "train.accumulate": ("say", ""),
    "train.precision": ("say", ""),
    "train.device": ("allow", ""),
    "train.tf32": ("say", ""),
    "train.compile": ("allow", ""),
    "train.seed": ("refuse", ORDER),
    "train.group_by_aspect": ("refuse", ORDER),
    "train.checkpoint_every_iters": ("allow", ""),
    "train.log_every_iters": ("allow", ""),
    "eval.every_epochs": ("say", ""),
    "eval.batch_size": ("allow", ""),
    "eval.compile": ("allow", ""),
    "eval.max_detections": ("say", ""),
    "eval.backend": ("allow", ""),
    "eval.crops": ("say", ""),
    "eval.scales_px": ("say", ""),
}


@dataclass(frozen=True)
class Change:
    """A setting that a resumed run changes.

    Attributes:
        name: dotted name of the setting.
        before: its value in the run.
        now: its value now.
    """

    name: str
    before: object
    now: object

    @property
    def rule(self) -> tuple[Rule, str]:
        """What happens, and why; a setting without a row is said."""
        if self.name not in RULES and self.name.startswith("model."):
            return RULES["model"]
        return RULES.get(self.name, ("say", ""))

    def __str__(self) -> str:
        return f"{self.name}: {self.before} in the run, now {self.now}"


def changes(before: TrainingConfig, now: TrainingConfig) -> list[Change]:
    """Compare the settings of a run with those that it is to be resumed with.

    Args:
        before: the settings of the run.
        now: the settings now.

    Returns:
        The settings that differ, in their order in the configuration.
    """
    old, new = dict(_flat(before.model_dump(mode="json"))), dict(_flat(now.model_dump(mode="json")))
    names = [*new, *(name for name in old if name not in new)]
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def check_settings(config: TrainingConfig, folder: Path) -> list[Change]:
    """Check that a run may be resumed with these settings. Nothing is written.

    Args:
        config: the settings now.
        folder: the folder of the run.

    Returns:
        The settings that differ.

    Raises:
        InvalidValue: a setting differs that a resumed run cannot change, or config.yaml of the run cannot be read.
    """
    found = changes(_earlier(config, folder), config)
    refused = [change for change in found if change.rule[0] == "refuse"]
    if not refused:
        return found
    lines = [f"  {change} ({change.rule[1]})" for change in refused]
    sections = sorted({change.name.split(".")[0] for change in refused}, key=list(type(config).model_fields).index)
    differ = "differs" if len(sections) == 1 else "differ"
    raise InvalidValue(
        f"{', '.join(sections)} {differ} from the run in {config.out} ({folder / 'config.yaml'}):\n"
        + "\n".join(lines)
        + "\nresume it with the settings of the run, or set `out` to another folder and start without --resume"
    )


def describe_changes(config: TrainingConfig, folder: Path) -> list[str]:
    """Lines for the settings that a resumed run changes and that results depend on.

    Args:
        config: the settings now.
        folder: the folder of the run.

    Returns:
        A line for each.
    """
    return [f"changed from here on: {change}" for change in check_settings(config, folder) if change.rule[0] == "say"]


def check_classes(checkpoint: Path, class_names: Sequence[str]) -> None:
    """Check that the data has the classes of a checkpoint, in the same order.

    Args:
        checkpoint: the checkpoint that a run is resumed from.
        class_names: the classes of the data, in the order of the labels.

    Raises:
        InvalidValue: the classes or their order differ.
    """
    content: Any = read_file(checkpoint)
    names = content.get("meta", {}).get("class_names")
    if names is None or tuple(names) == tuple(class_names):
        return
    sides = ("run", names), ("data", class_names)
    lines = [f"  {len(found)} in the {side}: {_listed(found)}" for side, found in sides]
    if len(names) == len(class_names):
        label = next(i for i, pair in enumerate(zip(names, class_names)) if pair[0] != pair[1])
        lines.append(f"  label {label} was {names[label]!r} and would be {class_names[label]!r}")
    raise InvalidValue(
        f"the classes of the data differ from those of the run ({checkpoint}):\n"
        + "\n".join(lines)
        + "\ngive the data the classes of the run in the same order, or set `out` to another folder and start without "
        "--resume"
    )


def keep_settings(config: TrainingConfig, folder: Path, step: int) -> None:
    """Write the settings that a resumed run goes on with to config.yaml.

    If results depend on what changed, the earlier file is kept as config.STEP.yaml: the settings up to that step.

    Args:
        config: the settings now.
        folder: the folder of the run.
        step: the step that the run was resumed from.
    """
    path, text = folder / "config.yaml", to_yaml(config)
    earlier = path.read_text(encoding="utf-8")
    if earlier == text:
        return
    kept = folder / f"config.{step}.yaml"
    # steps after a checkpoint are lost when a run is resumed from it again: the first file is that of the steps before
    if not kept.exists() and any(change.rule[0] != "allow" for change in changes(_earlier(config, folder), config)):
        write_text(kept, earlier)
    write_text(path, text)


def _earlier(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """The settings of a run, from its config.yaml."""
    saved = folder / "config.yaml"
    try:
        return load(type(config), saved)
    except InvalidValue as error:
        raise InvalidValue(
            f"{saved}, the settings of the run to resume, cannot be used: restore or correct that file\n{error}"
        ) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; an empty section has none."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name, value


def _listed(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")
