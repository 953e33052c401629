"""Operators with several outputs, their own kernels and those of TVM's legalisation."""

from __future__ import annotations

import numpy as np
import pytest
from lowering_run import run
from relax_graph import make_graph
from tvm import relax
from tvm.relax import op

from graphopt.errors import CompileError
from graphopt.ops.ordering import scan, topk

X = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)


def test_both_outputs_of_one_kernel_are_read_further_on():
    def body(b, x):
        both = b.emit(topk(x, 4, 1, True))
        values, positions = (b.emit(relax.TupleGetItem(both, i)) for i in range(2))
        return [b.emit(op.nn.relu(values)), positions, b.emit(op.astype(positions, "float32"))]

    result, emitted = run(make_graph({"x": X.shape}, body), {"x": X})
    order = np.argsort(-X, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(result["out0"], np.maximum(np.take_along_axis(X, order, 1), 0))
    np.testing.assert_array_equal(result["out1"], order)
    np.testing.assert_array_equal(result["out2"], order.astype(np.float32))
    assert [call.kernel.split("_")[0] for call in emitted.plan.calls].count("topk") == 1


@pytest.mark.parametrize("which", [0, 1])
def test_an_output_that_no_one_reads_is_written_to_scratch(which):
    def body(b, x):
        return b.emit(relax.TupleGetItem(b.emit(topk(x, 2, 0, False)), which))

    result, _ = run(make_graph({"x": X.shape}, body), {"x": X})
    order = np.argsort(X, axis=0, kind="stable")[:2]
    wanted = order if which else np.take_along_axis(X, order, 0)
    np.testing.assert_array_equal(result["out0"], wanted)


def test_no_epilogue_is_given_to_a_kernel_that_takes_none():
    def body(b, x):
        total = b.emit(scan(x, "sum", 1, exclusive=False, reverse=False))
        return b.emit(op.nn.relu(total))

    result, emitted = run(make_graph({"x": X.shape}, body), {"x": X})
    np.testing.assert_allclose(result["out0"], np.maximum(np.cumsum(X, 1), 0), atol=1e-5)
    assert len(emitted.plan.calls) == 2


def test_a_legalised_function_whose_buffers_allow_for_an_offset():
    indices = np.array([[0, 2], [1, 0], [2, 2]])

    def body(b, x):
        updates = b.emit(op.strided_slice(x, [1], [3], [5]))
        return b.emit(op.scatter_elements(x, relax.const(indices), updates, 1, "add"))

    result, _ = run(make_graph({"x": X.shape}, body), {"x": X})
    expected = X.copy()
    for row, column in np.ndindex(3, 2):
        expected[row, indices[row, column]] += X[row, 3 + column]
    np.testing.assert_allclose(result["out0"], expected, rtol=1e-6)


def test_an_operator_that_tvm_makes_by_a_library_call_is_refused_by_node():
    with pytest.raises(CompileError, match=r"no kernel for operator relax\.topk") as caught:
        run(
            make_graph({"x": X.shape}, lambda b, x: b.emit(op.topk(x, 2, ret_type="values"))),
            {"x": X},
        )
    assert "node_" in str(caught.value)
