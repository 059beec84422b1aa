"""The annotations of a split as flat arrays.

Glossary: N images, M objects (crowds among them), K categories, P polygons of all objects, V their vertices, S runs.
Row j of an array is object j in the order of the file; `rows` lists the rows that are used, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Findings
from .outlines import rle_dict

NO_OUTLINE, POLYGONS, RUNS = 0, 1, 2
Id = int | str


@dataclass(frozen=True)
class Outlines:
    """The outlines of M objects, as in the file.

    Attributes:
        kinds: (M,) uint8: NO_OUTLINE, POLYGONS or RUNS.
        first_part: (M + 1,) int64: polygons first_part[j] to first_part[j + 1] belong to object j.
        first_vertex: (P + 1,) int64: offsets into `vertices`.
        vertices: (V, 2) float64 x y, pixels.
        first_run: (M + 1,) int64: offsets into `runs`.
        runs: (S,) uint32: run lengths down the columns, zeros first.
    """

    kinds: np.ndarray
    first_part: np.ndarray
    first_vertex: np.ndarray
    vertices: np.ndarray
    first_run: np.ndarray
    runs: np.ndarray

    def polygons(self, row: int) -> tuple[np.ndarray, ...]:
        """The polygons of an object.

        Args:
            row: row of the object.

        Returns:
            Polygons (v, 2) float64 x y, pixels: views, without those of fewer than three vertices.
        """
        parts = range(int(self.first_part[row]), int(self.first_part[row + 1]))
        found = (self.vertices[self.first_vertex[part] : self.first_vertex[part + 1]] for part in parts)
        return tuple(polygon for polygon in found if len(polygon) >= 3)

    def runs_of(self, row: int) -> np.ndarray:
        """The run lengths of an object, (s,) uint32: a view."""
        return self.runs[self.first_run[row] : self.first_run[row + 1]]

    def segmentation(self, row: int, height: int, width: int) -> list[list[float]] | dict[str, Any] | None:
        """The outline of an object in COCO's form.

        Args:
            row: row of the object.
            height: of its image, pixels.
            width: of its image, pixels.

        Returns:
            Flat polygons, uncompressed run lengths, or None.
        """
        if self.kinds[row] == POLYGONS:
            return [polygon.reshape(-1).tolist() for polygon in self.polygons(row)]
        if self.kinds[row] == RUNS:
            return rle_dict(self.runs_of(row), height, width)
        return None


@dataclass(frozen=True)
class AnnotationTable:
    """A split of a data set, read and checked.

    Attributes:
        source: the annotation file or folder.
        image_ids: N ids as in the file, sorted.
        file_names: N names as in the file.
        paths: N image files; () if the images were not looked for.
        sizes: (N, 2) int64 height, width, pixels; 0 where the file has no size and the images were not looked for.
        category_ids: K ids; label l is the category `category_ids[l]`.
        class_names: K names, in the order of the labels.
        first_row: (N + 1,) int64: rows[first_row[i] : first_row[i + 1]] are the objects of image i.
        rows: (U,) int64: the objects that are used.
        object_ids: M annotation ids as in the file; None for an annotation without one.
        numbers: (M,) int64, position of the object among the annotations of the file, from 0.
        boxes: (M, 4) float64 x, y, width, height, pixels, not clipped.
        labels: (M,) int64, 0..K-1.
        areas: (M,) float64, square pixels.
        crowd: (M,) bool: regions with many objects, and objects to ignore. They are not trained on, and detections in
            them count neither as right nor as wrong.
        outlines: outlines of the objects.
        objects_in_file: number of annotations that the file has.
        findings: what was repaired, dropped or doubtful.
    """

    source: Path | str
    image_ids: tuple[Id, ...]
    file_names: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: np.ndarray
    category_ids: tuple[Id, ...]
    class_names: tuple[str, ...]
    first_row: np.ndarray
    rows: np.ndarray
    object_ids: Sequence[Id | None]
    numbers: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlines: Outlines
    objects_in_file: int
    findings: Findings

    def rows_of(self, image: int) -> np.ndarray:
        """Rows of the objects of an image.

        Args:
            image: index of the image, 0..N-1.

        Returns:
            (R,) int64, in the order of the file.
        """
        return self.rows[self.first_row[image] : self.first_row[image + 1]]

    def images_of_rows(self) -> np.ndarray:
        """The image of each used object, (U,) int64 indices, in the order of `rows`."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.first_row))

    def clipped_corners(self) -> np.ndarray:
        """The boxes of the used objects, clipped to their images.

        Returns:
            (U, 4) float64 xyxy, pixels, in the order of `rows`.
        """
        return clipped(self.boxes[self.rows], self.sizes[self.images_of_rows()])

    def segmentation(self, row: int, image: int) -> list[list[float]] | dict[str, Any] | None:
        """The outline of an object in COCO's form.

        Args:
            row: row of the object.
            image: index of its image.

        Returns:
            Flat polygons, uncompressed run lengths, or None.
        """
        return self.outlines.segmentation(row, *self.sizes[image].tolist())

    def with_images(self, kept: np.ndarray) -> AnnotationTable:
        """Keep some of the images, with their objects.

        Args:
            kept: (N,) bool.

        Returns:
            The smaller table; it shares the arrays of the objects.
        """
        chosen = np.flatnonzero(kept)
        counts = np.diff(self.first_row)
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in chosen),
            file_names=tuple(self.file_names[i] for i in chosen),
            paths=tuple(self.paths[i] for i in chosen) if self.paths else (),
            sizes=self.sizes[chosen],
            first_row=np.concatenate([[0], np.cumsum(counts[chosen])]).astype(np.int64),
            rows=self.rows[np.repeat(kept, counts)],
        )

    def to_coco(self, *, segmentations: bool = True) -> dict[str, Any]:
        """The used objects in COCO's format.

        Args:
            segmentations: whether to add the outlines.

        Returns:
            "images", "categories" and "annotations". Annotation ids are 1, 2, ...: COCOeval takes a match with id 0
            for no match, and annotations of equal ids for one.
        """
        images = [
            {"id": i, "file_name": name, "height": height, "width": width}
            for i, name, (height, width) in zip(self.image_ids, self.file_names, self.sizes.tolist())
        ]
        categories = [{"id": i, "name": name} for i, name in zip(self.category_ids, self.class_names)]
        annotations = []
        for number, (row, image) in enumerate(zip(self.rows.tolist(), self.images_of_rows().tolist()), start=1):
            annotation = {
                "id": number,
                "image_id": self.image_ids[image],
                "category_id": self.category_ids[self.labels[row]],
                "bbox": self.boxes[row].tolist(),
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
            }
            if segmentations and self.outlines.kinds[row] != NO_OUTLINE:
                annotation["segmentation"] = self.segmentation(row, image)
            annotations.append(annotation)
        return {"images": images, "categories": categories, "annotations": annotations}


def clipped(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clip boxes to their images.

    Args:
        boxes: (R, 4) x, y, width, height, pixels.
        sizes: (R, 2) height, width of the image of each box; boxes of images of unknown size (0) are not clipped.

    Returns:
        (R, 4) xyxy, pixels.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    limits = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
    low = np.where(sizes > 0, 0.0, -np.inf)[:, ::-1]
    return np.clip(corners, np.tile(low, 2), np.tile(limits, 2))
