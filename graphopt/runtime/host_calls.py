"""Operators that a host program does itself: on lists, and on memory without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from graphopt.errors import GraphoptError

Attributes: TypeAlias = Mapping[str, int]
Operator: TypeAlias = Callable[[list[Any], Attributes], tuple[Any, ...]]


class HostCallError(GraphoptError):
    """An operator cannot do what the model asks for with these values."""


def number(value: Any, what: str) -> int:
    """The only element of a tensor, as a whole number or bool."""
    size = value.size if isinstance(value, np.ndarray) else None
    if size != 1:
        raise HostCallError("run", f"{what} has {size or 'no'} elements instead of one.")
    return int(value.item())


def _place(values: list[Any], length: int, what: str) -> int:
    index = number(values[0], "a position")
    if not -length <= index < length:
        raise HostCallError("run", f"position {index} is outside a {what} of {length}.")
    return index


def _sequence(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise HostCallError("run", "a sequence is needed, but the optional holds none.")
    return value


def _empty(_values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    return ([],)


def _construct(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    return (list(values),)


def _insert(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    items = list(_sequence(values[0]))
    if len(values) < 3 or values[2] is None:
        items.append(values[1])
        return (items,)
    index = number(values[2], "a position")
    if not -len(items) <= index <= len(items):
        raise HostCallError("run", f"position {index} is outside a sequence of {len(items)}.")
    items.insert(index, values[1])
    return (items,)


def _erase(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    items = list(_sequence(values[0]))
    given = len(values) > 1 and values[1] is not None
    if not given and not items:
        raise HostCallError("run", "there is nothing to erase from an empty sequence.")
    del items[_place(values[1:], len(items), "sequence") if given else -1]
    return (items,)


def _at(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    items = _sequence(values[0])
    return (items[_place(values[1:], len(items), "sequence")],)


def _length(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    return (np.array(len(_sequence(values[0])), np.int64),)


def _split_to_sequence(values: list[Any], attributes: Attributes) -> tuple[Any, ...]:
    whole, axis = values[0], attributes.get("axis", 0)
    size = whole.shape[axis]
    if len(values) < 2 or values[1] is None:
        if attributes.get("keepdims", 1):
            return (_cut(whole, axis, [1] * size),)
        return (list(np.moveaxis(whole, axis, 0)),)
    split = values[1]
    if split.ndim:
        return (_cut(whole, axis, _numbers(split)),)
    part = number(split, "split")
    if part < 1:
        raise HostCallError("run", f"a tensor cannot be split in parts of {part}.")
    return (_cut(whole, axis, [min(part, size - k) for k in range(0, size, part)]),)


def _cut(whole: Any, axis: int, sizes: list[int]) -> list[Any]:
    if sum(sizes) != whole.shape[axis] or any(size < 0 for size in sizes):
        raise HostCallError(
            "run", f"sizes {sizes} do not make up a dimension of {whole.shape[axis]}."
        )
    lead = (slice(None),) * (axis % whole.ndim)
    parts, start = [], 0
    for size in sizes:
        place = *lead, slice(start, start + size)
        parts.append(whole[place])
        start += size
    return parts


def _join(values: list[Any], attributes: Attributes) -> tuple[Any, ...]:
    items, axis = _sequence(values[0]), attributes["axis"]
    if not items:
        raise HostCallError("run", "an empty sequence cannot be joined to a tensor.")
    if attributes.get("new_axis", 0):
        return (_checked(lambda: np.stack(items, axis)),)
    return (_checked(lambda: np.concatenate(items, axis)),)


def _concat(values: list[Any], attributes: Attributes) -> tuple[Any, ...]:
    return (_checked(lambda: np.concatenate(values, attributes["axis"])),)


def _optional(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    return (values[0] if values else None,)


def _has_element(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    return (np.array(bool(values) and values[0] is not None),)


def _get_element(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    if values[0] is None:
        raise HostCallError("run", "the optional has no element.")
    return (values[0],)


def _slice(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    whole, starts, ends = values[0], _numbers(values[1]), _numbers(values[2])
    given = [*values[3:], None, None]
    axes = range(len(starts)) if given[0] is None else _numbers(given[0])
    steps = [1] * len(starts) if given[1] is None else _numbers(given[1])
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise HostCallError("run", "starts, ends, axes and steps are not equally many.")
    index = [slice(None)] * whole.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not -whole.ndim <= axis < whole.ndim or step == 0:
            raise HostCallError("run", f"axis {axis} with step {step} is none of {whole.shape}.")
        size = whole.shape[axis]
        start, end = (v + size if v < 0 else v for v in (start, end))
        if step > 0:
            index[axis] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:
            start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
            index[axis] = slice(start, None if end < 0 else end, step)
            if size == 0:
                index[axis] = slice(0, 0)
    return (whole[tuple(index)],)


def _reshape(values: list[Any], attributes: Attributes) -> tuple[Any, ...]:
    whole, shape = values[0], _numbers(values[1])
    if not attributes.get("allowzero", 0):
        if any(d == 0 and i >= whole.ndim for i, d in enumerate(shape)):
            raise HostCallError("run", f"shape {shape} refers to more than {whole.ndim} axes.")
        shape = [whole.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return (_checked(lambda: whole.reshape(shape)),)


def _squeeze(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    axes = tuple(_numbers(values[1])) if len(values) > 1 and values[1] is not None else None
    return (_checked(lambda: values[0].squeeze(axes)),)


def _unsqueeze(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    return (_checked(lambda: np.expand_dims(values[0], tuple(_numbers(values[1])))),)


def _split(values: list[Any], attributes: Attributes) -> tuple[Any, ...]:
    return tuple(_cut(values[0], attributes.get("axis", 0), _numbers(values[1])))


def _expand(values: list[Any], _attributes: Attributes) -> tuple[Any, ...]:
    whole, shape = values[0], tuple(_numbers(values[1]))
    wanted = _checked(lambda: np.broadcast_shapes(whole.shape, shape))
    return (np.broadcast_to(whole, wanted),)


def _numbers(value: Any) -> list[int]:
    """The elements of a parameter that is a list of whole numbers."""
    if value.ndim > 1:
        raise HostCallError("run", f"a parameter of shape {value.shape} is not a list of numbers.")
    return [int(number) for number in value.ravel()]


def _checked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ValueError as error:
        raise HostCallError("run", f"{error}.") from error


OPERATORS: Mapping[str, Operator] = {
    "Concat": _concat,
    "ConcatFromSequence": _join,
    "Expand": _expand,
    "Optional": _optional,
    "OptionalGetElement": _get_element,
    "OptionalHasElement": _has_element,
    "Reshape": _reshape,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "Slice": _slice,
    "Split": _split,
    "SplitToSequence": _split_to_sequence,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
"""By ONNX name: inputs (None where omitted) and attributes → outputs, which may be views."""
