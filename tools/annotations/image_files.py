"""Finding the image files that an annotation file names, and reading their sizes.

Annotation tools write names as they see them: with backslashes, with %20, with folders of another machine. A name is
looked up as it is first, then by its ending inside the image folder. Nothing outside the folder is read.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
from PIL import Image

from heads.images import open_image

from .findings import Findings

MAX_FIX_NAMES = 3
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


def find_images(
    folder: Path, names: Sequence[str], findings: Findings, *, outside: bool = False, entries: Sequence[str]
) -> list[Path | None]:
    """Find image files by their names.

    Args:
        folder: the image folder.
        names: N names as in the annotation file.
        findings: where names that were found by their ending are reported, with names that fit several files.
        outside: whether a path that leaves the folder may be read.
        entries: N names of the entries, such as "image 3", for the findings.

    Returns:
        N paths; None for an image that was not found.
    """
    listed: dict[str, set[str]] = {}
    paths: list[Path | None] = []
    missing = []
    for i, name in enumerate(names):
        plain = _inside(name)
        if plain is not None and _exists(folder, plain, listed):
            paths.append(folder / plain)
        elif outside and plain is None and (folder / name).is_file():
            paths.append(folder / name)
        else:
            paths.append(None)
            missing.append(i)
    if missing:
        index = _Endings(folder)
        for i in missing:
            paths[i] = _by_ending(names[i], index, folder, findings, entries[i])
    return paths


def _inside(name: str) -> str | None:
    """The name as a path inside the folder; None if it leaves the folder or names none of its files."""
    if not name or "\0" in name:
        return None
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return str(path)


def _exists(folder: Path, name: str, listed: dict[str, set[str]]) -> bool:
    """Whether a file exists; each folder is listed once, which is faster than a look at each of 100,000 files."""
    parent, _, last = name.rpartition("/")
    if parent not in listed:
        try:
            with os.scandir(folder / parent) as entries:
                listed[parent] = {entry.name for entry in entries if not entry.is_dir()}
        except (OSError, ValueError):
            listed[parent] = set()
    return last in listed[parent]


class _Endings:
    """The files of a folder and of its subfolders, by their last part."""

    def __init__(self, folder: Path) -> None:
        self.by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for parent, _, files in sorted(os.walk(folder)):
            parts = Path(parent).relative_to(folder).parts
            for file in sorted(files):
                self.by_name[_plain(file)].append((*parts, file))

    def best(self, name: str) -> list[tuple[str, ...]]:
        """The files that share the longest ending with a name."""
        wanted = [_plain(part) for part in PurePosixPath(name).parts]
        if not wanted:
            return []
        lengths = []
        candidates = self.by_name.get(wanted[-1], [])
        for parts in candidates:
            equal = 0
            for mine, theirs in zip(reversed(wanted), reversed(parts)):
                if mine != _plain(theirs):
                    break
                equal += 1
            lengths.append(equal)
        return [parts for parts, length in zip(candidates, lengths) if length == max(lengths)]


def _plain(part: str) -> str:
    """A name for comparison: composed characters, and letters without case."""
    return unicodedata.normalize("NFC", part).casefold()


def _by_ending(name: str, index: _Endings, folder: Path, findings: Findings, entry: str) -> Path | None:
    """Find a file by the ending of its name, written with slashes, and decoded from a URL."""
    slashed = name.replace("\\", "/")
    for variant in dict.fromkeys([slashed, unquote(slashed), unquote(slashed).partition("?")[0]]):
        found = index.best(variant)
        if len(found) == 1:
            path = "/".join(found[0])
            what = "file name with backslashes" if path == slashed else "file name found by its ending"
            findings.add("repaired", f"{what} in the image folder", unit="image", entry=entry, came=f"{name} -> {path}")
            return folder.joinpath(*found[0])
        if found:
            places = ", ".join("/".join(parts) for parts in found[:MAX_FIX_NAMES])
            findings.add(
                "refused",
                "file name that fits several files of the image folder",
                unit="image",
                entry=entry,
                came=f"{name}: {places}",
                fix="write the folder into file_name",
            )
            return folder.joinpath(*found[0])
    return None


def looks_like_url(name: str) -> bool:
    """Whether a name is the address of a page instead of a file."""
    return name.lower().startswith(("http://", "https://", "s3://", "gs://"))


def header_sizes(paths: Sequence[Path | None]) -> np.ndarray:
    """Read the sizes of images from their headers, upright by the EXIF orientation.

    Args:
        paths: N files; None for an image to leave out.

    Returns:
        (N, 2) int64 height, width, pixels; 0 for a file that is no image.
    """
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        sizes = list(pool.map(_header_size, paths))
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _header_size(path: Path | None) -> tuple[int, int]:
    if path is None:
        return 0, 0
    try:
        try:
            with Image.open(path) as image:
                width, height = upright_size(image)
        except Image.DecompressionBombError:  # the reader reports its size
            with path.open("rb") as file, open_image(file, sys.maxsize) as image:
                width, height = upright_size(image)
    except (OSError, SyntaxError, ValueError):
        return 0, 0
    return height, width


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The size of an opened image after its EXIF orientation. The pixels are not decoded.

    Args:
        image: an image that Pillow has opened. An orientation behind the pixels of a PNG is not seen: Pillow would
            decode the whole file to find it.

    Returns:
        Width and height, pixels.
    """
    width, height = image.size
    has_exif = image.format != "PNG" or "exif" in image.info
    turned = has_exif and image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)
