"""Element types: bfloat16, floats of 4 to 8 bits, integers of 2 and 4, and casts between all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError

Array = np.ndarray[Any, Any]
BF16 = ml_dtypes.bfloat16


def code_of(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any],
    constants: Mapping[str, Array] | None = None,
    opset: int = 25,
) -> onnx.ModelProto:
    """A model with these inputs' types and shapes; outputs name → dtype."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, code_of(x.dtype), x.shape) for name, x in inputs.items()],
        [info(name, code_of(dtype), None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(x, name) for name, x in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def one(
    op: str, inputs: Sequence[Array], dtype: Any, constant: Sequence[int] = (), **attrs: Any
) -> Array:
    """The output of one node; the inputs at `constant` are initializers."""
    opset = attrs.pop("opset", 25)
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], "node", **attrs)
    given = {n: x for i, (n, x) in enumerate(zip(names, inputs, strict=True)) if i not in constant}
    fixed = {n: x for i, (n, x) in enumerate(zip(names, inputs, strict=True)) if i in constant}
    result = graphopt.compile(model_of([node], given, {"y": dtype}, fixed, opset)).run(given)["y"]
    assert result.dtype == np.dtype(dtype)
    return result


def bf16(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(BF16)


def equal(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual.astype(np.float64), expected.astype(np.float64))


# bfloat16


@pytest.mark.parametrize("op", ["Add", "Mul", "Div", "Max"])
def test_arithmetic_on_bfloat16_is_float32s_rounded_once(op: str) -> None:
    a, b = bf16(5, 7), bf16(7, seed=1)
    f, g = a.astype(np.float32), b.astype(np.float32)
    expected = {"Add": f + g, "Mul": f * g, "Div": f / g, "Max": np.maximum(f, g)}[op]
    equal(one(op, [a, b], BF16), expected.astype(BF16))
    equal(one(op, [a, b], BF16, constant=[1]), expected.astype(BF16))


def test_products_of_bfloat16_are_summed_in_float32() -> None:
    a, b = bf16(9, 130), bf16(130, 11, seed=1)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    got = one("MatMul", [a, b], BF16, constant=[1]).astype(np.float64)
    # Half a unit in the last of 8 bits, and what float32 sums lose.
    assert (np.abs(got - exact) <= np.abs(exact) * 2.0**-8 + 1e-4).all()


@pytest.mark.parametrize(
    ("op", "attrs", "expected"),
    [
        ("Transpose", {"perm": [1, 0]}, lambda x: x.T),
        ("Flatten", {"axis": 0}, lambda x: x.reshape(1, -1)),
        ("Identity", {}, lambda x: x),
        ("Split", {"num_outputs": 1}, lambda x: x),
    ],
)
def test_bfloat16_is_moved_bit_by_bit(op: str, attrs: dict[str, Any], expected: Any) -> None:
    # NaNs with a payload would not come back from float32 arithmetic unchanged.
    x = np.arange(0x7FA0, 0x7FA0 + 12, dtype=np.uint16).reshape(3, 4).view(BF16)
    got = one(op, [x], BF16, **attrs)
    np.testing.assert_array_equal(got.view(np.uint16), expected(x).view(np.uint16))


def test_bfloat16_selected_padded_and_gathered() -> None:
    x, y = bf16(4, 3), bf16(4, 3, seed=1)
    mask = np.arange(12).reshape(4, 3) % 2 == 0
    equal(one("Where", [mask, x, y], BF16), np.where(mask, x, y))
    pads, value = np.array([1, 0, 0, 2], np.int64), np.array(-1.5, BF16)
    padded = one("Pad", [x, pads, value], BF16, constant=[1, 2])
    wide = np.pad(x.astype(np.float32), ((1, 0), (0, 2)), constant_values=-1.5)
    equal(padded, wide.astype(BF16))
    equal(one("Gather", [x, np.array([2, -1])], BF16, constant=[1]), x[[2, -1]])
    equal(one("Concat", [x, y], BF16, constant=[1], axis=0), np.concatenate([x, y]))


def test_comparisons_sizes_and_places_of_bfloat16() -> None:
    x, y = bf16(4, 5), bf16(4, 5, seed=1)
    np.testing.assert_array_equal(one("Less", [x, y], bool), x < y)
    np.testing.assert_array_equal(one("Equal", [x, x], bool), x == x)
    assert one("Shape", [x], np.int64).tolist() == [4, 5]
    zeros = np.array([-0.0, 0.0], BF16)
    assert one("Equal", [zeros, zeros[::-1].copy()], bool).all()
    np.testing.assert_array_equal(
        one("ArgMax", [x], np.int64, axis=1, keepdims=0), x.astype(np.float32).argmax(1)
    )


def test_a_chain_in_bfloat16_rounds_after_each_node_and_survives_saving(tmp_path: Any) -> None:
    x, w = bf16(3, 8), bf16(8, 4, seed=1)
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["s"]),
        helper.make_node("Sub", ["s", "x"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
        helper.make_node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {"x": x}, {"y": BF16, "f": np.float32}, {"w": w})
    f = x.astype(np.float32)
    square = (f * f).astype(BF16).astype(np.float32)
    difference = (square - f).astype(BF16)
    compiled = graphopt.compile(model)
    compiled.save(tmp_path / "m.gopt")
    for program in (compiled, graphopt.load(tmp_path / "m.gopt")):
        assert [spec.dtype for spec in program.inputs] == ["bfloat16"]
        result = program.run({"x": x})
        np.testing.assert_array_equal(result["f"], difference.astype(np.float32))
        exact = difference.astype(np.float64) @ w.astype(np.float64)
        assert np.abs(result["y"].astype(np.float64) - exact).max() <= 2.0**-8 * np.abs(exact).max()


# float16


def test_float16_overflows_only_where_its_result_does() -> None:
    x = np.array([[300, 400], [3, 4]], np.float16)
    axes = np.array([1], np.int64)
    got = one("ReduceL2", [x, axes], np.float16, constant=[1], keepdims=0)
    assert got.tolist() == [500, 5]  # the squares are beyond 65504
    lse = one("ReduceLogSumExp", [x, axes], np.float16, constant=[1], keepdims=0)
    np.testing.assert_allclose(lse, [400, 4.3125], rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_in_other_floats(dtype: Any, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 7, 6)).astype(dtype)
    w = rng.standard_normal((4, 2, 3, 3) if transposed else (6, 2, 3, 3)).astype(dtype)
    op, attrs = ("ConvTranspose" if transposed else "Conv"), {"group": 2, "strides": [2, 1]}
    got = one(op, [x, w], dtype, constant=[1], **attrs)
    wide = one(op, [x.astype("f4"), w.astype("f4")], np.float32, constant=[1], **attrs)
    tolerance = 1e-3 if dtype == np.float16 else 1e-6
    np.testing.assert_allclose(got.astype("f8"), wide, rtol=tolerance, atol=tolerance * 8)


# Casts

PLAIN = [bool, *(f"{k}{b}" for k in ("int", "uint") for b in (8, 16, 32, 64)), "float16",
         "float32", "float64"]  # fmt: skip


@pytest.mark.parametrize("target", PLAIN, ids=str)
def test_casts_between_numbers_agree_with_onnxruntime(target: Any) -> None:
    rng = np.random.default_rng(3)
    nodes, inputs, outputs = [], {}, {}
    for i, source in enumerate(PLAIN):
        kind = np.dtype(source).kind
        low, high = (0, 100) if kind == "u" or np.dtype(target).kind == "u" else (-100, 100)
        x = rng.uniform(low, high, 37)
        inputs[f"x{i}"] = (x > 40 if kind == "b" else x).astype(source)
        nodes.append(helper.make_node("Cast", [f"x{i}"], [f"y{i}"], to=code_of(target)))
        outputs[f"y{i}"] = target
    inputs["x8"][:3] = [2**63 + 1, 2**24 + 1, 200]  # uint64: rounded, or cut to the low bits
    if np.dtype(target).kind == "f":
        inputs["x11"][:4] = [np.inf, np.nan, 1e300, 65519.9]  # float64: beyond float32 and float16
    model = model_of(nodes, inputs, outputs, opset=21)
    model.ir_version = 10
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(list(outputs), inputs)
    got = graphopt.compile(model).run(inputs)
    for name, ref in zip(outputs, expected, strict=True):
        assert got[name].dtype == ref.dtype
        np.testing.assert_array_equal(got[name], ref, err_msg=f"{name} to {target}")


NARROW_FLOATS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
                 "float4_e2m1fn"]  # fmt: skip
NARROW_INTEGERS = ["int4", "uint4", "int2", "uint2"]


def cast(source: str, target: str, dtype: Any) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=code_of(dtype))


@pytest.mark.parametrize("name", NARROW_FLOATS)
def test_narrow_floats_there_and_back(name: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, name))
    x = np.random.default_rng(4).standard_normal((3, 11)).astype(np.float32) * 2
    given = x[::-1].astype(kind)
    nodes = [
        cast("x", "made", kind),
        helper.make_node("CastLike", ["x", "given"], ["like"]),
        cast("given", "numbers", np.float32),
        cast("stored", "constants", np.float32),
        helper.make_node("Transpose", ["given"], ["moved"], perm=[1, 0]),
    ]
    inputs = {"x": x, "given": given}
    outputs = {"made": kind, "like": kind, "numbers": "f4", "constants": "f4", "moved": kind}
    got = graphopt.compile(model_of(nodes, inputs, outputs, {"stored": given})).run(inputs)
    equal(got["made"], x.astype(kind))
    equal(got["like"], x.astype(kind))
    equal(got["numbers"], given.astype(np.float32))
    equal(got["constants"], given.astype(np.float32))
    equal(got["moved"], given.T)


@pytest.mark.parametrize("name", NARROW_INTEGERS)
def test_narrow_integers_there_and_back(name: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, name))
    info = ml_dtypes.iinfo(kind)
    x = np.arange(int(info.min), int(info.max) + 1, dtype=np.int32)
    given = x.astype(kind)
    dirty = (given.view(np.uint8) | 0xF0).view(kind)  # bits that do not count
    targets = {"i1": "int8", "i8": "int64", "f2": "float16", "f4": "float32", "u1": "uint8"}
    nodes = [
        cast("x", "made", kind),
        cast("large", "wrapped", kind),
        cast("stored", "constants", np.float32),
        cast("dirty", "cleaned", np.int32),
        helper.make_node("Reshape", ["given", "shape"], ["moved"]),
        *(cast("given", name, dtype) for name, dtype in targets.items()),
    ]
    inputs = {"x": x, "large": x + 16, "given": given, "dirty": dirty}
    outputs = {"made": kind, "wrapped": kind, "constants": "f4", "cleaned": "i4", "moved": kind}
    constants = {"stored": given, "shape": np.array([2, -1], np.int64)}
    made = model_of(nodes, inputs, {**outputs, **targets}, constants)
    got = graphopt.compile(made).run(inputs)
    np.testing.assert_array_equal(got["made"].view(np.uint8), given.view(np.uint8))
    np.testing.assert_array_equal(got["wrapped"].view(np.uint8), given.view(np.uint8))
    np.testing.assert_array_equal(got["constants"], x)
    np.testing.assert_array_equal(got["cleaned"], x)
    np.testing.assert_array_equal(got["moved"].astype(np.int32), x.reshape(2, -1))
    for name, dtype in targets.items():
        np.testing.assert_array_equal(got[name], x.astype(dtype))


def test_too_large_numbers_saturate_or_not() -> None:
    x = np.array([1e6, -1e6, np.inf, np.nan, 449.0], np.float32)
    for name, largest in (("float8_e4m3fn", 448.0), ("float8_e5m2", 57344.0)):
        kind = np.dtype(getattr(ml_dtypes, name))
        got = one("Cast", [x], kind, to=code_of(kind)).astype(np.float32)
        assert got[:3].tolist() == [largest, -largest, largest]
        assert np.isnan(got[3])
        equal(one("Cast", [x], kind, to=code_of(kind), saturate=0), x.astype(kind))


def test_powers_of_two() -> None:
    kind = np.dtype(ml_dtypes.float8_e8m0fnu)
    x = np.array([1.0, 1.5, 3.0, 5.0], np.float32)
    for mode, expected in (("up", [1, 2, 4, 8]), ("down", [1, 1, 2, 4]), ("nearest", [1, 2, 4, 4])):
        got = one("Cast", [x], kind, to=code_of(kind), round_mode=mode)
        assert got.astype(np.float32).tolist() == expected


@pytest.mark.parametrize(
    ("source", "target"),
    itertools.permutations(["int32", "uint32", "float32"], 2),
)
def test_bits_are_reinterpreted(source: str, target: str) -> None:
    x = np.random.default_rng(5).integers(0, 2**31, 33).astype(np.uint32).view(source)
    got = one("BitCast", [x], target, opset=26, to=code_of(target))
    np.testing.assert_array_equal(got.view(np.uint32), x.view(np.uint32))


def test_bits_of_bfloat16_and_bool() -> None:
    x = bf16(17)
    got = one("BitCast", [x], np.int16, opset=26, to=TensorProto.INT16)
    np.testing.assert_array_equal(got, x.view(np.int16))
    equal(one("BitCast", [got], BF16, opset=26, to=TensorProto.BFLOAT16), x)
    flags = np.arange(9) % 2 == 0
    bytes_ = one("BitCast", [flags], np.uint8, opset=26, to=TensorProto.UINT8)
    np.testing.assert_array_equal(bytes_, flags.view(np.uint8))


# Refusals


def test_codes_are_never_taken_for_numbers() -> None:
    x = np.zeros((2, 3), ml_dtypes.float8_e4m3fn)
    node = helper.make_node("Foo", ["x"], ["y"], domain="com.example")
    with pytest.raises(ModelError):
        graphopt.compile(model_of([node], {"x": x}, {"y": np.float32})).run({"x": x})
    # The schema forbids this sum; whoever gets by the checker must not get a sum of codes.
    node = helper.make_node("Add", ["x", "x"], ["y"])
    with pytest.raises(ModelError, match="float8"):
        graphopt.compile(model_of([node], {"x": x}, {"y": x.dtype})).run({"x": x})


def test_complex_numbers_and_text_are_refused_by_name() -> None:
    info = helper.make_tensor_value_info
    for kind, word in ((TensorProto.COMPLEX64, "complex64"), (TensorProto.STRING, "strings")):
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [info("x", kind, [2])],
            [info("y", kind, [2])],
        )
        with pytest.raises(ModelError, match=word):
            graphopt.compile(helper.make_model(graph))


def test_text_that_is_folded_away_does_no_harm() -> None:
    nodes = [
        helper.make_node("Constant", [], ["s"], value_strings=[b"1.5", b"2"]),
        helper.make_node("Constant", [], ["unused"], value_string=b"never read"),
        helper.make_node("Cast", ["s"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]
    x = np.array([1, 2], np.float32)
    got = graphopt.compile(model_of(nodes, {"x": x}, {"y": np.float32})).run({"x": x})["y"]
    np.testing.assert_array_equal(got, [2.5, 4])
