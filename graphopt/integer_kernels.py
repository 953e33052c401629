"""What can run as an integer kernel, by ONNX operator: one table for quantizer and compiler.

An integer kernel reads 8-bit tensors, computes a product exactly in int32 (or an arithmetic
operator in float32), applies a pointwise epilogue in float32, and rounds once at its end. The
quantizer places Q/DQ at the borders of such kernels; the compiler's passes look for them there.
"""

from __future__ import annotations

PRODUCTS = frozenset(("Conv", "Gemm", "MatMul"))
"""An activation times constant weights, summed exactly in int32."""

ARITHMETIC = frozenset(
    ("Add", "AveragePool", "GlobalAveragePool", "Mul", "ReduceMean", "Resize", "Sub")
)
"""Computed in float32 from 8-bit tensors to an 8-bit tensor; between such tensors only."""

SHARED_SCALE = frozenset(
    (
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "ReduceMax",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
"""Every element of the result is one of an operand's: 8-bit data is moved as it is."""

EPILOGUE = frozenset(
    (
        "Abs",
        "Add",
        "BatchNormalization",
        "Celu",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    )
)
"""Pointwise work that may stand between a product and the rounding; other operands constant."""

ACTIVATIONS = frozenset(
    (
        "Add",
        "BatchNormalization",
        "Celu",
        "Clip",
        "Div",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softsign",
        "Sub",
        "Swish",
        "Tanh",
    )
)
"""Pointwise operators of bounded slope: they may begin a kernel between two 8-bit tensors."""

FLOAT = {
    "Attention": "the products of attention lose too much in 8 bits",
    "ConvTranspose": "there is no integer kernel for transposed convolution",
    "DeformConv": "there is no integer kernel for deformable convolution",
    "Einsum": "there is no integer kernel for Einsum",
    "GRU": "a recurrent state is fed back, so that its rounding errors add up",
    "LSTM": "a recurrent state is fed back, so that its rounding errors add up",
    "RNN": "a recurrent state is fed back, so that its rounding errors add up",
    "GroupNormalization": "sums of squares need more than 8 bits",
    "InstanceNormalization": "sums of squares need more than 8 bits",
    "LayerNormalization": "sums of squares need more than 8 bits",
    "LpNormalization": "sums of squares need more than 8 bits",
    "MeanVarianceNormalization": "sums of squares need more than 8 bits",
    "RMSNormalization": "sums of squares need more than 8 bits",
    "LogSoftmax": "exponentials of 8-bit values lose too much",
    "Softmax": "exponentials of 8-bit values lose too much",
}
"""Operators with much work that stay in float, and why."""
