"""Fusion groups: what is absorbed, what must not be, and the order they come in."""

from __future__ import annotations

import numpy as np
from relax_graph import make_graph
from tvm import relax
from tvm.relax import op

from graphopt.lowering.groups import Alias, Group, form_groups
from graphopt.lowering.read import read_dataflow


def groups_of(inputs, body):
    dataflow = read_dataflow(make_graph(inputs, body))
    return dataflow, form_groups(dataflow)


def summary(entries):
    return [
        (e.workload.op.kind, [s.op for s in e.workload.epilogue.steps])
        if isinstance(e, Group)
        else "view"
        for e in entries
    ]


def weight(*shape):
    return relax.const(np.zeros(shape, np.float32))


def conv(builder, x, out, size=1):
    channels = int(x.ty.shape.values[1])
    padding = size // 2
    return builder.emit(op.nn.conv2d(x, weight(out, channels, size, size), padding=padding))


def test_bias_residual_and_relu_join_the_convolution():
    def body(b, x):
        first = b.emit(op.nn.relu(conv(b, x, 8)))
        second = b.emit(op.add(conv(b, first, 8), weight(1, 8, 1, 1)))
        return b.emit(op.nn.relu(b.emit(op.add(second, first))))

    _, entries = groups_of({"x": (1, 8, 6, 6)}, body)
    assert summary(entries) == [("conv2d", ["relu"]), ("conv2d", ["add", "add", "relu"])]
    last = entries[1]
    assert last.workload.epilogue.constant == (True, False)
    assert last.inputs[-1] == entries[0].outputs[0]
    assert len(last.nodes) == 4


def test_one_of_two_branches_takes_the_addition_and_comes_last():
    def body(b, x):
        left, right = conv(b, x, 8, 3), conv(b, x, 8)
        return b.emit(op.add(left, right))

    _, entries = groups_of({"x": (1, 4, 6, 6)}, body)
    assert summary(entries) == [("conv2d", []), ("conv2d", ["add"])]
    assert entries[1].inputs[-1] == entries[0].outputs[0]


def test_a_diamond_that_closes_is_one_group():
    def body(b, x):
        y = conv(b, x, 8)
        return b.emit(op.multiply(y, b.emit(op.sigmoid(y))))

    _, entries = groups_of({"x": (1, 8, 4, 4)}, body)
    assert summary(entries) == [("conv2d", ["sigmoid", "multiply"])]
    assert entries[0].workload.epilogue.steps[-1].args == (0, 1)


def test_a_value_with_another_reader_is_not_swallowed():
    def body(b, x):
        y = conv(b, x, 8)
        return [b.emit(op.nn.relu(y)), b.emit(op.mean(y, [2, 3], keepdims=True))]

    _, entries = groups_of({"x": (1, 8, 4, 4)}, body)
    assert sorted(kind for kind, _ in summary(entries)) == ["conv2d", "elementwise", "reduce"]


def test_a_graph_output_stays_visible():
    def body(b, x):
        y = conv(b, x, 8)
        return [y, b.emit(op.nn.relu(y))]

    _, entries = groups_of({"x": (1, 8, 4, 4)}, body)
    assert summary(entries) == [("conv2d", []), ("elementwise", ["relu"])]


def test_a_result_that_is_broadcast_up_is_not_absorbed():
    def body(b, x, y):
        pooled = b.emit(op.mean(x, [2, 3], keepdims=True))
        return b.emit(op.multiply(y, pooled))

    _, entries = groups_of({"x": (1, 8, 4, 4), "y": (1, 8, 4, 4)}, body)
    assert summary(entries) == [("reduce", []), ("elementwise", ["multiply"])]
    assert [sig.shape for sig in entries[1].workload.epilogue.operands] == [
        (1, 8, 4, 4),
        (1, 8, 1, 1),
    ]


def test_scalars_become_immediates_and_low_ranks_are_extended():
    def body(b, x, row):
        y = b.emit(op.add(x, relax.const(2.0, "float32")))
        return b.emit(op.multiply(y, row))

    _, entries = groups_of({"x": (2, 3, 4), "row": (4,)}, body)
    epilogue = entries[0].workload.epilogue
    assert [sig.shape for sig in epilogue.operands] == [(2, 3, 4), (1, 1, 4)]
    assert [s.op for s in epilogue.steps] == ["constant", "add", "multiply"]
    assert epilogue.steps[0].attr("value") == 2.0


def test_reshapes_are_views_and_splits_are_slices():
    def body(b, x):
        y = b.emit(op.reshape(x, (6, 4)))
        parts = b.emit(op.split(y, 2, axis=1))
        left = b.emit(relax.TupleGetItem(parts, 0))
        return b.emit(op.nn.relu(left))

    _, entries = groups_of({"x": (2, 3, 4)}, body)
    assert isinstance(entries[0], Alias)
    assert ("slice", ["relu"]) in summary(entries)


def test_equal_groups_have_equal_workloads_but_their_own_nodes():
    def body(b, x):
        y = b.emit(op.nn.relu(conv(b, x, 8)))
        return b.emit(op.nn.relu(conv(b, y, 8)))

    _, entries = groups_of({"x": (1, 8, 4, 4)}, body)
    assert entries[0].workload == entries[1].workload
    assert not set(entries[0].nodes) & set(entries[1].nodes)


def test_every_group_comes_after_what_it_reads():
    def body(b, x):
        a = conv(b, x, 8)
        c = conv(b, x, 8, 3)
        d = b.emit(op.add(a, c))
        e = conv(b, d, 8)
        return b.emit(op.add(b.emit(op.multiply(e, d)), d))

    dataflow, entries = groups_of({"x": (1, 8, 4, 4)}, body)
    known = {value for _, value in dataflow.inputs} | set(dataflow.constants)
    for entry in entries:
        reads = (entry.source,) if isinstance(entry, Alias) else entry.inputs
        assert set(reads) <= known
        known |= {entry.result} if isinstance(entry, Alias) else set(entry.outputs)
