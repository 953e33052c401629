"""Turns a convolution over one column into one over one row, which kernels tile along."""

from __future__ import annotations

from dataclasses import replace

from schedules.interface import Op, TensorSig, Workload


def orient(workload: Workload) -> Workload:
    """`workload`, or the same convolution with height and width exchanged.

    Where everything is one element wide, exchanging the two moves nothing in memory, and register
    tiles run along the width.
    """
    op = workload.op
    if op.kind != "conv2d" or not _is_column(op):
        return workload
    attrs = dict(op.attrs)
    strides, dilation, padding = attrs["strides"], attrs["dilation"], attrs["padding"]
    assert isinstance(strides, tuple)
    assert isinstance(dilation, tuple)
    assert isinstance(padding, tuple)
    top, left, bottom, right = padding
    attrs |= {
        "strides": strides[::-1],
        "dilation": dilation[::-1],
        "padding": (left, top, right, bottom),
    }
    turned = replace(
        op,
        inputs=tuple(_turn(sig) for sig in op.inputs),
        output=_turn(op.output),
        attrs=tuple((name, attrs[name]) for name, _ in op.attrs),
    )
    operands = tuple(_turn(sig) for sig in workload.epilogue.operands)
    return Workload(turned, replace(workload.epilogue, operands=operands))


def _is_column(op: Op) -> bool:
    narrow = all(sig.shape[3] == 1 for sig in (*op.inputs, op.output))
    return narrow and op.inputs[0].shape[2] > 1 and op.attr("padding")[1::2] == (0, 0)


def _turn(sig: TensorSig) -> TensorSig:
    n, c, height, width = sig.shape
    return TensorSig((n, c, width, height), sig.dtype)
