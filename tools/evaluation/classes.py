"""Matching of a model's classes with a data set's categories, by name: ids and orders differ between projects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heads.class_lists import UNUSED
from resnet_backbone.errors import InvalidValue
from tools.annotations.table import Id


@dataclass(frozen=True)
class ClassMatch:
    """Result of `match_categories`; K classes of the model.

    Attributes:
        category_ids: K category ids by label; None for a class that the data set lacks.
        unmatched_model: classes of the model that the data set lacks. Their detections cannot be scored.
        unmatched_dataset: categories of the data set that the model lacks. They score zero.
    """

    category_ids: list[Id | None]
    unmatched_model: list[str]
    unmatched_dataset: list[str]


def match_categories(
    model_names: Sequence[str], dataset_categories: Sequence[tuple[Id, str]], *, model: str = "the model"
) -> ClassMatch:
    """Match classes with categories by name, ignoring case and spaces.

    A class named "N/A" (torchvision's COCO models have a logit for each unused COCO id) is never matched and never
    reported.

    Args:
        model_names: K class names, in the order of the labels.
        dataset_categories: (id, name) pairs.
        model: what to call the owner of the class names in messages.

    Returns:
        The category id of each label, and what could not be matched.

    Raises:
        InvalidValue: no name matches, or a name occurs more than once on one side.
    """
    dataset_names = [name for _, name in dataset_categories]
    _check_unique(f"the classes of {model}", (name for name in model_names if not _is_unused(name)))
    _check_unique("the data set's categories", dataset_names)
    id_of = {_normalise(name): category_id for category_id, name in dataset_categories}

    category_ids = [None if _is_unused(name) else id_of.get(_normalise(name)) for name in model_names]
    if all(category_id is None for category_id in category_ids):
        raise InvalidValue(
            f"no class of {model} is a category of the data set: {model} has {_shortened(model_names)}, "
            f"the data set has {_shortened(dataset_names)}: use the data set that {model} belongs to, "
            "or rename the classes of one of them"
        )
    used_names = {_normalise(name) for name in model_names if not _is_unused(name)}
    return ClassMatch(
        category_ids=category_ids,
        unmatched_model=[
            name
            for name, category_id in zip(model_names, category_ids, strict=True)
            if category_id is None and not _is_unused(name)
        ],
        unmatched_dataset=[name for name in dataset_names if _normalise(name) not in used_names],
    )


def _normalise(name: str) -> str:
    return "".join(name.casefold().split())


def _is_unused(name: str) -> bool:
    return _normalise(name) == _normalise(UNUSED)


def _check_unique(what: str, names: Iterable[str]) -> None:
    names = list(names)
    counts = Counter(_normalise(name) for name in names)
    repeated = [name for name in names if counts[_normalise(name)] > 1]
    if repeated:
        raise InvalidValue(
            f"{what} contain {_shortened(repeated)} more than once (ignoring case and spaces): give each a unique "
            "name, since classes are matched by name"
        )


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    remainder = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{list(names[:limit])}{remainder}"
