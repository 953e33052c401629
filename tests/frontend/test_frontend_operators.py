"""Every converter against ONNX Runtime, through all stages: small shapes, one node each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from frontend_reference import assert_close, run_onnxruntime
from onnx import helper, numpy_helper

import graphopt

RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def ints(low: int, high: int, *shape: int, dtype: str = "int64") -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


def bools(*shape: int) -> np.ndarray:
    return RNG.integers(0, 2, shape).astype(bool)


class Fixed(np.ndarray):
    """Marks an input as an initializer."""


def fixed(array: Any) -> np.ndarray:
    return np.asarray(array).view(Fixed)


@dataclass
class Case:
    op: str
    inputs: list[Any]
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1
    tolerance: float = 1e-5
    domain: str = ""

    def __str__(self) -> str:
        text = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        shapes = "x".join(str(np.shape(a)) for a in self.inputs if a is not None)
        return f"{self.op}{self.opset}[{text}]{shapes}".replace(" ", "")


def one_node_model(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    feeds, names, inputs, weights = {}, [], [], []
    for i, array in enumerate(case.inputs):
        if array is None:
            names.append("")
            continue
        name = f"x{i}"
        names.append(name)
        if isinstance(array, Fixed):
            weights.append(numpy_helper.from_array(np.asarray(array), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
            feeds[name] = array
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="n", domain=case.domain, **case.attrs)
    kinds = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "g", inputs, kinds, weights)
    imports = [helper.make_opsetid("", case.opset)]
    if case.domain:
        imports.append(helper.make_opsetid(case.domain, 1))
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    if not case.domain:
        model = onnx.shape_inference.infer_shapes(model)
    return model, feeds


X = f32(2, 3, 4)
POSITIVE = np.abs(f32(2, 3)) + 0.5
UNIT = RNG.uniform(-0.9, 0.9, (2, 3)).astype(np.float32)
IMAGE = f32(1, 4, 7, 6)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0, -1.5, 2.5], np.float32)

UNARY = [
    *(
        Case(op, [X])
        for op in [
            "Abs",
            "Neg",
            "Sign",
            "Floor",
            "Ceil",
            "Exp",
            "Erf",
            "Sin",
            "Cos",
            "Tan",
            "Atan",
            "Sinh",
        ]
    ),
    *(
        Case(op, [X])
        for op in ["Cosh", "Asinh", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Mish"]
    ),
    *(Case(op, [X]) for op in ["LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish"]),
    *(Case(op, [POSITIVE]) for op in ("Sqrt", "Log", "Reciprocal")),
    *(Case(op, [UNIT]) for op in ("Asin", "Acos", "Atanh")),
    Case("Acosh", [POSITIVE + 1]),
    Case("Round", [np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.3], np.float32)]),
    Case("Neg", [ints(-5, 5, 4, dtype="int32")]),
    Case("Abs", [ints(-5, 5, 4, dtype="int64")]),
    Case("IsNaN", [SPECIAL]),
    Case("IsInf", [SPECIAL]),
    Case("IsInf", [SPECIAL], {"detect_negative": 0}),
    Case("IsInf", [SPECIAL], {"detect_positive": 0}),
    Case("Not", [bools(5)]),
    Case("LeakyRelu", [X], {"alpha": 0.3}),
    Case("Elu", [X], {"alpha": 1.7}),
    Case("Selu", [X], {"alpha": 1.2, "gamma": 0.9}),
    Case("Celu", [X], {"alpha": 0.6}),
    Case("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.4}),
    Case("ThresholdedRelu", [X], {"alpha": 0.4}),
    Case("Shrink", [X], {"lambd": 0.5, "bias": 0.2}),
    Case("Gelu", [X], opset=20),
    Case("Gelu", [X], {"approximate": "tanh"}, opset=20),
    Case("Gelu", [X], domain="com.microsoft"),
    Case("BitwiseNot", [ints(-9, 9, 5, dtype="int32")]),
    Case("Identity", [X]),
    Case("Dropout", [X]),
]

BINARY = [
    *(Case(op, [f32(2, 3, 4), f32(3, 1)]) for op in ["Add", "Sub", "Mul", "Div", "Max", "Min"]),
    Case("Div", [i64(-7, 7, -8, 8), i64(2, -2, 3, 3)]),
    Case("Mod", [i64(-7, 7, -8, 8), i64(2, -2, 3, -3)]),
    Case("Mod", [i64(-7, 7, -8, 8), i64(2, -2, 3, -3)], {"fmod": 1}),
    Case("Mod", [f32(5) * 4, f32(5)], {"fmod": 1}),
    Case("Pow", [POSITIVE, f32(2, 3)]),
    *(Case("Pow", [X, fixed(np.float32(e))]) for e in (1, 2, 3)),
    Case("Pow", [POSITIVE, fixed(np.float32(0.5))]),
    Case("Pow", [POSITIVE, fixed(np.float32(-1))]),
    Case("Pow", [X, fixed(i64(2))]),
    *(
        Case(op, [ints(0, 3, 2, 4), ints(0, 3, 4)])
        for op in ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]
    ),
    Case("Equal", [bools(8), bools(8)]),
    *(Case(op, [bools(2, 5), bools(5)]) for op in ["And", "Or", "Xor"]),
    *(
        Case(op, [ints(0, 99, 5, dtype="int32"), ints(0, 99, 5, dtype="int32")])
        for op in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]
    ),
    *(
        Case(
            "BitShift",
            [ints(0, 255, 9, dtype="uint8"), np.array([0, 1, 2, 3, 4, 5, 6, 7, 1], np.uint8)],
            {"direction": direction},
        )
        for direction in ("LEFT", "RIGHT")
    ),
    Case("Sum", [X, f32(4), f32(3, 1)]),
    Case("Mean", [X, f32(4), f32(3, 1)]),
    Case("Max", [X, f32(4), f32(3, 1)]),
    Case("PRelu", [IMAGE, fixed(f32(4, 1, 1))]),
    Case("Where", [bools(3, 1), f32(2, 3, 4), f32(4)]),
    Case("Clip", [X, fixed(np.float32(-0.5)), fixed(np.float32(0.7))]),
    Case("Clip", [X, None, fixed(np.float32(0.7))]),
    Case("Clip", [X, fixed(np.float32(-0.1))]),
    Case("Clip", [X, np.array(-0.5, np.float32), np.array(0.5, np.float32)]),
    Case("Clip", [ints(-9, 9, 6), fixed(np.int64(-3)), fixed(np.int64(4))]),
    Case("Clip", [X], {"min": -0.2, "max": 0.3}, opset=7),
    *(
        Case("Cast", [X * 4], {"to": to})
        for to in (onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT16)
    ),
    Case("Cast", [bools(6)], {"to": onnx.TensorProto.FLOAT}),
    Case("CastLike", [X * 4, i64(1)]),
]

AXES = fixed(i64(1, -1))
REDUCTIONS = [
    *(
        Case(f"Reduce{kind}", [np.abs(X) + 0.1], {"axes": [1], "keepdims": keep}, opset=13)
        for kind in ["Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]
        for keep in (0, 1)
    ),
    *(Case(f"Reduce{kind}", [X, AXES], {"keepdims": 0}) for kind in ["Sum", "Mean", "Max", "L2"]),
    Case("ReduceSum", [X], {"keepdims": 0}),
    Case("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    Case("ReduceMax", [ints(-5, 5, 3, 4), AXES]),
    Case("ReduceMin", [bools(3, 4), AXES], opset=20),
    Case("ReduceLogSumExp", [X * 100, AXES]),
    *(Case(op, [X], {"axis": 1}) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(op, [X]) for op in ("Softmax", "LogSoftmax")),
    *(Case(op, [X], {"axis": 1}, opset=11) for op in ("Softmax", "LogSoftmax", "Hardmax")),
]

DATA = f32(5, 4)
MOVEMENT = [
    Case("Reshape", [X, fixed(i64(0, -1))]),
    Case("Reshape", [X, fixed(i64(4, 6))]),
    Case("Flatten", [IMAGE], {"axis": 2}),
    Case("Flatten", [IMAGE], {"axis": -1}),
    Case("Squeeze", [f32(1, 3, 1, 2), fixed(i64(-2))]),
    Case("Squeeze", [f32(1, 3, 1, 2)]),
    Case("Squeeze", [f32(1, 3, 1, 2)], {"axes": [0]}, opset=11),
    Case("Unsqueeze", [X, fixed(i64(-1, 0))]),
    Case("Unsqueeze", [X], {"axes": [1]}, opset=11),
    Case("Transpose", [X], {"perm": [1, 2, 0]}),
    Case("Transpose", [X]),
    Case("Concat", [X, f32(2, 1, 4), X], {"axis": 1}),
    Case("Split", [f32(2, 7)], {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", [f32(2, 6), fixed(i64(1, 3, 2))], {"axis": -1}, outputs=3),
    Case("Split", [f32(2, 6)], {"axis": 1, "split": [2, 4]}, outputs=2, opset=11),
    Case("Slice", [DATA, fixed(i64(1)), fixed(i64(4))]),
    Case(
        "Slice",
        [DATA, fixed(i64(-1, 3)), fixed(i64(-99, -5)), fixed(i64(0, 1)), fixed(i64(-2, -1))],
    ),
    Case("Slice", [DATA, fixed(i64(0)), fixed(i64(99)), fixed(i64(1)), fixed(i64(2))]),
    Case("Slice", [DATA], {"starts": [1], "ends": [-1], "axes": [0]}, opset=9),
    Case("Expand", [f32(3, 1), fixed(i64(2, 1, 4))]),
    Case("Tile", [f32(2, 3), fixed(i64(2, 2))]),
    *(
        Case("Pad", [f32(3, 4), fixed(i64(1, 2, 0, 3)), *extra], {"mode": mode})
        for mode, extra in (
            ("constant", [fixed(np.float32(1.5))]),
            ("constant", []),
            ("edge", []),
        )
    ),
    Case("Pad", [f32(3, 4), fixed(i64(1, 2, 0, 3))], {"mode": "reflect"}),
    Case("Pad", [f32(3, 4), fixed(i64(1, 2, 0, 3))], {"mode": "wrap"}, opset=19),
    Case("Pad", [f32(3, 4), fixed(i64(-1, 2)), None, fixed(i64(1))]),
    Case("Pad", [f32(3, 4)], {"pads": [1, 0, 0, 2], "value": 2.0}, opset=10),
    *(
        Case("DepthToSpace", [f32(1, 8, 2, 3)], {"blocksize": 2, "mode": mode})
        for mode in ("DCR", "CRD")
    ),
    Case("SpaceToDepth", [f32(1, 2, 4, 6)], {"blocksize": 2}),
    *(
        Case("Trilu", [f32(2, 4, 5), fixed(np.int64(k))], {"upper": u})
        for k in (-1, 1)
        for u in (0, 1)
    ),
    Case("EyeLike", [f32(3, 4)], {"k": 1}),
    Case("Shape", [X], {"start": 1}),
    Case("Size", [X]),
]

INDEXING = [
    Case("Gather", [DATA, ints(-5, 5, 2, 3)], {"axis": 0}),
    Case("Gather", [DATA, fixed(i64(-1, 2))], {"axis": 1}),
    Case("Gather", [DATA, fixed(np.int64(-2))], {"axis": 0}),
    Case("Gather", [DATA, fixed(np.array([[1]]))], {"axis": 1}),
    Case("OneHot", [ints(-4, 4, 5), fixed(np.int64(4)), fixed(f32(2))]),
    Case("OneHot", [ints(0, 4, 2, 3), fixed(np.int64(4)), f32(2)], {"axis": 1}),
]

CONVOLUTIONS = [
    Case("Conv", [IMAGE, fixed(f32(6, 4, 3, 3)), fixed(f32(6))], {"pads": [1, 0, 2, 1]}),
    Case("Conv", [IMAGE, fixed(f32(8, 2, 3, 2))], {"group": 2, "strides": [2, 1]}),
    Case("Conv", [IMAGE, fixed(f32(4, 1, 3, 3)), f32(4)], {"group": 4, "dilations": [2, 2]}),
    Case("Conv", [IMAGE, fixed(f32(2, 4, 3, 3))], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", [IMAGE, fixed(f32(2, 4, 2, 2))], {"auto_pad": "SAME_LOWER"}),
    Case("Conv", [IMAGE, f32(2, 4, 1, 1)], {"auto_pad": "VALID"}),
    Case(
        "Conv", [f32(2, 3, 9), fixed(f32(4, 3, 3)), fixed(f32(4))], {"pads": [1, 2], "strides": [2]}
    ),
    Case("Conv", [f32(1, 2, 4, 5, 4), fixed(f32(3, 2, 3, 2, 2))], {"pads": [1, 0, 0, 1, 1, 0]}),
    Case("ConvTranspose", [IMAGE, fixed(f32(4, 3, 3, 3)), fixed(f32(3))], {"strides": [2, 2]}),
    Case(
        "ConvTranspose",
        [IMAGE, fixed(f32(4, 3, 3, 3))],
        {"strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0]},
    ),
    Case("ConvTranspose", [IMAGE, fixed(f32(4, 2, 2, 2))], {"strides": [2, 2], "group": 2}),
    Case("ConvTranspose", [f32(1, 3, 5), fixed(f32(3, 2, 4))], {"strides": [2], "pads": [1, 1]}),
    Case(
        "ConvTranspose",
        [IMAGE, fixed(f32(4, 3, 3, 3))],
        {"strides": [2, 2], "output_shape": [14, 11]},
    ),
    Case(
        "ConvTranspose",
        [IMAGE, fixed(f32(4, 3, 3, 3))],
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    Case("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    Case("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    Case(
        "MaxPool", [f32(1, 2, 9)], {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}
    ),
    Case("MaxPool", [f32(1, 2, 4, 4, 4)], {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    *(
        Case(
            "AveragePool",
            [IMAGE],
            {
                "kernel_shape": [3, 3],
                "pads": [1, 1, 0, 1],
                "strides": [2, 2],
                "count_include_pad": count,
            },
        )
        for count in (0, 1)
    ),
    Case(
        "AveragePool",
        [IMAGE],
        {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1},
        opset=19,
    ),
    Case("AveragePool", [f32(1, 2, 9)], {"kernel_shape": [3]}),
    Case("LpPool", [IMAGE], {"kernel_shape": [2, 2], "p": 2}),
    Case("GlobalAveragePool", [IMAGE]),
    Case("GlobalMaxPool", [IMAGE]),
    Case("GlobalLpPool", [IMAGE], {"p": 1}),
]

LINEAR = [
    Case("MatMul", [f32(2, 3, 4), f32(2, 4, 5)]),
    Case("MatMul", [f32(2, 1, 3, 4), fixed(f32(3, 4, 2))]),
    Case("MatMul", [f32(4), f32(4, 5)]),
    Case("MatMul", [f32(2, 3, 4), f32(4)]),
    Case("MatMul", [f32(4), f32(4)]),
    Case("Gemm", [f32(3, 4), fixed(f32(5, 4)), fixed(f32(5))], {"transB": 1}),
    Case("Gemm", [f32(4, 3), f32(4, 5), f32(3, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [f32(3, 4), fixed(f32(4, 5))], {"alpha": 0.5}),
    Case("MatMulInteger", [ints(0, 255, 3, 4, dtype="uint8"), ints(-99, 99, 4, 2, dtype="int8")]),
    Case(
        "MatMulInteger",
        [
            ints(0, 255, 3, 4, dtype="uint8"),
            fixed(ints(-99, 99, 4, 2, dtype="int8")),
            fixed(np.uint8(7)),
            fixed(np.int8(3)),
        ],
    ),
    Case("Einsum", [f32(2, 3, 4), f32(2, 5, 4)], {"equation": "bij,bkj->bik"}),
    Case("Einsum", [f32(2, 3, 4, 5), f32(2, 6, 4, 5)], {"equation": "bqhd,bkhd->bhqk"}),
    Case("Einsum", [f32(3, 4)], {"equation": "ij->ji"}),
    Case(
        "FusedMatMul",
        [f32(2, 3, 4), f32(2, 5, 4)],
        {"transB": 1, "alpha": 0.3},
        domain="com.microsoft",
    ),
]

NORMALIZATIONS = [
    Case("BatchNormalization", [IMAGE, *(fixed(np.abs(f32(4)) + 0.1) for _ in range(4))]),
    Case(
        "BatchNormalization", [IMAGE, *(np.abs(f32(4)) + 0.1 for _ in range(4))], {"epsilon": 0.01}
    ),
    Case("LayerNormalization", [X, fixed(f32(4)), fixed(f32(4))]),
    Case("LayerNormalization", [X, fixed(f32(3, 4))], {"axis": 1, "epsilon": 0.1}),
    Case("LayerNormalization", [X, fixed(f32(4)), fixed(f32(4))], outputs=3),
    Case("RMSNormalization", [X, fixed(f32(4))], opset=23),
    Case("InstanceNormalization", [IMAGE, fixed(f32(4)), fixed(f32(4))]),
    Case("GroupNormalization", [IMAGE, fixed(f32(4)), f32(4)], {"num_groups": 2}, opset=21),
    Case("GroupNormalization", [IMAGE, fixed(f32(2)), fixed(f32(2))], {"num_groups": 2}),
    *(Case("LpNormalization", [X], {"axis": 1, "p": p}) for p in (1, 2)),
    Case("MeanVarianceNormalization", [IMAGE]),
    Case("LRN", [IMAGE], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
    Case(
        "SkipLayerNormalization",
        [X, f32(2, 3, 4), fixed(f32(4)), fixed(f32(4)), fixed(f32(4))],
        {"epsilon": 1e-5},
        domain="com.microsoft",
    ),
]

EMPTY = fixed(np.zeros(0, np.float32))
SMALL = f32(1, 2, 4, 5)
RESIZES = [
    *(
        Case("Resize", [SMALL, EMPTY, fixed(np.array([1, 1, *s], np.float32))], attrs)
        for s in ((2, 2), (1.6, 0.7))
        for attrs in (
            {"mode": "nearest"},
            {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            },
            {"mode": "nearest", "nearest_mode": "ceil"},
            {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
            {"mode": "linear"},
            {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
            {"mode": "cubic"},
            {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
        )
    ),
    Case("Resize", [SMALL, None, None, fixed(i64(1, 2, 7, 3))], {"mode": "linear"}),
    Case(
        "Resize",
        [SMALL, None, None, fixed(i64(1, 2, 7, 3))],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    Case("Resize", [SMALL, None, None, fixed(i64(6, 9))], {"mode": "nearest", "axes": [2, 3]}),
    Case(
        "Resize", [f32(1, 2, 5), None, fixed(np.array([1, 1, 2], np.float32))], {"mode": "linear"}
    ),
    Case(
        "Resize", [SMALL, fixed(np.array([1, 1, 2, 2], np.float32))], {"mode": "nearest"}, opset=10
    ),
    Case(
        "Upsample", [SMALL, fixed(np.array([1, 1, 2, 3], np.float32))], {"mode": "nearest"}, opset=9
    ),
    Case(
        "Upsample", [SMALL, fixed(np.array([1, 1, 2, 2], np.float32))], {"mode": "linear"}, opset=9
    ),
]

H = 3
RECURRENT = [
    *(
        Case(
            op,
            [
                f32(4, 2, 5),
                fixed(f32(d, g * H, 5)),
                fixed(f32(d, g * H, H)),
                fixed(f32(d, 2 * g * H)),
                None,
                f32(d, 2, H),
                *([f32(d, 2, H)] if op == "LSTM" else []),
            ],
            {"hidden_size": H, "direction": direction, **extra},
            outputs=3 if op == "LSTM" else 2,
        )
        for op, g, extra in (
            ("LSTM", 4, {}),
            ("GRU", 3, {}),
            ("GRU", 3, {"linear_before_reset": 1}),
            ("RNN", 1, {}),
        )
        for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
    ),
    Case("LSTM", [f32(4, 2, 5), f32(1, 12, 5), f32(1, 12, H)], {"hidden_size": H}, outputs=1),
    Case("GRU", [f32(4, 2, 5), f32(1, 9, 5), f32(1, 9, H)], {"hidden_size": H}, outputs=1),
]

SCALE, ZERO = fixed(np.float32(0.05)), fixed(np.uint8(120))
CHANNELS = fixed(np.array([0.02, 0.05, 0.1, 0.2], np.float32))
COMPOSITE = [
    Case("Attention", [f32(1, 2, 3, 4), f32(1, 2, 5, 4), f32(1, 2, 5, 6)], opset=23),
    Case(
        "Attention",
        [f32(1, 2, 3, 4), f32(1, 2, 3, 4), f32(1, 2, 3, 4), f32(3, 3)],
        {"is_causal": 1},
        opset=23,
    ),
    Case("RotaryEmbedding", [f32(1, 2, 3, 4), f32(1, 3, 2), f32(1, 3, 2)], opset=23),
    Case("CenterCropPad", [f32(4, 5), fixed(i64(6, 3))]),
    Case("SoftmaxCrossEntropyLoss", [f32(3, 5), ints(0, 5, 3)], opset=13),
]

QUANTIZATION = [
    Case("QuantizeLinear", [X, SCALE, ZERO]),
    Case("QuantizeLinear", [X, SCALE]),
    Case("QuantizeLinear", [IMAGE, CHANNELS, fixed(np.zeros(4, np.int8))], {"axis": 1}),
    Case("DequantizeLinear", [ints(0, 255, 6, dtype="uint8"), SCALE, ZERO]),
    Case("DequantizeLinear", [ints(-99, 99, 2, 4, dtype="int8"), CHANNELS], {"axis": -1}),
    Case("DequantizeLinear", [ints(-999, 999, 6, dtype="int32"), SCALE]),
    Case("DynamicQuantizeLinear", [X], outputs=3),
    Case(
        "QLinearMatMul",
        [
            ints(0, 255, 3, 4, dtype="uint8"),
            SCALE,
            ZERO,
            fixed(ints(-99, 99, 4, 2, dtype="int8")),
            fixed(np.float32(0.03)),
            fixed(np.int8(0)),
            fixed(np.float32(0.5)),
            fixed(np.uint8(99)),
        ],
    ),
    Case(
        "QLinearConv",
        [
            ints(0, 255, 1, 3, 5, 5, dtype="uint8"),
            SCALE,
            ZERO,
            fixed(ints(-99, 99, 4, 3, 3, 3, dtype="int8")),
            CHANNELS,
            fixed(np.zeros(4, np.int8)),
            fixed(np.float32(5.5)),
            fixed(np.uint8(99)),
            fixed(ints(-999, 999, 4, dtype="int32")),
        ],
        {"pads": [1, 1, 1, 1]},
    ),
    Case(
        "ConvInteger",
        [
            ints(0, 255, 1, 3, 5, 5, dtype="uint8"),
            fixed(ints(0, 255, 4, 3, 3, 3, dtype="uint8")),
            fixed(np.uint8(9)),
        ],
    ),
]

CASES = [
    *UNARY,
    *BINARY,
    *REDUCTIONS,
    *MOVEMENT,
    *INDEXING,
    *CONVOLUTIONS,
    *LINEAR,
    *NORMALIZATIONS,
    *RESIZES,
    *RECURRENT,
    *COMPOSITE,
    *QUANTIZATION,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_equals_onnxruntime(case: Case) -> None:
    model, feeds = one_node_model(case)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    assert_close(graphopt.compile(model, threads=1).run(feeds), want, case.tolerance)
