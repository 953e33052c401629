"""Inputs made for a workload, and the result that every kernel of it must give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from graphopt.tuning.measure.program import Array, load, make_single
from schedules.interface import (
    Candidate,
    Epilogue,
    Op,
    TargetTraits,
    TensorSig,
    Workload,
)
from schedules.registry import families

LIMIT = 5e-5
"""A kernel may differ by so much from the reference, relative to its largest value."""


def make_inputs(workload: Workload, seed: int = 0) -> list[Array]:
    """Arrays for the inputs of a workload: logical shapes, the same for the same seed.

    Weights of products are scaled so that results have about the size of the activations, as
    trained networks keep it. Integers are small and valid as indices of what has two elements.
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for sig, constant in zip(workload.inputs, workload.constant, strict=True):
        dtype = np.dtype(sig.dtype)
        if dtype.kind in "iu":
            arrays.append(rng.integers(0, 2, sig.shape).astype(dtype))
        elif dtype.kind == "b":
            arrays.append(rng.random(sig.shape) < 0.5)
        else:
            values = rng.standard_normal(sig.shape, np.float32)
            terms = _terms(workload.op, sig) if constant else 1
            arrays.append((values / np.sqrt(terms, dtype=np.float32)).astype(dtype))
    return arrays


def _terms(op: Op, sig: TensorSig) -> int:
    """How many products one output sums, if `sig` is the weight of a convolution or product."""
    if op.kind in ("conv2d", "matmul") and len(op.inputs) > 1 and sig == op.inputs[1]:
        if op.kind == "conv2d":
            return prod(sig.shape[1:])
        return sig.shape[-1 if op.attr("transpose_b") else -2]
    return 1


def reference(
    workload: Workload, arrays: Sequence[Array], traits: TargetTraits, target: Any, arch: str
) -> Array:
    """The result of a workload: by NumPy in float64 where it is a convolution or a product.

    The epilogue, and other operations, are computed by the first candidate with its default
    decisions, which the tests compare with NumPy.
    """
    op = workload.op
    if op.kind in _ANCHORS and op.output.dtype == "float32":
        operands = len(op.inputs)
        exact = _ANCHORS[op.kind](op, *(a.astype(np.float64) for a in arrays[:operands]))
        anchor = np.ascontiguousarray(exact, np.float32)
        if not workload.epilogue.operands and not workload.epilogue.steps:
            return anchor
        rest = _epilogue_alone(workload)
        return _computed(rest, [anchor, *arrays[operands:]], traits, target, arch)
    return _computed(workload, list(arrays), traits, target, arch)


def _computed(
    workload: Workload, arrays: list[Array], traits: TargetTraits, target: Any, arch: str
) -> Array:
    candidate = offers(workload, traits)[0]
    single = make_single(workload, candidate, arrays, traits, target)
    return load(single, target, arch).run()


def offers(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """All candidates for a workload, those that keep to IEEE arithmetic first."""
    found = [c for family in families(traits) for c in family(workload, traits)]
    return tuple(sorted(found, key=lambda candidate: candidate.numerics))


def _epilogue_alone(workload: Workload) -> Workload:
    """The elementwise workload of the epilogue, which reads the anchor's output as operand 1."""
    epilogue = workload.epilogue
    steps = tuple(replace(s, args=tuple(arg + 1 for arg in s.args)) for s in epilogue.steps)
    operands = (workload.op.output, *epilogue.operands)
    constant = (False, *epilogue.constant)
    op = Op("elementwise", (), workload.op.output)
    return Workload(op, Epilogue(operands, steps, epilogue.dtype, constant))


def _conv2d(op: Op, x: Array, w: Array) -> Array:
    (sh, sw), (dh, dw) = op.attr("strides"), op.attr("dilation")
    top, left, bottom, right = op.attr("padding")
    groups, (_, _, high, wide) = op.attr("groups"), op.output.shape
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    batch, channels = x.shape[:2]
    x = x.reshape(batch, groups, channels // groups, *x.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    total = np.zeros((batch, groups, w.shape[1], high, wide))
    for i in range(w.shape[3]):
        for j in range(w.shape[4]):
            rows = slice(i * dh, i * dh + (high - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (wide - 1) * sw + 1, sw)
            tap = x[:, :, :, rows, columns].reshape(batch, groups, x.shape[2], high * wide)
            product = w[None, :, :, :, i, j] @ tap
            total += product.reshape(total.shape)
    return total.reshape(op.output.shape)


def _matmul(op: Op, a: Array, b: Array) -> Array:
    product: Array = a @ (b.swapaxes(-1, -2) if op.attr("transpose_b") else b)
    return product


_ANCHORS = {"conv2d": _conv2d, "matmul": _matmul}
