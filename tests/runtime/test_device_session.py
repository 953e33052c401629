"""Programs on an OpenCL device: results, threads, times, memory, and what can go wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_device_program import (
    ARGUMENTS,
    KERNELS,
    opencl_module,
    toy_device_code,
    toy_needs,
)
from toy_program import toy_expected, toy_inputs, toy_plan, toy_weights

from graphopt.codegen.plan import Buffer, Plan
from graphopt.errors import DeviceError, InputError
from graphopt.runtime.device import Device, open_device
from graphopt.runtime.device_errors import device_error
from graphopt.runtime.device_memory import DeviceWeights, largest_piece
from graphopt.runtime.device_session import DeviceSession
from graphopt.runtime.library import open_module
from graphopt.runtime.memory import address, aligned_zeros
from graphopt.runtime.opencl.devices import OpenclDevice
from graphopt.runtime.opencl.loader import load

N = 1000


@pytest.fixture
def device(opencl: tuple[OpenclDevice, ...]) -> Device:
    return open_device(toy_needs(), 1 << 20)


@pytest.fixture
def new_session(device: Device) -> Callable[..., DeviceSession]:
    """Makes sessions on a fresh module each."""

    def make(**code: Any) -> DeviceSession:
        module = open_module(toy_device_code(N, **code))
        return DeviceSession(toy_plan(N), module, toy_weights(N), device)

    return make


def assert_right(results: dict[str, Any], seed: int) -> None:
    for name, expected in toy_expected(toy_inputs(seed)).items():
        np.testing.assert_array_equal(results[name], expected)


def test_results_are_right_run_after_run(new_session: Callable[..., DeviceSession]) -> None:
    session = new_session()
    for seed in range(3):
        assert_right(session.run(toy_inputs(seed)), seed)
    inputs = toy_inputs(7)
    results = session.call([inputs["x"], inputs["k"]])
    assert results is not None
    assert_right(dict(zip(("y", "s"), results, strict=True)), 7)
    assert session.call([inputs["k"], inputs["x"]]) is None


def test_arrays_of_the_caller_are_read_and_written(
    new_session: Callable[..., DeviceSession],
) -> None:
    session = new_session()
    inputs = toy_inputs(1)
    wide = np.zeros((N, 2), np.float32)
    wide[:, 0] = inputs["x"]
    strided = np.zeros((N, 2), np.float32)[:, 1]
    given = {"x": wide[:, 0], "k": inputs["k"]}
    results = session.run(given, out={"y": strided})
    assert results["y"] is strided
    assert_right(results, 1)


def test_inputs_are_checked(new_session: Callable[..., DeviceSession]) -> None:
    inputs = toy_inputs(1)
    with pytest.raises(InputError, match="wrong type"):
        new_session().run({**inputs, "x": inputs["x"].astype(np.float64)})


def test_threads_do_not_disturb_each_other(new_session: Callable[..., DeviceSession]) -> None:
    session = new_session()
    wrong: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 40):
                assert_right(session.run(toy_inputs(seed)), seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_calls_are_timed_by_the_device(new_session: Callable[..., DeviceSession]) -> None:
    session = new_session()
    profile = session.profile(toy_inputs(1), repeats=4)
    assert [row.site for row in profile.rows] == ["scale#0", "mirror#0", "sum#0"]
    assert all(0 < row.seconds < profile.total_seconds for row in profile.rows)
    total = sum(row.seconds for row in profile.rows) + profile.outside_seconds
    assert total == pytest.approx(profile.total_seconds)
    # Nothing is recorded any more.
    assert_right(session.run(toy_inputs(2)), 2)
    assert session.device.recorded() == []


def test_a_fork_is_refused(new_session: Callable[..., DeviceSession]) -> None:
    session = new_session()
    session.run(toy_inputs(1))

    def again() -> None:
        session.run(toy_inputs(1))

    def anew() -> None:
        new_session()

    for attempt in (again, anew):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                attempt()
            except DeviceError as error:
                code = 0 if "fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"work_group": 1 << 20}, "work-groups of"),
        ({"local_bytes": 1 << 40}, "local memory"),
        ({"extensions": ("cl_graphopt_nothing",)}, "lacks cl_graphopt_nothing"),
        ({"alignment": 1}, "begin at multiples of"),
    ],
)
def test_a_device_that_offers_too_little_is_refused(
    opencl: tuple[OpenclDevice, ...], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DeviceError, match=reason) as caught:
        open_device(toy_needs(**changes), 1)
    assert all(device.name in caught.value.reason for device in opencl)


def test_the_device_it_was_made_for_comes_first(opencl: tuple[OpenclDevice, ...]) -> None:
    assert open_device(toy_needs(name=opencl[-1].name), 1).name == opencl[-1].name
    assert open_device(toy_needs(name="another"), 1).index == 0


def test_programs_larger_than_the_memory_are_refused(device: Device) -> None:
    plan = replace(toy_plan(N), arena_bytes=1 << 60)
    with pytest.raises(DeviceError, match=r"at most .* bytes at once"):
        open_device(toy_needs(), largest_piece(plan))
    with pytest.raises(DeviceError, match="no memory left"):
        device.allocate(1 << 60)


def test_work_groups_larger_than_the_device_allows_are_refused(
    new_session: Callable[..., DeviceSession],
) -> None:
    session = new_session(group=1 << 20)
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"scale has work-groups of 1048576 work-items"):
            session.run(toy_inputs(1))


def test_kernels_that_the_driver_refuses_are_named(
    new_session: Callable[..., DeviceSession],
) -> None:
    session = new_session(source=KERNELS.replace("a[i] + a", "a[i] ++ nothing + a"))
    with pytest.raises(DeviceError, match="building the kernel mirror: CL_BUILD_PROGRAM_FAILURE"):
        session.run(toy_inputs(1))


def test_what_a_runtime_says_is_put_into_words() -> None:
    lost = device_error("clFinish: CL_DEVICE_NOT_AVAILABLE", "gpu")
    assert "gpu was lost" in lost.reason
    assert "load the program again" in str(lost.hint)
    assert "no memory left" in device_error("cudaMalloc failed: out of memory", "gpu").reason
    assert "gpu failed: something" in device_error("something\n", "gpu").reason


def test_weights_that_overlap_share_memory(device: Device) -> None:
    step = max(4096, device_alignment())
    spans = [(0, 2 * step), (step, step), (4 * step, 100), (0, 2 * step)]
    plan = toy_plan(N)
    buffers = tuple(Buffer("weight", offset, nbytes) for offset, nbytes in spans)
    plan = Plan(plan.inputs, plan.outputs, buffers, (), 64, 5 * step, 1)
    weights = aligned_zeros(5 * step)
    weights[:] = np.random.default_rng(0).integers(0, 255, weights.size)
    places = DeviceWeights(device, plan, weights).places
    assert len(places) == 3
    for offset, nbytes in spans:
        place = places[offset, nbytes]
        found = np.zeros(nbytes, np.uint8)
        download(device, place, found)
        np.testing.assert_array_equal(found, weights[offset : offset + nbytes])


def test_parts_of_memory_begin_where_the_device_allows(device: Device) -> None:
    memory = device.allocate(1 << 16)
    if device_alignment() > 1:
        with pytest.raises(DeviceError, match="MISALIGNED"):
            device.view(memory, 1, 64)
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)[: 1 << 16].copy()
    device.check(device.transfer(memory, upload=True)(address(data)))
    offset = device_alignment() * 3
    found = np.zeros(64, np.uint8)
    download(device, device.view(memory, offset, 64), found)
    np.testing.assert_array_equal(found, data[offset : offset + 64])


def test_modules_that_are_cut_short_are_refused(opencl: tuple[OpenclDevice, ...]) -> None:
    whole = opencl_module(KERNELS, ARGUMENTS)
    read = load().get_global_func("ffi.Module.load_from_bytes.opencl")
    assert read(whole).implements_function("mirror")
    for size in range(0, len(whole), 7):
        with pytest.raises(RuntimeError):
            read(whole[:size])
    with pytest.raises(RuntimeError, match="format 'spirv'"):
        read(b"\x05" + bytes(7) + b"spirv" + whole[10:])


def device_alignment() -> int:
    from graphopt.runtime.opencl.devices import devices

    return devices()[0].base_align_bytes


def download(device: Device, place: Any, found: np.ndarray[Any, Any]) -> None:
    """Copy a piece of memory, or a view of one, to the host."""
    device.check(device.transfer(place, upload=False)(address(found)))
