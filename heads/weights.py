"""What a detector does with weight files: renaming keys, checking conventions, taking over what travels with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from resnet_backbone.backbone import ResNetBackbone
from resnet_backbone.errors import InvalidValue
from resnet_backbone.plain import from_plain
from resnet_backbone.preprocess import Preprocess
from resnet_backbone.weights.keymaps import Renamed
from resnet_backbone.weights.read import WeightFile
from resnet_backbone.weights.sources import WeightSource

from .box_head import BoxHead
from .class_lists import class_names_in
from .conventions import CONVENTIONS, Conventions
from .keymaps import from_layout, layout_of

# a mask head's keys: this project's and mmdetection's, then those of detectron2 and torchvision
MASK_KEYS = re.compile(r"(roi_head\.)?mask_head\.|roi_heads\.mask_(head|predictor)\.")
BACKGROUND = "background."  # prefix of torchvision's background rows in files of this project


class DetectorWeights(nn.Module):
    """The part of `RCNN` that `load_weights` calls (the protocol `LoadsWeights`).

    Attributes:
        preprocess: the pixel format and image size that the weights expect.
        class_names: names of the classes, in the order of their labels.
        background: rows of torchvision's background class, by native key. No decision reads them; they are kept so that
            torchvision's layout can be written again.
    """

    backbone: nn.Module
    neck: nn.Module
    box_head: BoxHead
    preprocess: Preprocess
    class_names: tuple[str, ...]
    background: dict[str, Tensor]

    def to_native_keys(self, state: Mapping[str, Tensor]) -> Renamed:
        """Bring a detector's tensors, in the layout of any project, to the keys of this detector.

        Args:
            state: the tensors of a file.

        Returns:
            The tensors under native keys, and the sources that use the names which they had.
        """
        layout = layout_of(state)
        if layout is not None:
            return from_layout(self.state_dict(), state, layout)
        rows = {key.removeprefix(BACKGROUND): value for key, value in state.items() if key.startswith(BACKGROUND)}
        return Renamed({k: v for k, v in state.items() if not k.startswith(BACKGROUND)}, export_only=rows)

    def check_source(self, source: WeightSource, file: WeightFile) -> None:
        """Check that this detector was built with the settings that the weights were trained with.

        Args:
            source: what the weights were trained with.
            file: the file that is loaded.

        Raises:
            InvalidValue: another stride placement, epsilon or convention.
        """
        if isinstance(self.backbone, ResNetBackbone):
            self.backbone.check_source(source, file)
        expected, actual = conventions_for(source, file), self.box_head.conventions
        differing = [name for name, value in vars(expected).items() if getattr(actual, name) != value]
        if differing:
            name = differing[0]
            value = getattr(expected, name)
            raise InvalidValue(
                f"{file}: {len(differing)} conventions of these weights differ from this detector's, first {name} "
                f"({value} against {getattr(actual, name)}): build_detector(weights=...) takes theirs; in a "
                f"configuration set model.conventions={source.project}, then model.conventions.{name}={value} if that "
                "still differs"
            )

    def apply_source(self, source: WeightSource | None, file: WeightFile, renamed: Renamed) -> None:
        """Take over the pixel format, image size and class names of the weights, and the background's rows.

        Args:
            source: what the weights were trained with; None leaves `preprocess` as it is.
            file: the file that was loaded.
            renamed: its tensors under native keys.
        """
        own = self.state_dict()
        self.background = {key: rows for key, rows in renamed.export_only.items() if key in own}
        if source is not None:
            self.preprocess = source.preprocess
            if file.meta is None and source.project == "detectron2" and isinstance(self.neck, nn.Identity):
                # detectron2 pads images for a pyramid alone
                self.preprocess = replace(source.preprocess, pad_to_multiple_px=1)
        names = class_names_in(file.content, self.box_head.num_classes, renamed.layout)
        self.class_names = names or self.class_names

    def is_unused_key(self, key: str) -> bool:
        """Whether a tensor without a place in this detector is left out by design.

        Args:
            key: a key of the file.

        Returns:
            True for a mask head, if this detector has none: the boxes of a Mask R-CNN do not depend on it.
        """
        return not hasattr(self, "mask_head") and MASK_KEYS.match(key) is not None


def conventions_for(source: WeightSource, file: WeightFile) -> Conventions:
    """Tell which conventions a detector's weights were trained with.

    Args:
        source: what the weights were trained with.
        file: the file; one of this project states the conventions.

    Returns:
        The conventions.

    Raises:
        InvalidValue: the project publishes no detectors.
    """
    if file.meta is not None and "recipe" in file.meta:
        return from_plain(Conventions, file.meta["recipe"]["conventions"])
    if source.project not in CONVENTIONS:
        raise InvalidValue(f"{source.project} has no detectors: give one of {', '.join(CONVENTIONS)}")
    return replace(CONVENTIONS[source.project], norm_eps=source.norm_eps)


def num_classes_in(file: WeightFile) -> int | None:
    """Number of classes of the detector in a file, without the background; None if the file has no box predictor."""
    if file.meta is not None and "class_names" in file.meta:
        return len(file.meta["class_names"])
    return count_classes(file.state)


def count_classes(state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of a detector's tensors, without the background; None if they have no box predictor."""
    endings = ("cls_score.bias", "fc_cls.bias", "box_head.logits.bias")
    rows = next((len(value) for key, value in state.items() if key.endswith(endings)), None)
    return None if rows is None else rows - 1
