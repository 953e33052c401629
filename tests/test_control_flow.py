"""Models with control flow, lists and values computed at run time, against ONNX Runtime."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import graphopt
from graphopt.errors import GraphoptError, InputError, OptionError

Array = np.ndarray[Any, Any]

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def model_of(text: str, **weights: Array) -> onnx.ModelProto:
    """A model in ONNX's textual syntax, with more initializers."""
    model = parser.parse_model(HEADER + text)
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    return model


def reference(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    """ONNX Runtime's outputs, optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def agree(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            agree(one, other)
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if found.dtype.kind == "f":
        limit = 1e-4 * np.abs(expected).max(initial=0)
        assert np.abs(found - expected).max(initial=0) <= limit
    else:
        np.testing.assert_array_equal(found, expected)


def check(compiled: Any, model: onnx.ModelProto, feeds: Mapping[str, Any]) -> None:
    agree(list(compiled.run(feeds).values()), reference(model, feeds))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


COUNTED = """g (float[2,3] x, int64 n) => (float[2,3] y, float[N,2,3] ys)
<float[2,3] w = {1,2,3,4,5,6}> {
  y, ys = Loop(n, , x) <body = b (int64 i, bool c, float[2,3] a)
      => (bool go, float[2,3] next, float[2,3] s) {
    go = Identity(c)
    s = Add(a, w)
    next = Tanh(s)
  }>
}"""


@pytest.fixture(scope="module")
def counted() -> graphopt.CompiledModel:
    return graphopt.compile(model_of(COUNTED), threads=2)


@pytest.mark.parametrize("trips", [0, 1, 5, 2000])
def test_a_counted_loop(counted: graphopt.CompiledModel, trips: int) -> None:
    check(counted, counted.model.proto, {"x": normal(2, 3), "n": np.array(trips)})


def test_outputs_are_open_where_they_depend_on_data(counted: graphopt.CompiledModel) -> None:
    assert [spec.shape for spec in counted.outputs] == [(2, 3), (None, 2, 3)]


def test_results_are_the_callers_alone(counted: graphopt.CompiledModel) -> None:
    x = normal(2, 3)
    first = counted.run({"x": x, "n": np.array(0)})["y"]
    assert not np.shares_memory(first, x)
    kept = counted.run({"x": x, "n": np.array(4)})
    copies = {name: value.copy() for name, value in kept.items()}
    for trips in (1, 4, 7):
        counted.run({"x": x + 1, "n": np.array(trips)})
    for name, value in copies.items():
        np.testing.assert_array_equal(kept[name], value)


def test_out_receives_results(counted: graphopt.CompiledModel) -> None:
    feeds = {"x": normal(2, 3), "n": np.array(2)}
    mine = np.zeros((2, 3), np.float32)
    results = counted.run(feeds, out={"y": mine})
    assert results["y"] is mine
    np.testing.assert_array_equal(mine, counted.run(feeds)["y"])
    with pytest.raises(InputError, match="'y' is float64"):
        counted.run(feeds, out={"y": np.zeros((2, 3))})


def test_wrong_inputs_are_all_named(counted: graphopt.CompiledModel) -> None:
    with pytest.raises(InputError, match=r"'x' has the wrong shape.*'n' is a int"):
        counted.run({"x": normal(3, 2), "n": 3})
    with pytest.raises(InputError, match=r"no input 'nn' .did you mean 'n'.*'n' is missing"):
        counted.run({"x": normal(2, 3), "nn": np.array(3)})


WHILE = """g (float[4] x, float limit) => (float[4] y, int64 count)
<bool t = {1}, int64 zero = {0}, int64 one = {1}> {
  y, count = Loop(, t, x, zero) <body = b (int64 i, bool c, float[4] a, int64 k)
      => (bool go, float[4] next, int64 more) {
    next = Add(a, a)
    sum = ReduceSum<keepdims = 0>(next)
    go = Less(sum, limit)
    more = Add(k, one)
  }>
}"""


@pytest.mark.parametrize("limit", [0.0, 5.0, 1e6])
def test_a_loop_that_ends_by_its_condition(limit: float) -> None:
    model = model_of(WHILE)
    compiled = graphopt.compile(model, threads=1)
    check(compiled, model, {"x": np.ones(4, np.float32), "limit": np.array(limit, np.float32)})


def test_carried_shapes_may_grow() -> None:
    model = model_of("""g (float[1,2] x, int64 n) => (float[M,2] y) {
      y = Loop(n, , x) <body = b (int64 i, bool c, float[A,2] a) => (bool go, float[B,2] next) {
        go = Identity(c)
        f = Cast<to = 1>(i)
        row = Mul(x, f)
        next = Concat<axis = 0>(a, row)
      }>
    }""")
    compiled = graphopt.compile(model, threads=1)
    check(compiled, model, {"x": normal(1, 2), "n": np.array(40)})
    assert len(compiled.report.calls) < 5, "joining must not be compiled for each size"


def test_shapes_of_carried_values_that_are_computed_with() -> None:
    model = model_of("""g (float[K] x) => (float[M] y) <int64 three = {3}, bool t = {1}> {
      y = Loop(three, t, x) <body = b (int64 i, bool c, float[A] a) => (bool go, float[B] next) {
        s = ReduceSum<keepdims = 0>(a)
        top = ReduceMax(a)
        go = Less(s, top)
        e = Exp(a)
        next = Concat<axis = 0>(e, a)
      }>
    }""")
    compiled = graphopt.compile(model, shapes={"x": (3,)}, threads=1)
    for sign in (1, -1):
        check(compiled, model, {"x": sign * np.array([1, 2, 3], np.float32)})


NESTED = """g (float[3] x, bool flag, int64 n) => (float[3] y) <float[3] w = {1, -1, 0.5}> {
  f = Not(flag)
  m = ReduceMax<keepdims = 0>(x)
  z = Sub(m, m)
  big = Greater(m, z)
  y = If(big) <then_branch = t () => (float[3] yt) {
    yt = Loop(n, , x) <body = b (int64 i, bool c, float[3] a) => (bool go, float[3] next) {
      go = Identity(c)
      u = Mul(a, w)
      first = ReduceMin<keepdims = 0>(u)
      odd = Less(first, m)
      next = If(odd) <then_branch = p () => (float[3] yp) { yp = Add(u, w) },
                      else_branch = q () => (float[3] yq) { yq = Sub(a, x) }>
    }>
  }, else_branch = e () => (float[3] ye) { ye = Identity(x) }>
}"""


def test_control_flow_inside_control_flow() -> None:
    model = model_of(NESTED)
    compiled = graphopt.compile(model, threads=1)
    for x in ([1, 2, 3], [-1, -2, -3], [5, -5, 0.1]):
        for trips in (0, 3, 30):
            feeds = {"x": np.array(x, np.float32), "flag": np.array(True), "n": np.array(trips)}
            check(compiled, model, feeds)


def scan_model(axis: int, out_axis: int, back: int, out_back: int, length: int) -> onnx.ModelProto:
    """h' = tanh(h + x_t), y_t = h'·w over [2, length, 3] along `axis`."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["h", "xt"], ["s"]),
            helper.make_node("Tanh", ["s"], ["hn"]),
            helper.make_node("MatMul", ["hn", "w"], ["yt"]),
        ],
        "body",
        [info("h", TensorProto.FLOAT, [2, 3]), info("xt", TensorProto.FLOAT, [2, 3])],
        [info("hn", TensorProto.FLOAT, [2, 3]), info("yt", TensorProto.FLOAT, [2, 4])],
    )
    scan = helper.make_node(
        "Scan",
        ["h0", "x"],
        ["hl", "ys"],
        "scan",
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[axis],
        scan_output_axes=[out_axis],
        scan_input_directions=[back],
        scan_output_directions=[out_back],
    )
    shape = [2, 3]
    shape.insert(axis if axis >= 0 else axis + 3, length)
    graph = helper.make_graph(
        [scan],
        "g",
        [info("h0", TensorProto.FLOAT, [2, 3]), info("x", TensorProto.FLOAT, shape)],
        [info("hl", TensorProto.FLOAT, None), info("ys", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(normal(3, 4, seed=1), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("length", [5, 40], ids=["unrolled", "looped"])
@pytest.mark.parametrize(("axis", "out_axis"), [(0, 0), (1, 1), (-1, -1)])
@pytest.mark.parametrize(("back", "out_back"), [(0, 0), (1, 0), (0, 1)])
def test_scan(length: int, axis: int, out_axis: int, back: int, out_back: int) -> None:
    model = scan_model(axis, out_axis, back, out_back, length)
    shape = [d.dim_value for d in model.graph.input[1].type.tensor_type.shape.dim]
    feeds = {"h0": normal(2, 3), "x": normal(*shape, seed=2)}
    check(graphopt.compile(model, threads=1), model, feeds)


DECODER = """g (int64[1] start, float[1,16] state, int64 n) => (int64[T] tokens, float[1,16] last)
<bool t = {1}, int64[1] end = {7}> {
  token, last, list = Loop(n, t, start, state)
      <body = b (int64 i, bool c, int64[1] tok, float[1,16] h)
      => (bool go, int64[1] next, float[1,16] hn, int64[1] out) {
    e = Gather<axis = 0>(table, tok)
    u = MatMul(h, w)
    s = Add(e, u)
    hn = Tanh(s)
    logits = MatMul(hn, head)
    next = ArgMax<axis = 1, keepdims = 0>(logits)
    out = Identity(next)
    same = Equal(next, end)
    differs = Not(same)
    number = Cast<to = 7>(differs)
    flat = ReduceMax<keepdims = 0>(number)
    go = Cast<to = 9>(flat)
  }>
  tokens = Squeeze(list, axis1)
}"""


def decoder() -> onnx.ModelProto:
    """Greedy decoding: a recurrent cell, a head, argmax, until the end token comes."""
    return model_of(
        DECODER,
        table=normal(32, 16, seed=1),
        w=normal(16, 16, seed=2) / 2,
        head=normal(16, 32, seed=3),
        axis1=np.array([1]),
    )


def test_greedy_decoding() -> None:
    model = decoder()
    compiled = graphopt.compile(model, threads=1)
    for seed in range(4):
        feeds = {
            "start": np.array([seed]),
            "state": normal(1, 16, seed=seed),
            "n": np.array(50),
        }
        check(compiled, model, feeds)


SEQUENCES = """g (float[2,3] x, int64 n) => (float[K,3] joined, int64 count, float[2,3] second) {
  empty = SequenceEmpty()
  all = Loop(n, , empty) <body = b (int64 i, bool c, seq(float[2,3]) s)
      => (bool go, seq(float[2,3]) more) {
    go = Identity(c)
    f = Cast<to = 1>(i)
    v = Add(x, f)
    more = SequenceInsert(s, v)
  }>
  joined = ConcatFromSequence<axis = 0>(all)
  count = SequenceLength(all)
  one = Constant<value = int64 {1}>()
  second = SequenceAt(all, one)
}"""


def test_sequences_in_loops() -> None:
    model = model_of(SEQUENCES)
    compiled = graphopt.compile(model, threads=1)
    for trips in (2, 30):
        check(compiled, model, {"x": normal(2, 3), "n": np.array(trips)})
    with pytest.raises(GraphoptError, match="empty sequence cannot be joined") as raised:
        compiled.run({"x": normal(2, 3), "n": np.array(0)})
    assert raised.value.node is not None


def test_sequences_and_optionals_as_inputs_and_outputs() -> None:
    model = model_of("""g (seq(float[N]) s, float[2] v, int64 at) => (seq(float[M]) t, float[K] u) {
      w = Exp(v)
      t = SequenceInsert(s, w, at)
      u = SequenceAt(s, at)
    }""")
    compiled = graphopt.compile(model, threads=1)
    assert [spec.kind for spec in compiled.inputs] == ["sequence", "tensor", "tensor"]
    assert [spec.kind for spec in compiled.outputs] == ["sequence", "tensor"]
    items = [normal(2), normal(5, seed=1), normal(0)]
    for at in (0, 1, -1):
        feeds = {"s": items, "v": normal(2, seed=3), "at": np.array(at)}
        check(compiled, model, feeds)
    found = compiled.run(feeds)["t"]
    assert not any(np.shares_memory(a, b) for a in found for b in items)
    with pytest.raises(InputError, match=r"'s' \[1\] has the wrong type"):
        compiled.run({**feeds, "s": [items[0], items[1].astype(np.float64)]})


VALUES = {
    "range": "y = Range(a, b, one)",
    "reshape": "ab = Concat<axis = 0>(a1, b1)\n p = Mul(x, x)\n y = Reshape(p, ab)",
    "slice": "p = Exp(x)\n q = Slice(p, a1, b1)\n y = Exp(q)",
    "topk": "y, i = TopK(x, b1)",
    "tile": "y = Tile(x, b1)",
    "expand": "ab = Concat<axis = 0>(b1, twelve)\n q = Expand(x, ab)\n y = Exp(q)",
    "constant": "y = ConstantOfShape(b1)",
    "pad": "ab = Concat<axis = 0>(a1, b1)\n y = Pad(x, ab)",
    "split": "c = Sub(twelve, b1)\n d = Concat<axis = 0>(b1, c)\n p, q = Split(x, d)\n y = Exp(q)",
    "onehot": "z = Cast<to = 7>(x)\n y = OneHot(z, b1, pair)",
}


@pytest.mark.parametrize("case", VALUES)
def test_parameters_computed_at_run_time(case: str) -> None:
    element = "int64" if case == "range" else "float"
    model = model_of(
        f"""g (float[12] x) => ({element} y)
        <int64 one = {{1}}, int64[1] twelve = {{12}}, int64[1] axis = {{0}},
         float[2] pair = {{0, 1}}>
        {{
          low = ReduceMin<keepdims = 0>(x)
          high = ReduceMax<keepdims = 0>(x)
          a = Cast<to = 7>(low)
          b = Cast<to = 7>(high)
          a1 = Unsqueeze(a, axis)
          b1 = Unsqueeze(b, axis)
          {VALUES[case]}
        }}"""
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    compiled = graphopt.compile(model, threads=1)
    for low, high in ((3, 4), (2, 6), (3, 4)):
        x = np.linspace(low, high, 12).astype(np.float32)
        check(compiled, model, {"x": x})


TAILS = {
    "nonzero": """p = NonZero(m)
      t = Transpose<perm = [1, 0]>(p)
      g = GatherND(x, t)
      y = Mul(g, g)""",
    "compress": "f = Reshape(m, flat)\n c = Compress<axis = 0>(x8, f)\n y = Exp(c)",
    "unique": "u, i, v, n = Unique(r)\n g = Gather<axis = 0>(u, v)\n y = Add(g, g)",
    "shape": "p = NonZero(m)\n s = Shape(p)\n e = ConstantOfShape(s)\n y = Exp(e)",
    "twice": """p = NonZero(m)
      t = Transpose<perm = [1, 0]>(p)
      g = GatherND(x, t)
      a = Sub(g, half)
      b = NonZero(a)
      y = Gather<axis = 0>(g, b)""",
}


@pytest.mark.parametrize("case", TAILS)
def test_shapes_that_depend_on_data(case: str, tmp_path: Path) -> None:
    model = model_of(
        f"""g (float[2,4] x) => (float y)
        <int64[1] flat = {{-1}}, float half = {{0.5}}, float zero = {{0}}>
        {{
          m = Greater(x, zero)
          x8 = Reshape(x, flat)
          r = Round(x8)
          {TAILS[case]}
        }}"""
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    compiled = graphopt.compile(model, threads=1)
    for seed in (1, 2, 1):
        check(compiled, model, {"x": normal(2, 4, seed=seed)})
    path = tmp_path / "m.gopt"
    compiled.save(path)
    check(graphopt.load(path), model, {"x": normal(2, 4, seed=2)})


def test_rows_after_a_selection_compile_once_for_many_counts(tmp_path: Path) -> None:
    model = model_of(
        """g (float[1,1,40] scores, float[1,40,4] boxes) => (float[N,4] chosen, float[N] best)
        <int64[1] most = {40}, float[1] iou = {0.5}, float[1] least = {0.3},
         int64 box = {2}, int64 axis = {0}, int64[1] flat = {-1}> {
          i = NonMaxSuppression(boxes, scores, most, iou, least)
          k = Gather<axis = 1>(i, box)
          all = Squeeze(boxes, first)
          chosen = Gather<axis = 0>(all, k)
          s = Reshape(scores, flat)
          best = Gather<axis = 0>(s, k)
        }""",
        first=np.array([0]),
    )
    compiled = graphopt.compile(model, threads=1)
    rng = np.random.default_rng(0)

    def feeds(count: int) -> dict[str, Array]:
        scores = np.zeros((1, 1, 40), np.float32)
        scores[0, 0, rng.permutation(40)[:count]] = rng.uniform(0.4, 1, count)
        corners = rng.uniform(0, 9, (1, 40, 2))
        boxes = np.concatenate([corners, corners + 0.5], 2).astype(np.float32)
        return {"scores": scores, "boxes": boxes}

    made = [feeds(count) for count in (3, 4, 5, 6, 7, 0)]
    check(compiled, model, made[0])
    calls = compiled.report.calls
    for each in made:
        check(compiled, model, each)
    assert compiled.report.calls == calls
    path = tmp_path / "m.gopt"
    compiled.save(path)
    loaded = graphopt.load(path)
    for count in (0, 1, 9, 17, 40):
        check(loaded, model, feeds(count))


def test_saved_and_loaded(counted: graphopt.CompiledModel, tmp_path: Path) -> None:
    path = tmp_path / "m.gopt"
    counted.save(path)
    loaded = graphopt.load(path)
    assert loaded.inputs == counted.inputs
    assert loaded.outputs == counted.outputs
    assert loaded.report.calls == counted.report.calls
    for trips in (0, 3):
        check(loaded, counted.model.proto, {"x": normal(2, 3), "n": np.array(trips)})
    again = tmp_path / "again.gopt"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_saved_program_has_what_was_compiled(tmp_path: Path) -> None:
    model = model_of("""g (float[6] x, int64[1] k) => (float[N] y) {
      z = ReduceMax<keepdims = 1>(x)
      count = Cast<to = 7>(z)
      top, places = TopK(x, count)
      y = Exp(top)
    }""")
    model.graph.input.pop()
    compiled = graphopt.compile(model, threads=1)
    path = tmp_path / "m.gopt"
    with pytest.raises(OptionError, match="TopK"):
        compiled.save(path)
    feeds = {"x": np.array([1, 2, 3, 0, 2, 1], np.float32)}
    check(compiled, model, feeds)
    compiled.save(path)
    loaded = graphopt.load(path)
    check(loaded, model, feeds)
    with pytest.raises(InputError, match=r"TopK.* was not compiled for .*= \[4\]"):
        loaded.run({"x": np.array([1, 2, 4, 0, 2, 1], np.float32)})


def test_weights_that_bodies_share_are_stored_once(tmp_path: Path) -> None:
    w = normal(128, 128)
    model = model_of(
        """g (float[1,128] x, int64 n) => (float[1,128] y) {
          z = MatMul(x, w)
          y = Loop(n, , z) <body = b (int64 i, bool c, float[1,128] a)
              => (bool go, float[1,128] next) {
            go = Identity(c)
            u = MatMul(a, w)
            next = Tanh(u)
          }>
        }""",
        w=w,
    )
    compiled = graphopt.compile(model, threads=1)
    check(compiled, model, {"x": normal(1, 128), "n": np.array(3)})
    path = tmp_path / "m.gopt"
    compiled.save(path)
    assert path.stat().st_size < 1.9 * w.nbytes + 60_000


def test_many_threads(counted: graphopt.CompiledModel) -> None:
    feeds = [{"x": normal(2, 3, seed=k), "n": np.array(k)} for k in range(24)]
    alone = [counted.run(each) for each in feeds]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(counted.run, feeds * 3))
    for found, expected in zip(together, alone * 3, strict=True):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_profile_names_the_nodes_of_bodies(counted: graphopt.CompiledModel) -> None:
    profile = counted.profile({"x": normal(2, 3), "n": np.array(5)}, repeats=3)
    nodes = {node for row in profile.rows for node in row.nodes}
    assert any("Tanh" in node for node in nodes)
    total = sum(row.seconds for row in profile.rows) + profile.outside_seconds
    assert total == pytest.approx(profile.total_seconds)
    sites = [row.site for row in profile.rows]
    assert sites == [row.site for row in counted.report.calls]


def test_an_endless_loop_can_be_interrupted() -> None:
    model = model_of("""g (float[2] x) => (float[2] y) <bool t = {1}> {
      y = Loop(, t, x) <body = b (int64 i, bool c, float[2] a) => (bool go, float[2] next) {
        next = Tanh(a)
        s = ReduceSum<keepdims = 0>(next)
        go = Equal(s, s)
      }>
    }""")
    compiled = graphopt.compile(model, threads=2)
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        compiled.run({"x": normal(2)})
    timer.join()
    nan = np.array([np.nan, 1], np.float32)
    assert np.isnan(compiled.run({"x": nan})["y"][0])


def test_what_a_body_cannot_do_is_refused_by_name() -> None:
    model = model_of("""g (float[2] x, int64 n) => (float[2] y) {
      y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool go, float[2] next) {
        go = Identity(c)
        next = Tanh(a)
      }>
    }""")
    inner = model.graph.node[0].attribute[0].g.node[1]
    inner.op_type, inner.name, inner.domain = "Frobnicate", "odd", "com.example"
    model.opset_import.add(domain="com.example", version=1)
    with pytest.raises(graphopt.ModelError, match=r"odd: com\.example\.Frobnicate"):
        graphopt.compile(model, threads=1)
    diagnosis = graphopt.inspect(model)
    assert [item.node for item in diagnosis.unsupported] == ["odd"]
