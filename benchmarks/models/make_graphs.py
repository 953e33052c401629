#!/usr/bin/env python3
"""Generate the graphs of this folder that no exporter made: cnn_bn.onnx and cnn_dynamic.onnx.

Both exercise what real exports contain and the torchvision graphs here do not: BatchNormalization
left unfolded, depthwise convolution, hard-swish and squeeze-and-excite in single pieces, and a
named batch dimension. Large weights are stripped; materialize.py fills them.

    python make_graphs.py
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 13


class Builder:
    """Collects nodes and initializers; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes)
        )
        return f"{name}_out"

    def weight(self, name: str, *shape: int) -> str:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.doc_string = "stripped"
        self.weights.append(tensor)
        return name

    def value(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, name: str, value: float) -> str:
        if all(tensor.name != name for tensor in self.weights):
            self.value(name, np.array(value, np.float32))
        return name

    def conv_bn(
        self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1
    ) -> str:
        weight = self.weight(f"{name}.conv.weight", cout, cin // group, kernel, kernel)
        pad = kernel // 2
        x = self.op(
            "Conv",
            x,
            weight,
            group=group,
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            strides=[stride] * 2,
        )
        parameters = [
            self.weight(f"{name}.bn.{part}", cout)
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return self.op("BatchNormalization", x, *parameters, epsilon=1e-3)

    def hard_swish(self, x: str) -> str:
        shifted = self.op("Add", x, self.scalar("three", 3.0))
        gate = self.op("Clip", shifted, self.scalar("zero", 0.0), self.scalar("six", 6.0))
        return self.op("Div", self.op("Mul", x, gate), self.scalar("six", 6.0))

    def squeeze_excite(self, x: str, name: str, channels: int) -> str:
        inner = channels // 4
        y = self.op("GlobalAveragePool", x)
        w1, b1 = (
            self.weight(f"{name}.fc1.weight", inner, channels, 1, 1),
            self.weight(f"{name}.fc1.bias", inner),
        )
        y = self.op("Relu", self.op("Conv", y, w1, b1))
        w2, b2 = (
            self.weight(f"{name}.fc2.weight", channels, inner, 1, 1),
            self.weight(f"{name}.fc2.bias", channels),
        )
        y = self.op("HardSigmoid", self.op("Conv", y, w2, b2), alpha=1 / 6, beta=0.5)
        return self.op("Mul", x, y)

    def bottleneck(
        self, x: str, name: str, cin: int, mid: int, cout: int, kernel: int, stride: int
    ) -> str:
        """Inverted bottleneck of MobileNetV3: expand, depthwise, squeeze-and-excite, project."""
        y = self.hard_swish(self.conv_bn(x, f"{name}.expand", cin, mid, 1))
        y = self.conv_bn(y, f"{name}.depthwise", mid, mid, kernel, stride, group=mid)
        y = self.squeeze_excite(self.hard_swish(y), f"{name}.se", mid)
        y = self.conv_bn(y, f"{name}.project", mid, cout, 1)
        return self.op("Add", x, y) if stride == 1 and cin == cout else y

    def head(self, x: str, channels: int, classes: int) -> str:
        x = self.op("GlobalAveragePool", x)
        x = self.op("Flatten", x, axis=1)
        weight = self.weight("classifier.weight", classes, channels)
        return self.op("Gemm", x, weight, self.weight("classifier.bias", classes), transB=1)

    def model(self, name: str, result: str, batch: int | str, size: int) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "output"
        assert result == f"{self.nodes[-1].name}_out"
        classes = next(t.dims[0] for t in self.weights if t.name == "classifier.bias")
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, size, size])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, classes])],
            self.weights,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,
            producer_name="make_graphs.py",
        )


def cnn_bn() -> onnx.ModelProto:
    """A small MobileNetV3-like network with everything unfolded."""
    b = Builder()
    x = b.hard_swish(b.conv_bn("input", "stem", 3, 16, 3, 2))
    x = b.bottleneck(x, "block1", 16, 64, 24, 3, 2)
    x = b.bottleneck(x, "block2", 24, 96, 24, 3, 1)
    x = b.bottleneck(x, "block3", 24, 96, 40, 5, 2)
    x = b.bottleneck(x, "block4", 40, 240, 40, 5, 1)
    x = b.bottleneck(x, "block5", 40, 240, 80, 3, 2)
    x = b.hard_swish(b.conv_bn(x, "last", 80, 480, 1))
    return b.model("cnn_bn", b.head(x, 480, 1000), 1, 224)


def cnn_dynamic() -> onnx.ModelProto:
    """A small residual network whose batch dimension is "N"."""
    b = Builder()
    x = b.op("Relu", b.conv_bn("input", "stem", 3, 32, 3, 2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for i, (cin, cout, stride) in enumerate(((32, 32, 1), (32, 64, 2), (64, 128, 2))):
        y = b.op("Relu", b.conv_bn(x, f"block{i}.conv1", cin, cout, 3, stride))
        y = b.conv_bn(y, f"block{i}.conv2", cout, cout, 3)
        if stride != 1:
            x = b.conv_bn(x, f"block{i}.shortcut", cin, cout, 1, stride)
        x = b.op("Relu", b.op("Add", x, y))
    return b.model("cnn_dynamic", b.head(x, 128, 100), "N", 96)


if __name__ == "__main__":
    folder = Path(__file__).parent
    for make in (cnn_bn, cnn_dynamic):
        onnx.save(make(), folder / f"{make.__name__}.onnx")
