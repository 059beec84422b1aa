"""Data sets in COCO's format, as training reads them: images with boxes, labels and outlines, without crowds.

Glossary: N images, R objects of one image, K categories, U objects of a split. Labels follow the sorted category ids,
so that they do not depend on the order of the file. `tools.annotations` reads and checks the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from heads.structures import ImageSize
from tools.annotations.findings import BadAnnotations, Findings
from tools.annotations.outlines import rle_dict
from tools.annotations.reader import AS_COCO, ReadOptions, read_annotations
from tools.annotations.table import NO_OUTLINE, POLYGONS, AnnotationTable, Id

SMALL_PX2, LARGE_PX2 = 32**2, 96**2  # COCO's limits of small and large objects


@dataclass(frozen=True)
class ImageRecord:
    """One image with its R objects; crowds are not among them.

    Attributes:
        image_id: image id as in the file.
        path: image file.
        size: size in the annotation file; the upright image must have it.
        boxes: (R, 4) float64 xyxy, pixels, clipped to the image.
        labels: (R,) int64, 0..K-1.
        segmentations: R outlines: a tuple of polygons (V, 2) float64, or COCO's RLE; None for an object without one,
            which only data read without masks can have.
        object_ids: R annotation ids as in the file.
        crowds: number of crowd annotations left out.
    """

    image_id: Id
    path: Path
    size: ImageSize
    boxes: np.ndarray
    labels: np.ndarray
    segmentations: tuple[Any, ...]
    object_ids: tuple[Id | None, ...]
    crowds: int


@dataclass(frozen=True)
class CocoData:
    """A split of a data set.

    Attributes:
        table: images and objects, crowds among them, as scoring uses them.
        min_box_px: objects with a side of this length or less are not trained on, pixels.
    """

    table: AnnotationTable
    min_box_px: float = 0.0

    @property
    def category_ids(self) -> tuple[Id, ...]:
        """K ids; label l is the category `category_ids[l]`."""
        return self.table.category_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the labels."""
        return self.table.class_names

    @property
    def records(self) -> Sequence[ImageRecord]:
        """The images, sorted by id. A record is made when it is asked for."""
        return _Records(self)

    @cached_property
    def corners(self) -> np.ndarray:
        """Boxes of all objects, crowds among them, clipped to their images, (U, 4) xyxy, pixels."""
        return self.table.clipped_corners()

    @cached_property
    def trained(self) -> np.ndarray:
        """Which objects are trained on, (U,) bool: no crowds, and none of `min_box_px`."""
        crowd = self.table.crowd[self.table.rows]
        sides = (self.corners[:, 2:] - self.corners[:, :2]).min(axis=1, initial=np.inf)
        return np.asarray(~crowd & (sides > self.min_box_px))

    @cached_property
    def objects_per_image(self) -> np.ndarray:
        """Number of objects that are trained on, (N,) int64 by image."""
        sums = np.concatenate([[0], np.cumsum(self.trained)])
        return np.diff(sums[self.table.first_row])

    def wide(self) -> list[bool]:
        """Whether each image is wider than tall."""
        flags: list[bool] = (self.table.sizes[:, 1] > self.table.sizes[:, 0]).tolist()
        return flags

    @property
    def dropped(self) -> Mapping[str, int]:
        """Number of dropped images and annotations, by reason."""
        counts = {group.what: group.count for group in self.table.findings.of("dropped")}
        small = int((~self.trained & ~self.table.crowd[self.table.rows]).sum())
        return counts | ({f"box side of {self.min_box_px:g} px or less": small} if small else {})

    def record(self, image: int) -> ImageRecord:
        """One image with its objects.

        Args:
            image: index of the image, 0..N-1.

        Returns:
            The record.
        """
        table = self.table
        span = slice(table.first_row[image], table.first_row[image + 1])
        kept = self.trained[span]
        rows = table.rows[span][kept]
        height, width = table.sizes[image].tolist()
        return ImageRecord(
            image_id=table.image_ids[image],
            path=table.paths[image],
            size=ImageSize(height=height, width=width),
            boxes=self.corners[span][kept],
            labels=table.labels[rows],
            segmentations=tuple(self._outline(row, height, width) for row in rows.tolist()),
            object_ids=tuple(table.object_ids[row] for row in rows.tolist()),
            crowds=int(table.crowd[table.rows[span]].sum()),
        )

    def _outline(self, row: int, height: int, width: int) -> tuple[np.ndarray, ...] | dict[str, Any] | None:
        outlines = self.table.outlines
        if outlines.kinds[row] == NO_OUTLINE:
            return None
        if outlines.kinds[row] == POLYGONS:
            return outlines.polygons(row) or None
        return rle_dict(outlines.runs_of(row), height, width)

    def for_training(self, *, keep_empty: bool) -> CocoData:
        """Leave out images that nothing can be learned from.

        Args:
            keep_empty: keep images without objects.

        Returns:
            The split; how many images were left out is among its findings.

        Raises:
            BadAnnotations: no object is left.
        """
        kept = self.objects_per_image > 0
        if not kept.any():
            raise BadAnnotations(
                f"{self.table.source}: no object is left to train on (dropped: {dict(self.dropped)}): lower "
                "data.min_box_px, or correct the annotations"
            )
        if keep_empty or kept.all():
            return self
        self.table.findings.add("dropped", "image without boxes", unit="image", count=int((~kept).sum()))
        return replace(self, table=self.table.with_images(kept))

    def summary(self) -> dict[str, Any]:
        """Count images, boxes, categories and dropped annotations, to print before training.

        Returns:
            Counts "images", "images_without_boxes", "boxes" and "crowds"; "dropped" {reason: count}; "box_sizes"
            {"small", "medium", "large": count}, by COCO's areas of 32^2 and 96^2 px; "categories" {name: count};
            "image_sizes" {"min", "median", "max": "WxH"}, by area.
        """
        table, corners = self.table, self.corners[self.trained]
        labels = table.labels[table.rows][self.trained]
        areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        by_area = table.sizes[np.lexsort((table.sizes[:, 1], table.sizes.prod(axis=1)))]
        counts = np.bincount(labels, minlength=len(self.class_names))
        places = {"min": 0, "median": len(by_area) // 2, "max": -1}
        return {
            "images": len(table.image_ids),
            "images_without_boxes": int((self.objects_per_image == 0).sum()),
            "boxes": len(labels),
            "crowds": int(table.crowd[table.rows].sum()),
            "dropped": dict(self.dropped),
            "box_sizes": {
                "small": int((areas < SMALL_PX2).sum()),
                "medium": int(((areas >= SMALL_PX2) & (areas < LARGE_PX2)).sum()),
                "large": int((areas >= LARGE_PX2).sum()),
            },
            "categories": dict(zip(self.class_names, counts.tolist())),
            "image_sizes": {name: f"{by_area[i][1]}x{by_area[i][0]}" for name, i in places.items()},
        }


class _Records(Sequence[ImageRecord]):
    """The records of a split."""

    def __init__(self, data: CocoData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.table.image_ids)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self.data.record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.data.record(index % len(self))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self.data.record(i) for i in range(len(self)))


def load_coco(
    images: Path,
    annotations: Path | Mapping[str, Any],
    options: ReadOptions = AS_COCO,
    *,
    min_box_px: float = 0.0,
    findings: Findings | None = None,
) -> CocoData:
    """Read a split.

    Args:
        images: folder of the images.
        annotations: COCO instances file, or its content.
        options: how to read, as for `read_annotations`.
        min_box_px: boxes with a side of this length or less are not trained on, pixels.
        findings: findings of an earlier step, as for `read_annotations`.

    Returns:
        The images, sorted by id, with the counts of what was dropped.

    Raises:
        MissingFile: the annotation file or the folder does not exist.
        BadAnnotations: the annotations cannot be used, or no object is left.
    """
    return CocoData(read_annotations(annotations, images, options, findings=findings), min_box_px)


def restrict(data: CocoData, *, objects: tuple[int, int] | None, max_images: int | None) -> CocoData:
    """Select images by their number of objects, then the first ones by id.

    Args:
        data: a split.
        objects: smallest and largest number of objects; None for any number.
        max_images: maximum number of images; None for all.

    Returns:
        The split with the selected images; how many were left out is among its findings.

    Raises:
        BadAnnotations: no image has such a number of objects.
    """
    counts = data.objects_per_image
    low, high = objects or (0, int(counts.max(initial=0)))
    kept = (counts >= low) & (counts <= high)
    kept &= np.cumsum(kept) <= (len(kept) if max_images is None else max_images)
    if not kept.any():
        raise BadAnnotations(f"no image has {low} to {high} objects: widen data.*.objects")
    if kept.all():
        return data
    what = f"image left out by the settings objects={objects}, max_images={max_images}"
    data.table.findings.add("note", what, unit="image", count=int((~kept).sum()))
    return replace(data, table=data.table.with_images(kept))
