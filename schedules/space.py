"""Candidates with a space: the kernel of default decisions, and how to make those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from schedules.interface import Candidate, Knob, Space

VERSION = 1
"""Of what decisions mean: changes where the same ones give a kernel of another speed."""


def divisors(number: int, most: int) -> tuple[int, ...]:
    """The divisors of `number` up to `most`."""
    return tuple(n for n in range(1, min(number, most) + 1) if number % n == 0)


def shares(total: int, most: int) -> tuple[int, ...]:
    """The sizes, up to `most`, of equal parts of `total`, in ascending order."""
    sizes = {-(-total // count) for count in range(1, total + 1)}
    return tuple(sorted(size for size in sizes if size <= most))


def tunable(
    knobs: Sequence[Knob],
    default: Mapping[str, int],
    make: Callable[[Mapping[str, int]], Candidate | None],
) -> Candidate:
    """The candidate of the decisions `default`, open to others.

    Args:
        default: a value per knob; a knob takes it although it may not be among its values.
        make: the candidate for a value of each knob, None where they do not fit together.
    """
    complete = tuple(
        replace(knob, values=tuple(sorted({*knob.values, default[knob.name]}))) for knob in knobs
    )

    def decided(values: Mapping[str, int]) -> Candidate | None:
        candidate = make(values)
        if candidate is None:
            return None
        chosen = tuple((knob.name, int(values[knob.name])) for knob in complete)
        return replace(candidate, decisions=chosen, space=space)

    space = Space(complete, decided)
    candidate = decided(default)
    assert candidate is not None, "the default decisions do not fit together"
    return candidate
