"""LSTM, GRU and RNN with everything that ONNX allows, compiled, against ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from frontend_reference import assert_close, run_onnxruntime
from onnx import helper, numpy_helper

import graphopt
from graphopt.errors import ModelError

Array = np.ndarray[Any, Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
NAMES = ("x", "w", "r", "b", "lengths", "h0", "c0", "p")


@dataclass(frozen=True)
class Layer:
    """A recurrent node; `fixed` are the inputs that are initializers."""

    op: str
    steps: int = 5
    batch: int = 3
    features: int = 4
    hidden: int = 7
    direction: str = "forward"
    inputs: tuple[str, ...] = ("x", "w", "r", "b")
    fixed: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y", "y_h", "y_c")
    opset: int = 14
    dtype: str = "float32"

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items()).replace(" ", "")
        shape = f"{self.steps}x{self.batch}x{self.features}x{self.hidden}"
        return f"{self.op}{self.opset}-{self.direction}-{shape}-{'.'.join(self.inputs)}-{attrs}"

    def arrays(self) -> dict[str, Array]:
        rng = np.random.default_rng(5)
        d = 2 if self.direction == "bidirectional" else 1
        gates, h, first = GATES[self.op], self.hidden, self.attrs.get("layout", 0)
        state = (self.batch, d, h) if first else (d, self.batch, h)
        x = (self.batch, self.steps) if first else (self.steps, self.batch)
        shapes = {
            "x": (*x, self.features),
            "w": (d, gates * h, self.features),
            "r": (d, gates * h, h),
            "b": (d, 2 * gates * h),
            "h0": state,
            "c0": state,
            "p": (d, 3 * h),
        }
        made = {
            name: (rng.standard_normal(shape) / 2).astype(self.dtype)
            for name, shape in shapes.items()
        }
        made["lengths"] = np.array(self.lengths, np.int32)
        return {name: made[name] for name in NAMES if name in self.inputs}

    def model(self) -> tuple[bytes, dict[str, Array]]:
        arrays = self.arrays()
        last = max(NAMES.index(name) for name in self.inputs)
        outputs = [n for n in self.outputs if n != "y_c" or self.op == "LSTM"]
        node = helper.make_node(
            self.op,
            [name if name in self.inputs else "" for name in NAMES[: last + 1]],
            outputs,
            hidden_size=self.hidden,
            direction=self.direction,
            **self.attrs,
        )
        feeds = {name: a for name, a in arrays.items() if name not in self.fixed}
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            [node],
            "layer",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in feeds.items()
            ],
            [helper.make_tensor_value_info(n, kind, None) for n in outputs if n],
            [numpy_helper.from_array(arrays[name], name) for name in self.fixed],
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        return model.SerializeToString(), feeds


ALL = ("x", "w", "r", "b", "h0", "c0")
HARD = {"activations": ["HardSigmoid", "Elu", "Softsign"], "activation_alpha": [0.3, 0.7],
        "activation_beta": [0.4]}  # fmt: skip
MIXED = {"activations": ["Sigmoid", "ScaledTanh", "LeakyRelu",
                         "HardSigmoid", "Softplus", "Affine"],
         "activation_alpha": [1.2, 0.05, 0.25, 0.8],
         "activation_beta": [0.7, 0.5, 0.1]}  # fmt: skip
LAYERS = [
    Layer("LSTM", inputs=(*ALL, "p")),
    Layer("LSTM", inputs=(*ALL, "p"), fixed=("w", "r", "b", "p"), direction="bidirectional"),
    Layer("LSTM", inputs=(*ALL, "lengths"), lengths=(2, 5, 3), direction="bidirectional"),
    Layer("LSTM", inputs=(*ALL, "p", "lengths"), lengths=(5, 0, 1), fixed=("w", "r")),
    Layer("LSTM", attrs={"clip": 0.25, "input_forget": 1}),
    Layer("LSTM", attrs=HARD, fixed=("w", "r")),
    Layer("LSTM", attrs=MIXED, direction="bidirectional", steps=1),
    Layer("LSTM", hidden=33, batch=2, inputs=ALL, opset=7, outputs=("", "y_h")),
    Layer("LSTM", opset=22, outputs=("", "", "y_c"), direction="reverse"),
    Layer("GRU", inputs=(*ALL[:5], "lengths"), lengths=(4, 2, 5), direction="bidirectional"),
    Layer("GRU", attrs={"linear_before_reset": 1, "clip": 0.3}, fixed=("r",), direction="reverse"),
    Layer("GRU", attrs={"activations": ["HardSigmoid", "Relu"]}, opset=7, steps=1),
    Layer("GRU", inputs=("x", "w", "r"), hidden=17, batch=1, outputs=("y",)),
    Layer("RNN", inputs=(*ALL[:5], "lengths"), lengths=(1, 5, 2), direction="bidirectional"),
    Layer("RNN", attrs={"activations": ["ThresholdedRelu"], "activation_alpha": [0.2]}, steps=1),
    Layer("RNN", attrs={"activations": ["Relu"], "clip": 1.0}, hidden=40, fixed=("w", "r", "b")),
    Layer("RNN", hidden=5, batch=9, steps=30, opset=7),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(layer: Layer) -> None:
    model, feeds = layer.model()
    expected = run_onnxruntime(model, feeds)
    assert_close(graphopt.compile(model).run(feeds), expected, 1e-5)


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("opset", [1, 3])
def test_old_operator_sets(op: str, opset: int) -> None:
    inputs = ALL if op == "LSTM" else ALL[:5]
    attrs = {"output_sequence": 1} if opset == 1 else {}
    old, feeds = Layer(op, inputs=inputs, opset=opset, attrs=attrs, fixed=("w", "r")).model()
    known, _ = Layer(op, inputs=inputs, opset=7, fixed=("w", "r")).model()
    assert_close(graphopt.compile(old).run(feeds), run_onnxruntime(known, feeds), 1e-5)


@pytest.mark.parametrize("op", list(GATES))
def test_batch_first_layout_is_the_other_one_transposed(op: str) -> None:
    # ONNX Runtime has no layout=1.
    inputs = ALL if op == "LSTM" else ALL[:5]
    plain = Layer(op, inputs=inputs, direction="bidirectional")
    model, feeds = plain.model()
    expected = run_onnxruntime(model, feeds)
    first, _ = Layer(op, inputs=inputs, direction="bidirectional", attrs={"layout": 1}).model()
    moved = {n: np.swapaxes(a, 0, 1) if n in ("x", "h0", "c0") else a for n, a in feeds.items()}
    results = graphopt.compile(first).run({n: np.ascontiguousarray(a) for n, a in moved.items()})
    axes = {"y": (2, 0, 1, 3), "y_h": (1, 0, 2), "y_c": (1, 0, 2)}
    assert_close(results, {n: a.transpose(axes[n]) for n, a in expected.items()}, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float64", 1e-12)])
@pytest.mark.parametrize("op", list(GATES))
def test_other_floats(op: str, dtype: str, tolerance: float) -> None:
    # Against ourselves in another precision: ONNX Runtime computes these layers in float32 only.
    model, feeds = Layer(op, dtype=dtype, direction="bidirectional").model()
    results = graphopt.compile(model).run(feeds)
    wide, _ = Layer(op, dtype="float64", direction="bidirectional").model()
    if dtype == "float64":
        single, _ = Layer(op, direction="bidirectional").model()
        near = run_onnxruntime(single, {n: a.astype("f4") for n, a in feeds.items()})
        assert_close({n: a.astype("f4") for n, a in results.items()}, near, 1e-5)
        return
    exact = graphopt.compile(wide).run({n: a.astype("f8") for n, a in feeds.items()})
    assert_close(results, {n: a.astype(dtype) for n, a in exact.items()}, tolerance)


@pytest.mark.parametrize("op", list(GATES))
def test_a_long_sequence_is_one_kernel(op: str) -> None:
    layer = Layer(op, steps=4000, batch=1, hidden=16, fixed=("w", "r", "b"))
    model, feeds = layer.model()
    compiled = graphopt.compile(model)
    assert len(compiled.profile(feeds).rows) < 20
    assert_close(compiled.run(feeds), run_onnxruntime(model, feeds), 1e-4)


def test_lengths_beyond_the_sequence_are_taken_for_its_length() -> None:
    layer = Layer("GRU", inputs=("x", "w", "r", "b", "lengths"), lengths=(5, 5, 5))
    model, feeds = layer.model()
    compiled = graphopt.compile(model)
    wild = {**feeds, "lengths": np.array([2**31 - 1, 5, 6], np.int32)}
    assert_close(compiled.run(wild), compiled.run(feeds), 0)


def test_constant_lengths_beyond_the_sequence_are_refused() -> None:
    inputs = ("x", "w", "r", "b", "lengths")
    model, _ = Layer("GRU", inputs=inputs, lengths=(6, 5, 5), fixed=("lengths",)).model()
    with pytest.raises(ModelError, match="sequence_lens are not within 0 and 5"):
        graphopt.compile(model)


def quantized_lstm(batch: int, per_channel: bool, dtype: str) -> tuple[bytes, dict[str, Array]]:
    """A bidirectional DynamicQuantizeLSTM."""
    rng = np.random.default_rng(3)
    features, hidden = 12, 20
    low, high = (-127, 128) if dtype == "int8" else (0, 256)
    scales = (2, 4 * hidden) if per_channel else (2,)
    zero = 0 if dtype == "int8" else 128

    def weight(depth: int) -> Array:
        return rng.integers(low, high, (2, depth, 4 * hidden)).astype(dtype)

    values = {
        "w": weight(features),
        "r": weight(hidden),
        "b": (rng.standard_normal((2, 8 * hidden)) / 8).astype("f4"),
        "ws": (rng.random(scales) / 300 + 1e-3).astype("f4"),
        "wz": np.full(scales, zero, dtype),
        "rs": (rng.random(scales) / 300 + 1e-3).astype("f4"),
        "rz": np.full(scales, zero, dtype),
    }
    names = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        names,
        ["y", "y_h", "y_c"],
        domain="com.microsoft",
        hidden_size=hidden,
        direction="bidirectional",
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (9, batch, features))],
        [
            helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
            for n in ("y", "y_h", "y_c")
        ],
        [numpy_helper.from_array(a, n) for n, a in values.items()],
    )
    imports = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return model.SerializeToString(), {"x": rng.standard_normal((9, batch, features)).astype("f4")}


# Rounding to 256 levels: a sum near the border of two falls on either side. With several sequences
# ONNX Runtime's levels are common to those that one of its threads takes; here each has its own.
@pytest.mark.parametrize(("batch", "tolerance"), [(1, 2e-3), (3, 2e-2)])
@pytest.mark.parametrize(("per_channel", "dtype"), [(False, "uint8"), (True, "int8")])
def test_dynamic_quantize_lstm(batch: int, tolerance: float, per_channel: bool, dtype: str) -> None:
    model, feeds = quantized_lstm(batch, per_channel, dtype)
    expected = run_onnxruntime(model, feeds)
    assert_close(graphopt.compile(model).run(feeds), expected, tolerance)
