"""Augmentation of images with one label: scale, padding, a random crop, a flip, and a shift along the colour axes.

Source: the paper, section 3.4 (scale, crop, flip, colour) and 4.2 (CIFAR: padding, crop, flip).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
import albumentations as A
import cv2
import numpy as np
import torch

from resnet_backbone import Preprocess
from resnet_backbone.errors import InvalidValue

from .augment import ShortSide
from .labelled import LabelledImage

# principal axes of the colours of ImageNet's training images, R G B between 0 and 1: columns, and the deviation along
# each (Krizhevsky et al., NIPS 2012, section 4.1; the figures that fb.resnet.torch publishes)
COLOUR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
COLOUR_STD = np.array([0.2175, 0.0188, 0.0045])


class ColourShift(A.ImageOnlyTransform):
    """Adds one colour to every pixel: normal weights along `COLOUR_AXES`. (albumentations' FancyPCA takes the axes of
    the image itself, not those of the data set.)"""

    def __init__(self, std: float) -> None:
        super().__init__(p=1.0)
        self.std = std

    def get_params(self) -> dict[str, Any]:
        return {"shift": 255 * COLOUR_AXES @ (COLOUR_STD * self.random_generator.normal(0, self.std, 3))}

    def apply(self, img: np.ndarray, shift: np.ndarray, **params: Any) -> np.ndarray:
        return np.clip(np.rint(img + shift), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class RandomCrop:
    """image (H, W, 3) uint8 -> (3, crop_px, crop_px) uint8 and its label; a function of the seed given to each call.
    Raises ValueError where the crop does not fit.

    preprocess: whose mean colour pads (zero, once the mean is subtracted).
    """

    crop_px: int
    short_side_px: tuple[int, int] | None
    pad_px: int
    flip_probability: float
    colour_pca_std: float
    preprocess: Preprocess

    def __call__(self, image: np.ndarray, record: LabelledImage, seed: int) -> tuple[torch.Tensor, int]:
        if self.short_side_px is None and min(image.shape[:2]) + 2 * self.pad_px < self.crop_px:
            raise InvalidValue(
                f"{record.name} is {image.shape[1]}x{image.shape[0]}, padded by {self.pad_px} px: too small for a crop "
                f"of {self.crop_px} px: set input.short_side_px, pad_px or crop_px"
            )
        pipeline = self._pipeline
        steps = pipeline.transforms
        # each its own: Compose.set_random_seed seeds all alike, and the flip would follow from the crop's place
        for step, own in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps))):
            step.set_random_seed(int(own))
        out = np.ascontiguousarray(pipeline(image=image)["image"].transpose(2, 0, 1))
        return torch.from_numpy(out), record.label

    @cached_property
    def _pipeline(self) -> A.Compose:
        steps: list[A.BasicTransform] = []
        if self.short_side_px is not None:
            sides = range(self.short_side_px[0], self.short_side_px[1] + 1)
            steps.append(ShortSide(sides, 100 * sides[-1], "pillow"))
        if self.pad_px:
            rule = self.preprocess
            mean = [round(value * 255 / rule.value_range) for value in rule.mean]
            fill = mean if rule.channel_order == "rgb" else mean[::-1]
            steps.append(A.Pad(self.pad_px, border_mode=cv2.BORDER_CONSTANT, fill=fill))
        steps += [A.RandomCrop(self.crop_px, self.crop_px), A.HorizontalFlip(p=self.flip_probability)]
        if self.colour_pca_std:
            steps.append(ColourShift(self.colour_pca_std))
        return A.Compose(steps)
