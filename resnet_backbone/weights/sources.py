"""What the names in a weights file do not tell: stride placement, the norms' epsilon, the pixels of its training.

torchvision and timm, or mmdetection's two styles, use the same names for nets that differ in these. A published hash,
the file's metadata, or the caller decides; what nothing decides is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..preprocess import Preprocess
from ..errors import did_you_mean
from .catalog import HASHES, file_sha256


@dataclass(frozen=True)
class WeightSource:
    """project: whose detectors' conventions; stride_on: which convolution of a bottleneck carries the stride;
    norm_eps: the norms' epsilon; preprocess: the pixels that the weights know."""

    project: str
    stride_on: Literal["3x3", "1x1"]
    preprocess: Preprocess
    norm_eps: float = 1e-5

    def __str__(self) -> str:
        order = self.preprocess.channel_order.upper()
        return f"{order}, stride on the {self.stride_on}, epsilon {self.norm_eps:g}"


_TORCHVISION = Preprocess(resize="torch")
# torchvision's mean and std on values up to 255, and caffe's: BGR, the scale taken into the first convolution
_RGB_255 = Preprocess(value_range=255, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_BGR_255 = Preprocess(channel_order="bgr", value_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))


def _opencv(rule: Preprocess) -> Preprocess:
    return Preprocess(**{**vars(rule), "resize": "opencv"})


SOURCES: dict[str, WeightSource] = {
    "torchvision": WeightSource("torchvision", "3x3", _TORCHVISION),
    # its first published detectors were trained with frozen norms without an epsilon
    "torchvision_coco_v1": WeightSource("torchvision", "3x3", _TORCHVISION, norm_eps=0.0),
    "timm": WeightSource("timm", "3x3", _TORCHVISION),
    "transformers": WeightSource("transformers", "3x3", _TORCHVISION),
    # MSRA's nets, which its model zoo builds on; and nets of torchvision's, brought over by its own script
    "detectron2": WeightSource("detectron2", "1x1", _BGR_255),
    "detectron2_rgb": WeightSource("detectron2", "3x3", _RGB_255),
    # the styles "pytorch" and "caffe"
    "mmdetection": WeightSource("mmdetection", "3x3", _opencv(_RGB_255)),
    "mmdetection_caffe": WeightSource("mmdetection", "1x1", _opencv(_BGR_255)),
}


class AmbiguousWeights(ValueError):
    """The file's names fit several sources that differ in what the names do not tell."""


def check_source_name(name: str) -> None:
    """Raises ValueError for a source that is not in `SOURCES`."""
    if name not in SOURCES:
        raise ValueError(f"source={name!r} is unknown: {did_you_mean(name, SOURCES)}")


def resolve_source(
    candidates: Sequence[str],
    *,
    asked: str | None,
    content: object = None,
    path: Path | None = None,
    known: Mapping[str, str] = HASHES,
) -> str:
    """Which of the candidates (the sources with the file's names) a file is from.

    asked: the caller's word; content: all that the file holds; path: its place, for its hash; known: hash -> source.
    Raises ValueError where the names are of none that was asked for, `AmbiguousWeights` where nothing decides.
    """
    where = "these weights" if path is None else str(path)
    if asked is not None:
        check_source_name(asked)
        if asked not in candidates:
            raise ValueError(f"{where}: source={asked!r} has other names: these are of {' or '.join(candidates)}")
        return asked
    if len(candidates) == 1:
        return candidates[0]
    told: list[str | None] = [source_from_metadata(content)]
    if path is not None:
        told.append(known.get(file_sha256(path)[:8]))
    for source in told:
        if source is not None and source in candidates:
            return source
    choices = "\n".join(f"  source={name!r}: {SOURCES[name]}" for name in candidates)
    raise AmbiguousWeights(
        f"{where}: the names fit several sources, which differ in what names do not tell, and neither a published "
        f"hash nor metadata decides. Say which it is:\n{choices}"
    )


def source_from_metadata(content: object) -> str | None:
    """The source that a file's own metadata names: detectron2's author or pixel means, mmdetection's configuration."""
    if not isinstance(content, Mapping):
        return None
    authors = {"Detectron2 Model Zoo": "detectron2", "torchvision": "detectron2_rgb"}
    if (author := content.get("__author__")) in authors:
        return authors[author]
    inner: Any = content.get("model", content)
    means = inner.get("pixel_mean") if isinstance(inner, Mapping) else None
    if isinstance(means, Tensor) and means.numel() == 3:  # red's is the largest
        return "detectron2" if float(means.flatten()[0]) < float(means.flatten()[2]) else "detectron2_rgb"
    meta = content.get("meta")
    if isinstance(meta, Mapping):
        text = str(meta.get("cfg", meta.get("config", "")))
        if style := re.search(r"style\s*=\s*['\"](caffe|pytorch)['\"]", text):
            return "mmdetection_caffe" if style[1] == "caffe" else "mmdetection"
    return None
