"""Range checks of settings."""

from __future__ import annotations

from resnet_backbone.errors import InvalidValue, did_you_mean
from resnet_backbone.norm import NORMS

HEAD_NORMS = ("none", *NORMS)


def require_positive(spec: object, *names: str) -> None:
    """Check that settings are greater than zero.

    Args:
        spec: the dataclass that holds them.
        *names: names of its fields.

    Raises:
        InvalidValue: a setting is not; the message gives its name and value.
    """
    for name in names:
        value = getattr(spec, name)
        if not value > 0:
            raise InvalidValue(f"{name}={value} must be greater than 0")


def require_fraction(spec: object, *names: str) -> None:
    """Check that settings lie between 0 and 1, inclusive.

    Args:
        spec: the dataclass that holds them.
        *names: names of its fields.

    Raises:
        InvalidValue: a setting does not; the message gives its name and value.
    """
    for name in names:
        value = getattr(spec, name)
        if not 0 <= value <= 1:
            raise InvalidValue(f"{name}={value} must lie between 0 and 1")


def require_not_negative(spec: object, *names: str) -> None:
    """Check that settings are zero or greater.

    Args:
        spec: the dataclass that holds them.
        *names: names of its fields.

    Raises:
        InvalidValue: a setting is not; the message gives its name and value.
    """
    for name in names:
        if getattr(spec, name) < 0:
            raise InvalidValue(f"{name}={getattr(spec, name)} must not be negative")


def require_norm(spec: object, *names: str) -> None:
    """Check that settings are names of norms, or "none" for a bias instead.

    Args:
        spec: the dataclass that holds them.
        *names: names of its fields.

    Raises:
        InvalidValue: an unknown norm; the message gives the nearest.
    """
    for name in names:
        value = getattr(spec, name)
        if value not in HEAD_NORMS:
            raise InvalidValue(f"{name}={value!r} is unknown: {did_you_mean(value, HEAD_NORMS)}")
