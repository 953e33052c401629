"""Cutting models into segments and steps, and what comes before: unrolling, types of bodies."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.codegen.host_program import Block, Branch, CallSegment, HostCall, Loop, Trim
from graphopt.frontend.control_flow import joined
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.partition import Staged, needs_host, partition
from graphopt.frontend.prepare import prepare, prepare_segment
from graphopt.frontend.rowwise import Operand, row_axis

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def prepared(text: str) -> OnnxModel:
    return prepare(OnnxModel(parser.parse_model(HEADER + text)))


def cut(text: str) -> Staged:
    return partition(prepared(text))


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


LOOP = """g (float[2] x, int64 n) => (float[2] y, float[K,2] ys) <float[2] w = {{1, 2}}, {more}> {{
  y, ys = Loop({trips}, , x) <body = b (int64 i, bool c, float[2] a)
      => (bool go, float[2] next, float[2] s) {{
    go = Identity(c)
    s = Mul(a, w)
    next = Add(s, w)
  }}>
}}"""


def test_a_straight_line_needs_no_host() -> None:
    model = prepared(
        """g (float[2,3] x) => (float[6] y) <float[1] one = {1}> {
          s = Shape(x)
          p = ReduceProd<keepdims = 1>(s)
          z = Add(x, one)
          y = Reshape(z, p)
        }"""
    )
    assert not needs_host(model)


def test_short_constant_loops_are_unrolled() -> None:
    model = prepared(LOOP.format(trips="m", more="int64 m = {3}"))
    assert not needs_host(model)
    assert operators(model).count("Mul") == 3
    names = [node.name for node in model.proto.graph.node]
    assert len(set(names)) == len(names)
    static = [d.dim_value for d in model.proto.graph.output[1].type.tensor_type.shape.dim]
    assert static == [3, 2]


@pytest.mark.parametrize("more", ["int64 m = {17}", "int64 m = {0}"])
def test_long_and_empty_loops_stay(more: str) -> None:
    assert needs_host(prepared(LOOP.format(trips="m", more=more)))


def test_loops_over_constants_fold_away() -> None:
    model = prepared(
        """g (float[1] x) => (float[1] y) <int64 m = {4}, int64 zero = {0}, int64 three = {3}> {
          last, all = Loop(m, , zero) <body = b (int64 i, bool c, int64 a)
              => (bool go, int64 next, int64 s) { go = Identity(c)
                next = Add(a, three)
                s = Identity(a) }>
          f = Cast<to = 1>(all)
          t = ReduceSum<keepdims = 0>(f)
          y = Mul(x, t)
        }"""
    )
    assert operators(model) == ["Mul"]
    (total,) = model.proto.graph.initializer
    assert numpy_helper.to_array(total) == 0 + 3 + 6 + 9


def test_a_loop_is_a_step_around_a_segment() -> None:
    staged = cut(LOOP.format(trips="n", more="int64 m = {3}"))
    (loop,) = staged.program.body.steps
    assert isinstance(loop, Loop)
    (call,) = loop.body.steps
    assert isinstance(call, CallSegment)
    (segment,) = staged.segments
    assert segment.static
    assert segment.spec.nodes == ("Mul#2", "Add#3")
    assert [spec.shape for spec in segment.spec.inputs] == [(2,)]
    assert loop.body.results[0] == loop.body.parameters[1], "the condition is handed through"
    assert list(segment.model.shared) == ["w"], "weights are not copied"
    assert not segment.model.proto.graph.initializer


def test_carried_types_are_a_fixpoint() -> None:
    model = prepared(
        """g (float[1,2] x, int64 n) => (float[A,2] y, float[1,2] z) {
          y, z = Loop(n, , x, x) <body = b (int64 i, bool c, float[B,2] a, float[1,2] k)
              => (bool go, float[C,2] next, float[1,2] same) { go = Identity(c)
                next = Concat<axis = 0>(a, k)
                same = Exp(k) }>
        }"""
    )
    body = model.proto.graph.node[0].attribute[0].g
    shapes = [
        [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim]
        for v in body.input
    ]
    assert shapes == [[], [], [None, 2], [1, 2]]
    loop = partition(model).program.body.steps[-1]
    assert isinstance(loop, Loop)
    kinds = [type(step) for step in loop.body.steps]
    assert HostCall in kinds, "a size that grows is not compiled"


def test_static_parts_come_before_open_ones() -> None:
    staged = cut(
        """g (float[4,4] x, float[4,4] w) => (float[N,4] y)
        <float zero = {0}, int64[1] axis = {0}> {
          h = MatMul(x, w)
          r = ReduceMax<axes = [1], keepdims = 0>(h)
          m = Greater(r, zero)
          p = NonZero(m)
          t = Squeeze(p, axis)
          g = Gather<axis = 0>(h, t)
          y = Exp(g)
        }"""
    )
    first, trim, second = staged.program.body.steps
    assert isinstance(first, CallSegment)
    assert isinstance(trim, Trim)
    assert trim.axis == 1
    assert isinstance(second, CallSegment)
    assert [segment.static for segment in staged.segments] == [True, False]
    assert staged.segments[0].spec.nodes == ("MatMul#0", "ReduceMax#1", "Greater#2", "NonZero#3")
    assert staged.program.outputs[0].shape == (None, 4)
    spec = staged.segments[1].spec
    assert spec.nodes == ("Squeeze#4", "Gather#5", "Exp#6")
    assert dict(zip((s.name for s in spec.inputs), spec.row_inputs, strict=True)) == {
        "p": 1,
        "h": -1,
    }
    assert spec.row_outputs == (0,)
    assert spec.row_limit == 4


def test_computed_parameters_are_bound_in_a_later_segment() -> None:
    staged = cut(
        """g (float[5] x) => (float[K] y, float[5] z) {
          s = ReduceSum<keepdims = 1>(x)
          k = Cast<to = 7>(s)
          z = Exp(x)
          y, i = TopK(z, k)
        }"""
    )
    before, after = staged.segments
    assert before.spec.nodes == ("ReduceSum#0", "Cast#1", "Exp#2")
    assert after.spec.bound == ("k",)
    bound = prepare_segment(after.model, {"z": (5,)}, {"k": np.array([2])})
    assert [d.dim_value for d in bound.proto.graph.output[0].type.tensor_type.shape.dim] == [2]


def test_views_with_computed_parameters_are_steps() -> None:
    staged = cut(
        """g (float[8] x, float at) => (float[K] y) <int64[1] axis = {0}> {
          i = Cast<to = 7>(at)
          b = Unsqueeze(i, axis)
          e = Add(b, b)
          y = Slice(x, b, e)
        }"""
    )
    assert [type(step) for step in staged.program.body.steps] == [CallSegment, HostCall]


def test_names_are_unique_though_bodies_share_theirs() -> None:
    staged = cut(
        """g (float[2] x, int64 n) => (float[2] y) {
          a = Loop(n, , x) <body = b (int64 i, bool c, float[2] v) => (bool go, float[2] w) {
            go = Identity(c)
            w = Exp(v)
          }>
          y = Loop(n, , a) <body = b (int64 i, bool c, float[2] v) => (bool go, float[2] w) {
            go = Identity(c)
            w = Tanh(v)
          }>
        }"""
    )
    seen: list[str] = []

    def walk(block: Block) -> None:
        seen.extend(block.parameters)
        for step in block.steps:
            seen.extend((step.output,) if isinstance(step, Trim) else step.outputs)
            if isinstance(step, Loop):
                walk(step.body)
            if isinstance(step, Branch):
                walk(step.then)
                walk(step.otherwise)

    walk(staged.program.body)
    assert len(set(seen)) == len(seen)


def test_large_constants_come_out_of_segments() -> None:
    text = """g (float[100] x, bool flag) => (float[100] y) {
      f = Not(flag)
      y = If(f) <then_branch = t () => (float[100] a) { a = Identity(w) },
                 else_branch = e () => (float[100] b) { b = Exp(x) }>
    }"""
    model = parser.parse_model(HEADER + text)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(100, np.float32), "w"))
    staged = partition(prepare(OnnxModel(model)))
    assert not staged.program.constants
    branch = staged.program.body.steps[-1]
    assert isinstance(branch, Branch)
    assert [type(step) for step in branch.then.steps] == [CallSegment]


def test_joined_types_leave_open_what_differs() -> None:
    def tensor(*dims: int | str | None) -> onnx.TypeProto:
        return helper.make_tensor_type_proto(TensorProto.FLOAT, list(dims))

    assert joined(tensor(1, 2), tensor(1, 2)) == tensor(1, 2)
    assert joined(tensor(1, 2), tensor(3, 2)) == tensor(None, 2)
    assert not joined(tensor(1), tensor(1, 1)).tensor_type.HasField("shape")
    assert joined(tensor(1), None).tensor_type.elem_type == TensorProto.FLOAT
    sequence = helper.make_sequence_type_proto
    assert joined(sequence(tensor(1)), sequence(tensor(2))) == sequence(tensor(None))
    optional = helper.make_optional_type_proto(sequence(tensor(1)))
    assert joined(optional, sequence(tensor(1))) == optional


def operand(*shape: int | None, row: int | None = None, values: object = None) -> Operand:
    array = None if values is None else np.asarray(values)
    return Operand(TensorProto.FLOAT, shape, row, array)


def node(kind: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, ["x"], ["y"], **attributes)


ROWS = operand(None, 4, row=0)

PROOFS: list[tuple[onnx.NodeProto, list[Operand], int | None]] = [
    (node("Exp"), [ROWS], 0),
    (node("Add"), [ROWS, operand(4)], 0),
    (node("Add"), [ROWS, operand(1, 4)], 0),
    (node("Add"), [ROWS, operand(3, 4)], None),
    (node("Add"), [ROWS, operand(3, 1, 4)], 1),
    (node("Add"), [ROWS, operand(4, None, row=1)], None),
    (node("Transpose", perm=[1, 0]), [ROWS], 1),
    (node("Gather", axis=0), [operand(5, 3), operand(None, row=0)], 0),
    (node("Gather", axis=1), [operand(5, 3), operand(2, None, row=1)], 2),
    (node("Gather", axis=0), [ROWS, operand(2)], None),
    (node("Gather", axis=1), [ROWS, operand(2)], 0),
    (node("Gather", axis=0), [operand(0, 3), operand(None, row=0)], None),
    (node("GatherND"), [operand(5, 3), operand(None, 2, row=0)], 0),
    (node("GatherND"), [operand(5, 3), operand(2, None, row=1)], None),
    (node("Concat", axis=1), [ROWS, ROWS], 0),
    (node("Concat", axis=0), [ROWS, ROWS], None),
    (node("Concat", axis=1), [ROWS, operand(3, 4)], None),
    (node("ReduceSum"), [ROWS, operand(1, values=[1])], 0),
    (node("ReduceSum"), [ROWS, operand(1, values=[0])], None),
    (node("ReduceSum"), [ROWS], None),
    (node("ReduceSum", keepdims=0), [operand(4, None, row=1), operand(1, values=[0])], 0),
    (node("Softmax", axis=-1), [ROWS], 0),
    (node("Softmax", axis=0), [ROWS], None),
    (node("Softmax"), [operand(4, None, row=1)], None),
    (node("TopK", axis=1), [ROWS, operand(1, values=[2])], 0),
    (node("TopK", axis=0), [ROWS, operand(1, values=[2])], None),
    (node("MatMul"), [ROWS, operand(4, 5)], 0),
    (node("MatMul"), [operand(5, 4), operand(4, None, row=1)], None),
    (node("MatMul"), [operand(2, None, row=1), operand(4, 5)], None),
    (node("Gemm", transA=1), [ROWS, operand(4, 5)], None),
    (node("Reshape"), [ROWS, operand(3, values=[-1, 2, 2])], 0),
    (node("Reshape"), [ROWS, operand(2, values=[-1, 8])], None),
    (node("Reshape"), [ROWS, operand(2, values=[2, -1])], None),
    (node("Squeeze"), [operand(1, None, row=1), operand(1, values=[0])], 0),
    (node("Squeeze"), [operand(1, None, row=1)], None),
    (node("Unsqueeze"), [ROWS, operand(2, values=[0, 2])], 1),
    (node("CumSum"), [ROWS, operand(1, values=[1])], None),
    (node("Shape"), [ROWS], None),
]


@pytest.mark.parametrize(("step", "operands", "axis"), PROOFS)
def test_rows_are_followed_or_refused(
    step: onnx.NodeProto, operands: list[Operand], axis: int | None
) -> None:
    assert row_axis(step, operands) == axis


def test_whole_numbers_are_not_divided_by_rows_of_zeros() -> None:
    whole = Operand(TensorProto.INT64, (None,), 0, None)
    assert row_axis(node("Div"), [whole, whole]) is None
