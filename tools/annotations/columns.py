"""Annotations, one by one, into flat arrays: ids, boxes and outlines of usable types. Values are checked afterwards."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .entries import Malformed, repaired_entry
from .findings import Findings, Severity, shortened
from .json_file import CocoFile, Entry, Rle
from .outlines import decode_runs
from .table import NO_OUTLINE, POLYGONS, RUNS, Id, Outlines

NAN = float("nan")
NO_BOX = (NAN, NAN, NAN, NAN)
DROP_FIX = "or set data.on_bad_annotation: drop"


@dataclass(frozen=True)
class Columns:
    """The annotations that could be read, and belong to a listed image.

    Attributes:
        object_ids: M ids; None for an annotation without one.
        numbers: (M,) int64, position in the file.
        images: (M,) int64, index of the image.
        category_ids: M ids.
        boxes: (M, 4) float64 x, y, width, height; NaN for an annotation without a box.
        areas: (M,) float64; NaN for an annotation without an area.
        crowd: (M,) bool.
        ignore: (M,) bool.
        outlines: the outlines.
    """

    object_ids: list[Id | None]
    numbers: np.ndarray
    images: np.ndarray
    category_ids: list[Id]
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    outlines: Outlines

    def name(self, row: int) -> str:
        """What to call an annotation: its id, or its place in the file."""
        return entry_name(self.object_ids[row], int(self.numbers[row]))


def entry_name(object_id: object, number: int) -> str:
    """What to call an annotation.

    Args:
        object_id: its id.
        number: its position in the file, from 0.

    Returns:
        "annotation 17", or for one without an id "annotation number 3 of the file".
    """
    if object_id is None or isinstance(object_id, (list, dict)):
        return f"annotation number {number + 1} of the file"
    return f"annotation {shortened(object_id, 40)}"


@dataclass
class ColumnBuilder:
    """Collects annotations.

    Attributes:
        image_rows: index of each image by id.
        sizes: (N, 2) height, width; 0 if unknown.
        findings: where problems are reported.
        malformed: "refused", or "dropped" if malformed annotations are left out.
    """

    image_rows: Mapping[Id, int]
    sizes: Sequence[tuple[int, int]]
    findings: Findings
    malformed: Severity
    object_ids: list[Id | None] = field(default_factory=list)
    category_ids: list[Id] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    images: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    areas: array[float] = field(default_factory=lambda: array("d"))
    crowd: bytearray = field(default_factory=bytearray)
    ignore: bytearray = field(default_factory=bytearray)
    kinds: bytearray = field(default_factory=bytearray)
    first_part: array[int] = field(default_factory=lambda: array("q", [0]))
    first_vertex: array[int] = field(default_factory=lambda: array("q", [0]))
    coordinates: array[float] = field(default_factory=lambda: array("d"))
    first_run: array[int] = field(default_factory=lambda: array("q", [0]))
    runs: array[int] = field(default_factory=lambda: array("I"))

    def read(self, file: CocoFile) -> Columns:
        """Read all annotations of a file.

        Args:
            file: the file.

        Returns:
            The arrays. What could not be read is in the findings.
        """
        for number, entry in enumerate(file.entries()):
            try:
                if not isinstance(entry, Entry):
                    object_id = entry.get("id") if isinstance(entry, Mapping) else None
                    entry = repaired_entry(entry, entry_name(object_id, number), self.findings)
                else:
                    object_id = entry.id
                self._add(entry, number)
            except Malformed as problem:
                self.reject(entry_name(object_id, number), problem)
        return self._finished()

    def reject(self, name: str, problem: Malformed) -> None:
        """Report a malformed annotation."""
        what, came, fix = problem.args
        fix = f"{fix}, {DROP_FIX}" if self.malformed == "refused" else fix
        self.findings.add(self.malformed, what, entry=name, came=came, fix=fix)

    def _add(self, entry: Entry, number: int) -> None:
        image = self.image_rows.get(entry.image_id)
        if image is None:
            self._report_unknown_image(entry, number)
            return
        if entry.iscrowd not in (0, 1) or entry.ignore not in (0, 1):
            raise Malformed("iscrowd or ignore that is neither 0 nor 1", entry.iscrowd, "write 0 or 1")
        segmentation = entry.segmentation
        if entry.bbox is None and not segmentation:
            raise Malformed(
                "annotation with neither bbox nor segmentation", None, "add one of them, or remove the annotation"
            )
        if not segmentation:
            kind = NO_OUTLINE
        elif isinstance(segmentation, Rle):
            self._add_runs(segmentation, image)
            kind = RUNS
        else:
            self._add_polygons(segmentation, entry, number)
            kind = POLYGONS
        self.kinds.append(kind)
        self.first_part.append(len(self.first_vertex) - 1)
        self.first_run.append(len(self.runs))
        self.object_ids.append(entry.id)
        self.category_ids.append(entry.category_id)
        self.numbers.append(number)
        self.images.append(image)
        self.boxes.extend(NO_BOX if entry.bbox is None else entry.bbox)
        self.areas.append(NAN if entry.area is None else entry.area)
        self.crowd.append(entry.iscrowd)
        self.ignore.append(entry.ignore)

    def _report_unknown_image(self, entry: Entry, number: int) -> None:
        """An annotation of an image that is not listed; an id of the other kind is a mistake in the file."""
        name, image_id = entry_name(entry.id, number), entry.image_id
        other: Id | None = str(image_id)
        if isinstance(image_id, str):
            other = int(image_id) if image_id.lstrip("-").isdecimal() else None
        if other in self.image_rows:
            self.findings.add(
                "refused",
                "image_id of another kind than the image's id (a number and a text)",
                entry=name,
                came=f"image_id {image_id!r}, the image has id {other!r}",
                fix="write both as numbers, or both as texts",
            )
        else:
            self.findings.add(
                "dropped", "annotation of an image that the file does not list", entry=name, came=f"image {image_id!r}"
            )

    def _add_runs(self, rle: Rle, image: int) -> None:
        height, width = self.sizes[image]
        if not height:
            if rle.size is None:
                fix = "add height and width to the image, or size to the RLE"
                raise Malformed("RLE without a size in an image without a size", None, fix)
            height, width = rle.size
        self.runs.frombytes(decode_runs(rle, height, width).tobytes())

    def _add_polygons(self, polygons: list[list[float]], entry: Entry, number: int) -> None:
        if len(polygons) >= 3 and all(len(part) == 2 for part in polygons):
            name = entry_name(entry.id, number)
            self.findings.add("repaired", "polygon written as pairs of x and y, read as one part", entry=name)
            polygons = [[coordinate for pair in polygons for coordinate in pair]]
        for part in polygons:
            if len(part) % 2:
                fix = "write x1, y1, x2, y2, ..."
                raise Malformed("polygon with an odd number of values", f"{len(part)} values", fix)
        for part in polygons:
            if part:
                self.coordinates.extend(part)
                self.first_vertex.append(len(self.coordinates) // 2)

    def _finished(self) -> Columns:
        outlines = Outlines(
            kinds=np.frombuffer(self.kinds, dtype=np.uint8),
            first_part=np.frombuffer(self.first_part, dtype=np.int64),
            first_vertex=np.frombuffer(self.first_vertex, dtype=np.int64),
            vertices=np.frombuffer(self.coordinates, dtype=np.float64).reshape(-1, 2),
            first_run=np.frombuffer(self.first_run, dtype=np.int64),
            runs=np.frombuffer(self.runs, dtype=np.uint32),
        )
        return Columns(
            object_ids=self.object_ids,
            numbers=np.frombuffer(self.numbers, dtype=np.int64),
            images=np.frombuffer(self.images, dtype=np.int64),
            category_ids=self.category_ids,
            boxes=np.frombuffer(self.boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.frombuffer(self.areas, dtype=np.float64),
            crowd=np.frombuffer(self.crowd, dtype=np.uint8).astype(bool),
            ignore=np.frombuffer(self.ignore, dtype=np.uint8).astype(bool),
            outlines=outlines,
        )
