"""The interpreter of host programs, with Python functions in place of compiled segments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from graphopt.artifact.host_json import host_from_json, host_to_json
from graphopt.codegen.host_program import (
    HOST_OPERATORS,
    Block,
    Branch,
    CallSegment,
    HostCall,
    HostProgram,
    Loop,
    Scan,
    SegmentSpec,
    Trim,
    bucket,
)
from graphopt.codegen.plan import BoundInput, TensorSpec
from graphopt.errors import ArtifactError, GraphoptError, InputError
from graphopt.runtime.host_calls import OPERATORS
from graphopt.runtime.host_session import HostSession
from graphopt.runtime.profiler import Meter
from graphopt.runtime.stacking import Stack

Array = np.ndarray[Any, Any]

X = TensorSpec("x", "float32", (None,))
Y = TensorSpec("y", "float32", (None,))


class Python:
    """A segment that is a Python function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, arrays: Sequence[Any]) -> Iterable[Any]:
        self.calls += 1
        return (self.function(*arrays),)

    def metered(self, arrays: Sequence[Any], meter: Meter) -> Iterable[Any]:
        return self(arrays)


def program(
    body: Block,
    segments: int = 0,
    constants: Sequence[BoundInput] = (),
    extra: Sequence[TensorSpec] = (),
) -> HostProgram:
    spec = SegmentSpec((X,), (Y,), (), ("n",))
    return HostProgram((X, *extra), (Y,), tuple(constants), body, (spec,) * segments)


def adding() -> Python:
    return Python(lambda x: x + np.float32(1))


def counting(ranks: tuple[int, int] = (0, 0)) -> HostProgram:
    """y = x + 1, `n` times."""
    body = Block(("i", "c", "a"), (CallSegment(0, ("a",), ("b",)),), ("c", "b"))
    loop = Loop("loop", "n", "", ("x",), body, ranks, (), ("y",))
    extra = [TensorSpec("n", "int64", ())]
    return program(Block(("x", "n"), (loop,), ("y",)), 1, extra=extra)


def test_a_loop_calls_its_body() -> None:
    segment = adding()
    session = HostSession(counting(), [segment])
    for n in (0, 1, 5):
        x = np.zeros(3, np.float32)
        found = session.run({"x": x, "n": np.array(n)})["y"]
        np.testing.assert_array_equal(found, np.full(3, n, np.float32))
        assert not np.shares_memory(found, x)
    assert segment.calls == 6
    with pytest.raises(GraphoptError, match="trip count has 2 elements") as raised:
        session.run({"x": x, "n": np.array([1, 2])})
    assert raised.value.node == "loop"


def test_dead_values_are_let_go() -> None:
    """The body's intermediate result of one iteration is gone in the next."""
    import weakref

    alive: list[Any] = []

    class Owned(np.ndarray[Any, Any]):
        """An array that can be referred to weakly."""

    def first(x: Array) -> Array:
        assert all(ref() is None for ref in alive)
        made: Array = (x + 1).view(Owned)
        alive.append(weakref.ref(made))
        return made

    steps = (CallSegment(0, ("a",), ("m",)), CallSegment(1, ("m",), ("b",)))
    body = Block(("i", "c", "a"), steps, ("c", "b"))
    loop = Loop("loop", "n", "", ("x",), body, (0, 0), (), ("y",))
    whole = program(Block(("x", "n"), (loop,), ("y",)), 2, extra=[TensorSpec("n", "int64", ())])
    segments = [Python(first), Python(lambda m: np.asarray(m) * 1)]
    HostSession(whole, segments).run({"x": np.zeros(2, np.float32), "n": np.array(4)})
    assert len(alive) == 4


def test_a_failing_step_leaves_the_program_usable() -> None:
    def fail(x: Array) -> Array:
        if x[0] > 2:
            raise KeyboardInterrupt
        more: Array = x + np.float32(1)
        return more

    session = HostSession(counting(), [Python(fail)])
    with pytest.raises(KeyboardInterrupt):
        session.run({"x": np.zeros(1, np.float32), "n": np.array(9)})
    assert session.run({"x": np.zeros(1, np.float32), "n": np.array(2)})["y"] == [2]


def test_branches_and_views() -> None:
    then = Block((), (Trim("x", "n", 0, "t"),), ("t",))
    branch = Branch("if", "c", then, Block((), (), ("x",)), ("y",))
    extra = [TensorSpec("n", "int64", (1,)), TensorSpec("c", "bool", ())]
    session = HostSession(program(Block(("x", "n", "c"), (branch,), ("y",)), extra=extra), [])
    x = np.arange(5, dtype=np.float32)
    for flag, expected in ((True, x[:2]), (False, x)):
        found = session.run({"x": x, "n": np.array([2]), "c": np.array(flag)})["y"]
        np.testing.assert_array_equal(found, expected)
        assert found.base is None, "a copy: the caller's array is not handed out again"


def test_results_of_all_iterations_are_stacked() -> None:
    spec = TensorSpec("r", "float32", (2,))
    stack = Stack(spec, None, "n")
    assert stack.result().shape == (0, 2)
    rows = [np.full(2, k, np.float32) for k in range(40)]
    for row in rows:
        stack.add(row)
    np.testing.assert_array_equal(stack.result(), rows)
    with pytest.raises(GraphoptError, match="different shapes"):
        stack.add(np.zeros(3, np.float32))


def call(operator: str, *values: Any, **attributes: int) -> Any:
    return OPERATORS[operator](list(values), attributes)[0]


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def test_every_operator_is_there() -> None:
    assert set(OPERATORS) == HOST_OPERATORS


@pytest.mark.parametrize("step", [1, 2, -1, -3])
@pytest.mark.parametrize("start", [-9, -2, 0, 3, 9, 2**62])
@pytest.mark.parametrize("end", [-(2**62), -3, 0, 4, 2**62])
def test_slices_clamp_as_onnx_says(start: int, end: int, step: int) -> None:
    """Starts are clamped to 0 … size forwards and 0 … size − 1 backwards, ends to −1 … size."""
    size = 5
    first = start + size if start < 0 else start
    last = end + size if end < 0 else end
    first = min(max(first, 0), size if step > 0 else size - 1)
    wanted = [k for k in range(first, size if step > 0 else -1, step) if (last - k) * step > 0]
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    found = call("Slice", x, ints(start), ints(end), ints(1), ints(step))
    np.testing.assert_array_equal(found, x[:, wanted])


def test_lists() -> None:
    a, b, c = (np.full(2, k, np.float32) for k in range(3))
    items = [a, b]
    assert call("SequenceInsert", items, c)[2] is c
    assert call("SequenceInsert", items, c, ints(0))[0] is c
    assert call("SequenceInsert", items, c, ints(-1))[1] is c
    assert len(items) == 2, "sequences are values"
    assert call("SequenceErase", items)[0] is a
    assert call("SequenceErase", items, ints(0))[0] is b
    assert call("SequenceAt", items, ints(-1)) is b
    assert call("SequenceLength", items) == 2
    for wrong in (3, -4):
        with pytest.raises(GraphoptError, match=f"position {wrong}"):
            call("SequenceAt", items, ints(wrong))
    assert call("ConcatFromSequence", items, axis=0).shape == (4,)
    assert call("ConcatFromSequence", items, axis=-1, new_axis=1).shape == (2, 2)
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert [p.shape for p in call("SplitToSequence", x, np.array(2), axis=1)] == [
        (2, 2),
        (2, 2),
        (2, 1),
    ]
    assert [p.shape for p in call("SplitToSequence", x, ints(4, 1), axis=-1)] == [(2, 4), (2, 1)]
    assert [p.shape for p in call("SplitToSequence", x, axis=1, keepdims=0)] == [(2,)] * 5
    with pytest.raises(GraphoptError, match="do not make up"):
        call("SplitToSequence", x, ints(4, 2), axis=1)
    assert not call("OptionalHasElement")
    with pytest.raises(GraphoptError, match="no element"):
        call("OptionalGetElement", None)


def test_buckets_hold_the_rows() -> None:
    for limit in (0, 1, 5, 100):
        for rows in range(min(limit or 300, 300) + 1):
            size = bucket(rows, limit)
            assert rows <= size
            assert size <= (limit or size)
    assert len({bucket(rows, 0) for rows in range(1025)}) < 10


def test_wrong_inputs_name_what_is_expected() -> None:
    session = HostSession(counting(), [adding()])
    with pytest.raises(
        InputError, match=r"'x' has the wrong type; expected float32\[\?\].*float64"
    ):
        session.run({"x": np.zeros(2), "n": np.array(1)})


def everything() -> HostProgram:
    """A program with a step of each kind."""
    loop = counting().body.steps[0]
    scan = Scan(
        "scan", False, "", ("x",), ("x",), (0,), (True,),
        Block(("h", "u"), (), ("h", "u")), (0,), (False,), (Y,), ("", "z"),
    )  # fmt: skip
    then = Block((), (Trim("y0", "one", 0, "t"),), ("t",))
    branch = Branch("if", "flag", then, Block((), (), ("y0",)), ("y1",))
    listed = HostCall("cat", "Concat", ("y1", "z"), ("y2",), (("axis", 0),))
    assert isinstance(loop, Loop)
    steps = (dataclasses.replace(loop, outputs=("y0",)), scan, branch, listed)
    constants = (BoundInput("one", "int64", (1,), (1,)), BoundInput("flag", "bool", (), (1,)))
    extra = [TensorSpec("n", "int64", ())]
    return program(Block(("x", "n"), steps, ("y2",)), 1, constants, extra)


def test_json_gives_the_program_back() -> None:
    whole = everything()
    document = json.loads(json.dumps(host_to_json(whole)))
    assert host_from_json(document, "$") == whole
    x = np.arange(3, dtype=np.float32)
    found = HostSession(whole, [adding()]).run({"x": x, "n": np.array(2)})["y"]
    np.testing.assert_array_equal(found, [2, 2, 1, 0])


def damaged(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(host_to_json(everything())))
    change(document)
    return document


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown value": (
        lambda d: d["body"]["steps"][3].update(inputs=["nowhere"]),
        "no value 'nowhere'",
    ),
    "value of a body": (lambda d: d["body"]["steps"][3].update(inputs=["b"]), "no value 'b'"),
    "defined twice": (lambda d: d["body"]["steps"][3].update(outputs=["y1"]), "defined twice"),
    "operator": (lambda d: d["body"]["steps"][3].update(operator="Exp"), "unknown operator"),
    "step": (lambda d: d["body"]["steps"][3].update(step="jump"), "no step"),
    "segment": (
        lambda d: d["body"]["steps"][0]["body"]["steps"][0].update(segment=1),
        "outside 0",
    ),
    "arguments": (
        lambda d: d["body"]["steps"][0]["body"]["steps"][0].update(inputs=["a", "a"]),
        "does not fit the segment",
    ),
    "parameters": (
        lambda d: d["body"]["steps"][0].update(initial=["x", "x"]),
        "do not fit the loop",
    ),
    "axes": (lambda d: d["body"]["steps"][1].update(axes=[]), "one for each scanned"),
    "branch": (
        lambda d: d["body"]["steps"][2].update(outputs=["p", "q"]),
        "do not fit its outputs",
    ),
    "results": (lambda d: d["body"].update(results=[]), "does not fit the inputs and outputs"),
    "more": (lambda d: d["body"]["steps"][0].update(more=1), "unknown 'more'"),
    "rows": (lambda d: d["segments"][0].update(row_inputs=[1], row_outputs=[0]), "axes do not fit"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_programs_are_refused(case: str) -> None:
    change, words = DAMAGE[case]
    with pytest.raises(ArtifactError, match=words):
        host_from_json(damaged(change), "$")
