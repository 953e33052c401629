"""One model, several input shapes and values: which program fits, and making each only once."""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from graphopt.codegen.plan import BoundInput, TensorSpec
from graphopt.errors import InputError
from graphopt.runtime.memory import numpy_dtype

ShapeKey: TypeAlias = tuple[tuple[int, ...], ...]
"""The shapes of all inputs, in the model's order."""

MAX_SPECIALISATIONS = 16
"""Programs kept for inputs seen in calls; those asked for when compiling come on top."""

MAX_VALUES = 4096
"""Elements of an input whose value is compiled in; more is data, not a parameter."""


class Key(NamedTuple):
    """What a program is specialised for.

    shapes: of all inputs, in the model's order. values: of those inputs whose values are compiled
    in, in the model's order, each flattened in row-major order; floats by their bit patterns.
    """

    shapes: ShapeKey
    values: tuple[tuple[int, ...], ...] = ()

    def bound(self, specs: Sequence[TensorSpec], names: Sequence[str]) -> tuple[BoundInput, ...]:
        """The compiled-in inputs `names`, given all inputs' `specs`."""
        places = {spec.name: i for i, spec in enumerate(specs)}
        return tuple(
            BoundInput(name, specs[places[name]].dtype, self.shapes[places[name]], values)
            for name, values in zip(names, self.values, strict=True)
        )


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class OnceCache(Generic[K, V]):
    """A bounded cache, least recently used out first, that makes each value once.

    Threads that ask for a value while another makes it wait for that one. A failure is raised in
    all of them and forgotten, so the next one to ask tries again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, Future[V]] = OrderedDict()
        self._pinned: set[K] = set()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V], pin: bool = False) -> V:
        """The value of `key`, from `make()` if there is none yet; a pinned one is never dropped."""
        while True:
            with self._lock:
                future = self._entries.get(key)
                first = future is None
                if future is None:
                    future = self._entries[key] = Future()
                    self._drop_oldest()
                self._entries.move_to_end(key)
                if pin:
                    self._pinned.add(key)
            if first:
                return self._make(key, future, make)
            try:
                return future.result()
            except CancelledError:
                continue  # whoever made it was interrupted: our turn

    def items(self) -> list[tuple[K, V]]:
        """What is there now, least recently used first."""
        with self._lock:
            done = [(key, future) for key, future in self._entries.items() if future.done()]
        return [(key, future.result()) for key, future in done]

    def _make(self, key: K, future: Future[V], make: Callable[[], V]) -> V:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._entries[key]
                self._pinned.discard(key)
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()
            raise
        future.set_result(value)
        return value

    def _drop_oldest(self) -> None:
        loose = [k for k, f in self._entries.items() if f.done() and k not in self._pinned]
        for key in loose[: max(0, len(self._entries) - self._limit)]:
            del self._entries[key]


def key_of(inputs: Mapping[str, Any], specs: Sequence[TensorSpec], bound: Sequence[str]) -> Key:
    """The specialisation that `inputs` need; the values of the inputs `bound` belong to it.

    Raises:
        InputError: an input is missing or unknown, or a value in `bound` has the wrong type.
    """
    shapes = shape_key(inputs, specs)
    if not bound:
        return Key(shapes)
    return Key(
        shapes, tuple(_values(inputs[spec.name], spec) for spec in specs if spec.name in bound)
    )


def unbound(inputs: Mapping[str, Any], bound: Sequence[str]) -> Mapping[str, Any]:
    """The inputs that a program takes, without those compiled in."""
    return {name: value for name, value in inputs.items() if name not in bound} if bound else inputs


def _values(value: Any, spec: TensorSpec) -> tuple[int, ...]:
    array, dtype = np.asarray(value), numpy_dtype(spec.dtype)
    # Python's own numbers have no type of their own to be wrong about.
    if array.dtype != dtype and isinstance(value, (int, float, list, tuple)):
        if array.dtype.kind in "iub":
            fitting = array.astype(dtype)
            array = fitting if (fitting == array).all() else array
        elif array.dtype.kind == dtype.kind:
            array = array.astype(dtype)
    if array.dtype != dtype:
        raise InputError(
            "run",
            f"input {spec.name!r} has the wrong type; expected {dtype}, got {array.dtype}: "
            f"use array.astype({spec.dtype!r}).",
        )
    if array.size > MAX_VALUES:
        raise InputError(
            "run",
            f"input {spec.name!r} has {array.size} elements, but it acts as a shape, an axis, a "
            f"count or a mode; at most {MAX_VALUES} can be compiled in.",
        )
    return values_of(array)


def values_of(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """An array's elements as a BoundInput keeps them: whole numbers, or the bits of floats."""
    if array.dtype.kind == "f":
        array = np.ascontiguousarray(array).view(f"uint{8 * array.dtype.itemsize}")
    return tuple(int(item) for item in array.ravel().tolist())


def shape_key(inputs: Mapping[str, Any], specs: Sequence[TensorSpec]) -> ShapeKey:
    """The shapes of `inputs` in the order of `specs`.

    Raises:
        InputError: an input is missing, or there is one that the model does not have.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            "run", f"inputs must be a dict of arrays by name, not {type(inputs).__name__}."
        )
    names = [spec.name for spec in specs]
    for name in inputs:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            raise InputError(
                "run",
                f"the model has no input named {name!r}.",
                hint=f"did you mean {close[0]!r}?" if close else f"its inputs: {', '.join(names)}.",
            )
    missing = [name for name in names if name not in inputs]
    if missing:
        raise InputError("run", f"no value is given for input {', '.join(map(repr, missing))}.")
    return tuple(np.shape(inputs[s.name]) if s.kind == "tensor" else () for s in specs)


def only_input(value: Any, specs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """`value` as the model's inputs: a dict already, or the array of the only input.

    Raises:
        InputError: one array for a model with several inputs.
    """
    if isinstance(value, Mapping):
        return value
    if len(specs) != 1:
        raise InputError(
            "run",
            f"one array is given, but the model has {len(specs)} inputs.",
            hint=f"give a dict with {', '.join(repr(spec.name) for spec in specs)}.",
        )
    return {specs[0].name: value}


def merge_specs(alternatives: Sequence[tuple[TensorSpec, ...]]) -> tuple[TensorSpec, ...]:
    """What the specialisations' tensors have in common: None for a dimension where they differ."""
    merged = []
    for specs in zip(*alternatives, strict=True):
        shapes = [spec.shape for spec in specs]
        if len({len(shape) for shape in shapes}) != 1:
            merged.append(replace(specs[0], shape=()))
            continue
        dims = tuple(d[0] if len(set(d)) == 1 else None for d in zip(*shapes, strict=True))
        merged.append(replace(specs[0], shape=dims))
    return tuple(merged)


def describe(key: Key, specs: Sequence[TensorSpec], bound: Sequence[str] = ()) -> str:
    """A specialisation in words: "x=1,3,224,224 mask=1,128", "x=1,512 with rate = 16000"."""
    words = " ".join(
        f"{spec.name}={','.join(map(str, shape))}"
        for spec, shape in zip(specs, key.shapes, strict=True)
        if spec.name not in bound
    )
    values = ", ".join(f"{b.name} = {show_value(b)}" for b in key.bound(specs, bound))
    return f"{words} with {values}" if words and values else words or values


def show_value(bound: BoundInput) -> str:
    """A compiled-in value in words: 16000, or [1, 2]."""
    return str(value_of(bound).tolist())


def value_of(bound: BoundInput) -> np.ndarray[Any, Any]:
    """A compiled-in value as the array that a user would give."""
    dtype = numpy_dtype(bound.dtype)
    kept = np.dtype(f"uint{8 * dtype.itemsize}") if dtype.kind == "f" else dtype
    return np.array(bound.values, kept).view(dtype).reshape(bound.shape)
