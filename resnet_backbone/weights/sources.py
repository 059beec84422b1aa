"""Where the weights of a file come from, which determines stride placement, epsilon of the norms and pixel format.

torchvision and timm, and the two styles of mmdetection, use the same keys for nets that differ in these. The source is
resolved from the caller's argument, a published hash or the file's metadata; a file that none of them identifies is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..errors import InvalidValue, UserError, did_you_mean
from ..preprocess import Preprocess
from .catalog import HASHES, file_sha256


@dataclass(frozen=True)
class WeightSource:
    """What the weights of one source were trained with.

    Attributes:
        project: the project that sets the conventions of detectors.
        stride_on: the convolution of a bottleneck that carries the stride.
        preprocess: the pixel format that the weights expect.
        norm_eps: epsilon of the norms.
    """

    project: str
    stride_on: Literal["3x3", "1x1"]
    preprocess: Preprocess
    norm_eps: float = 1e-5

    def __str__(self) -> str:
        order = self.preprocess.channel_order.upper()
        return f"{order}, stride on the {self.stride_on}, epsilon {self.norm_eps:g}"


_TORCHVISION = Preprocess(resize="torch")
# torchvision's mean and std for values up to 255; Caffe's BGR means, with the scale in the first convolution
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
    # MSRA's nets, on which its model zoo builds; torchvision's nets, converted by its own script
    "detectron2": WeightSource("detectron2", "1x1", _BGR_255),
    "detectron2_rgb": WeightSource("detectron2", "3x3", _RGB_255),
    # the styles "pytorch" and "caffe"
    "mmdetection": WeightSource("mmdetection", "3x3", _opencv(_RGB_255)),
    "mmdetection_caffe": WeightSource("mmdetection", "1x1", _opencv(_BGR_255)),
}


class AmbiguousWeights(UserError, ValueError):
    """The keys of a file fit several sources that differ in other respects than keys."""


def check_source_name(source: str) -> None:
    """Check that a source exists.

    Args:
        source: the name.

    Raises:
        InvalidValue: it is not a key of `SOURCES`.
    """
    if source not in SOURCES:
        raise InvalidValue(f"source={source!r} is unknown: {did_you_mean(source, SOURCES)}")


def resolve_source(
    candidates: Sequence[str],
    *,
    source: str | None,
    content: object = None,
    path: Path | None = None,
    hashes: Mapping[str, str] = HASHES,
) -> str:
    """Tell which source a file is from.

    Args:
        candidates: the sources (keys of `SOURCES`) that use the keys of the file; at least one.
        source: the caller's choice, None to resolve it from the file.
        content: everything that the file holds, for its metadata.
        path: the file, for its hash.
        hashes: first eight digits of a published file's SHA-256 -> source.

    Returns:
        One of the candidates.

    Raises:
        InvalidValue: the file's keys are not those of the chosen source.
        AmbiguousWeights: neither the metadata nor a published hash identifies one of the candidates.
    """
    where = "these weights" if path is None else str(path)
    if source is not None:
        check_source_name(source)
        if source not in candidates:
            raise InvalidValue(
                f"{where}: source={source!r} uses other keys: these are of {' or '.join(candidates)}; leave source out "
                "or give one of these"
            )
        return source
    if len(candidates) == 1:
        return candidates[0]
    from_metadata = source_from_metadata(content)
    if from_metadata in candidates:
        return str(from_metadata)
    from_hash = None if path is None else hashes.get(file_sha256(path)[:8])
    if from_hash in candidates:
        return str(from_hash)
    choices = "\n".join(f"  source={name!r}: {SOURCES[name]}" for name in candidates)
    raise AmbiguousWeights(
        f"{where}: the keys fit several sources, and neither a published hash nor metadata tells which. Give one of "
        f"(backbone_source or weights_source in a configuration, --source on the command line):\n{choices}"
    )


def source_from_metadata(content: object) -> str | None:
    """Read the source from a file's own metadata.

    Args:
        content: everything that the file holds.

    Returns:
        The source, identified by detectron2's author or pixel means or mmdetection's configuration; None without them.
    """
    if not isinstance(content, Mapping):
        return None
    authors = {"Detectron2 Model Zoo": "detectron2", "torchvision": "detectron2_rgb"}
    if (author := content.get("__author__")) in authors:
        return authors[author]
    inner: Any = content.get("model", content)
    means = inner.get("pixel_mean") if isinstance(inner, Mapping) else None
    if isinstance(means, Tensor) and means.numel() == 3:  # the mean of red is the largest
        return "detectron2" if float(means.flatten()[0]) < float(means.flatten()[2]) else "detectron2_rgb"
    meta = content.get("meta")
    if isinstance(meta, Mapping):
        text = str(meta.get("cfg", meta.get("config", "")))
        if style := re.search(r"style\s*=\s*['\"](caffe|pytorch)['\"]", text):
            return "mmdetection_caffe" if style[1] == "caffe" else "mmdetection"
    return None
