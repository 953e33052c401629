"""One session, one caller: values, borrowed and copied inputs, fresh and given results, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_program import toy_code, toy_expected, toy_inputs, toy_plan, toy_weights

from graphopt.codegen.plan import TensorSpec
from graphopt.errors import GraphoptError, InputError, OptionError
from graphopt.runtime.binding import InputBinder
from graphopt.runtime.library import open_module
from graphopt.runtime.memory import aligned_empty
from graphopt.runtime.session import Session
from graphopt.runtime.workspace import Workspace

N = 1000
NewSession = Callable[..., Session]


def same(results: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(results) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(results[name], value)
        assert results[name].dtype == value.dtype


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_the_number_of_threads(
    new_session: NewSession, threads: int
) -> None:
    session = new_session(threads=threads)
    for seed in range(20):
        same(session.run(toy_inputs(seed)), toy_expected(toy_inputs(seed)))


def test_fewer_threads_than_compiled_for_are_used_with_a_warning(
    new_session: NewSession, caplog: pytest.LogCaptureFixture
) -> None:
    session = new_session(threads=3, use=2)
    assert session.threads == 2
    assert "compiled and tuned for 3 threads" in caplog.text
    same(session.run(toy_inputs(1)), toy_expected(toy_inputs(1)))


def test_more_threads_than_compiled_for_are_not_used(new_session: NewSession) -> None:
    session = new_session(threads=2, use=8)  # run() wakes no more than plan.threads
    assert session.threads == 2
    same(session.run(toy_inputs(1)), toy_expected(toy_inputs(1)))


def variants(x: np.ndarray[Any, Any], folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """x in all sorts of memory."""
    aligned = aligned_empty(x.shape, x.dtype, x.nbytes)
    aligned[:] = x
    unaligned = aligned_empty((x.size + 1,), x.dtype, x.nbytes + 4)[1:]
    unaligned[:] = x
    byte = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype)  # not even aligned for a float
    byte[:] = x
    strided = np.repeat(x, 3)[::3]
    backward = x[::-1].copy()[::-1]
    read_only = x.copy()
    read_only.flags.writeable = False
    mapped = np.memmap(folder / "x", x.dtype, "w+", shape=x.shape)
    mapped[:] = x
    return {
        "aligned": aligned,
        "unaligned": unaligned,
        "byte": byte,
        "strided": strided,
        "backward": backward,
        "read_only": read_only,
        "frombuffer": np.frombuffer(x.tobytes(), x.dtype),
        "mapped": mapped,
    }


def test_inputs_may_lie_anywhere(new_session: NewSession, tmp_path: Path) -> None:
    session = new_session()
    inputs = toy_inputs(3)
    expected = toy_expected(inputs)
    for name, x in variants(inputs["x"], tmp_path).items():
        before = x.copy()
        results = session.run({"k": inputs["k"], "x": x})
        np.testing.assert_array_equal(results["y"], expected["y"], err_msg=name)
        np.testing.assert_array_equal(x, before, err_msg=name)


def test_aligned_inputs_are_borrowed_and_others_copied(tmp_path: Path) -> None:
    plan = toy_plan()
    binder, workspace = InputBinder(plan.inputs), Workspace(plan)
    inputs = toy_inputs(0)
    for name, x in variants(inputs["x"], tmp_path).items():
        place = binder.addresses({"x": x, "k": inputs["k"]}, workspace, {})[0]
        assert place % 64 == 0
        if name in ("aligned", "mapped"):
            assert place == x.ctypes.data
        elif name in ("unaligned", "byte", "strided", "backward"):
            staged = workspace.staging[0]
            assert staged is not None
            assert place == staged[1] == staged[0].ctypes.data


def test_a_broadcast_input_is_laid_out(new_session: NewSession) -> None:
    x = np.broadcast_to(np.float32(2), (N,))
    inputs = {"x": x, "k": np.array(1, np.int32)}
    same(new_session().run(inputs), toy_expected(inputs))


def test_results_are_fresh_aligned_and_the_callers_own(new_session: NewSession) -> None:
    session = new_session()
    first = session.run(toy_inputs(1))
    for array in first.values():
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
    kept = {name: array.copy() for name, array in first.items()}
    second = session.run(toy_inputs(2))
    same(first, kept)  # the second run left the first results alone
    for array in first.values():
        array[...] = -1  # and nothing inside reads them
    same(second, toy_expected(toy_inputs(2)))
    same(session.run(toy_inputs(2)), toy_expected(toy_inputs(2)))


def test_out_is_written_and_returned(new_session: NewSession) -> None:
    session = new_session()
    inputs = toy_inputs(4)
    expected = toy_expected(inputs)
    aligned = aligned_empty((N,), np.dtype(np.float32), 4 * N)
    for y in (aligned, np.empty(N + 1, np.float32)[1:], np.empty(2 * N, np.float32)[::2]):
        y[:] = -1
        s = np.empty(1, np.float32)
        results = session.run(inputs, out={"s": s, "y": y})
        assert results["y"] is y
        assert results["s"] is s
        same(results, expected)
    some = session.run(inputs, out={"y": aligned})
    assert some["y"] is aligned
    same(some, expected)


def test_out_may_overlap_inputs(new_session: NewSession) -> None:
    session = new_session()
    inputs = toy_inputs(5)
    expected = toy_expected(inputs)
    memory = aligned_empty((N + 16,), np.dtype(np.float32), 4 * N + 64)
    for x, y in ((memory[:N], memory[:N]), (memory[:N], memory[16:]), (memory[16:], memory[:N])):
        x[:] = inputs["x"]
        same(session.run({"x": x, "k": inputs["k"]}, out={"y": y}), expected)


def test_zero_elements(new_session: NewSession) -> None:
    session = new_session(n=0)
    inputs = {"x": np.empty(0, np.float32), "k": np.array(3, np.int32)}
    results = session.run(inputs, out={"y": np.empty(0, np.float32)})
    assert results["y"].shape == (0,)
    assert results["s"] == 0


def test_a_program_without_weights_needs_no_aligned_ones() -> None:
    inputs = {"x": np.empty(0, np.float32), "k": np.array(3, np.int32)}
    with Session(toy_plan(0), open_module(toy_code(0)), np.empty(0, np.uint8)) as session:
        assert session.run(inputs)["s"] == 0


def test_one_array_stands_for_one_input() -> None:
    binder = InputBinder((TensorSpec("x", "float16", (2, 3)),))
    x = np.ones((2, 3), np.float16)
    assert binder.check(x)["x"] is x


def test_a_near_miss_of_a_name_is_suggested() -> None:
    binder = InputBinder((TensorSpec("input_ids", "int64", (1,)),))
    with pytest.raises(InputError, match="did you mean 'input_ids'"):
        binder.check({"input_id": np.zeros(1, np.int64)})


def test_all_mistakes_are_listed_with_expected_and_got(new_session: NewSession) -> None:
    with pytest.raises(InputError) as caught:
        new_session().run({"X": np.zeros(3, np.float64), "k": np.zeros((1,), np.int64)})
    text = str(caught.value)
    assert "no input 'X'; inputs: 'x', 'k'" in text
    assert "input 'x' (float32[1000]) is missing" in text
    assert "input 'k' has the wrong type; expected int32[], got int64[1]" in text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(N + 1, np.float32), "wrong shape; expected float32[1000], got float32[1001]"),
        (np.zeros((1, N), np.float32), "got float32[1, 1000]"),
        (np.zeros(N, np.float64), "wrong type; expected float32[1000], got float64[1000]"),
        (np.zeros(N, ">f4"), "byte order"),
        (np.zeros(N, object), "Python objects"),
        (np.zeros(N, "U4"), "wrong type"),
        (np.ma.masked_array(np.zeros(N, np.float32)), "masked"),
        ([0.0] * N, "is a list, not an array"),
        (np.float32(1), "is a float32, not an array"),
        (None, "is a NoneType, not an array"),
    ],
)
def test_wrong_inputs(new_session: NewSession, value: Any, message: str) -> None:
    session = new_session()
    with pytest.raises(InputError) as caught:
        session.run({"x": value, "k": np.array(0, np.int32)})
    assert message in str(caught.value)
    same(session.run(toy_inputs(1)), toy_expected(toy_inputs(1)))


def test_inputs_of_the_wrong_kind(new_session: NewSession) -> None:
    session = new_session()
    with pytest.raises(InputError, match="there are 2 inputs"):
        session.run(np.zeros(N, np.float32))
    with pytest.raises(InputError, match="is missing"):
        session.run({})
    with pytest.raises(InputError, match="no input 3"):
        session.run({**toy_inputs(0), 3: np.zeros(1)})  # type: ignore[dict-item]


def test_wrong_out(new_session: NewSession) -> None:
    session = new_session()
    fixed = np.zeros(N, np.float32)
    fixed.flags.writeable = False
    both = np.zeros(N, np.float32)
    for out, message in (
        ({"z": both}, "no output 'z'"),
        ({"y": np.zeros(N, np.float64)}, "output 'y' has the wrong type"),
        ({"y": fixed}, "read-only"),
        ({"y": both, "s": both[5:6]}, "share memory"),
        (both, "out is a ndarray"),
    ):
        with pytest.raises(InputError) as caught:
            session.run(toy_inputs(0), out=out)  # type: ignore[arg-type]
        assert message in str(caught.value)


def test_a_closed_session_refuses(new_session: NewSession) -> None:
    session = new_session()
    session.run(toy_inputs(0))
    session.close()
    session.close()
    with pytest.raises(GraphoptError, match="closed"):
        session.run(toy_inputs(0))


def test_bad_arguments() -> None:
    module = open_module(toy_code(N))
    with pytest.raises(OptionError, match="threads is 0"):
        Session(toy_plan(), module, toy_weights(), 0)
    with pytest.raises(GraphoptError, match="weights of 3996 bytes"):
        Session(toy_plan(), module, toy_weights(N - 1))
    unaligned = np.zeros(4 * N + 128, np.uint8)
    start = -unaligned.ctypes.data % 64 + 4
    with pytest.raises(GraphoptError, match="aligned"):
        Session(toy_plan(), module, unaligned[start:])


def test_no_memory_for_the_workspace_is_an_error(new_session: NewSession) -> None:
    plan = toy_plan()
    huge = type(plan)(**{**plan.__dict__, "arena_bytes": 1 << 60})
    session = Session(huge, open_module(toy_code(N)), toy_weights())
    for _ in range(3):  # and it holds no worker afterwards
        with pytest.raises(GraphoptError, match="no memory"):
            session.run(toy_inputs(0))
