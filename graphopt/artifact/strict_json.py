"""Strict reading of JSON from untrusted files: every value is asked for by type and range."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from graphopt.errors import ArtifactError

T = TypeVar("T")

_MAX_INT = 2**53  # beyond this other JSON readers lose digits


def refuse(where: str, reason: str) -> ArtifactError:
    """The error for a manifest that breaks a rule at `where` (a path such as `$.entries[0]`)."""
    return ArtifactError("load", f"The manifest is invalid at {where}: {reason}.")


def parse(text: bytes) -> Any:
    """Parse UTF-8 JSON; duplicate keys, NaN, infinities and absurd nesting raise ArtifactError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            raise refuse("$", "an object has the same key twice")
        return record

    def constant(name: str) -> Any:
        raise refuse("$", f"{name} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise refuse("$", f"it is not readable JSON ({error})") from error


def record(value: Any, where: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """An object that has exactly `fields`."""
    if not isinstance(value, dict):
        raise refuse(where, f"expected an object, got {_kind(value)}")
    if missing := [name for name in fields if name not in value]:
        raise refuse(where, f"missing {', '.join(missing)}")
    if unknown := [name for name in value if name not in fields]:
        raise refuse(where, f"unknown {', '.join(map(repr, unknown))}")
    return value


def items(value: Any, where: str, item: Callable[[Any, str], T]) -> tuple[T, ...]:
    """A list, each element read by `item(value, where)`."""
    if not isinstance(value, list):
        raise refuse(where, f"expected a list, got {_kind(value)}")
    return tuple(item(element, f"{where}[{index}]") for index, element in enumerate(value))


def optional(value: Any, where: str, item: Callable[[Any, str], T]) -> T | None:
    """null, or what `item(value, where)` reads."""
    return None if value is None else item(value, where)


def text(value: Any, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise refuse(where, f"expected a string, got {_kind(value)}")
    return value


def flag(value: Any, where: str) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise refuse(where, f"expected a boolean, got {_kind(value)}")
    return value


def integer(value: Any, where: str, *, low: int = 0, high: int = _MAX_INT) -> int:
    """An integer in low … high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(where, f"expected an integer, got {_kind(value)}")
    if not low <= value <= high:
        raise refuse(where, f"{value} is outside {low} … {high}")
    return value


def amount(value: Any, where: str) -> float:
    """A finite number, not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(where, f"expected a number, got {_kind(value)}")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise refuse(where, f"{value} is not a finite number ≥ 0")
    return number


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
