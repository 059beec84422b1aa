"""What the tests of the formats share: folders from texts, and the objects of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.annotations.formats import Split

Files = Mapping[str, str | bytes | tuple[int, int]]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Files], Path]:
    """A function that writes files below a folder: texts, bytes, or images of a size (width, height)."""

    def write(files: Files) -> Path:
        root = tmp_path / "data set"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                Image.new("RGB", content, "grey").save(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return write


@pytest.fixture
def objects() -> Callable[[Split], dict[str, list[tuple[Any, ...]]]]:
    """A function that gives (class, x, y, width, height) of the objects by file name."""

    def of(split: Split) -> dict[str, list[tuple[Any, ...]]]:
        assert split.content is not None
        names = {entry["id"]: entry["name"] for entry in split.content["categories"]}
        result: dict[str, list[tuple[Any, ...]]] = {}
        for image in split.content["images"]:
            assert (split.images / image["file_name"]).is_file()
            result[image["file_name"]] = [
                (names[entry["category_id"]], *entry["bbox"])
                for entry in split.content["annotations"]
                if entry["image_id"] == image["id"]
            ]
        return result

    return of
