"""Augmentation for classification: random scale, padding, random crop, horizontal flip and a random colour shift.

Source: the paper, section 3.4 (scale, crop, flip, colour) and section 4.2 (CIFAR-10: padding, crop, flip).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would look for a newer version online
import albumentations as A
import cv2
import numpy as np
import torch

from resnet_backbone import Preprocess
from resnet_backbone.errors import InvalidValue

from .augment import ShortSide
from .labelled import LabelledImage

# principal axes (columns) of the RGB values of ImageNet's training images, in 0..1, and the standard deviation along
# each: Krizhevsky et al., NIPS 2012, section 4.1, with the values published in fb.resnet.torch
COLOUR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
COLOUR_STD = np.array([0.2175, 0.0188, 0.0045])


class ColourShift(A.ImageOnlyTransform):
    """Add one random colour to all pixels of an image.

    Source: Krizhevsky et al., NIPS 2012, section 4.1. albumentations' FancyPCA differs: it uses the principal axes of
    the image itself instead of those of the data set.

    Args:
        std: standard deviation of the random weights of the three axes.
    """

    def __init__(self, std: float) -> None:
        super().__init__(p=1.0)
        self.std = std

    def get_params(self) -> dict[str, Any]:
        """Draw the colour: (3,) float64, R G B in 0..255."""
        return {"shift": 255 * COLOUR_AXES @ (COLOUR_STD * self.random_generator.normal(0, self.std, 3))}

    def apply(self, img: np.ndarray, shift: np.ndarray, **params: Any) -> np.ndarray:
        """Add the colour to an image, (H, W, 3) uint8."""
        return np.clip(np.rint(img + shift), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class RandomCrop:
    """Augment a training image. The result depends only on the image and the seed.

    Attributes:
        crop_px: side of the crop.
        short_side_px: smallest and largest short side; one in between is drawn per image. None keeps the size.
        pad_px: padding of every side, with the mean colour of `preprocess` (zero after normalisation).
        flip_probability: probability of a horizontal flip.
        colour_pca_std: standard deviation of the colour shift; 0 for none.
        preprocess: pixel format of the net.
    """

    crop_px: int
    short_side_px: tuple[int, int] | None
    pad_px: int
    flip_probability: float
    colour_pca_std: float
    preprocess: Preprocess

    def __call__(self, image: np.ndarray, record: LabelledImage, seed: int) -> tuple[torch.Tensor, int]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8, RGB.
            record: its record.
            seed: random seed.

        Returns:
            The crop, (3, crop_px, crop_px) uint8, and the label.

        Raises:
            InvalidValue: the padded image is smaller than the crop.
        """
        if self.short_side_px is None and min(image.shape[:2]) + 2 * self.pad_px < self.crop_px:
            raise InvalidValue(
                f"{record.name} is {image.shape[1]}x{image.shape[0]}, padded by {self.pad_px} px: too small for a crop "
                f"of {self.crop_px} px: set input.short_side_px, or change input.pad_px or input.crop_px"
            )
        pipeline = self._pipeline
        steps = pipeline.transforms
        # one seed per step: Compose.set_random_seed gives all steps the same, and flip and crop would be correlated
        for step, step_seed in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps))):
            step.set_random_seed(int(step_seed))
        crop = np.ascontiguousarray(pipeline(image=image)["image"].transpose(2, 0, 1))
        return torch.from_numpy(crop), record.label

    @cached_property
    def _pipeline(self) -> A.Compose:
        steps: list[A.BasicTransform] = []
        if self.short_side_px is not None:
            sides = range(self.short_side_px[0], self.short_side_px[1] + 1)
            steps.append(ShortSide(sides, 100 * sides[-1], "pillow"))
        if self.pad_px:
            mean = [round(value * 255 / self.preprocess.value_range) for value in self.preprocess.mean]
            fill = mean if self.preprocess.channel_order == "rgb" else mean[::-1]
            steps.append(A.Pad(self.pad_px, border_mode=cv2.BORDER_CONSTANT, fill=fill))
        steps += [A.RandomCrop(self.crop_px, self.crop_px), A.HorizontalFlip(p=self.flip_probability)]
        if self.colour_pca_std:
            steps.append(ColourShift(self.colour_pca_std))
        return A.Compose(steps)
