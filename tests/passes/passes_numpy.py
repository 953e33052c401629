"""Computes Relax graphs with NumPy in float64: the reference that passes are tested against."""

from __future__ import annotations

import numpy as np
import tvm
from scipy import special
from tvm import relax

from graphopt.ops import base


def shape(expr):
    return tuple(int(d) for d in expr.ty.shape)


def integers(values):
    if isinstance(values, (int, tvm.tirx.IntImm)):
        return (int(values),)
    return tuple(int(v) for v in values)


def windows(x, kernel, strides, dilation):
    """Views (N, C, OH, OW, KH, KW) of the sliding windows of a padded map."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return view[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]


def padded(x, padding, value=0.0):
    top, left, bottom, right = padding
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def convolved(x, w, strides, dilation, groups):
    """A convolution of a padded map over any axes."""
    rank = x.ndim - 2
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, rank + 2)))
    view = view[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    view = view[(..., *(slice(None, None, d) for d in dilation))]
    view = view.reshape(view.shape[0], groups, -1, *view.shape[2:])
    w = w.reshape(groups, -1, *w.shape[1:])
    taps = [1, *range(rank + 2, 2 * rank + 2)], [*range(1, rank + 2)]
    parts = [np.moveaxis(np.tensordot(view[:, g], w[g], taps), -1, 1) for g in range(groups)]
    return np.concatenate(parts, axis=1)


def surrounded(x, pads, value=0):
    """`x` with all widths before and all widths behind its spatial axes."""
    half = len(pads) // 2
    widths = [(0, 0), (0, 0), *zip(pads[:half], pads[half:], strict=True)]
    return np.pad(x, widths, constant_values=value)


def conv(call, x, w):
    a = call.attrs
    strides, dilation = integers(a.strides), integers(a.dilation)
    return convolved(surrounded(x, integers(a.padding)), w, strides, dilation, int(a.groups))


def conv2d_transpose(call, x, w):
    a = call.attrs
    groups, (sh, sw), (top, left, _, _) = int(a.groups), integers(a.strides), integers(a.padding)
    n, _, oh, ow = shape(call)
    out = np.zeros((n, shape(call)[1], oh + top + 64, ow + left + 64))
    per_in, per_out = w.shape[0] // groups, w.shape[1]
    for c in range(w.shape[0]):
        start = c // per_in * per_out
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                value = x[:, c, None] * w[c, :, i, j][None, :, None, None]
                h, v = x.shape[2] * sh, x.shape[3] * sw
                out[:, start : start + per_out, i : i + h : sh, j : j + v : sw] += value
    return out[:, :, top : top + oh, left : left + ow]


def avg_pool2d(call, x):
    a = call.attrs
    args = integers(a.pool_size), integers(a.strides), integers(a.dilation)
    total = windows(padded(x, integers(a.padding)), *args).sum(axis=(4, 5))
    ones = np.ones_like(x)
    counted = padded(ones, integers(a.padding), 1.0 if a.count_include_pad else 0.0)
    return total / windows(counted, *args).sum(axis=(4, 5))


def max_pool2d(call, x):
    a = call.attrs
    least = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    x = padded(x, integers(a.padding), least)
    view = windows(x, integers(a.pool_size), integers(a.strides), integers(a.dilation))
    return view.max(axis=(4, 5))


def layer_norm(call, x, gamma, beta):
    axes = tuple(integers(call.attrs.axes))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred**2).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + float(call.attrs.epsilon)) * gamma + beta


def rms_norm(call, x, gamma):
    axes = tuple(integers(call.attrs.axes))
    mean = (x**2).mean(axis=axes, keepdims=True)
    return x / np.sqrt(mean + float(call.attrs.epsilon)) * gamma


def softmax(call, x):
    return special.softmax(x, axis=int(call.attrs.axis))


def attention(call, q, k, v, mask=0.0):
    attrs = base.attributes(call)
    inside = attrs["heads_inside"]
    q, k, v = (x.swapaxes(1, 2) if i else x for x, i in zip((q, k, v), inside[:3], strict=True))
    scores = attrs["scale"] * (q @ np.swapaxes(k, -1, -2)) + mask
    result = special.softmax(scores, axis=-1) @ v
    return result.swapaxes(1, 2) if inside[3] else result


def hard_sigmoid(call, x):
    attrs = base.attributes(call)
    return np.clip(attrs["alpha"] * x + attrs["beta"], 0, 1)


def matmul_integer(call, a, b):
    attrs = base.attributes(call)
    pairs = zip((a, b), attrs["zeros"], strict=True)
    left, right = (x.astype(np.int32) - zero for x, zero in pairs)
    return left @ (right.swapaxes(-1, -2) if attrs["transpose_b"] else right)


def matmul_nbits(call, a, b, scales, *zeros):
    attrs = base.attributes(call)
    bits, block = attrs["bits"], attrs["block"]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    codes = ((b[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1, b.shape[1])
    points = zeros[0].repeat(block, 0) if zeros else attrs["zero"]
    matrix = (codes.astype(np.float64) - points) * scales.repeat(block, 0)
    return a @ matrix[: a.shape[-1]]


def strided_slice(call, x):
    axes, begin, end, strides = (integers(arg.fields) for arg in call.args[1:5])
    index = [slice(None)] * x.ndim
    for axis, b, e, s in zip(axes, begin, end, strides, strict=True):
        index[axis] = slice(b, e, s)
    return x[tuple(index)]


def split(call, x):
    sections = call.attrs.indices_or_sections
    count = list(integers(sections)) if hasattr(sections, "__len__") else int(sections)
    return np.split(x, count, axis=int(call.attrs.axis))


def reduction(function):
    def compute(call, x):
        axis = call.attrs.axis
        axes = None if axis is None else tuple(integers(axis))
        return function(x, axis=axes, keepdims=bool(call.attrs.keepdims))

    return compute


def batch_norm(call, x, gamma, beta, mean, variance):
    dims = [1] * x.ndim
    dims[int(call.attrs.axis)] = -1
    gamma, beta, mean, variance = (p.reshape(dims) for p in (gamma, beta, mean, variance))
    result = (x - mean) / np.sqrt(variance + float(call.attrs.epsilon)) * gamma + beta
    return [result, mean, variance]


def pad(call, x):
    widths = np.reshape(integers(call.attrs.pad_width), (-1, 2))
    if call.attrs.pad_mode == "constant":
        return np.pad(x, widths, constant_values=float(call.attrs.pad_value))
    return np.pad(x, widths, mode=call.attrs.pad_mode)


def resize2d(call, x):
    """Nearest neighbour as Resize's asymmetric or half_pixel coordinates give it."""
    a = base.attributes(call)
    assert a["method"] == "nearest"
    for axis, (size, scale) in enumerate(zip(a["size"], a["scales"], strict=True), start=2):
        at = np.arange(size)
        at = at / scale if a["coordinate"] == "asymmetric" else (at + 0.5) / scale - 0.5
        near = np.floor(at) if a["rounding"] == "floor" else np.ceil(at - 0.5)
        x = np.take(x, np.clip(near, 0, x.shape[axis] - 1).astype(int), axis=axis)
    return x


def saturated(call, steps, zero):
    a = base.attributes(call)
    dtype = str(call.ty.dtype)
    steps = np.where(np.isnan(steps), -np.inf, steps)
    return np.clip(np.round(steps) + zero.astype(np.int64), a["low"], a["high"]).astype(dtype)


def quantize(call, x, scale, zero):
    return saturated(call, np.float32(x) / np.float32(scale), zero)


def requantize(call, x, multiplier, zero):
    return saturated(call, np.float32(x) * np.float32(multiplier), zero)


def dequantize(_call, x, scale, zero):
    return (x.astype(np.int64) - zero) * scale


def conv_integer(call, x, w):
    a = base.attributes(call)
    wide = surrounded(x.astype(np.int64), a["padding"], a["pad_value"])
    result = convolved(wide, w.astype(np.int64), a["strides"], a["dilation"], a["groups"])
    return result.astype(np.int32)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def plain(function):
    return lambda _call, *inputs: function(*inputs)


def permute_dims(call, x):
    return x.transpose(None if call.attrs.axes is None else integers(call.attrs.axes))


def to_shape(call, x):
    return np.broadcast_to(x, shape(call)) if x.size != np.prod(shape(call)) else x.reshape(
        shape(call)
    )  # fmt: skip


KERNELS = {
    "relax.add": plain(np.add),
    "relax.astype": plain(lambda x: x),
    "relax.bitwise_and": plain(np.bitwise_and),
    "relax.bitwise_xor": plain(np.bitwise_xor),
    "relax.broadcast_to": to_shape,
    "relax.clip": lambda call, x: np.clip(x, float(call.args[1].value), float(call.args[2].value)),
    "relax.concat": lambda call, *xs: np.concatenate(xs, axis=int(call.attrs.axis or 0)),
    "relax.divide": plain(np.divide),
    "relax.equal": plain(np.equal),
    "relax.erf": plain(special.erf),
    "relax.exp": plain(np.exp),
    "relax.expand_dims": to_shape,
    "relax.flatten": to_shape,
    "relax.matmul": plain(np.matmul),
    "relax.max": reduction(np.max),
    "relax.maximum": plain(np.maximum),
    "relax.mean": reduction(np.mean),
    "relax.minimum": plain(np.minimum),
    "relax.multiply": plain(np.multiply),
    "relax.negative": plain(np.negative),
    "relax.nn.adaptive_avg_pool2d": lambda _call, x: x.mean(axis=(2, 3), keepdims=True),
    "relax.nn.avg_pool2d": avg_pool2d,
    "relax.nn.batch_norm": batch_norm,
    "relax.nn.conv2d": conv,
    "relax.nn.conv3d": conv,
    "relax.nn.conv2d_transpose": conv2d_transpose,
    "relax.nn.gelu": plain(lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2)))),
    "relax.nn.gelu_tanh": plain(gelu_tanh),
    "relax.nn.layer_norm": layer_norm,
    "relax.nn.max_pool2d": max_pool2d,
    "relax.nn.pad": pad,
    "relax.nn.relu": plain(lambda x: np.maximum(x, 0)),
    "relax.nn.rms_norm": rms_norm,
    "relax.nn.silu": plain(lambda x: x * special.expit(x)),
    "relax.nn.softmax": softmax,
    "relax.permute_dims": permute_dims,
    "relax.power": plain(np.power),
    "relax.reshape": to_shape,
    "relax.right_shift": plain(np.right_shift),
    "relax.rsqrt": plain(lambda x: 1 / np.sqrt(x)),
    "relax.sigmoid": plain(special.expit),
    "relax.split": split,
    "relax.sqrt": plain(np.sqrt),
    "relax.square": plain(np.square),
    "relax.squeeze": to_shape,
    "relax.strided_slice": strided_slice,
    "relax.subtract": plain(np.subtract),
    "relax.sum": reduction(np.sum),
    "relax.take": lambda call, x, i: np.take(x, i.astype(int), axis=int(call.attrs.axis or 0)),
    "relax.tanh": plain(np.tanh),
    "graphopt.attention": attention,
    "graphopt.bitcast": lambda call, x: x.view(base.attributes(call)["dtype"]),
    "graphopt.conv_integer": conv_integer,
    "graphopt.dequantize": dequantize,
    "graphopt.hard_sigmoid": hard_sigmoid,
    "graphopt.hard_swish": plain(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "graphopt.lookup": lambda _call, x, table: table[x.view(np.uint8)],
    "graphopt.matmul_integer": matmul_integer,
    "graphopt.matmul_nbits": matmul_nbits,
    "graphopt.quantize": quantize,
    "graphopt.requantize": requantize,
    "graphopt.resize2d": resize2d,
}


def run(graph, feeds, wide=True):
    """main's results for `feeds` (name → array), computed in float64 unless `wide` is false."""
    values = {}

    def read(expr):
        if isinstance(expr, relax.Var):
            return values[expr.name]
        if isinstance(expr, relax.Tuple):
            return [read(field) for field in expr.fields]
        array = expr.value.numpy()
        return array.astype(np.float64) if wide and array.dtype == np.float32 else array

    main = graph.module["main"]
    for param in main.params:
        array = np.asarray(feeds[param.name])
        values[param.name] = array.astype(np.float64) if wide and array.dtype.kind == "f" else array
    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.TupleGetItem):
                result = read(value.tuple_value)[value.index]
            elif isinstance(value, tvm.ir.Call):
                kernel = KERNELS[str(value.op.name)]
                inputs = []
                for arg in value.args:
                    if isinstance(arg, relax.Tuple) and value.op.name == "relax.concat":
                        inputs.extend(read(arg))
                    elif isinstance(arg.ty, relax.TensorType):
                        inputs.append(read(arg))
                result = kernel(value, *inputs)
                if isinstance(value.ty, relax.TensorType):
                    assert result.shape == shape(value), value
            else:
                result = read(value)
            values[binding.var.name] = result
    result = read(main.body.body)
    return result if isinstance(result, list) else [result]
