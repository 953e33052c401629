"""Choosing a program by input shapes, and making each only once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from graphopt.codegen.plan import TensorSpec
from graphopt.errors import InputError
from graphopt.specialisations import (
    Key,
    OnceCache,
    describe,
    key_of,
    merge_specs,
    only_input,
    shape_key,
    unbound,
    value_of,
)

X = TensorSpec("x", "float32", (None, 3))
MASK = TensorSpec("mask", "int64", (None,))


def test_concurrent_first_calls_make_once() -> None:
    cache: OnceCache[str, object] = OnceCache(4)
    made = []
    start = threading.Barrier(8)

    def make() -> object:
        made.append(1)
        time.sleep(0.05)
        return object()

    def ask() -> object:
        start.wait()
        return cache.get("key", make)

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: ask(), range(8)))
    assert len(made) == 1
    assert len(set(map(id, values))) == 1


def test_a_failure_reaches_all_and_is_forgotten() -> None:
    cache: OnceCache[str, int] = OnceCache(4)
    start = threading.Barrier(3)

    def fail() -> int:
        time.sleep(0.05)
        raise ValueError("no")

    def ask() -> str:
        start.wait()
        try:
            cache.get("key", fail)
        except ValueError as error:
            return str(error)
        return "none"

    with ThreadPoolExecutor(3) as pool:
        assert [f.result() for f in [pool.submit(ask) for _ in range(3)]] == ["no"] * 3
    assert cache.get("key", lambda: 5) == 5


def test_whoever_waits_for_an_interrupted_maker_takes_over() -> None:
    cache: OnceCache[str, int] = OnceCache(4)
    begun, go = threading.Event(), threading.Event()

    def interrupted() -> int:
        begun.set()
        go.wait(10)
        raise KeyboardInterrupt

    def first() -> str:
        try:
            cache.get("key", interrupted)
        except KeyboardInterrupt:
            return "interrupted"
        return "none"

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert begun.wait(10)
        two = pool.submit(cache.get, "key", lambda: 7)
        time.sleep(0.05)
        go.set()
        assert one.result(10) == "interrupted"
        assert two.result(10) == 7


def test_the_least_recently_used_is_dropped_unless_pinned() -> None:
    cache: OnceCache[str, str] = OnceCache(3)
    cache.get("pinned", lambda: "p", pin=True)
    cache.get("a", lambda: "a")
    cache.get("b", lambda: "b")
    cache.get("a", lambda: "never made")
    cache.get("c", lambda: "c")
    assert [key for key, _ in cache.items()] == ["pinned", "a", "c"]


def test_shape_key_follows_the_models_order() -> None:
    inputs = {"mask": np.zeros(4, np.int64), "x": np.zeros((2, 3), np.float32)}
    assert shape_key(inputs, (X, MASK)) == ((2, 3), (4,))
    assert describe(Key(((2, 3), (4,))), (X, MASK)) == "x=2,3 mask=4"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": np.zeros(1), "msk": np.zeros(1)}, "did you mean 'mask'"),
        ({"x": np.zeros(1), "z": np.zeros(1)}, "its inputs: x, mask"),
        ({"x": np.zeros(1)}, "no value is given for input 'mask'"),
        (np.zeros(1), "must be a dict"),
    ],
)
def test_wrong_names_are_refused(inputs: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shape_key(inputs, (X, MASK))  # type: ignore[arg-type]


def test_one_array_for_one_input() -> None:
    array = np.zeros((1, 3))
    assert only_input(array, (X,)) == {"x": array}
    with pytest.raises(InputError, match="2 inputs"):
        only_input(array, (X, MASK))


def test_merged_specs_are_open_where_shapes_differ() -> None:
    one = (TensorSpec("x", "float32", (1, 3)), TensorSpec("y", "int8", (2,)))
    two = (TensorSpec("x", "float32", (8, 3)), TensorSpec("y", "int8", (2, 1)))
    assert merge_specs([one]) == one
    assert merge_specs([one, two]) == (X, TensorSpec("y", "int8", ()))


RATE = TensorSpec("rate", "int64", ())
FLAGS = TensorSpec("flags", "bool", (None,))


def test_values_belong_to_the_key() -> None:
    specs, bound = (FLAGS, X, RATE), ("flags", "rate")
    inputs = {
        "x": np.zeros((2, 3), np.float32),
        "rate": np.array(-5),
        "flags": np.array([True, False]),
    }
    key = key_of(inputs, specs, bound)
    assert key == Key(((2,), (2, 3), ()), ((1, 0), (-5,)))
    assert describe(key, specs, bound) == "x=2,3 with flags = [True, False], rate = -5"
    assert list(unbound(inputs, bound)) == ["x"]
    for each in key.bound(specs, bound):
        np.testing.assert_array_equal(value_of(each), inputs[each.name])
        assert value_of(each).dtype == inputs[each.name].dtype
    assert key_of({**inputs, "rate": -5}, specs, bound) == key
    assert key_of({**inputs, "rate": 6}, specs, bound) != key


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (np.array(1, np.int32), r"expected int64, got int32"),
        (1.5, "got float64"),
        (2**63, "got uint64"),
        (np.zeros(5000, np.int64), "at most 4096"),
    ],
)
def test_values_of_the_wrong_type_are_refused(rate: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        key_of({"rate": rate}, (RATE,), ("rate",))
