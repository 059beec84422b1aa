"""The images of an annotation file: ids, names and sizes, their files, and what the files say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from heads.images import MAX_PIXELS
from resnet_backbone.errors import MissingFile

from .entries import Malformed, read_id, read_side
from .findings import Findings, Severity
from .image_files import find_images, header_sizes, looks_like_url
from .table import Id

MAX_HEADERS = 20_000  # headers of more images are read only where the file lacks their sizes
SKIP_FIX = ", or set data.on_bad_image: skip"


@dataclass(frozen=True)
class Images:
    """The images of a file, sorted by id.

    Attributes:
        ids: N ids.
        names: N file names as in the file.
        paths: N files; () if no folder was given. A file that was not found has the path where it should be.
        sizes: (N, 2) int64 height, width, pixels; 0 if unknown.
        usable: (N,) bool: whether the file was found and has the size of its annotations.
        rows: index by id.
    """

    ids: tuple[Id, ...]
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: np.ndarray
    usable: np.ndarray
    rows: Mapping[Id, int]

    def entry(self, row: int) -> str:
        """What to call an image in a finding."""
        return f"image {self.ids[row]!r}"


def read_images(
    entries: Sequence[object],
    folder: Path | None,
    findings: Findings,
    *,
    malformed: Severity,
    on_bad_image: Literal["stop", "skip"],
    outside: bool,
    max_pixels: int = MAX_PIXELS,
) -> Images:
    """Read the images of a file.

    Args:
        entries: the entries of images, plain values.
        folder: the image folder; None if the files are not needed.
        findings: where problems are reported.
        malformed: severity of an entry that cannot be read.
        on_bad_image: "stop" refuses images that are missing or have another size, "skip" leaves them out.
        outside: whether files outside the folder may be read.
        max_pixels: images with more pixels are refused or left out, as `on_bad_image` says.

    Returns:
        The images.

    Raises:
        MissingFile: the folder does not exist.
    """
    if folder is not None and not folder.is_dir():
        raise MissingFile(f"no image folder at {folder}: check data.*.images")
    found = [image for i, e in enumerate(entries) if (image := _read(e, i, folder, findings, malformed)) is not None]
    if not found:
        findings.add("refused", "file without images", unit="file", fix="list the images in the annotation file")
    _check_ids([image.id for image in found], findings)
    found.sort(key=lambda image: (isinstance(image.id, str), image.id))
    ids, names = tuple(image.id for image in found), tuple(image.name for image in found)
    sizes = np.array([(image.height, image.width) for image in found], dtype=np.int64).reshape(-1, 2)
    rows = {image_id: row for row, image_id in enumerate(ids)}
    images = Images(ids, names, (), sizes, np.ones(len(ids), dtype=bool), rows)
    if folder is None:
        return images
    bad: Severity = "refused" if on_bad_image == "stop" else "dropped"
    labels = [images.entry(row) for row in range(len(ids))]
    paths = find_images(folder, names, findings, outside=outside, entries=labels)
    _report_missing(images, paths, findings, bad, folder)
    _check_headers(images, paths, findings, bad)
    _check_pixels(images, paths, findings, bad, max_pixels)
    whole = tuple(path or folder / name for path, name in zip(paths, names))
    return Images(ids, names, whole, images.sizes, images.usable, rows)


@dataclass(frozen=True)
class _Image:
    id: Id
    name: str
    height: int
    width: int


def _read(entry: object, index: int, folder: Path | None, findings: Findings, malformed: Severity) -> _Image | None:
    label = f"image number {index + 1} of the file"
    try:
        if not isinstance(entry, Mapping):
            raise Malformed("image that is no mapping", entry, "write a mapping with id, file_name, height and width")
        image_id = read_id(entry.get("id"), "id")
        label = f"image {image_id!r}"
        # LVIS gives the address of an image in place of its name
        name = entry.get("file_name") or entry.get("coco_url")
        if folder is not None and (not isinstance(name, str) or not name.strip()):
            raise Malformed("image without a file_name", name, "write the name of its file")
    except Malformed as problem:
        what, came, fix = problem.args
        findings.add(malformed, what, unit="image", entry=label, came=came, fix=fix)
        return None
    height, width = read_side(entry.get("height")), read_side(entry.get("width"))
    known = height is not None and width is not None
    return _Image(image_id, str(name or ""), height or 0 if known else 0, width or 0 if known else 0)


def _check_ids(ids: Sequence[Id], findings: Findings) -> None:
    if len({isinstance(image_id, str) for image_id in ids}) > 1:
        fix = "write all image ids as numbers, or all as texts"
        findings.add("refused", "image ids of two kinds, numbers and texts", unit="file", fix=fix)
    for image_id in [image_id for image_id, count in Counter(ids).items() if count > 1]:
        entry = f"image {image_id!r}"
        findings.add("refused", "image id that repeats", unit="image", entry=entry, fix="give each image its own id")


def _report_missing(
    images: Images, paths: Sequence[Path | None], findings: Findings, bad: Severity, folder: Path
) -> None:
    missing = [row for row, path in enumerate(paths) if path is None]
    urls = sum(looks_like_url(images.names[row]) for row in missing)
    leaving = sum(".." in images.names[row] or images.names[row].startswith(("/", "\\")) for row in missing)
    fix = f"put the files into {folder}, or correct the folder (data.*.images)"
    what = f"image file missing from {folder} (of {len(paths):,})"
    if urls:
        what += f"; the file lists URLs for {urls:,} of them"
        fix = f"download the images into {folder}"
    elif leaving:
        what += f"; {leaving:,} names leave the folder"
        fix += ", or set data.outside_images: true to read files outside the folder"
    fix += SKIP_FIX if bad == "refused" else ""
    for row in missing:
        images.usable[row] = False
        findings.add(bad, what, unit="image", entry=images.entry(row), came=images.names[row], fix=fix)


def _check_headers(images: Images, paths: Sequence[Path | None], findings: Findings, bad: Severity) -> None:
    """Fill in sizes that the annotation file lacks, and compare the others with the files."""
    unknown = (images.sizes == 0).any(axis=1)
    rows = np.arange(len(paths)) if len(paths) <= MAX_HEADERS else np.flatnonzero(unknown)
    if len(rows) < len(paths):
        what = f"image whose size was not compared with its file (more than {MAX_HEADERS:,} images)"
        findings.add("note", what, unit="image", count=len(paths) - len(rows), fix="tools/doctor.py data checks them")
    skip = SKIP_FIX if bad == "refused" else ""
    real = header_sizes([paths[row] for row in rows.tolist()])
    for row, size in zip(rows.tolist(), real):
        entry, stated = images.entry(row), images.sizes[row]
        if paths[row] is None:
            continue
        if not size.any():
            images.usable[row] = False
            fix = f"replace it{skip}"
            findings.add(bad, "file that is no image", unit="image", entry=entry, came=str(paths[row]), fix=fix)
        elif unknown[row]:
            images.sizes[row] = size
            what = "image without a usable height and width, read from the file"
            findings.add("repaired", what, unit="image", entry=entry)
        elif (size != stated).any():
            images.usable[row] = False
            turned = (
                " (the annotations fit the picture without its EXIF orientation)" if _is_turned(size, stated) else ""
            )
            findings.add(
                bad,
                "image of another size than its annotations",
                unit="image",
                entry=entry,
                came=f"{paths[row]} is {size[1]}x{size[0]}, annotated {stated[1]}x{stated[0]}{turned}",
                fix=f"correct height and width, or the file's orientation{skip}",
            )


def _check_pixels(
    images: Images, paths: Sequence[Path | None], findings: Findings, bad: Severity, max_pixels: int
) -> None:
    """Refuse images that the limit of the reader of images would refuse in the middle of an epoch."""
    for row in np.flatnonzero(images.usable & (images.sizes.prod(axis=1) > max_pixels)).tolist():
        height, width = images.sizes[row]
        images.usable[row] = False
        findings.add(
            bad,
            f"image of more than {max_pixels / 1e6:.4g} megapixels",
            unit="image",
            entry=images.entry(row),
            came=f"{width}x{height}, {images.names[row]}",
            fix="shrink it or cut it into tiles; if you trust the file and have the memory, raise data.max_image_mpx"
            + (SKIP_FIX if bad == "refused" else ""),
        )


def _is_turned(size: np.ndarray, stated: np.ndarray) -> bool:
    return bool((size == stated[::-1]).all())
