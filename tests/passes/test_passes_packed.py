"""Constants and functions of bytes that kernels read as they are: packed weights and tables."""

from __future__ import annotations

import numpy as np
import pytest
from passes_graph import const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.ops.quantize import dequantize, matmul_integer, quantize
from graphopt.passes.byte_functions import TabulateBytes
from graphopt.passes.packed_weights import PackWeights
from graphopt.passes.signs import NormalizeSigns, other_sign
from graphopt.passes.transposed_operands import AbsorbTransposedOperands

op = relax.op
ROWS = {"x": (3, 80)}


def whole(low, high, *shape):
    return np.random.default_rng(1).integers(low, high, shape)


def table(shape, scale, zero=None, bits=4):
    """A dequantized constant of int8 numbers that fit `bits`."""
    half = 1 << (bits - 1)
    zeros = const(0, "int8") if zero is None else const(whole(-half, half, *zero), "int8")
    scales = const(np.abs(random(*scale)) + 0.1) if scale else const(0.3)
    return dequantize(const(whole(-half, half, *shape), "int8"), scales, zeros)


WEIGHTS = {
    "blocks": lambda: op.reshape(table((5, 16, 60), (5, 1, 60), (5, 1, 60)), (80, 60)),
    "columns": lambda: table((80, 60), (1, 60)),
    "one scale, 8 bits": lambda: table((80, 60), (), bits=8),
    "zero points, 8 bits": lambda: table((80, 60), (1, 60), (1, 60), bits=8),
    "2 bits": lambda: table((80, 60), (1, 60), bits=2),
    "transposed blocks": lambda: op.permute_dims(
        op.reshape(table((60, 5, 16), (60, 5, 1)), (60, 80)), [1, 0]
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_products_read_packed_weights(name):
    graph = fires(PackWeights(), make(ROWS, lambda x: op.matmul(x, WEIGHTS[name]())), rewrites=1)
    assert kinds(graph) == ["graphopt.matmul_nbits"]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (lambda: table((80, 10), (1, 10)), "the weights are few"),
        (lambda: table((80, 60), (80, 1)), "its scales are of 1 terms each"),
        (
            lambda: op.reshape(table((20, 4, 60), (20, 1, 60)), (80, 60)),
            "its scales are of 4 terms each",
        ),
        (lambda: table((2, 80, 60), (1, 1, 60)), "the weights are no matrix"),
    ],
)
def test_products_that_stay_in_floats_say_why(weights, reason):
    refuses(PackWeights(), make(ROWS, lambda x: op.matmul(x, weights())), reason)


LOOKUPS = {
    "rows": lambda: table((90, 60), (90, 1)),
    "columns": lambda: table((90, 60), (1, 60), (1, 60)),
    "blocks": lambda: op.reshape(table((90, 4, 16), (90, 4, 1), (90, 4, 1)), (90, 64)),
    "8 bits": lambda: table((90, 60), (90, 1), (90, 1), bits=8),
    "an odd width": lambda: table((90, 61), (90, 1)),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_read_packed_rows(name):
    inputs = {"x": ((2, 3), "uint8")}

    def body(x):
        indices = op.minimum(op.astype(x, "int64"), const(89, "int64"))
        return op.take(LOOKUPS[name](), indices, axis=0)

    graph = fires(PackWeights(), make(inputs, body), rewrites=1)
    # The dequantized table is dead; what is taken is dequantized behind.
    assert kinds(graph).count("graphopt.dequantize") == 1
    assert "take" in kinds(graph)


def test_lookups_of_columns_stay_in_floats():
    body = lambda x: op.take(table((90, 60), (90, 1)), op.astype(x, "int64"), axis=1)  # noqa: E731
    refuses(PackWeights(), make({"x": ((2, 3), "uint8")}, body), "the table is not read by rows")


BYTES = {"x": ((40, 60), "uint8")}


def dq(x, scale=0.043, zero=120):
    return dequantize(x, const(scale), const(zero, "uint8"))


def q(x, scale=0.0171, zero=11):
    return quantize(x, const(scale), const(zero, "uint8"))


def gelu(x):
    rounded = dq(q(op.erf(op.divide(x, const(2**0.5))), 0.0083, 121), 0.0083, 121)
    return op.multiply(op.multiply(x, op.add(rounded, const(1.0))), const(0.5))


@pytest.mark.parametrize("function", [gelu, op.sigmoid, op.nn.silu, op.nn.gelu])
def test_costly_functions_of_bytes_are_tables(function):
    graph = fires(TabulateBytes(), make(BYTES, lambda x: q(function(dq(x)))))
    assert kinds(graph) == ["graphopt.lookup"]


def test_what_is_no_function_of_one_byte_stays():
    refuses(TabulateBytes(), make(BYTES, lambda x: q(op.nn.relu(dq(x)))), "no more than a table")
    two = BYTES | {"y": ((40, 60), "uint8")}
    refuses(TabulateBytes(), make(two, lambda x, y: q(op.multiply(op.exp(dq(x)), dq(y)))))
    small = {"x": ((4, 6), "uint8")}
    refuses(TabulateBytes(), make(small, lambda x: q(op.exp(dq(x)))), "the tensor is small")
    for shape in ((40, 1), (40, 60)):
        factors = const(random(*shape))
        graph = make(BYTES, lambda x, f=factors: q(op.multiply(op.exp(dq(x)), f)))
        refuses(TabulateBytes(), graph)
    fresh = make({"x": (40, 60)}, lambda x: q(op.exp(dq(q(x, 0.043, 120)))))
    refuses(TabulateBytes(), fresh, "the kernel that makes the bytes can go on")


PAIR = {"x": ((2, 3, 5, 8), "uint8"), "y": ((2, 7, 3, 8), "int8")}


def test_transposed_operands_are_read_as_they_lie():
    def body(x, y):
        return matmul_integer(x, op.permute_dims(y, [0, 2, 3, 1]), zeros=(7, -3))

    graph = fires(AbsorbTransposedOperands(), make(PAIR, body), rewrites=1)
    assert kinds(graph) == ["permute_dims", "graphopt.matmul_integer"]
    matrix = {"x": ((5, 8), "uint8"), "y": ((7, 8), "int8")}
    graph = make(matrix, lambda x, y: matmul_integer(x, op.permute_dims(y, [1, 0])))
    graph = fires(AbsorbTransposedOperands(), graph, rewrites=1)
    assert kinds(graph) == ["graphopt.matmul_integer"]


def test_transposed_operands_that_are_used_stay():
    def body(x, y):
        keys = op.permute_dims(y, [0, 2, 3, 1])
        return [matmul_integer(x, keys), keys]

    refuses(AbsorbTransposedOperands(), make(PAIR, body), "is also used")


def test_a_zero_point_takes_the_shift_of_its_operand():
    inputs = {"x": ((5, 8), "uint8")}

    def body(x):
        weights = const(whole(-128, 128, 8, 6), "int8")
        return matmul_integer(other_sign(x, "uint8"), weights, zeros=(-7, 3))

    graph = fires(NormalizeSigns(), make(inputs, body))
    assert kinds(graph) == ["graphopt.matmul_integer"]
