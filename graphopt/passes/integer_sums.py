"""int32 sums of products, and what follows them: corrections, biases and scales."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.passes.quantized import INT32_MAX, int32_shift
from graphopt.passes.rewrite import Rule, View
from graphopt.passes.values import Array, Expr, constant, dtype_of, op_name, shape_of

_ROUNDINGS = 2.0**-20
"""Relative: what a bias and three scales have been rounded by, as float32, and a little more."""


def fits_int32(weights: Array, axes: tuple[int, ...]) -> bool:
    """Whether sums of bytes times these weights over `axes` fit int32 with a bit to spare, for a
    bias, whatever the bytes are."""
    magnitudes = np.abs(weights.astype(np.int64)).sum(axis=axes)
    return 255 * int(magnitudes.max(initial=0)) <= INT32_MAX // 2


def rescaled(sums: Expr, data: Array, weights: Array, shape: tuple[int, ...]) -> Expr:
    """int32 sums as the float32 numbers they stand for; scales of `weights` have this shape."""
    factor = data.reshape(()).astype(np.float64) * weights.astype(np.float64)
    dims = () if factor.size == 1 else shape
    return relax.op.multiply(
        relax.op.astype(sums, "float32"), constant(factor.reshape(dims), "float32")
    )


@dataclass(frozen=True)
class Biased:
    """float(anchor + shift) · scale + bias, with constants; `shift` may be missing."""

    anchor: Expr
    shift: Array | None
    scale: Array
    bias: Array
    links: tuple[Expr, ...]


def _biased(view: View, value: Expr, anchor: str) -> Biased | None:
    bias = view.constant(value.args[1])
    if bias is None or shape_of(value) != shape_of(value.args[0]):
        return None
    links = [value.args[0]]
    scaled = view.call(links[0], "multiply")
    scale = None if scaled is None else view.constant(scaled.args[1])
    if scaled is None or scale is None:
        return None
    links.append(scaled.args[0])
    cast = view.call(links[-1], "astype")
    if cast is None:
        return None
    links.append(cast.args[0])
    shift: Array | None = None
    sums = view.call(links[-1], "add", anchor)
    if sums is None:
        return None
    result = cast.args[0]
    if op_name(sums) == "add":
        shift, result = view.constant(sums.args[1]), sums.args[0]
        links.append(result)
        if shift is None or view.call(result, anchor) is None:
            return None
    return Biased(result, shift, scale, bias, tuple(links))


def _steps(found: Biased) -> Array:
    """The bias in units of the sums."""
    with np.errstate(all="ignore"):
        return np.asarray(found.bias.astype(np.float64) / found.scale.astype(np.float64))


def _check(view: View, found: Biased) -> str | None:
    if not all(view.used_once(link) for link in found.links):
        return "the result without the bias is used, too"
    if found.bias.size > found.scale.size and found.scale.size > 1:
        return "the bias varies along other axes than the scales"
    steps = _steps(found)
    if not np.isfinite(steps).all():
        return "the bias is not finite"
    if (np.abs(steps - np.round(steps)) > _ROUNDINGS * np.abs(steps)).any():
        return "the bias is no multiple of the scales"
    if (np.abs(steps) > INT32_MAX // 2).any():
        return "the bias does not fit 32 bits"
    return None


def _absorb(_view: View, found: Biased) -> Expr:
    steps = np.round(_steps(found)).astype(np.int64)
    total = steps if found.shift is None else steps + found.shift
    sums = relax.op.add(found.anchor, int32_shift(total))
    return relax.op.multiply(relax.op.astype(sums, "float32"), constant(found.scale))


@dataclass(frozen=True)
class Normalized:
    """(float(sums) · scale + bias) · factor, with constants."""

    cast: Expr
    scale: Array
    bias: Array
    factor: Array
    links: tuple[Expr, ...]


def _normalized(view: View, _var: Expr, value: Expr) -> Normalized | None:
    factor = view.constant(value.args[1])
    added = view.call(value.args[0], "add")
    bias = None if added is None else view.constant(added.args[1])
    scaled = None if added is None else view.call(added.args[0], "multiply")
    scale = None if scaled is None else view.constant(scaled.args[1])
    if added is None or scaled is None or factor is None or bias is None or scale is None:
        return None
    cast = view.call(scaled.args[0], "astype")
    if cast is None or dtype_of(cast.args[0]) != "int32":
        return None
    return Normalized(scaled.args[0], scale, bias, factor, (value.args[0], added.args[0]))


def _distributive(view: View, found: Normalized) -> str | None:
    if not all(view.used_once(link) for link in found.links):
        return "the result without the factor is used, too"
    if not np.isfinite(found.factor).all():
        return "the factor is not finite"
    sizes = [array.size for array in (found.scale, found.bias, found.factor)]
    largest = np.broadcast_shapes(found.scale.shape, found.bias.shape, found.factor.shape)
    return None if prod(largest) == max(sizes) else "the factor varies along other axes"


def _distribute(_view: View, found: Normalized) -> Expr:
    factor = found.factor.astype(np.float64)
    scaled = relax.op.multiply(found.cast, constant(found.scale * factor, "float32"))
    return relax.op.add(scaled, constant(found.bias * factor, "float32"))


def after_sums(anchor: str) -> tuple[Rule[Any], ...]:
    """float(sums) · scale + bias becomes float(sums + bias / scale) · scale, where that is whole.

    An exporter quantizes a bias to multiples of sx·sw, so that it costs nothing to add; it may say
    so or may give the float it stands for. A batch normalisation's factor behind the bias joins
    the scale.
    """

    def match(view: View, _var: Expr, value: Expr) -> Biased | None:
        return _biased(view, value, anchor)

    return (
        Rule("bias into sums", ("add",), match, _absorb, _check),
        Rule("factor into scales", ("multiply",), _normalized, _distribute, _distributive),
    )
