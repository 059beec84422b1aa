"""Hypothesis strategies of COCO files with any combination of faults, and what is right for the objects without one."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

WIDTH, HEIGHT = 64, 48
NAN, INF = float("nan"), float("inf")
SQUARE = [8, 8, 28, 8, 28, 24, 8, 24]

# values that are wrong, unusual, or degenerate, by key of an annotation
FAULTS: dict[str, list[Any]] = {
    "iscrowd": ["0", "1", None, False, True, 2, "yes", [], 1, -1, 0.0],
    "area": [None, "320", "x", -1, 0, NAN, INF, 1e300, [], {}],
    "bbox": [
        *(None, [], {}, "8 8 20 16", 5, [8, 8, 20], [8, 8, 20, 16, 1], [[8, 8, 20, 16]], [1, None, 5, 5]),
        *(["8", "8", "20", "16"], ["a", 8, 20, 16], [NAN, 8, 20, 16], [8, 8, INF, 16], [8, 8, 1e9, 16], [8, 8, 0, 5]),
        *([8, 8, -4, 5], [63.9999999, 8, 20, 16], [-500, 8, 20, 16], [8, 8, 28, 24], [0.1, 0.1, 0.5, 0.5]),
        *([1e300, 1e300, 1, 1], [True, 8, 20, 16], [8, 8, 1e-9, 16], [10**400, 1, 1, 1]),
    ],
    "segmentation": [
        *(None, [], {}, [[]], [[], SQUARE], [[8, 8]], [[8, 8, 28, 24]], [[8, 8], SQUARE], SQUARE, "polygon", 5, [5]),
        *([[8, 8, 28, 8, 28, 24, 8]], [[[8, 8], [28, 8], [28, 24], [8, 24]]], [[8, 8], [28, 8], [28, 24]]),
        *([[8, 8, NAN, 8, 28, 24]], [[8, 8, INF, 8, 28, 24]], [[8, 8, 1e9, 8, 28, 24]], [[8, 8, 1e300, 8, 28, 24]]),
        *([[8, 8, 8, 8, 8, 8]], [[8, 8, 20, 8, 28, 8]], [["8", "8", "28", "8", "28", "24"]], [["a", 8, 28, 8, 28, 24]]),
        *(
            [[8, 8, None, 8, 28, 24]],
            [[8, 8, 28, 24, 28, 8, 8, 24]],
            [[10.1, 10.3, 14.7, 10.5, 13.9, 13.1, 11.5, 12.7]],
        ),
        *([[-900, -900, 900, -900, 900, 900]], [[0, 0, 64, 0] * 400], [[[8, 8], [28]]], [[{}]], [[[[8, 8]]]]),
        {"size": [24, 32], "counts": [100, 10, 658]},
        {"size": [64, 48], "counts": [500, 10, 2562]},
        {"size": [48, 64], "counts": [500, 10]},
        {"size": [48, 64], "counts": [500, -10, 2582]},
        {"size": [48, 64], "counts": [3072]},
        {"size": [48, 64], "counts": [0, 3072]},
        {"size": [48, 64], "counts": [10**12]},
        {"size": [48, 64], "counts": [10**30]},
        {"size": [48, 64], "counts": []},
        {"size": [48, 64], "counts": "0"},
        {"size": [48, 64], "counts": "o"},
        {"size": [48, 64], "counts": "PPYo0000000000000000000"},
        {"size": [48, 64], "counts": "\u00e9\u4e00"},
        {"size": [48, 64], "counts": ["500", 10, 2562.0]},
        {"size": [48, 64], "counts": [500, 10.5, 2561.5]},
        {"size": [48, 64], "counts": None},
        {"size": "48x64", "counts": [500, 10, 2562]},
        {"size": ["48", 64.0], "counts": [500, 10, 2562]},
        {"counts": [500, 10, 2562]},
        {"size": [48, 64]},
    ],
    "image_id": [None, "1", 9, 1.0, 1.5, True, [1], {}, "", -1],
    "category_id": [None, "1", 9, 1.0, 1.5, True, [1], {}],
    "id": [None, "a", [1], 0, 1, {}, 1.5],
}
IMAGE_FAULTS: dict[str, list[Any]] = {
    "width": [None, "64", 64.0, -1, 0, "x", 64.5, NAN, [], 10**30],
    "height": [None, "48", 48.0, -1, 0, "x", 48.5, NAN, [], 10**30],
    "file_name": ["images\\1.png", "train/1.png", "../1.png", "/data/1.png", "C:\\data\\1.png", "1%2Epng", "1.PNG"],
}
TOP_FAULTS: list[tuple[str, Any]] = [
    ("annotations", None),
    ("annotations", {}),
    ("annotations", [5, None, "x", []]),
    ("images", None),
    ("images", []),
    ("images", [5, None, {"id": 1}]),
    ("categories", []),
    ("categories", None),
    ("categories", [{"id": 1}]),
    ("categories", [5]),
    ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
    ("categories", [{"id": 1, "name": "Ant"}, {"id": 2, "name": "ant"}]),
    ("categories", [{"id": "x", "name": "a"}, {"id": 1, "name": "b"}]),
    (
        "categories",
        [{"id": 0, "name": "root", "supercategory": "none"}, {"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    ),
]


@dataclass(frozen=True)
class Faulty:
    """A file with faults.

    Attributes:
        content: the content of the file.
        intact: objects without a fault: annotation id -> annotation. Their image and category have none either.
    """

    content: Any
    intact: dict[int, dict[str, Any]]

    def write(self, path: Path) -> Path:
        """Write the file; NaN and infinities are written as Python does."""
        path.write_text(json.dumps(self.content), encoding="utf-8")
        return path


def make_images(folder: Path) -> Path:
    """Write the images that the files name; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT), (30 * number, 90, 60)).save(folder / f"{number}.png")
    return folder


@st.composite
def annotations(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """An annotation without a fault: a box with a polygon of three vertices or more, or with run lengths."""
    x, y = draw(st.integers(0, WIDTH - 8)), draw(st.integers(0, HEIGHT - 8))
    w, h = draw(st.integers(4, WIDTH - x)), draw(st.integers(4, HEIGHT - y))
    annotation = {
        "id": number,
        "image_id": draw(st.integers(1, 3)),
        "category_id": draw(st.integers(1, 2)),
        "bbox": [x, y, w, h],
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }
    if draw(st.booleans()):
        annotation["area"] = w * h
    if draw(st.integers(0, 3)) == 0:
        column = [y, h, HEIGHT - y - h]
        counts = [x * HEIGHT + column[0]]
        for _ in range(w - 1):
            counts += [h, column[2] + column[0]]
        counts += [h, column[2] + (WIDTH - x - w) * HEIGHT]
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    return annotation


@st.composite
def faulty_files(draw: st.DrawFn) -> Faulty:
    """A COCO file with up to three images, up to eight objects, and any number of faults."""
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)]
    faulty_images = set()
    for image in images:
        if draw(st.integers(0, 4)) == 0:
            faulty_images.add(image["id"])
            key = draw(st.sampled_from(sorted(IMAGE_FAULTS)))
            image[key] = draw(st.sampled_from(IMAGE_FAULTS[key]))
    objects, intact = [], {}
    for number in range(1, draw(st.integers(1, 8)) + 1):
        annotation = draw(annotations(number))
        if draw(st.booleans()):
            for key in draw(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=2, unique=True)):
                if draw(st.integers(0, 5)) == 0:
                    annotation.pop(key, None)
                else:
                    annotation[key] = draw(st.sampled_from(FAULTS[key]))
        elif annotation["image_id"] not in faulty_images:
            intact[number] = copy.deepcopy(annotation)
        objects.append(annotation)
    content: dict[str, Any] = {
        "images": images,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": objects,
    }
    if draw(st.integers(0, 9)) == 0:
        key, value = draw(st.sampled_from(TOP_FAULTS))
        content[key] = value
        intact = {}
    return Faulty(content, intact)
