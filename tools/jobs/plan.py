"""A training run without a configuration: its settings follow from the data, the weights and the device.

Every setting has a reason. The rules were fixed on one data set of 200 photographs (docs/own-data.md has the results on
others).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from resnet_backbone.build import open_weights
from resnet_backbone.errors import InvalidValue
from tools.annotations.table import NO_OUTLINE, POLYGONS, AnnotationTable
from tools.config.detection import RunConfig
from tools.config.settings import load_values, merge, validate
from tools.data.coco import CocoData
from tools.devices import pick_device, processor_has

from .detection_data import load_data
from .weights import recognise_body

MASKED = 0.9  # fraction of objects with an outline from which masks are trained
SMALLEST_OBJECT_PX = 32.0  # the side that 90 % of the objects should have in the network's input: one cell of P5
DIRECTION = re.compile(r"(?<![a-z])(left|right|links|rechts|gauche|droite)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What a device affords.

    Attributes:
        depth: layers of the backbone without weights that say otherwise.
        batch_size: images per step.
        short_px: smallest and largest short side of the network's input, pixels.
        channels: channels of the pyramid and of the mask head.
        hidden: features of the box head's layers.
        samples: smallest and largest number of regions that an image gives to the box head's loss.
        images: images that a run sees at least.
        epochs: epochs of a large data set.
    """

    depth: int
    batch_size: int
    short_px: tuple[int, int]
    channels: int
    hidden: int
    samples: tuple[int, int]
    images: int
    epochs: int


BUDGETS = {
    "cpu": Budget(18, 4, (224, 448), 128, 512, (64, 256), 2400, 12),
    "cuda": Budget(50, 8, (480, 800), 256, 1024, (128, 512), 12000, 24),
}


@dataclass(frozen=True)
class Reason:
    """A planned setting.

    Attributes:
        setting: its dotted name.
        value: its value.
        why: the reason.
    """

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class Plan:
    """The settings of a run, and why.

    Attributes:
        config: the settings.
        reasons: one for each setting that was chosen; those that the user gave are not among them.
        notes: what is lost by these choices, in sentences.
    """

    config: RunConfig
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]

    def table(self) -> Table:
        """The settings with their reasons, to print before training."""
        table = Table("setting", "value", "because", title="the plan (--set SETTING=VALUE overrides)")
        for reason in self.reasons:
            table.add_row(reason.setting, yaml_text(reason.value), reason.why)
        return table


def yaml_text(value: Any) -> str:
    """A value as it is written in --set."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("\n...").strip()


def plan_for_folder(
    folder: str | PathLike[str],
    *,
    weights: str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """Choose the settings of a run.

    Args:
        folder: the data set, in any known format.
        weights: a classifier's or backbone's weights, a detector of this project or the folder of a run; None for the
            published ImageNet weights.
        overrides: settings such as "train.batch_size=2"; they replace what would be chosen.

    Returns:
        The plan.

    Raises:
        BadAnnotations: the data cannot be used.
        ConfigError: an override is wrong.
        UserError: the weights cannot be read.
    """
    given = load_values(RunConfig, None, overrides)
    # reading the data needs a whole configuration; only its `data` is used
    base: dict[str, Any] = {
        "out": str(default_out(folder)),
        "model": {"recipe": "faster_rcnn_r18_fpn", "norm": "bn", "frozen_stages": 0},
        "schedule": {"iters": 1},
        "data": {"folder": str(folder)},
        "backbone_weights": None,
    }
    probe = validate(merge(RunConfig.inherited(base, _data_of(given)), _data_of(given)), RunConfig)
    data = load_data(probe, val=False).train
    assert data is not None
    rules = _Rules(data, BUDGETS[pick_device(_device_of(given))])
    masks = rules.choose_masks()
    if given.get("init_from") is None and given.get("backbone_weights") is None:
        rules.choose_weights(weights, masks)
    rules.choose_sizes()
    rules.choose_heads(masks, scratch=not rules.is_detector)
    rules.choose_schedule()
    rules.add("out", base["out"], "named after the data")
    rules.add("data.folder", str(folder), "given")
    values = RunConfig.inherited(rules.values, given)
    config = validate(load_values(RunConfig, None, overrides, values), RunConfig)
    reasons = tuple(reason for reason in rules.reasons if not _is_given(reason.setting, given))
    return Plan(config, reasons, tuple(rules.notes))


def default_out(folder: str | PathLike[str]) -> Path:
    """The folder of a run on a data set, if the settings name none.

    Args:
        folder: the data set.
    """
    return Path("runs") / Path(folder).resolve().name


def weight_settings(weights: str) -> list[str]:
    """The settings that start a run from a weight file.

    Args:
        weights: weights of a classifier or backbone, or a detector of this project, or its run.

    Returns:
        Overrides such as "init_from=FILE".

    Raises:
        UserError: the file cannot be read.
    """
    file = open_weights(weights)
    if file.meta is not None and file.meta["kind"] == "detector":
        return [f"init_from={yaml_text(weights)}"]
    return ["init_from=null", f"backbone_weights={yaml_text(weights)}"]


def _data_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings that decide how data are read."""
    return {"data": given["data"]} if isinstance(given.get("data"), Mapping) else {}


def _device_of(given: Mapping[str, Any]) -> str:
    train = given.get("train")
    return str(train.get("device", "auto")) if isinstance(train, Mapping) else "auto"


def _is_given(setting: str, given: Mapping[str, Any]) -> bool:
    value: Any = given
    for part in setting.split("."):
        if not isinstance(value, Mapping):
            return True  # a whole section was given
        if part not in value:
            return False
        value = value[part]
    return True


class _Rules:
    """Collects settings with their reasons."""

    def __init__(self, data: CocoData, budget: Budget) -> None:
        self.data, self.budget = data, budget
        self.values: dict[str, Any] = {}
        self.reasons: list[Reason] = []
        self.notes: list[str] = []
        self.is_detector = False
        corners = data.corners[data.trained]
        sizes = data.table.sizes[data.table.images_of_rows()[data.trained]]
        self.per_image = data.objects_per_image
        self.images = len(self.per_image)
        self.image_short = float(np.median(data.table.sizes.min(axis=1)))
        sides = np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1))
        self.relative = sides / sizes.min(axis=1)  # sides of objects as fractions of the image's short side

    def add(self, setting: str, value: Any, why: str) -> None:
        nested: Any = value
        for part in reversed(setting.split(".")):
            nested = {part: nested}
        self.values = merge(self.values, nested)
        self.reasons.append(Reason(setting, value, why))

    def choose_masks(self) -> bool:
        """Masks, if nearly all objects have an outline that is more than their box."""
        table = self.data.table
        rows = table.rows[self.data.trained]
        kinds = table.outlines.kinds[rows]
        outlined = int((kinds != NO_OUTLINE).sum())
        boxes = sum(_is_box(table, int(row)) for row in rows[kinds == POLYGONS])
        total = len(rows)
        if outlined and boxes == outlined:
            self.why = f"the outlines of all {outlined:,} objects are just their boxes"
            return False
        if outlined >= MASKED * total:
            self.why = f"{outlined:,} of {total:,} objects have outlines"
            if outlined < total:
                self.notes.append(
                    f"{total - outlined:,} objects without an outline are left out (--set model=faster_rcnn_r18_fpn "
                    "trains all objects, without masks)"
                )
            return True
        self.why = f"{outlined:,} of {total:,} objects have outlines"
        if outlined:
            self.notes.append(
                f"the outlines of {outlined:,} objects are not used, since {total - outlined:,} objects have none "
                "(--set model=mask_rcnn_r18_fpn trains masks, on the objects with outlines)"
            )
        return False

    def choose_weights(self, weights: str | PathLike[str] | None, masks: bool) -> None:
        """The backbone and its weights, or the detector to start from."""
        kind = "mask" if masks else "faster"
        depth = self.budget.depth
        if weights is None:
            self.add("model.recipe", f"{kind}_rcnn_r{depth}_fpn", f"{self.why}; the depth that this device affords")
            self.add("backbone_weights", "imagenet1k_v1", "published ImageNet weights; --weights gives others")
            return
        file = open_weights(weights)
        if file.meta is not None and file.meta["kind"] == "detector":
            recipe = dict(file.meta["recipe"])
            if recipe["mask"] is not None and not masks:
                recipe["mask"] = None
                self.notes.append("the weights have a mask head, which is not used")
            self.is_detector = True
            self.add("model", recipe, "the detector in the weight file")
            self.add("init_from", str(weights), "given; layers of the classes are made anew")
            return
        name, sources = recognise_body(file)
        self.add("model.recipe", f"{kind}_rcnn_{_short(name)}_fpn", f"{self.why}; the weights are a {name}'s")
        self.add("backbone_weights", str(weights), "given")
        if len(sources) > 1:
            others = ", ".join(sources[1:])
            self.add("backbone_source", sources[0], f"assumed, since the keys fit {others} too")

    def choose_sizes(self) -> None:
        """The size of the network's input and of the anchors, from the objects."""
        low, high = self.budget.short_px
        tenth = float(np.quantile(self.relative, 0.1))
        side = SMALLEST_OBJECT_PX / max(tenth, 1e-6)
        largest = min(high, max(low, 1.5 * self.image_short))
        side = int(round(min(max(side, low), largest) / 32) * 32)
        why = (
            f"90 % of the objects are larger than {100 * tenth:.0f} % of the image's short side, or "
            f"{tenth * side:.0f} px; the device affords {low} to {high} px"
        )
        self.add("input.test_short_side_px", side, why)
        jitter = sorted({max(96, int(round(side * f / 32) * 32)) for f in (0.85, 1.0, 1.15)})
        self.add("input.short_side_px", jitter, "objects come at several sizes")
        ratio = float(np.quantile(self.data.table.sizes.max(axis=1) / self.data.table.sizes.min(axis=1), 0.95))
        long_side = round(max(jitter) * min(max(ratio, 4 / 3), 3.0))
        self.add("input.long_side_px", long_side, f"95 % of the images have sides of 1 : {ratio:.2f} at most")
        twentieth = float(np.quantile(self.relative, 0.05)) * side
        first = 32 if twentieth >= 24 else 16 if twentieth >= 12 else 8
        if first != 32:
            anchors = [[first * 2**level] for level in range(5)]
            self.add("model.rpn.anchor_sizes_px", anchors, f"5 % of the objects are smaller than {twentieth:.0f} px")
        named = [name for name in self.data.class_names if DIRECTION.search(name.replace("_", " "))]
        if named:
            self.add("input.flip_probability", 0.0, f"a flip would make {named[0]!r} wrong")

    def choose_heads(self, masks: bool, *, scratch: bool) -> None:
        """Capacity of the heads, and how many objects they look for."""
        budget, most = self.budget, int(self.per_image.max())
        if scratch:
            self.add("model.pyramid_channels", budget.channels, "what the device affords")
            self.add("model.box.hidden", budget.hidden, "what the device affords")
            if masks and budget.channels != 256:
                self.add("model.mask.channels", budget.channels, "what the device affords")
        busy = float(np.quantile(self.per_image, 0.9))
        low, high = budget.samples
        samples = int(min(max(2 ** np.ceil(np.log2(16 * max(busy, 1))), low), high))
        self.add("model.box.samples_per_image", samples, f"90 % of the images have {busy:.0f} objects or fewer")
        if budget is BUDGETS["cpu"]:
            kept = int(min(max(100, 4 * most), 1000))
            self.add("model.rpn.keep_after_nms_test", kept, f"at most {most} objects in an image")
            self.add("model.rpn.keep_before_nms_test", max(300, kept), "as many on every level")
            self.add("model.rpn.keep_after_nms_train", max(250, kept), "as above, in training")
            self.add("model.rpn.keep_before_nms_train", max(500, kept), "as above, in training")
        if most * 1.5 > 100:
            self.add("model.box.max_detections", int(most * 1.5), f"up to {most} objects in an image")
        overlap = _largest_overlap(self.data)
        nms = min(max(round(overlap + 0.1, 1), 0.3), 0.5)
        why = f"99 % of the objects overlap others of their class by an IoU of {overlap:.2f} or less"
        self.add("model.box.nms_iou", nms, why)

    def choose_schedule(self) -> None:
        """Batch, learning rate, warm-up and length."""
        budget = self.budget
        batch = min(budget.batch_size, self.images)
        self.add("train.batch_size", batch, "what the device affords")
        seen = max(budget.images, budget.epochs * self.images)
        steps = max(1, round(seen / batch))
        least = f"at least {budget.images:,} images and {budget.epochs} epochs"
        self.add("schedule.iters", steps, f"{seen / self.images:.0f} epochs of {self.images:,} images ({least})")
        self.add("schedule.kind", "cosine", "short runs gain by a smooth end")
        self.add("schedule.warmup_iters", min(500, max(1, steps // 12)), "a twelfth of the run, at most 500 steps")
        lr = 1e-4 if self.is_detector else 4e-4
        self.add("optimiser.kind", "adamw", "the new layers of the heads learn faster than with SGD")
        self.add("optimiser.lr", lr, "new heads on a pretrained backbone" if lr == 4e-4 else "fine-tuning a detector")
        self.add("optimiser.weight_decay", 0.05, "usual for AdamW")
        self.add("optimiser.clip_norm", 10.0, "a bad batch cannot undo the run")
        fast = self.budget is BUDGETS["cuda"] or processor_has("amx_bf16")
        why = "the hardware multiplies in bf16 where it can" if fast else "bf16 saves nothing without AMX"
        self.add("train.precision", "auto" if fast else "fp32", why)
        self.add("train.checkpoint_every_iters", max(50, steps // 5), "five times a run")
        self.add("data.empty_images", "keep", "images without objects teach what to leave alone")


def _is_box(table: AnnotationTable, row: int) -> bool:
    """Whether an outline is one polygon of four corners that are those of the box."""
    polygons = table.outlines.polygons(row)
    if len(polygons) != 1 or len(polygons[0]) not in (4, 5):
        return False
    x, y, w, h = table.boxes[row]
    corners = np.array([[x, y], [x + w, y + h]])
    return bool((np.abs(polygons[0][:, None] - corners).min(axis=1) <= 1).all())


def _largest_overlap(data: CocoData) -> float:
    """The 99th percentile of the largest IoU of every object with another one of its class in its image."""
    largest = [np.zeros(0)]
    for image in np.flatnonzero(data.objects_per_image > 1).tolist():
        record = data.record(image)
        boxes = record.boxes
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=2)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        iou = shared / (areas[:, None] + areas[None] - shared)
        iou[record.labels[:, None] != record.labels[None]] = 0
        np.fill_diagonal(iou, 0)
        largest.append(iou.max(axis=1))
    overlaps = np.concatenate([*largest, np.zeros(int((data.objects_per_image == 1).sum()))])
    return float(np.quantile(overlaps, 0.99)) if len(overlaps) else 0.0


def _short(name: str) -> str:
    """The name of a net in those of recipes."""
    if not re.fullmatch(r"resnet(18|34|50|101|152)", name):
        raise InvalidValue(
            f"weights of a {name}: a detector needs a ResNet-18, 34, 50, 101 or 152: give other --weights"
        )
    return name.replace("resnet", "r")
