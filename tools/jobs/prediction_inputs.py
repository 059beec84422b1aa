"""Which images to predict, and what their predictions are called: files, folders, globs and URLs."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from resnet_backbone.errors import InvalidValue, MissingFile
from tools.annotations.formats.tree import IMAGE_SUFFIXES

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# the start of a JSON file that `predict` wrote; annotation tools write other keys
PREDICTION = re.compile(rb'\s*\{"image": "(?:[^"\\]|\\.)*", "height": \d+, "width": \d+, "detections": \[')
HEAD_BYTES = 65536


@dataclass(frozen=True)
class Source:
    """An image to predict.

    Attributes:
        path: a file, or a URL.
        names: what its prediction may be called, relative to the folder of predictions and without a suffix. The
            first that no other prediction has is taken.
        image_id: its number among the images, from 1.
    """

    path: str
    names: tuple[str, ...]
    image_id: int = 0

    @property
    def is_url(self) -> bool:
        """Whether it must be downloaded."""
        return URL.match(self.path) is not None and not os.path.lexists(self.path)


@dataclass
class Sources:
    """Images to predict.

    Attributes:
        images: each file or URL once, in the order in which they were given.
        notes: what was found in folders and by globs, and what was left out, in sentences.
    """

    images: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_sources(given: Iterable[str | PathLike[str]]) -> Sources:
    """Find the images to predict.

    Args:
        given: files, folders (all images in them, at any depth), globs, and http or https URLs. A name that exists is
            never taken as a glob.

    Returns:
        The images. A file that does not exist is among them; reading it fails.

    Raises:
        MissingFile: a folder has no images, or a glob matches nothing.
        InvalidValue: a URL is of another kind, or nothing was given.
    """
    if isinstance(given, (str, PathLike)):
        given = [given]
    found = Sources()
    seen: set[str] = set()
    again = 0
    for entry in given:
        for source in _of_entry(os.fspath(entry), found.notes):
            key = source.path if source.is_url else os.path.abspath(source.path)
            if key in seen:
                again += 1
                continue
            seen.add(key)
            found.images.append(source)
    if not found.images:
        raise InvalidValue("there are no images to predict: give files, folders, globs or URLs")
    if again:
        found.notes.append(f"given more than once: {again} images; each is predicted once")
    found.images = _with_folders(found.images)
    return found


def output_names(sources: Sequence[Source]) -> list[str]:
    """Choose a name for each prediction, so that no two are equal, also on disks that ignore case.

    Args:
        sources: the images.

    Returns:
        Paths relative to the folder of predictions, without a suffix, in POSIX form.
    """
    level = [0] * len(sources)
    while True:
        names = [_name_at(source, at) for source, at in zip(sources, level)]
        keys = [_same_name(name) for name in names]
        taken = Counter(keys)
        folders = {str(parent) for key in keys for parent in PurePosixPath(key).parents}
        # a picture must not have the name of a folder of other pictures
        clashing = [
            i for i, key in enumerate(keys) if taken[key] > 1 or f"{key}.png" in folders or f"{key}.json" in folders
        ]
        if not clashing:
            return names
        for i in clashing:
            level[i] += 1


def is_prediction(json_path: Path) -> bool:
    """Whether a JSON file is one that `predict` wrote.

    Args:
        json_path: the file; it need not exist.
    """
    try:
        with open(json_path, "rb") as file:
            return PREDICTION.match(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _name_at(source: Source, level: int) -> str:
    """The name at a level of `names`; after the last one, numbers make it unique."""
    if level < len(source.names):
        return source.names[level]
    return f"{source.names[-1]} ({source.image_id})" + "_" * (level - len(source.names))


def _same_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _of_entry(entry: str, notes: list[str]) -> Iterator[Source]:
    """The images that one argument stands for."""
    if not entry:
        raise InvalidValue("an empty name stands for no image: give files, folders, globs or URLs")
    if not os.path.lexists(entry) and URL.match(entry):
        yield _of_url(entry)
        return
    if entry.startswith("~") and not os.path.lexists(entry):
        entry = os.path.expanduser(entry)
    if os.path.isdir(entry):
        files, left_out = _images_among(_walk(entry))
        if not files:
            raise MissingFile(
                f"there are no images in the folder {entry}{left_out}: give a folder that holds files of "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}, or name the files"
            )
        notes.append(f"{entry}: {_count(files)}{left_out}")
        yield from (_of_file(path, entry) for path in files)
    elif os.path.lexists(entry) or not glob.has_magic(entry):
        yield _of_file(entry, os.path.dirname(entry))
    else:
        yield from _of_glob(entry, notes)


def _of_glob(pattern: str, notes: list[str]) -> Iterator[Source]:
    """The images that match a pattern, and those in the folders that match."""
    root, rest = _literal_start(pattern)
    matches = sorted(glob.glob(os.path.join(glob.escape(root), rest), recursive=True))
    if not matches:
        raise MissingFile(
            f"no file matches {pattern}: correct the path; in a file's own name, brackets and stars are taken "
            "literally if that file exists"
        )
    paths = (path for match in matches for path in (_walk(match) if os.path.isdir(match) else [match]))
    files, left_out = _images_among(paths)
    if not files:
        raise MissingFile(
            f"no image matches {pattern}{left_out}: correct the path; images are files of "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}, others must be named one by one"
        )
    notes.append(f"{pattern}: {_count(files)}{left_out}")
    yield from (_of_file(path, root) for path in files)


def _literal_start(pattern: str) -> tuple[str, str]:
    """Split a glob after the longest folder that exists under its literal name: "photos [1]/" of "photos [1]/*.jpg"."""
    parts = pattern.split("/")
    for end in range(len(parts) - 1, 0, -1):
        root = "/".join(parts[:end]) or "/"
        if os.path.isdir(root):
            return root, "/".join(parts[end:])
    return "", pattern


def _walk(folder: str) -> Iterator[str]:
    """The files below a folder, sorted, hidden ones too; a folder that links lead to twice is read once."""
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(place, name) for name in sorted(files))


def _images_among(paths: Iterable[str]) -> tuple[list[str], str]:
    """The images among files, and what was left out: other files, hidden ones, and pictures that `predict` drew."""
    images = dict[str, None]()
    others, drawn = 0, 0
    for path in paths:
        stem, suffix = os.path.splitext(path)
        if path in images or os.path.isdir(path):
            continue
        if suffix.lower() not in IMAGE_SUFFIXES or os.path.basename(path).startswith("."):
            others += 1
        elif suffix == ".png" and is_prediction(Path(f"{stem}.json")):
            drawn += 1
        else:
            images[path] = None
    left_out = [f"{others} other files"] * (others > 0) + [f"{drawn} pictures of earlier predictions"] * (drawn > 0)
    return list(images), f" (left out: {', '.join(left_out)})" if left_out else ""


def _count(files: Sequence[str]) -> str:
    return f"{len(files)} image{'s' * (len(files) != 1)}"


def _of_file(path: str, root: str) -> Source:
    """Name the prediction of a file after its place below a folder, without and with its suffix."""
    place = os.path.relpath(path, root or ".")
    return Source(path, (os.path.splitext(place)[0], place))


def _with_folders(sources: Sequence[Source]) -> list[Source]:
    """Add names with the folders in which the files differ, for names that are equal without them."""
    places = [None if source.is_url else os.path.abspath(source.path) for source in sources]
    root = os.path.commonpath([os.path.dirname(place) for place in places if place] or ["/"])
    named = []
    for number, (source, place) in enumerate(zip(sources, places), start=1):
        longer = (
            [] if place is None else [os.path.relpath(os.path.splitext(place)[0], root), os.path.relpath(place, root)]
        )
        named.append(Source(source.path, tuple(dict.fromkeys((*source.names, *longer))), number))
    return named


def _of_url(url: str) -> Source:
    """Name the prediction of a URL after the last part of its path, then with the query, then with the host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise InvalidValue(f"{url} is no URL ({error}): correct it") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise InvalidValue(f"{url}: images are read from files, and from http and https URLs: download it first")
    if not host:
        raise InvalidValue(f"{url} is no URL (it has no host): correct it")
    steps = [_safe(unquote(step)) for step in parts.path.split("/") if step not in ("", ".", "..")]
    name = steps[-1] if steps else _safe(host)
    with_query = f"{name}_{_safe(parts.query)}" if parts.query else name
    folder = "/".join([_safe(host), *steps[:-1]])
    stem = os.path.splitext(name)[0] if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES else name
    return Source(url, tuple(dict.fromkeys((stem, with_query, f"{folder}/{with_query}"))))


def _safe(name: str) -> str:
    """A part of a URL as the name of a file: letters and digits of any script, and a few signs; at most 100."""
    return re.sub(r"[^\w.=@+ -]", "_", name).strip(". ")[:100] or "_"
