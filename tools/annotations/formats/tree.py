"""The files of a folder, listed once, and the search for an image by the name that an annotation gives it.

Only files that lie below the folder are ever found: a name with "..", a drive or a leading slash is matched by its last
components.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from resnet_backbone.errors import InvalidValue, MissingFile

from ..image_files import upright_size

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".gif")
)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
# folders of masks and labels hold images too, with the stems of the photographs
NOT_PHOTOGRAPHS = re.compile(r"mask|segmentation|label|annot|ground_?truth|^gt|_gt$|thumb|visuali[sz]", re.IGNORECASE)
PHOTOGRAPHS = frozenset(("jpegimages", "images", "image", "imgs", "img", "data", "photos", "obj_train_data"))
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass
class Tree:
    """The files below a folder.

    Attributes:
        root: the folder.
        files: all files, relative to the folder, in POSIX form, sorted. Hidden files and folders are left out.
        only: the one annotation file to read, if the caller gave a file instead of a folder; relative to the folder.
    """

    root: Path
    files: list[str]
    only: str | None = None
    _sizes: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files whose suffix is one of these, in any case, or the one file to read if it has such a suffix.

        Args:
            suffixes: such as ".json", in lower case.

        Returns:
            Paths relative to the folder, sorted.
        """
        files = self.files if self.only is None else [self.only]
        return [path for path in files if path.lower().endswith(suffixes)]

    @cached_property
    def images(self) -> list[str]:
        """The files with the suffix of an image, sorted."""
        return [path for path in self.files if posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda path: posixpath.basename(path).lower())

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda path: stem(path).lower())

    def find_image(self, name: str, *, near: str = "") -> list[str]:
        """Find an image by the name that an annotation gives.

        Args:
            name: a file name or path in any form; its last components count.
            near: the annotation file, relative to the folder; of several images the one in the nearest folder is taken.

        Returns:
            The images that fit equally well: none, one, or several if the name is ambiguous.
        """
        parts = components(name)
        return nearest(self._by_name.get(parts[-1].lower(), []) if parts else [], parts, near=near)

    def find_stem(self, name: str, *, near: str = "") -> list[str]:
        """Find an image by the stem of its file name; folders of masks and labels are not searched.

        Args:
            name: the stem.
            near: as in `find_image`.

        Returns:
            As `find_image`.
        """
        found = self._by_stem.get(name.lower(), [])
        found = [path for path in found if not is_mask_folder(path)] or found
        return nearest(found, near=near)

    def image_size(self, path: str) -> tuple[int, int]:
        """The size of an image, from its header, after its EXIF orientation.

        Args:
            path: relative to the folder.

        Returns:
            Width and height, pixels.

        Raises:
            OSError: the file cannot be read as an image (also Pillow's SyntaxError and ValueError).
        """
        if path not in self._sizes:
            try:
                with Image.open(self.root / path) as image:
                    self._sizes[path] = upright_size(image)
            except Image.DecompressionBombError as error:
                raise OSError(str(error)) from error
        return self._sizes[path]


def scan(path: Path) -> Tree:
    """List the files of a folder.

    Args:
        path: a folder, or an annotation file, which stands for its folder with this file alone read. Symbolic links
            are followed.

    Returns:
        The files.

    Raises:
        MissingFile: the path does not exist.
        InvalidValue: the path is an archive.
    """
    if not path.exists():
        raise MissingFile(f"no folder at {path}: give the folder that holds the images and their annotations")
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        raise InvalidValue(f"{path} is an archive: extract it, and give the folder")
    root = path if path.is_dir() else path.parent
    files: list[str] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        files += [prefix + name for name in names if not name.startswith(".")]
    return Tree(root, sorted(files), None if path.is_dir() else path.name)


def components(name: str) -> list[str]:
    r"""The components of a path in any form, without drive, ".", ".." and the query of a URL.

    Args:
        name: such as `C:\data\a.jpg`, `../images/a.jpg` or `/data/local-files/?d=x/a.jpg`.

    Returns:
        Such as ["data", "a.jpg"].
    """
    name = re.sub(r"^[a-zA-Z]:(?=[\\/])", "", name.strip())
    return [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]


def stem(path: str) -> str:
    """The file name without folder and last suffix."""
    return posixpath.splitext(posixpath.basename(path))[0]


def is_mask_folder(path: str) -> bool:
    """Whether the folder of a file has the name of a folder of masks or labels."""
    return bool(NOT_PHOTOGRAPHS.search(posixpath.basename(posixpath.dirname(path))))


def split_of(path: str, *, with_stem: bool = False) -> str | None:
    """The split that a path names, such as "val" for "valid/images/a.jpg".

    Args:
        path: relative to the folder of the data set; the component nearest to the file counts.
        with_stem: whether the file's own name counts too, as for "instances_train2017.json".

    Returns:
        "train", "val", "test", or None.
    """
    parts = path.split("/")
    for part in reversed([*parts[:-1], stem(path)] if with_stem else parts[:-1]):
        words = re.findall(r"[a-z]+", part.lower())
        for word in words:
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def by_folder(files: Iterable[str], notes: list[str]) -> dict[str, list[str]]:
    """Group files by the split that their folders name.

    Args:
        files: relative to the data set's folder.
        notes: where it is said that some files have no split.

    Returns:
        {"train", "val", "test": files}; {"all": files} where no folder names a split. Where only some do, the rest goes
        to "train".
    """
    splits: dict[str, list[str]] = defaultdict(list)
    for path in files:
        splits[split_of(path) or "all"].append(path)
    if set(splits) - {"all"} and (rest := splits.pop("all", [])):
        splits["train"] = sorted([*splits["train"], *rest])
        notes.append(f"{len(rest):,} files lie in no folder of a split and are used for train, such as {rest[0]}")
    return {name: splits[name] for name in ("train", "val", "test", "all") if name in splits}


def _grouped(paths: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return groups


def nearest(found: Sequence[str], parts: Sequence[str] = (), *, near: str = "") -> list[str]:
    """Those of several files that fit best.

    Args:
        found: files, relative to the data set's folder.
        parts: the components of the name that was given.
        near: the file that refers to them, relative to the same folder.

    Returns:
        The files that fit equally well.
    """
    if len(found) < 2:
        return list(found)
    ranks = {path: _rank(path, parts, near) for path in found}
    best = max(ranks.values())
    return [path for path in found if ranks[path] == best]


def _rank(path: str, parts: Sequence[str], near: str) -> tuple[int, ...]:
    """How well a file fits: agreeing components of the name, case, same folder, shared folders, kind of folder."""
    folder, near_folder = posixpath.dirname(path), posixpath.dirname(near)
    own = path.split("/")
    agree = 0
    while agree < min(len(own), len(parts)) and own[-1 - agree].lower() == parts[-1 - agree].lower():
        agree += 1
    shared = len(set(folder.split("/")) & set(near_folder.split("/")))
    kind = posixpath.basename(folder).lower() in PHOTOGRAPHS
    exact = bool(parts) and own[-1] == parts[-1]
    same_stem = bool(near) and stem(path) == stem(near)
    return agree, exact, folder == near_folder, shared, kind, not is_mask_folder(path), same_stem
