"""The classes of an annotation file: checked, selected and merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_backbone.errors import did_you_mean

from .entries import Malformed, read_id
from .findings import Findings
from .table import Id

Selection = Mapping[str, Sequence[str]]
MERGE = "give each class a name of its own, or merge them: data.classes={{NAME: [{names}], ...}}"


@dataclass(frozen=True)
class Categories:
    """The classes of a split.

    Attributes:
        ids: K ids, sorted; label l is the category `ids[l]`.
        names: K names.
        label_of: label by category id; -1 for a category that `data.classes` leaves out.
    """

    ids: tuple[Id, ...]
    names: tuple[str, ...]
    label_of: Mapping[Id, int]


@dataclass(frozen=True)
class _Category:
    id: Id
    name: str
    parent: str | None


def read_categories(
    entries: Sequence[object], used: set[Id], selection: Selection | None, findings: Findings
) -> Categories:
    """Read the categories of a file.

    Args:
        entries: the entries of categories, plain values.
        used: ids of the categories that annotations have.
        selection: new class name -> names of the categories that it takes; None keeps all.
        findings: where problems and unused root categories are reported.

    Returns:
        The classes. Refused findings mean that they cannot be used.
    """
    categories = _sorted([c for i, e in enumerate(entries) if (c := _read(e, i, findings)) is not None], findings)
    if not categories:
        fix = "add the classes to categories, each with an id and a name"
        findings.add("refused", "file without categories", unit="file", fix=fix)
    ids = Counter(category.id for category in categories)
    for category_id in [i for i, count in ids.items() if count > 1]:
        entry = f"id {category_id!r}"
        findings.add("refused", "category id that repeats", unit="category", entry=entry, fix="give each its own id")
    root = _unused_root(categories, used)
    if root is not None and (selection is None or not any(root.name in old for old in selection.values())):
        findings.add(
            "repaired", "unused root category, left out of the classes", unit="category", entry=f"{root.name!r}"
        )
        categories = [category for category in categories if category is not root]
    if selection is not None:
        return _selected(categories, selection, findings)
    _check_names([category.name for category in categories], findings)
    return Categories(
        tuple(c.id for c in categories),
        tuple(c.name for c in categories),
        {c.id: label for label, c in enumerate(categories)},
    )


def _read(entry: object, index: int, findings: Findings) -> _Category | None:
    name = f"category number {index + 1}"
    try:
        if not isinstance(entry, Mapping):
            raise Malformed("category that is no mapping", entry, "write a mapping with id and name")
        text = entry.get("name")
        if isinstance(text, bool) or not isinstance(text, (str, int, float)) or not str(text).strip():
            raise Malformed("category without a name", entry, "give it a name")
        parent = entry.get("supercategory")
        return _Category(read_id(entry.get("id"), "id"), str(text), parent if isinstance(parent, str) else None)
    except Malformed as problem:
        what, came, fix = problem.args
        findings.add("refused", what, unit="category", entry=name, came=came, fix=fix)
        return None


def _sorted(categories: list[_Category], findings: Findings) -> list[_Category]:
    if len({type(category.id) for category in categories}) > 1:
        fix = "write all ids as numbers, or all as texts"
        findings.add("refused", "category ids of two kinds, numbers and texts", unit="file", fix=fix)
        return sorted(categories, key=lambda category: str(category.id))
    return sorted(categories, key=lambda category: category.id)


def _unused_root(categories: Sequence[_Category], used: set[Id]) -> _Category | None:
    """The category that only groups the others, as Roboflow writes one.

    It has no annotations, and another category names it as its supercategory, or its own supercategory is "none" and
    its id is the lowest.
    """
    if len(categories) < 2:
        return None
    for category in categories:
        if category.id in used:
            continue
        is_parent = any(other.parent == category.name for other in categories if other is not category)
        is_lowest = category is categories[0] and (category.parent or "").lower() == "none"
        if is_parent or is_lowest:
            return category
    return None


def _check_names(names: Sequence[str], findings: Findings) -> None:
    """Refuse names that are equal without case and spaces: classes are matched by name."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    for group in [group for group in alike.values() if len(group) > 1]:
        findings.add(
            "refused",
            "classes whose names differ only in case or spaces",
            unit="category",
            entry=" and ".join(repr(name) for name in group),
            fix=MERGE.format(names=", ".join(dict.fromkeys(group))),
        )


def _selected(categories: Sequence[_Category], selection: Selection, findings: Findings) -> Categories:
    """The classes of `data.classes`, in its order."""
    known = {category.name for category in categories}
    label_of: dict[Id, int] = {category.id: -1 for category in categories}
    first_ids: list[Id] = []
    names: list[str] = []
    for name, old_names in selection.items():
        unknown = [old for old in old_names if old not in known]
        for old in unknown:
            findings.add(
                "refused" if len(unknown) == len(old_names) else "warning",
                "class of data.classes that the file does not have",
                unit="category",
                entry=repr(old),
                fix=did_you_mean(old, sorted(known)),
            )
        members = [category.id for category in categories if category.name in old_names]
        for category_id in members:
            if label_of[category_id] >= 0:
                findings.add(
                    "refused",
                    "category that two classes of data.classes take",
                    unit="category",
                    entry=f"id {category_id!r}",
                    fix="name it once in data.classes",
                )
            label_of[category_id] = len(names)
        if members:
            names.append(name)
            first_ids.append(members[0])
    _check_names(names, findings)
    return Categories(tuple(first_ids), tuple(names), label_of)


def labels_of(category_ids: Sequence[Id], categories: Categories) -> np.ndarray:
    """The labels of objects.

    Args:
        category_ids: M ids.
        categories: the classes.

    Returns:
        (M,) int64: 0..K-1; -1 for a category that is left out, -2 for one that the file does not list.
    """
    look_up = categories.label_of
    return np.fromiter((look_up.get(i, -2) for i in category_ids), dtype=np.int64, count=len(category_ids))
