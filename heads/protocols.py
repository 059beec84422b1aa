"""What `RCNN` expects of a head for detected instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from .matching import SampledRegions
from .structures import Detections, Targets


@runtime_checkable
class InstanceHead(Protocol):
    """A module that predicts a property of every detected instance, such as its mask."""

    def __call__(self, regions: Tensor) -> Tensor:
        """Run the head.

        Args:
            regions: (S, C, P, P), pooled features.

        Returns:
            One output per region; the first dimension is S.
        """
        ...

    def losses(
        self, regions: Tensor, positives: Sequence[SampledRegions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            regions: (S, C, P, P), pooled features of the positive regions, image by image.
            positives: N samples that hold positive regions only.
            targets: N targets.

        Returns:
            Name -> loss, the same names for every batch.
        """
        ...

    def detect(self, regions: Tensor, detections: Sequence[Detections]) -> list[Detections]:
        """Add the predictions of the head to detections.

        Args:
            regions: (S, C, P, P), pooled features of the detected boxes, image by image.
            detections: N detections.

        Returns:
            N detections with the head's field filled in.
        """
        ...
