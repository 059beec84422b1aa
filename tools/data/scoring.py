"""Images of a split, read and resized in loader processes, for scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from heads.images import UnreadableImage
from heads.predictor import Prepared

from .guard import read_record
from .loader import Batch, Draw, Records


class ImagesToScore(Dataset[Any]):
    """Data set of resized images, indexed by `Draw`.

    Args:
        data: the split.
        read: function from a record to its image, (H, W, 3) uint8 RGB.
        prepare: function from an image to what the detector takes; it must be picklable.
        on_bad_image: "stop" raises on an unreadable image; "skip" leaves it out of its batch.
    """

    def __init__(
        self,
        data: Records,
        read: Callable[[Any], np.ndarray],
        prepare: Callable[[np.ndarray], Prepared],
        *,
        on_bad_image: str,
    ) -> None:
        self.data, self.read, self.prepare, self.on_bad_image = data, read, prepare, on_bad_image

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """Read and resize the images of a batch.

        Args:
            draws: which images.

        Returns:
            A batch of those that can be read: their pixels, with their sizes as targets.

        Raises:
            UnreadableImage: an image cannot be read and `on_bad_image` is "stop".
            UserError: as for `read_record`.
        """
        batch = Batch([], [], [], [])
        for draw in draws:
            record = self.data.records[draw.index]
            try:
                pixels, size = self.prepare(read_record(self.read, record))
            except UnreadableImage as error:
                if self.on_bad_image == "stop":
                    raise
                batch.skipped.append(str(error))
            else:
                batch.images.append(pixels)
                batch.targets.append(size)
                batch.image_ids.append(record.image_id)
        return batch
