"""Checks that the settings of the heads share; each raises ValueError with the setting's name, value and mend."""

from __future__ import annotations


def require_positive(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not value > 0:
            raise ValueError(f"{name}={value} must be greater than 0")


def require_fraction(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must lie between 0 and 1")
