"""Kernels of integer convolutions, against NumPy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from harness import host_target
from tvm import s_tir

from schedules import conv_integer
from schedules.interface import Candidate, Layout, Op, TargetTraits, TensorSig, Workload

RNG = np.random.default_rng(5)


def run(candidate: Candidate, workload: Workload, inputs: list[np.ndarray]) -> np.ndarray:
    """The candidate's result; constants are packed as it asks."""
    sch = s_tir.Schedule(tvm.IRModule({"main": candidate.compute()}))
    candidate.schedule(sch)
    target = host_target(TargetTraits("x86_64", 32, 16))
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        module = tvm.driver.build(tvm.IRModule({"main": sch.mod["main"]}), target=target)
    packed = [
        array if isinstance(layout, Layout) else layout.pack(array)
        for array, layout in zip(inputs, candidate.layouts, strict=True)
    ]
    sig = workload.output
    result = tvm.runtime.tensor(np.full(sig.shape, 99, sig.dtype))
    module["main"](*[tvm.runtime.tensor(np.array(a, order="C")) for a in packed], result)
    return result.numpy()


def convolution(x: np.ndarray, w: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """By its definition, in int64."""
    rank, groups = x.ndim - 2, attrs["groups"]
    pads = attrs["padding"]
    width = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    image = np.pad(x.astype("i8"), width, constant_values=attrs["pad_value"])
    spans = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], attrs["dilation"], strict=True)]
    out = [
        (n - span) // s + 1
        for n, span, s in zip(image.shape[2:], spans, attrs["strides"], strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[0], *out), "i8")
    filters, channels = w.shape[0] // groups, w.shape[1]
    for o, tap in itertools.product(range(w.shape[0]), np.ndindex(*w.shape[2:])):
        begin = o // filters * channels
        at = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, attrs["dilation"], out, attrs["strides"], strict=True)
        )
        part = image[(slice(None), slice(begin, begin + channels), *at)]
        weight = w[(o, slice(None), *tap)].astype("i8").reshape(-1, *[1] * rank)
        y[:, o] += (part * weight).sum(axis=1)
    return y


SHAPES = [
    ((2, 3, 9, 11), (5, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 6, 8, 29), (34, 3, 2, 3), (2, 1), (0, 1, 2, 0), (1, 2), 2),
    ((1, 6, 7, 7), (6, 1, 3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 6),
    ((2, 4, 30), (7, 4, 5), (3,), (2, 1), (1,), 1),
    ((1, 2, 5, 4, 6), (8, 2, 2, 3, 3), (1, 1, 2), (1, 0, 1, 0, 1, 0), (1, 1, 1), 1),
]


@pytest.mark.parametrize("types", [("uint8", "int8"), ("int8", "uint8"), ("int16", "int16")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_of_integers(shape, types):
    x_shape, w_shape, strides, padding, dilation, groups = shape
    x, w = (
        RNG.integers(np.iinfo(t).min // 4, np.iinfo(t).max // 4, s).astype(t)
        for t, s in zip(types, (x_shape, w_shape), strict=True)
    )
    attrs = {
        "strides": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pad_value": 7,
    }
    want = convolution(x, w, attrs)
    op = Op(
        "conv_integer",
        (TensorSig(x.shape, types[0]), TensorSig(w.shape, types[1])),
        TensorSig(want.shape, "int32"),
        tuple(sorted(attrs.items())),
        (False, True),
    )
    workload = Workload(op)
    workload = replace(workload, epilogue=replace(workload.epilogue, dtype="int32"))
    found = conv_integer.candidates(workload, TargetTraits("x86_64", 32, 16))
    assert found
    for candidate in found:
        got = run(candidate, workload, [x, w])
        np.testing.assert_array_equal(got, want.astype("i4"), err_msg=candidate.name)
