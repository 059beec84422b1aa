"""Which category of a dataset is meant by each label of a model: by name, since ids and orders differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heads.class_lists import UNUSED
from resnet_backbone.errors import InvalidValue


@dataclass(frozen=True)
class ClassMatch:
    """What `match_categories` found.

    category_ids: (K,) the dataset's id for each label, None where the dataset lacks the class.
    unmatched_model: classes of the model that the dataset lacks: their detections cannot be scored.
    unmatched_dataset: categories that the model cannot find: they score zero.
    """

    category_ids: list[int | None]
    unmatched_model: list[str]
    unmatched_dataset: list[str]


def match_categories(model_names: Sequence[str], dataset_categories: Sequence[tuple[int, str]]) -> ClassMatch:
    """Matches K model classes, in label order, with (id, name) pairs; case and spaces do not count.

    A model class named "N/A" (torchvision's COCO models keep a logit for each of COCO's unused ids) belongs to no
    category; it is neither matched nor reported.
    """
    dataset_names = [name for _, name in dataset_categories]
    _refuse_twins("the model's classes", (name for name in model_names if not _is_unused(name)))
    _refuse_twins("the dataset's categories", dataset_names)
    id_of = {_key(name): category_id for category_id, name in dataset_categories}

    category_ids = [None if _is_unused(name) else id_of.get(_key(name)) for name in model_names]
    if all(category_id is None for category_id in category_ids):
        raise InvalidValue(
            f"no class of the model is a category of the dataset: the model has {_some(model_names)}, "
            f"the dataset {_some(dataset_names)}: score on the dataset that the model was trained for, "
            "or rename the classes of one of them"
        )
    known = {_key(name) for name in model_names if not _is_unused(name)}
    return ClassMatch(
        category_ids=category_ids,
        unmatched_model=[
            name
            for name, category_id in zip(model_names, category_ids, strict=True)
            if category_id is None and not _is_unused(name)
        ],
        unmatched_dataset=[name for name in dataset_names if _key(name) not in known],
    )


def _key(name: str) -> str:
    return "".join(name.casefold().split())


def _is_unused(name: str) -> bool:
    return _key(name) == _key(UNUSED)


def _refuse_twins(whose: str, names: Iterable[str]) -> None:
    names = list(names)
    counts = Counter(_key(name) for name in names)
    twins = [name for name in names if counts[_key(name)] > 1]
    if twins:
        raise InvalidValue(
            f"{whose} name {_some(twins)} more than once (case and spaces do not count): "
            "give each a name of its own, since classes are matched by name"
        )


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{list(names[:limit])}{more}"
