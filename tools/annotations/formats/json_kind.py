"""Which annotation tool wrote a JSON file, by the keys in it. Large files are searched, not parsed."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..findings import BadAnnotations

Kind = Literal["coco", "via", "labelme"]
# the keys that every file of a kind holds
LABELME = (rb'"shapes"\s*:\s*\[', rb'"image(?:Path|Data|Height)"\s*:')
VIA = (rb'"regions"\s*:\s*[\[{]', rb'"filename"\s*:', rb'"(?:file_attributes|fileref|region_attributes)"\s*:')
COCO_PARTS = (rb'"images"\s*:\s*\[', rb'"annotations"\s*:\s*\[', rb'"categories"\s*:\s*\[')
NAMES = [re.compile(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)+")' % key) for key in (b"file_name", b"coco_url")]


def json_kind(path: Path) -> Kind | None:
    """Recognise a JSON file.

    Args:
        path: the file.

    Returns:
        "coco", "via" or "labelme"; None for another one.
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return None
        if all(re.search(key, content) for key in LABELME):
            return "labelme"
        if sum(re.search(key, content) is not None for key in COCO_PARTS) >= 2:
            return None if content.find(b'"segments_info"') >= 0 else "coco"  # panoptic: no objects with boxes
        is_via = content.find(b'"_via_img_metadata"') >= 0 or all(re.search(key, content) for key in VIA)
        return "via" if is_via else None


def image_names(path: Path, limit: int | None = 200) -> list[str]:
    """The first file names of images in a COCO file.

    Args:
        path: the file.
        limit: most names; None for all.

    Returns:
        The names, in the order of the file; URLs where the file has these instead (LVIS).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for pattern in NAMES:
            names = []
            for match in islice(pattern.finditer(content), limit):
                with contextlib.suppress(ValueError):  # no valid JSON string: the reader reports it
                    names.append(str(json.loads(match[1])))
            if names:
                return names
    return []


def read_json(path: Path) -> Any:
    """Read a JSON file of an annotation tool; a byte order mark is allowed.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        BadAnnotations: the file is no complete JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadAnnotations(
            f"{path} is not complete JSON ({error}): export it again, or remove it from the folder"
        ) from error
