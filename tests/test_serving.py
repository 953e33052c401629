"""A compiled network under many callers, and in forked processes."""

from __future__ import annotations

import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt

CALLERS, RUNS, THREADS = 8, 1000, 2


@pytest.fixture(scope="module")
def program():
    """A network whose convolutions are large enough to be shared among workers."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (32, 3, 3, 3), "w1": (32, 32, 3, 3), "w2": (10, 32, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 10, name)
        for name, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 40, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10, 1, 1])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return graphopt.compile(model, threads=THREADS)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return [rng.standard_normal((1, 3, 40, 40)).astype(np.float32) for _ in range(CALLERS)]


def test_many_callers_get_exact_results_from_a_bounded_team(program, images):
    expected = [program.run({"x": image})["y"] for image in images]
    assert len({e.tobytes() for e in expected}) == CALLERS
    before = psutil.Process().num_threads()
    most = []

    def call(index):
        for turn in range(RUNS):
            which = (index + turn) % CALLERS
            found = program.run({"x": images[which]})["y"]
            assert np.array_equal(found, expected[which])
            if turn % 100 == 0:
                most.append(psutil.Process().num_threads())

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, range(CALLERS)))
    assert max(most) <= before + CALLERS + THREADS


def test_forked_children_run_and_the_parent_still_does(program, images):
    expected = program.run({"x": images[0]})["y"]
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(20):
                    status = int(not np.array_equal(program.run({"x": images[0]})["y"], expected))
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0, 0, 0]
    assert np.array_equal(program.run({"x": images[0]})["y"], expected)


def test_a_run_that_is_shared_equals_one_that_is_not(program, images):
    """Queued callers are given one worker each; that must not change a bit."""
    alone = program.run({"x": images[0]})["y"]
    start = threading.Barrier(4)
    found = []

    def call():
        start.wait()
        found.extend(program.run({"x": images[0]})["y"] for _ in range(50))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 200
    assert all(np.array_equal(y, alone) for y in found)
