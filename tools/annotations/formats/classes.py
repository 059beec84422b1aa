"""Choosing and merging classes of COCO's content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_backbone.errors import InvalidValue, did_you_mean

from ..findings import Findings


def select_classes(
    content: Mapping[str, Any], classes: Mapping[str, Sequence[str]], findings: Findings | None = None
) -> dict[str, Any]:
    """Keep the objects of some classes, under new names.

    Args:
        content: COCO's content; it is not changed.
        classes: {new name: old names}, in the order of the new categories. Several old names are merged.
        findings: where it is counted what is dropped and merged.

    Returns:
        The content with categories 1, 2, ... and the objects of the chosen classes. All images are kept; those that
        lose their objects have none.

    Raises:
        InvalidValue: an old name does not exist or is given twice, or no class is chosen.
    """
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    if not classes:
        raise InvalidValue(f"no class is chosen: {did_you_mean('', names.values())}")
    new_of: dict[str, str] = {}
    for new, olds in classes.items():
        for old in olds:
            if old not in names.values():
                raise InvalidValue(f"no class is called {old!r}: {did_you_mean(old, names.values())}")
            if old in new_of:
                raise InvalidValue(f"the class {old!r} is given twice, for {new_of[old]!r} and {new!r}: give it once")
            new_of[old] = new
    new_ids = {new: number for number, new in enumerate(classes, 1)}
    ids = {category_id: new_ids[new_of[name]] for category_id, name in names.items() if name in new_of}
    kept = [
        {**entry, "category_id": ids[entry["category_id"]]}
        for entry in content["annotations"]
        if entry.get("category_id") in ids
    ]
    if findings is not None:
        all_ids = Counter(entry.get("category_id") for entry in content["annotations"])
        for key, count in all_ids.most_common():
            if key not in ids:
                name = names.get(key, f"category {key}")
                findings.add("dropped", "object of a class that is not chosen", entry=name, came=count, count=count)
        for new, olds in classes.items():
            if list(olds) != [new]:
                findings.add("note", "class renamed or merged", unit="category", entry=f"{new} = {', '.join(olds)}")
    categories = [{"id": number, "name": new} for new, number in new_ids.items()]
    return {**content, "categories": categories, "annotations": kept}
