"""The one reader of annotations. Training, scoring, the doctor and reports use the same objects through it.

Everything doubtful becomes a finding, in one pass over the file. Refused findings raise one error that lists them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from heads.images import MAX_PIXELS

from .box_formats import BoxFormat, check_box_format
from .categories import Categories, Selection, labels_of, read_categories
from .checks import Checked, add_rows, check_values, drop_degenerate, usable_areas
from .columns import ColumnBuilder
from .entries import Malformed
from .findings import Findings, Severity
from .image_entries import Images, read_images
from .json_file import from_content, read_coco_file
from .table import AnnotationTable


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read.

    Attributes:
        masks: whether objects need an outline.
        on_bad_annotation: "stop" refuses malformed annotations, listing them all; "drop" leaves them out.
        on_bad_image: "stop" refuses images that are missing, unreadable or of another size; "skip" leaves them out.
        box_format: how the numbers of a bbox are read; "auto": as COCO's, refused if most look like another format.
        crowds: how iscrowd is read. "auto": as objects in a class that has nothing else, since some tools write it for
            every mask; "crowds": always as crowds; "objects": never.
        classes: new class name -> names of the categories that it takes; None keeps all.
        outside_images: whether image files outside the image folder may be read.
        max_image_px: images with more pixels are treated as `on_bad_image` says.
        allow_empty: whether a split without any object is read. It is refused by default.
    """

    masks: bool = False
    on_bad_annotation: Literal["stop", "drop"] = "stop"
    on_bad_image: Literal["stop", "skip"] = "stop"
    box_format: BoxFormat = "auto"
    crowds: Literal["auto", "crowds", "objects"] = "auto"
    classes: Selection | None = None
    outside_images: bool = False
    max_image_px: int = MAX_PIXELS
    allow_empty: bool = False


AS_COCO = ReadOptions()


def read_annotations(
    annotations: Path | str | Mapping[str, Any],
    images: Path | None = None,
    options: ReadOptions = AS_COCO,
    *,
    findings: Findings | None = None,
) -> AnnotationTable:
    """Read and check annotations in COCO's format.

    Args:
        annotations: a COCO instances file, or its content, which is not changed.
        images: the image folder; None if the images are not needed, as for scoring results.
        options: how to read.
        findings: findings of an earlier step, such as a conversion, which has left out what it refused; new ones are
            added. Its source is named in errors.

    Returns:
        The objects of the file that can be used, and everything that was found on the way.

    Raises:
        MissingFile: the annotation file or the image folder does not exist.
        BadAnnotations: the file cannot be used. The message lists every reason, with a count and examples.
    """
    content = annotations if isinstance(annotations, Mapping) else None
    if findings is None:
        findings = Findings("the annotations" if content is not None else Path(str(annotations)))
    if options.on_bad_annotation == "drop":
        findings.drop_refused("object", "outline", "part", "file")
    if options.on_bad_image == "skip":
        findings.drop_refused("image")
    source, lost = findings.source, findings.count("dropped")
    file = read_coco_file(Path(str(annotations)), findings) if content is None else from_content(content, source)
    malformed: Severity = "refused" if options.on_bad_annotation == "stop" else "dropped"
    found = read_images(
        file.images,
        images,
        findings,
        malformed=malformed,
        on_bad_image=options.on_bad_image,
        outside=options.outside_images,
        max_pixels=options.max_image_px,
    )
    builder = ColumnBuilder(found.rows, [(h, w) for h, w in found.sizes.tolist()], findings, malformed)
    columns, count = builder.read(file), len(file.annotations) + lost
    category_entries = file.categories
    del file  # the text of a large file is not needed any more
    categories = read_categories(category_entries, set(columns.category_ids), options.classes, findings)
    checked = check_values(columns, found.sizes, builder)
    labels = _labels(checked, categories, builder)
    checked.drop(~found.usable[columns.images], "object of an image that is left out", findings)
    check_box_format(checked, options.box_format, findings)
    drop_degenerate(checked, findings, masks=options.masks)
    crowd = _crowds(checked, labels, options, findings)
    areas = usable_areas(checked, findings)
    _report_duplicates(checked, labels, crowd, findings)
    _check_empty(checked, crowd, count, findings, "warning" if options.allow_empty else "refused")
    findings.raise_if_refused()
    return _table(found, categories, checked, labels, crowd, areas, count, findings)


def _labels(checked: Checked, categories: Categories, builder: ColumnBuilder) -> np.ndarray:
    """Labels (M,); objects of unknown and of deselected categories are left out."""
    columns, findings = checked.columns, builder.findings
    labels = labels_of(columns.category_ids, categories)
    for row in np.flatnonzero((labels == -2) & checked.used).tolist():
        problem = Malformed(
            "annotation of a category that the file does not list",
            f"category {columns.category_ids[row]!r}",
            "add the category, or correct category_id",
        )
        builder.reject(columns.name(row), problem)
    checked.used &= labels != -2
    checked.drop(labels == -1, "object of a class that data.classes leaves out", findings)
    return labels


def _crowds(checked: Checked, labels: np.ndarray, options: ReadOptions, findings: Findings) -> np.ndarray:
    """Which objects are crowds, (M,) bool; those that are to be ignored are treated as crowds."""
    columns = checked.columns
    crowd = columns.crowd & ~columns.ignore
    if options.crowds == "objects":
        add_rows(findings, "note", "iscrowd 1, read as an object (data.crowds: objects)", crowd & checked.used, columns)
        crowd = np.zeros_like(crowd)
    elif options.crowds == "auto":
        usual = set(labels[checked.used & ~columns.crowd & ~columns.ignore].tolist())
        alone = crowd & checked.used & ~np.isin(labels, list(usual))
        fix = "data.crowds: crowds leaves them out of training"
        what = "iscrowd 1 in a class that has nothing else, read as an object"
        add_rows(findings, "repaired", what, alone, columns, fix=fix)
        crowd = crowd & ~alone
    ignored = columns.ignore & checked.used
    add_rows(findings, "note", "object to ignore, neither trained on nor scored", ignored, columns)
    return np.asarray(crowd | columns.ignore)


def _report_duplicates(checked: Checked, labels: np.ndarray, crowd: np.ndarray, findings: Findings) -> None:
    """Warn of objects of one image that have the same class and the same box."""
    rows = np.flatnonzero(checked.used & ~crowd)
    keys = np.column_stack([checked.columns.images[rows], labels[rows], checked.boxes[rows]])
    order = np.lexsort(keys.T[::-1])
    repeats = (keys[order][1:] == keys[order][:-1]).all(axis=1)
    repeated = np.zeros(len(labels), dtype=bool)
    repeated[rows[order[1:][repeats]]] = True
    what = "object that repeats another one: same image, class and box"
    add_rows(findings, "warning", what, repeated, checked.columns, fix="remove one of them")


def _check_empty(checked: Checked, crowd: np.ndarray, count: int, findings: Findings, severity: Severity) -> None:
    if (checked.used & ~crowd).any() or findings.of("refused"):
        return
    what = (
        f"no object is left to use, of {count:,} annotations"
        if count
        else "no object: the list of annotations is empty"
    )
    findings.add(severity, what, unit="file", fix="add objects, or correct those that were dropped")


def _table(
    images: Images,
    categories: Categories,
    checked: Checked,
    labels: np.ndarray,
    crowd: np.ndarray,
    areas: np.ndarray,
    count: int,
    findings: Findings,
) -> AnnotationTable:
    columns = checked.columns
    used = np.flatnonzero(checked.used)
    rows = used[np.argsort(columns.images[used], kind="stable")]
    counts = np.bincount(columns.images[used], minlength=len(images.ids))
    table = AnnotationTable(
        source=findings.source,
        image_ids=images.ids,
        file_names=images.names,
        paths=images.paths,
        sizes=images.sizes,
        category_ids=categories.ids,
        class_names=categories.names,
        first_row=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows=rows,
        object_ids=columns.object_ids,
        numbers=columns.numbers,
        boxes=checked.boxes,
        labels=labels,
        areas=areas,
        crowd=crowd,
        outlines=columns.outlines,
        objects_in_file=count,
        findings=findings,
    )
    return table if images.usable.all() else table.with_images(images.usable)
