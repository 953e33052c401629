"""Concatenations written by their parts' makers and slices read in place: when, and only when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowering_run import run
from relax_graph import make_graph
from tvm import relax
from tvm.relax import op

from graphopt.lowering.sharing import part_offsets, piece_offset
from graphopt.lowering.weights import blocked
from schedules.interface import PLAIN, Layout, Op, TensorSig, Workload


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def kinds(emitted):
    """The kernels' kinds of all calls, in order."""
    return [call.kernel.rsplit("_", 1)[0] for call in emitted.plan.calls]


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def anchored(b, x):
    """An operation that nothing fuses with: a softmax of the last axis."""
    return b.emit(op.nn.softmax(x, -1))


def check(inputs, body, reference, threads=2):
    """Lower, run and compare; returns what lowering emitted. Every node must have a call."""
    graph = make_graph({name: x.shape for name, x in inputs.items()}, body)
    results, emitted = run(graph, inputs, threads)
    expected = reference(*inputs.values())
    expected = expected if isinstance(expected, list) else [expected]
    for index, want in enumerate(expected):
        have = results[f"out{index}"]
        assert have.shape == want.shape
        assert np.abs(have - want).max() <= 1e-5 * max(np.abs(want).max(), 1e-9), index
    assert [use.nodes for use in emitted.uses] == [call.nodes for call in emitted.plan.calls]
    return emitted


def nodes(emitted):
    return {node for call in emitted.plan.calls for node in call.nodes}


def conv(b, x, w):
    return b.emit(op.nn.conv2d(x, relax.const(w)))


def conv_reference(x, w):
    return np.einsum("nchw,oc->nohw", x.astype(np.float64), w[:, :, 0, 0].astype(np.float64))


# --- concatenations ------------------------------------------------------------------------------


def test_convolutions_write_into_the_concatenation():
    """The fire module: squeeze, two expansions side by side, and the next squeeze."""
    first, left, right, last = (random(*s, 1, 1) for s in [(32, 3), (64, 32), (64, 32), (16, 128)])

    def body(b, x):
        y = conv(b, x, first)
        return conv(b, b.emit(op.concat([conv(b, y, left), conv(b, y, right)], 1)), last)

    def reference(x):
        y = conv_reference(x, first)
        parts = [conv_reference(y, w) for w in (left, right)]
        return conv_reference(np.concatenate(parts, 1), last)

    emitted = check({"x": random(1, 3, 14, 14)}, body, reference)
    assert "concat" not in kinds(emitted)
    assert len(nodes(emitted)) == 5
    plan = emitted.plan
    convolutions = [call for call in plan.calls if call.kernel.startswith("conv2d")]
    first, *expansions, last = convolutions
    [concat] = set(expansions[0].nodes) & set(expansions[1].nodes)  # they compute it together
    assert concat not in first.nodes + last.nodes
    parts = [plan.buffers[call.args[-1]] for call in expansions]
    whole = plan.buffers[last.args[0]]
    assert sorted(part.offset - whole.offset for part in parts) == [0, parts[0].nbytes]
    assert sum(part.nbytes for part in parts) == whole.nbytes


@pytest.mark.parametrize(("shape", "axis"), [((3, 16), 0), ((1, 4, 8), 1), ((1, 1, 32), 2)])
def test_row_major_parts(shape, axis):
    def body(b, x, y):
        joined = b.emit(op.concat([anchored(b, x), anchored(b, y)], axis))
        return anchored(b, joined)

    def reference(x, y):
        return softmax(np.concatenate([softmax(x), softmax(y)], axis))

    inputs = {"x": random(*shape), "y": random(*shape, seed=1)}
    assert "concat" not in kinds(check(inputs, body, reference))


def test_parts_used_elsewhere_before_and_after():
    """All parts and the whole stay intact while others are computed."""

    def body(b, x):
        y = anchored(b, x)
        z = anchored(b, y)
        joined = b.emit(op.concat([y, z], 0))
        t = anchored(b, z)
        for _ in range(4):
            t = anchored(b, t)
        late = b.emit(op.add(b.emit(op.multiply(y, t)), z))
        return [anchored(b, joined), b.emit(op.sum(late, [0]))]

    def reference(x):
        y = softmax(x)
        z = softmax(y)
        t = softmax(z)
        for _ in range(4):
            t = softmax(t)
        return [softmax(np.concatenate([y, z])), (y * t + z).sum(0)]

    assert "concat" not in kinds(check({"x": random(4, 16)}, body, reference))


def test_concatenation_of_concatenations():
    def body(b, x):
        y = anchored(b, x)
        joined = y
        for _ in range(3):  # as dense blocks grow
            y = anchored(b, b.emit(op.strided_slice(joined, [0], [0], [2])))
            joined = b.emit(op.concat([joined, y], 0))
        return anchored(b, joined)

    def reference(x):
        joined = softmax(x)
        for _ in range(3):
            joined = np.concatenate([joined, softmax(joined[:2])])
        return softmax(joined)

    emitted = check({"x": random(4, 16)}, body, reference)
    assert set(kinds(emitted)) == {"softmax"}
    assert len(nodes(emitted)) == 2 + 3 * 3  # slices and concatenations are accounted for


def test_one_part_that_lies_elsewhere_is_copied():
    """The same tensor twice; an input; a constant; a tensor in another concatenation."""
    constant = random(2, 16, seed=5)

    def body(b, x):
        y, z = anchored(b, x), anchored(b, b.emit(op.nn.relu(x)))
        whole = [
            b.emit(op.concat([y, y], 0)),
            b.emit(op.concat([x, z], 0)),
            b.emit(op.concat([anchored(b, z), relax.const(constant)], 0)),
            b.emit(op.concat([anchored(b, y), z], 0)),
        ]
        return [anchored(b, w) for w in whole]

    def reference(x):
        y, z = softmax(x), softmax(np.maximum(x, 0))
        whole = [(y, y), (x, z), (softmax(z), constant), (softmax(y), z)]
        return [softmax(np.concatenate(w)) for w in whole]

    emitted = check({"x": random(2, 16)}, body, reference)
    assert "concat" not in kinds(emitted)
    assert kinds(emitted).count("elementwise") == 1 + 4  # relu, and one copy each


KEPT = {
    "several parts elsewhere": ((2, 16), 0, False),
    "unaligned": ((3, 5), 0, True),
    "inner axis": ((2, 16), 1, True),
}


@pytest.mark.parametrize(("shape", "axis", "made"), KEPT.values(), ids=KEPT)
def test_concatenations_that_keep_their_kernel(shape, axis, made):
    def body(b, x, y):
        parts = [anchored(b, x), anchored(b, y)] if made else [x, anchored(b, x), y]
        return anchored(b, b.emit(op.concat(parts, axis)))

    def reference(x, y):
        parts = [softmax(x), softmax(y)] if made else [x, softmax(x), y]
        return softmax(np.concatenate(parts, axis))

    emitted = check({"x": random(*shape), "y": random(*shape, seed=1)}, body, reference)
    assert kinds(emitted).count("concat") == 1


def test_outputs_are_the_callers_memory():
    """A result that is an output, and a part that is one, each in memory of its own."""

    def body(b, x):
        y, z = anchored(b, x), anchored(b, b.emit(op.nn.relu(x)))
        inner = b.emit(op.concat([y, z], 0))
        return [b.emit(op.concat([z, anchored(b, y)], 0)), y, anchored(b, inner)]

    def reference(x):
        y, z = softmax(x), softmax(np.maximum(x, 0))
        return [np.concatenate([z, softmax(y)]), y, softmax(np.concatenate([y, z]))]

    emitted = check({"x": random(2, 16)}, body, reference)
    assert kinds(emitted).count("concat") == 1  # y is copied into the other


def test_a_concatenation_with_an_epilogue_keeps_its_kernel():
    def body(b, x):
        joined = b.emit(op.concat([anchored(b, x), anchored(b, b.emit(op.nn.relu(x)))], 0))
        return anchored(b, b.emit(op.nn.relu(joined)))

    def reference(x):
        return softmax(np.maximum(np.concatenate([softmax(x), softmax(np.maximum(x, 0))]), 0))

    assert "concat" in kinds(check({"x": random(2, 16)}, body, reference))


@pytest.mark.parametrize("channels", [(32, 32), (16, 40), (24, 24), (5, 16)])
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_of_every_number(channels, batch):
    """Blocks that are cut, padding lanes at the end, more than one image."""
    weights = [random(c, 8, 1, 1) for c in channels]
    last = random(24, sum(channels), 1, 1)

    def body(b, x):
        return conv(b, b.emit(op.concat([conv(b, x, w) for w in weights], 1)), last)

    def reference(x):
        return conv_reference(np.concatenate([conv_reference(x, w) for w in weights], 1), last)

    check({"x": random(batch, 8, 9, 7)}, body, reference)


# --- slices --------------------------------------------------------------------------------------


def test_pieces_are_read_where_they_lie():
    def body(b, x):
        y = anchored(b, x)
        return [anchored(b, b.emit(op.strided_slice(y, [0], [i], [i + 2]))) for i in (0, 1, 3)]

    def reference(x):
        return [softmax(softmax(x)[i : i + 2]) for i in (0, 1, 3)]

    emitted = check({"x": random(5, 16)}, body, reference)
    assert set(kinds(emitted)) == {"softmax"}
    assert len(nodes(emitted)) == 1 + 2 * 3


def test_a_split_of_channels():
    first, left, right = random(64, 8, 1, 1), random(16, 32, 1, 1), random(16, 32, 1, 1)

    def body(b, x):
        halves = b.emit(op.split(conv(b, x, first), 2, 1))
        pair = [b.emit(relax.TupleGetItem(halves, i)) for i in range(2)]
        return [conv(b, pair[0], left), conv(b, pair[1], right)]

    def reference(x):
        y = conv_reference(x, first)
        return [conv_reference(y[:, :32], left), conv_reference(y[:, 32:], right)]

    assert "slice" not in kinds(check({"x": random(1, 8, 10, 10)}, body, reference))


SLICES = {
    "of an input": (False, [0], [1], [3], [1], True),
    "unaligned": (True, [1], [3], [16], [1], True),
    "strided": (True, [0], [0], [4], [2], True),
    "columns": (True, [1], [0], [16], [1], True),
    "an output": (True, [0], [1], [3], [1], False),
}


@pytest.mark.parametrize(
    ("made", "axes", "begin", "end", "strides", "read"), SLICES.values(), ids=SLICES
)
def test_slices_that_keep_their_kernel(made, axes, begin, end, strides, read):
    def body(b, x):
        y = anchored(b, x) if made else x
        y = b.emit(op.strided_slice(y, axes, begin, end, strides))
        return anchored(b, y) if read else y

    def reference(x):
        y = softmax(x) if made else x
        index = [slice(None)] * 2
        index[axes[0]] = slice(begin[0], end[0], strides[0])
        y = y[tuple(index)]
        return softmax(y) if read else y

    assert kinds(check({"x": random(4, 32)}, body, reference)).count("slice") == 1


def test_halves_exchanged():
    """Both parts of the concatenation are views of one tensor: one kernel moves both."""

    def body(b, x):
        y = anchored(b, x)
        top, rest = (b.emit(op.strided_slice(y, [0], [i], [i + 2])) for i in (0, 2))
        return anchored(b, b.emit(op.concat([rest, top], 0)))

    def reference(x):
        return softmax(np.roll(softmax(x), 2, axis=0))

    assert kinds(check({"x": random(4, 16)}, body, reference)) == ["softmax", "concat", "softmax"]


# --- everything together -------------------------------------------------------------------------


RELAX = {
    "concat": lambda args, _: op.concat(args, 1),
    "slice": lambda args, cut: op.strided_slice(args[0], [1], [cut[0]], [cut[1]]),
    "conv": lambda args, w: op.nn.conv2d(args[0], relax.const(w)),
    "softmax": lambda args, _: op.nn.softmax(args[0], -1),
    "view": lambda args, shape: op.reshape(args[0], shape),
    "relu": lambda args, _: op.nn.relu(args[0]),
    "add": lambda args, _: op.add(*args),
}
NUMPY = {
    "concat": lambda args, _: np.concatenate(args, 1),
    "slice": lambda args, cut: args[0][:, cut[0] : cut[1]],
    "conv": lambda args, w: conv_reference(args[0], w),
    "softmax": lambda args, _: softmax(args[0]),
    "view": lambda args, shape: args[0].reshape(shape),
    "relu": lambda args, _: np.maximum(args[0], 0),
    "add": lambda args, _: args[0] + args[1],
}


@pytest.mark.parametrize("seed", range(30))
def test_random_networks(seed):
    """Networks of concatenations, slices, views and convolutions against NumPy."""
    rng = np.random.default_rng(seed)
    plan = []  # (kind, operands, parameters)
    shapes = [(1, 16, 4, 4)]
    for _ in range(14):
        kind = rng.choice(["concat", "slice", "conv", "softmax", "view", "relu", "add"])
        a = int(rng.integers(len(shapes)))
        n, c, h, w = shapes[a]
        if kind == "concat":
            others = [i for i, s in enumerate(shapes) if s[2:] == (h, w)]
            parts = [int(i) for i in rng.choice(others, int(rng.integers(1, 4)))]
            plan.append((kind, parts, None))
            shapes.append((1, sum(shapes[i][1] for i in parts), h, w))
        elif kind == "slice":
            step = int(rng.choice([8, 16]))
            begin = int(rng.integers(0, c)) // step * step
            end = min(c, begin + step * int(rng.integers(1, 4)))
            plan.append((kind, [a], (begin, end)))
            shapes.append((1, end - begin, h, w))
        elif kind == "conv":
            out = int(rng.choice([8, 16, 32]))
            plan.append((kind, [a], random(out, c, 1, 1, seed=seed) / c**0.5))
            shapes.append((1, out, h, w))
        elif kind == "view":
            plan.append((kind, [a], (n, c, w, h)))
            shapes.append((n, c, w, h))
        elif kind == "add":
            others = [i for i, s in enumerate(shapes) if s == shapes[a]]
            plan.append((kind, [a, int(rng.choice(others))], None))
            shapes.append(shapes[a])
        else:
            plan.append((kind, [a], None))
            shapes.append(shapes[a])
    kept = sorted({len(shapes) - 1, *(int(i) for i in rng.integers(1, len(shapes), 3))})

    def body(b, x):
        values = [x]
        for kind, parts, parameter in plan:
            values.append(b.emit(RELAX[kind]([values[i] for i in parts], parameter)))
        return [values[i] for i in kept]

    def reference(x):
        values = [x]
        for kind, parts, parameter in plan:
            values.append(NUMPY[kind]([values[i] for i in parts], parameter))
        return [values[i] for i in kept]

    check({"x": random(1, 16, 4, 4, seed=seed)}, body, reference)


LAYOUTS = (PLAIN, Layout(4), Layout(16))


def raw(array, layout):
    return blocked(array, layout).reshape(-1)


@given(st.data())
def test_a_piece_is_where_its_offset_says(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 16, 32]), min_size=2, max_size=4)))
    layout = data.draw(st.sampled_from(LAYOUTS))
    begin = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)
    strides = tuple(data.draw(st.sampled_from([1, 1, 1, 2])) for _ in shape)
    end = tuple(data.draw(st.integers(b + 1, e)) for b, e in zip(begin, shape, strict=True))
    x = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    cut = tuple(slice(b, e, s) for b, e, s in zip(begin, end, strides, strict=True))
    piece = x[cut]
    op_ = Op(
        "slice",
        (TensorSig(shape),),
        TensorSig(piece.shape),
        (("begin", begin), ("strides", strides)),
    )
    offset = piece_offset(Workload(op_), layout)
    memory, wanted = raw(x, layout), raw(np.ascontiguousarray(piece), layout)
    if offset is not None:
        assert offset % 64 == 0
        assert np.array_equal(memory[offset // 4 :][: wanted.size], wanted)
    elif layout == PLAIN:
        start = int(np.flatnonzero(memory == wanted[0])[0])
        same = np.array_equal(memory[start : start + wanted.size], wanted)
        assert not same or start * 4 % 64  # nothing is missed


@given(st.data())
def test_parts_are_where_their_offsets_say(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 16]), min_size=2, max_size=4))
    layout = data.draw(st.sampled_from(LAYOUTS))
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 5, 16, 32]), min_size=1, max_size=3))
    rng = np.random.default_rng(0)
    parts = [
        rng.standard_normal([*shape[:axis], size, *shape[axis + 1 :]]).astype(np.float32)
        for size in sizes
    ]
    whole = np.concatenate(parts, axis)
    op_ = Op(
        "concat",
        tuple(TensorSig(part.shape) for part in parts),
        TensorSig(whole.shape),
        (("axis", axis),),
    )
    offsets = part_offsets(Workload(op_), layout)
    if offsets is None:
        return
    memory = raw(whole, layout)
    for part, offset in zip(parts, offsets, strict=True):
        assert offset % 64 == 0
        wanted = raw(part, layout)
        assert np.array_equal(memory[offset // 4 :][: wanted.size], wanted)
