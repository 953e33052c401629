"""Convolution workloads for tests, and their results in float64."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np

from schedules.interface import Epilogue, Family, Op, Step, TargetTraits, TensorSig, Workload

Pair = int | tuple[int, int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def epilogue(name: str, output: TensorSig) -> Epilogue:
    """Epilogues as networks have them: none, bias_relu, residual, silu, hard_swish."""
    bias = TensorSig((1, output.shape[1], 1, 1))
    add = Step("add", (0, 1))
    if name == "none":
        return Epilogue()
    if name == "bias_relu":
        return Epilogue((bias,), (add, Step("relu", (2,))), constant=(True,))
    if name == "residual":
        steps = (add, Step("add", (3, 2)), Step("relu", (4,)))
        return Epilogue((bias, output), steps, constant=(True, False))
    if name == "silu":
        steps = (add, Step("sigmoid", (2,)), Step("multiply", (2, 3)))
        return Epilogue((bias,), steps, constant=(True,))
    assert name == "clip"
    clip = Step("clip", (2,), (("min", 0.0), ("max", 6.0)))
    return Epilogue((bias,), (add, clip), constant=(True,))


def conv(
    image: tuple[int, int, int, int],
    filters: int,
    kernel: Pair,
    stride: Pair = 1,
    padding: tuple[int, int, int, int] | None = None,
    dilation: Pair = 1,
    groups: int = 1,
    after: str = "bias_relu",
) -> Workload:
    """A conv2d; `padding` defaults to the one that keeps the size at stride 1."""
    k, s, d = _pair(kernel), _pair(stride), _pair(dilation)
    p = padding or (d[0] * (k[0] - 1) // 2, d[1] * (k[1] - 1) // 2) * 2
    n, c, h, w = image
    out = TensorSig(
        (
            n,
            filters,
            (h + p[0] + p[2] - d[0] * (k[0] - 1) - 1) // s[0] + 1,
            (w + p[1] + p[3] - d[1] * (k[1] - 1) - 1) // s[1] + 1,
        )
    )
    attrs = (("strides", s), ("padding", p), ("dilation", d), ("groups", groups))
    inputs = (TensorSig(image), TensorSig((filters, c // groups, *k)))
    return Workload(Op("conv2d", inputs, out, attrs, (False, True)), epilogue(after, out))


def conv_transpose(
    image: tuple[int, int, int, int],
    filters: int,
    kernel: Pair,
    stride: Pair = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: Pair = 1,
    groups: int = 1,
    output_padding: tuple[int, int] = (0, 0),
    after: str = "bias_relu",
) -> Workload:
    """A conv2d_transpose."""
    k, s, d, p, more = _pair(kernel), _pair(stride), _pair(dilation), padding, output_padding
    n, c, h, w = image
    out = TensorSig(
        (
            n,
            filters,
            (h - 1) * s[0] - p[0] - p[2] + d[0] * (k[0] - 1) + 1 + more[0],
            (w - 1) * s[1] - p[1] - p[3] + d[1] * (k[1] - 1) + 1 + more[1],
        )
    )
    attrs = (
        ("strides", s),
        ("padding", p),
        ("dilation", d),
        ("output_padding", more),
        ("groups", groups),
    )
    inputs = (TensorSig(image), TensorSig((c, filters // groups, *k)))
    return Workload(Op("conv2d_transpose", inputs, out, attrs, (False, True)), epilogue(after, out))


def reference(workload: Workload, inputs: list[harness.Array]) -> harness.Array:
    """The workload's result in float64, tap by tap."""
    op = workload.op
    x, w = (a.astype(np.float64) for a in inputs[:2])
    s, p, d, groups = (op.attr(k) for k in ("strides", "padding", "dilation", "groups"))
    n, filters, oh, ow = op.output.shape
    per_in, per_out = x.shape[1] // groups, filters // groups
    kh, kw = w.shape[2:]
    transposed = op.kind == "conv2d_transpose"
    if transposed:
        high = max((x.shape[2] - 1) * s[0] + d[0] * (kh - 1) + 1, p[0] + oh)
        wide = max((x.shape[3] - 1) * s[1] + d[1] * (kw - 1) + 1, p[1] + ow)
        y = np.zeros((n, filters, high, wide))
    else:
        y = np.zeros((n, filters, oh, ow))
        x = np.pad(x, ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3])))
    for g in range(groups):
        ins, outs = slice(g * per_in, (g + 1) * per_in), slice(g * per_out, (g + 1) * per_out)
        for i in range(kh):
            for j in range(kw):
                size = x.shape[2:] if transposed else (oh, ow)
                window: Any = tuple(
                    slice(t * d[a], t * d[a] + (size[a] - 1) * s[a] + 1, s[a])
                    for a, t in ((0, i), (1, j))
                )
                if transposed:
                    y[(slice(None), outs, *window)] += np.einsum(
                        "co,nchw->nohw", w[ins, :, i, j], x[:, ins]
                    )
                else:
                    y[:, outs] += np.einsum(
                        "oc,nchw->nohw", w[outs, :, i, j], x[(slice(None), ins, *window)]
                    )
    if transposed:
        y = y[:, :, p[0] : p[0] + oh, p[1] : p[1] + ow]
    operands = [a.astype(np.float64) for a in inputs[2:]]
    return harness.reference_epilogue(workload.epilogue, y, operands, workload.output.shape)


def check(family: Family, workload: Workload, traits: TargetTraits, limit: float) -> int:
    """Run every candidate of `family`, compare with float64; returns how many there were."""
    inputs = harness.random_inputs(workload)
    expected = reference(workload, inputs)
    offered = family(workload, traits)
    for candidate in offered:
        actual = harness.run_candidate(candidate, workload, inputs, traits)
        error = harness.relative_error(actual, expected)
        assert error <= limit, (candidate.name, error)
        assert not harness.serial_extents(harness.scheduled(candidate)), candidate.name
    return len(offered)
