"""The whole pipeline on random graphs: the same function, no node lost, every graph well-formed."""

from __future__ import annotations

import random
from math import sqrt

import numpy as np
import pytest
from passes_graph import assert_same_function, const, make
from passes_graph import random as array
from tvm import relax

from graphopt.passes.base import run_pipeline
from graphopt.passes.pipeline import PIPELINE

op = relax.op
SHAPES = ((1, 3, 4, 4), (2, 4, 5, 3), (1, 4, 6), (2, 3, 8), (1, 1, 4, 6), (4, 6))
SCALARS = (0.5, 1.0, 0.0, 3.0, 6.0, 1 / 6, -1.0, 2.0, sqrt(0.5))


class Grower:
    """Draws operators that fit the values made so far, each with its shape."""

    def __init__(self, seed, x, shape):
        self.draw = random.Random(seed)
        self.values = [(x, shape)]

    def operand(self, shape):
        vector = (shape[1], *[1] * (len(shape) - 2)) if len(shape) > 1 else shape
        dims = self.draw.choice([(), (1,), shape[-1:], vector, shape])
        return const(self.draw.choice(SCALARS)) if dims in ((), (1,)) else const(array(*dims))

    def grow(self):
        x, shape = self.draw.choice(self.values[-4:])
        makers = [self.arithmetic, self.unary, self.binary, self.permute, self.view, self.cut]
        makers += [self.reduce, self.join, self.pattern, self.matmul]
        makers += [self.conv, self.conv] if len(shape) == 4 else []
        made = self.draw.choice(makers)(x, shape)
        if made is not None and made[1]:
            self.values.append(made)

    def arithmetic(self, x, shape):
        c = self.operand(shape)
        forms = [
            lambda: op.add(x, c),
            lambda: op.add(c, x),
            lambda: op.multiply(x, c),
            lambda: op.subtract(x, c),
            lambda: op.divide(x, const(self.draw.choice([2.0, 6.0, sqrt(2)]))),
        ]
        return self.draw.choice(forms)(), shape

    def unary(self, x, shape):
        forms = [
            lambda: op.nn.relu(x),
            lambda: op.tanh(x),
            lambda: op.erf(x),
            lambda: op.clip(x, 0, 6),
            lambda: op.maximum(x, const(0.0)),
            lambda: op.minimum(x, const(6.0)),
        ]
        return self.draw.choice(forms)(), shape

    def binary(self, x, shape):
        mates = [value for value, dims in self.values if dims == shape]
        make_op = self.draw.choice([op.add, op.multiply, op.subtract])
        return make_op(x, self.draw.choice(mates)), shape

    def permute(self, x, shape):
        axes = self.draw.sample(range(len(shape)), len(shape))
        return op.permute_dims(x, axes), tuple(shape[axis] for axis in axes)

    def view(self, x, shape):
        dims = [d for d in shape if d != 1] or [1]
        if self.draw.random() < 0.5 and len(dims) > 1:
            dims[:2] = [dims[0] * dims[1]]
        for _ in range(self.draw.randint(0, 2)):
            dims.insert(self.draw.randint(0, len(dims)), 1)
        return op.reshape(x, tuple(dims)), tuple(dims)

    def cut(self, x, shape):
        axis = self.draw.randrange(len(shape))
        lead, tail = shape[:axis], shape[axis + 1 :]
        if shape[axis] % 2 == 0 and self.draw.random() < 0.5:
            half = (*lead, shape[axis] // 2, *tail)
            parts = op.split(x, 2, axis)
            self.values.append((relax.TupleGetItem(parts, 0), half))
            return relax.TupleGetItem(parts, 1), half
        begin = self.draw.randrange(shape[axis])
        end = self.draw.randint(begin + 1, shape[axis])
        return op.strided_slice(x, [axis], [begin], [end], [1]), (*lead, end - begin, *tail)

    def reduce(self, x, shape):
        axis = self.draw.randrange(len(shape))
        make_op = self.draw.choice([op.mean, op.sum, op.max])
        kept = (*shape[:axis], 1, *shape[axis + 1 :])
        return make_op(x, [axis], keepdims=True), kept

    def join(self, x, shape):
        mates = [value for value, dims in self.values if dims == shape]
        axis = self.draw.randrange(len(shape))
        dims = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
        return op.concat([x, self.draw.choice(mates)], axis=axis), dims

    def matmul(self, x, shape):
        columns = self.draw.choice([3, 4, 6])
        if len(shape) < 2:
            return None
        return op.matmul(x, const(array(shape[-1], columns))), (*shape[:-1], columns)

    def conv(self, x, shape):
        n, channels, h, w = shape
        size = 3 if min(h, w) > 2 else 1
        padding = self.draw.choice([0, size // 2])
        grown = 2 * padding - size + 1
        weight = const(array(4, channels, size, size))
        return op.nn.conv2d(x, weight, padding=padding), (n, 4, h + grown, w + grown)

    def pattern(self, x, shape):
        d = op.subtract(x, op.mean(x, [-1], keepdims=True))
        variance = op.mean(op.multiply(d, d), [-1], keepdims=True)
        gate = op.add(op.erf(op.divide(x, const(sqrt(2)))), const(1.0))
        forms = [
            lambda: op.divide(d, op.sqrt(op.add(variance, const(1e-3)))),
            lambda: op.multiply(op.multiply(x, const(0.5)), gate),
            lambda: op.multiply(x, op.sigmoid(x)),
            lambda: op.nn.softmax(x, len(shape) - 1),
        ]
        return self.draw.choice(forms)(), shape


@pytest.mark.parametrize("seed", range(80))
def test_random_graph(seed):
    draw = random.Random(seed)
    shape = draw.choice(SHAPES)

    def body(x):
        grower = Grower(seed, x, shape)
        for _ in range(draw.randint(3, 14)):
            grower.grow()
        second = [draw.choice(grower.values)[0]] if draw.random() < 0.3 else []
        return [grower.values[-1][0], *second]

    before = make({"x": shape}, body)
    after, reports = run_pipeline(before, PIPELINE)
    assert_same_function(before, after, rtol=1e-4)
    assert all(np.isfinite(report.seconds) for report in reports)
