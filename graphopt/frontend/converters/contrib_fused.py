"""com.microsoft: products, convolutions and activations that ONNX Runtime's optimizer fuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters import activation
from graphopt.frontend.converters.convolution import conv, conv_transpose
from graphopt.frontend.converters.delegate import apply, optional, passed_on
from graphopt.frontend.converters.linear_algebra import gemm, matrix_product
from graphopt.frontend.converters.pooling import max_pool
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, dtype_of, normal_axis, shape_of

op = relax.op

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def activated(node: NodeContext, x: Expr, kind: str, parameters: Sequence[float]) -> Expr:
    """x after a fused activation with `parameters` in ONNX Runtime's order."""
    plain = {"Relu": op.nn.relu, "Tanh": op.tanh, "Sigmoid": op.sigmoid, "": None}
    if kind in plain:
        function = plain[kind]
        return x if function is None else node.emit(function(x))
    if kind == "Gelu":
        return activation.gelu_exact(node, x)
    if kind == "Clip" and len(parameters) == 2:
        low, high = parameters
        return node.emit(op.clip(x, float(low), float(high)))
    by_name = {
        "LeakyRelu": (activation.leaky_relu, ("alpha",)),
        "HardSigmoid": (activation.hard_sigmoid, ("alpha", "beta")),
        "HardSwish": (activation.hard_swish, ()),
        "Elu": (activation.elu, ("alpha",)),
        "Softplus": (activation.softplus, ()),
        "Softsign": (activation.softsign, ()),
        "ThresholdedRelu": (activation.thresholded_relu, ("alpha",)),
    }
    if kind not in by_name or len(parameters) > len(by_name[kind][1]):
        raise Unsupported(f"activation '{kind}' with {len(parameters)} parameters")
    converter, names = by_name[kind]
    stated = {name: float(value) for name, value in zip(names, parameters, strict=False)}
    return apply(node, converter, [x], stated)


def _swapped_channels(node: NodeContext, x: Expr, to_last: bool) -> Expr:
    rank = len(shape_of(x))
    axes = (0, *range(2, rank), 1) if to_last else (0, rank - 1, *range(1, rank - 1))
    return node.transpose(x, axes)


def _fused_conv(node: NodeContext, last: bool) -> Expr:
    x = _swapped_channels(node, node.input(0), False) if last else node.input(0)
    inputs = [x, optional(node, 1), optional(node, 2)]
    result = apply(node, conv, inputs, passed_on(node, *_CONV))
    if node.has(3):
        z = _swapped_channels(node, node.input(3), False) if last else node.input(3)
        result = node.emit(op.add(result, z))
    parameters = node.attribute("activation_params") or ()
    result = activated(node, result, node.string_attr("activation"), parameters)
    return _swapped_channels(node, result, True) if last else result


def fused_conv(node: NodeContext) -> Expr:
    """FusedConv: activation(Conv(X, W, B) + Z)."""
    return _fused_conv(node, last=False)


def nhwc_fused_conv(node: NodeContext) -> Expr:
    """NhwcFusedConv: FusedConv with channels last in X, Z and Y, and the weight as in Conv.

    NhwcConv has no converter: its document states the layouts of Conv, which its name contradicts.
    """
    return _fused_conv(node, last=True)


def nhwc_max_pool(node: NodeContext) -> Expr:
    """NhwcMaxPool."""
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    x = _swapped_channels(node, node.input(0), False)
    if dtype_of(x) in ("int8", "uint8"):
        # Pooling kernels are made for wider types; a byte survives the way through float32.
        pooled = apply(node, max_pool, [node.cast(x, "float32")], passed_on(node, *names))
        return _swapped_channels(node, node.cast(pooled, dtype_of(x)), True)
    return _swapped_channels(node, apply(node, max_pool, [x], passed_on(node, *names)), True)


def conv_transpose_with_pads(node: NodeContext) -> Expr:
    """ConvTransposeWithDynamicPads, once its pads are known."""
    names = ("auto_pad", "dilations", "group", "kernel_shape", "output_padding", "strides")
    attributes = passed_on(node, *names)
    if node.has(2):
        attributes["pads"] = node.ints(2, "the padding")
    inputs = [node.input(0), optional(node, 1), optional(node, 3)]
    return apply(node, conv_transpose, inputs, attributes)


def _activation_parameters(node: NodeContext, kind: str) -> list[float]:
    """alpha, beta and gamma where the activation takes them; ONNX Runtime writes all of them."""
    taken = {"LeakyRelu": 1, "Elu": 1, "ThresholdedRelu": 1, "HardSigmoid": 2, "Clip": 2}
    names = ("activation_alpha", "activation_beta")
    node.ignore("activation_gamma", "activation_axis", *names)
    values = [node.attribute(name) for name in names[: taken.get(kind, 0)]]
    return [value for value in values if value is not None]


def fused_gemm(node: NodeContext) -> Expr:
    """FusedGemm: activation(Gemm(A, B, C))."""
    inputs = [optional(node, i) for i in range(3)]
    result = apply(node, gemm, inputs, passed_on(node, "alpha", "beta", "transA", "transB"))
    kind = node.string_attr("activation")
    return activated(node, result, kind, _activation_parameters(node, kind))


def _transposed(node: NodeContext, index: int, letter: str) -> Expr:
    """An operand with the transposes that its attributes ask for."""
    value = node.input(index)
    rank = len(shape_of(value))
    axes = list(range(rank))
    if node.int_attr(f"transBatch{letter}") and rank > 2:
        # (D1, B…, D2) becomes (B…, D1, D2).
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if node.int_attr(f"trans{letter}") and rank > 1:
        axes[-1], axes[-2] = axes[-2], axes[-1]
    return node.transpose(value, axes)


def fused_matmul(node: NodeContext) -> Expr:
    """FusedMatMul, FusedMatMulActivation, TransposeMatMul: activation(alpha·A'·B')."""
    a, b = _transposed(node, 0, "A"), _transposed(node, 1, "B")
    result = matrix_product(node, a, b)
    alpha = node.float_attr("alpha", 1.0)
    if alpha != 1.0:
        result = node.emit(op.multiply(result, node.scalar(alpha, result)))
    kind = node.string_attr("activation")
    return activated(node, result, kind, _activation_parameters(node, kind))


def _biased(node: NodeContext, x: Expr, index: int) -> Expr:
    return node.emit(op.add(x, node.input(index))) if node.has(index) else x


def bias_gelu(node: NodeContext) -> Expr:
    """Gelu and BiasGelu, by the error function."""
    return activation.gelu_exact(node, _biased(node, node.input(0), 1))


def gelu_by_tanh(node: NodeContext, x: Expr) -> Expr:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    return apply(node, activation.gelu, [x], {"approximate": "tanh"})


def fast_gelu(node: NodeContext) -> Expr:
    """FastGelu, with an optional bias."""
    return gelu_by_tanh(node, _biased(node, node.input(0), 1))


def gemm_fast_gelu(node: NodeContext) -> Expr:
    """GemmFastGelu: FastGelu(X·W + bias)."""
    product = matrix_product(node, node.input(0), node.input(1))
    return gelu_by_tanh(node, _biased(node, product, 2))


def quick_gelu(node: NodeContext) -> Expr:
    """x·sigmoid(alpha·x)."""
    alpha = node.float_attr("alpha", 1.702)
    return apply(node, activation.swish, [node.input(0)], {"alpha": alpha})


def bias_split_gelu(node: NodeContext) -> Expr:
    """left·Gelu(right) of the halves of X + bias."""
    x = _biased(node, node.input(0), 1)
    axis, half = len(shape_of(x)) - 1, shape_of(x)[-1] // 2
    if shape_of(x)[-1] % 2:
        raise Unsupported("the last axis cannot be halved")
    left, right = node.slice(x, [axis], [0], [half]), node.slice(x, [axis], [half], [2 * half])
    return node.emit(op.multiply(left, activation.gelu_exact(node, right)))


def bias_add(node: NodeContext) -> Expr:
    """X + bias + skip."""
    return _biased(node, _biased(node, node.input(0), 1), 2)


def bias_softmax(node: NodeContext) -> Expr:
    """Softmax of data + bias over all axes from `axis` on.

    The axes before `axis` along which the bias is repeated are the last ones of them where
    `is_inner_broadcast`, else the first ones. ONNX Runtime's kernel goes by that attribute alone,
    so a bias whose shape says something else is refused.
    """
    x, bias = node.input(0), node.input(1)
    shape, rank = shape_of(x), len(shape_of(x))
    axis = normal_axis(node.int_attr("axis", 1), rank)
    dims = (*[1] * (rank - len(shape_of(bias))), *shape_of(bias))
    whole = shape[:axis]
    splits = range(axis + 1)
    if node.flag_attr("is_inner_broadcast"):
        repeated = [(*whole[:i], *[1] * (axis - i)) for i in splits]
    else:
        repeated = [(*[1] * i, *whole[i:]) for i in splits]
    if len(dims) != rank or dims[axis:] != shape[axis:] or dims[:axis] not in repeated:
        raise Unsupported(
            f"a bias of shape {shape_of(bias)} for data of shape {shape} contradicts "
            f"axis={axis} and is_inner_broadcast={node.int_attr('is_inner_broadcast')}"
        )
    total = node.emit(op.add(x, bias))
    width = int(np.prod(shape[axis:], dtype=np.int64))
    flat = node.reshape(total, (int(np.prod(whole, dtype=np.int64)), width))
    return node.reshape(node.emit(op.nn.softmax(flat, 1)), shape)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("com.microsoft", name): converter
    for name, converter in {
        "BiasAdd": bias_add,
        "BiasGelu": bias_gelu,
        "BiasSoftmax": bias_softmax,
        "BiasSplitGelu": bias_split_gelu,
        "ConvTransposeWithDynamicPads": conv_transpose_with_pads,
        "FastGelu": fast_gelu,
        "FusedConv": fused_conv,
        "FusedGemm": fused_gemm,
        "FusedMatMul": fused_matmul,
        "FusedMatMulActivation": fused_matmul,
        "Gelu": bias_gelu,
        "GemmFastGelu": gemm_fast_gelu,
        "NhwcFusedConv": nhwc_fused_conv,
        "NhwcMaxPool": nhwc_max_pool,
        "QuickGelu": quick_gelu,
        "TransposeMatMul": fused_matmul,
    }.items()
}
