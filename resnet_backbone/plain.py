"""Dataclasses as plain values, for the metadata of weight files and for configurations, and back."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InvalidValue, did_you_mean

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Convert a dataclass to a dict of plain values.

    Args:
        value: an instance of a dataclass. Its fields may hold other dataclasses, tuples, dicts, classes and scalars.

    Returns:
        A dict of strings, numbers, tuples, dicts and None. A class is written as its name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(to_plain(part) for part in value)
    return value.__name__ if isinstance(value, type) else value


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from plain values: the inverse of `to_plain`.

    Lists become tuples where the field is a tuple, so values that were stored as JSON come back equal.

    Args:
        kind: the dataclass to build.
        values: field name -> plain value. Fields that are left out take their default.

    Returns:
        The instance.

    Raises:
        InvalidValue: a name that is no field of `kind`, a field without a default that is missing, or a class name that
            the field does not allow. Checks of `kind` itself raise as they do for its constructor.
    """
    hints = get_type_hints(kind)
    if unknown := [name for name in values if name not in hints]:
        raise InvalidValue(f"{kind.__name__} has no field {unknown[0]!r}: {did_you_mean(unknown[0], hints)}")
    try:
        return kind(**{name: _restore(hints[name], value, name) for name, value in values.items()})
    except TypeError as error:
        raise InvalidValue(f"{kind.__name__} cannot be built from {sorted(values)}: {error}") from error


def _restore(hint: Any, value: Any, name: str) -> Any:
    """Bring one plain value to the type that its field declares."""
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
    else:
        options = (hint,)
    classes = [get_args(option)[0] for option in options if get_origin(option) is type]
    if classes and isinstance(value, str):
        by_name = {kind.__name__: kind for kind in classes}
        if value not in by_name:
            raise InvalidValue(f"{name}={value!r} is unknown: {did_you_mean(value, by_name)}")
        return by_name[value]
    for option in options:
        if isinstance(value, Mapping) and is_dataclass(option) and isinstance(option, type):
            return from_plain(option, value)
        if isinstance(value, (list, tuple)) and get_origin(option) is tuple:
            parts = get_args(option)
            of_each = [parts[0]] * len(value) if parts[-1] is Ellipsis else [*parts]
            if len(of_each) != len(value):
                raise InvalidValue(f"{name}={list(value)} has {len(value)} entries, {len(of_each)} are expected")
            return tuple(_restore(part, entry, name) for part, entry in zip(of_each, value))
    return value
