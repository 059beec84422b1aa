"""The "shapes" data set, summarised."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from rich.table import Table

from tools.data.shape_outlines import FORMS
from tools.data.shapes import SPLITS


def summarise(root: str | PathLike[str]) -> Table:
    """Count images and objects of a generated data set.

    Args:
        root: the folder that `generate_shapes` wrote.

    Returns:
        A table with a row per split: images, images without annotations, objects, crowds, and objects by form.
    """
    table = Table("split", "images", "empty", "objects", "crowds", *FORMS)
    for split in SPLITS:
        path = Path(root) / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects = [names[a["category_id"]] for a in content["annotations"] if not a["iscrowd"]]
        num_images = len(content["images"])
        num_empty = num_images - len({a["image_id"] for a in content["annotations"]})
        num_crowds = len(content["annotations"]) - len(objects)
        counts = [num_images, num_empty, len(objects), num_crowds, *(objects.count(form) for form in FORMS)]
        table.add_row(split, *map(str, counts))
    return table
