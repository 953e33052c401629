"""Small networks for tests of generated code."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

import graphopt


def small_network():
    """Convolutions of three kinds, a squeeze-and-excite block, pooling and a classifier."""
    rng = np.random.default_rng(0)
    initializers, nodes = [], []

    def weight(name, *shape):
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        initializers.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(op, inputs, output, **attrs):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attrs))
        return output

    x = add("Conv", ["x", weight("w0", 20, 3, 3, 3), weight("b0", 20)], "c0", pads=[1] * 4)
    x = add("Relu", [x], "r0")
    same = {"pads": [1] * 4}
    y = add("Conv", [x, weight("w1", 20, 20, 3, 3)], "c1", **same)
    x = add("Add", [x, y], "a1")
    d = add("Conv", [x, weight("w2", 20, 1, 3, 3)], "c2", group=20, strides=[2, 2], **same)
    d = add("HardSigmoid", [d], "h2")
    s = add("GlobalAveragePool", [d], "p2")
    s = add("Sigmoid", [add("Conv", [s, weight("w3", 20, 20, 1, 1)], "c3")], "s3")
    x = add("Mul", [d, s], "m3")
    x = add("MaxPool", [x], "p4", kernel_shape=[3, 3], strides=[2, 2])
    x = add("Flatten", [x], "f5")
    x = add("Gemm", [x, weight("w5", 7, 180), weight("b5", 7)], "g5", transB=1)
    add("Softmax", [x], "y")
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 14, 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def attention_block():
    """Layer norm, matmul, GELU and softmax on odd sizes."""
    rng = np.random.default_rng(1)
    tensors = {
        "g": rng.standard_normal(44),
        "b": rng.standard_normal(44),
        "w": rng.standard_normal((44, 50)) / 7,
        "half": np.array(0.5),
        "one": np.array(1.0),
        "root": np.array(np.sqrt(2.0)),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["m"]),
        helper.make_node("Div", ["m", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["o"]),
        helper.make_node("Mul", ["m", "o"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["u"]),
        helper.make_node("Softmax", ["u"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 13, 44])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 13, 50])],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@cache
def quantized_network():
    """Convolutions of three kinds on bytes, one with a residual, and a classifier, as Q/DQ."""
    model = small_network()
    reader = [
        {"x": np.random.default_rng(i).standard_normal((1, 3, 14, 14)).astype("f4")}
        for i in range(3)
    ]
    return graphopt.quantize(model, reader).model


def many_tensors():
    """Three inputs and outputs of several types, with names that C would not take."""
    make, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Cast", ["2/x"], ["wide"], to=TensorProto.FLOAT),
        make("Mul", ["float", "wide"], ["class"]),
        make("Add", ["2/x", "2/x"], ["x*/??/"]),
        make("Greater", ["class", "x"], ["x_rank"]),
    ]
    graph = helper.make_graph(
        nodes,
        'many "tensors" */',
        [
            info("float", TensorProto.FLOAT, [2, 3]),
            info("2/x", TensorProto.INT64, [2, 3]),
            info("x", TensorProto.FLOAT, []),
        ],
        [
            info("class", TensorProto.FLOAT, [2, 3]),
            info("x*/??/", TensorProto.INT64, [2, 3]),
            info("x_rank", TensorProto.BOOL, [2, 3]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def pairs_and_packed_weights():
    """A product of two activations in bytes, in float, and one with weights of 4 bits."""
    rng = np.random.default_rng(3)
    block, depth, columns = 16, 44, 160
    blocks = -(-depth // block)
    constants = {
        "scale": np.float32(0.0213),
        "zero": np.uint8(117),
        "b": rng.integers(0, 256, (columns, blocks, block // 2)).astype(np.uint8),
        "scales": rng.random((columns, blocks)).astype(np.float32),
    }
    pair = ["scale", "zero"]
    attrs = {"K": depth, "N": columns, "bits": 4, "block_size": block}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *pair], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *pair], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["d", "t"], ["y"]),
        helper.make_node(
            "MatMulNBits", ["v", "b", "scales"], ["z"], domain="com.microsoft", **attrs
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 13, depth]),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, depth]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 13, 13]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, columns]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)
