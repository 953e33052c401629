"""Convolutions of 8- and 16-bit integers with exact int32 sums, over one to three axes.

Padding is copied in once, so that no tap is tested. With constant weights a tile of output columns
times a block of filters is summed in registers over channels and taps: the direct convolution of
Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures"
(2018), with operands widened as they are loaded. Weights that are computed at run time, and groups
of few filters (depthwise), take rows: a scratch row of sums meets one tap at a time.

Numerics: exact; sums wrap as int32 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.conv_loops import parallel_grid
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gemm import traffic
from schedules.interface import PLAIN, Candidate, Cost, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.tile import by_vectors

FEWEST_FILTERS = 4  # per group, below which most of a block of filters would be padding
TILE_ROWS = 12


@dataclass(frozen=True)
class FilterBlocks:
    """Packs (O,C/groups,…) as (groups, ceil(O/groups/block), C/groups, …, block), zeros behind."""

    block: int
    groups: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        filters = array.shape[0] // self.groups
        blocks = -(-filters // self.block)
        padded = np.zeros((self.groups, blocks * self.block, *array.shape[1:]), array.dtype)
        padded[:, :filters] = array.reshape(self.groups, filters, *array.shape[1:])
        split = padded.reshape(self.groups, blocks, self.block, *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(split, 2, -1))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        blocks = -(-(shape[0] // self.groups) // self.block)
        return (self.groups, blocks, *shape[1:], self.block)


@dataclass(frozen=True)
class Problem:
    """A convolution on its padded image; tuples have one entry per spatial axis."""

    batch: int
    channels: int  # per group
    filters: int  # per group
    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    size: tuple[int, ...]  # of the padded image
    out: tuple[int, ...]

    @classmethod
    def of(cls, workload: Workload) -> Problem:
        """The problem of a conv_integer workload."""
        op = workload.op
        x, w, groups = op.inputs[0].shape, op.inputs[1].shape, int(op.attr("groups"))
        rank = len(x) - 2
        strides, dilation, pads = op.attr("strides"), op.attr("dilation"), op.attr("padding")
        size = (d + a + b for d, a, b in zip(x[2:], pads[:rank], pads[rank:], strict=True))
        return cls(
            x[0],
            w[1],
            w[0] // groups,
            groups,
            w[2:],
            strides,
            dilation,
            pads[:rank],
            tuple(size),
            op.output.shape[2:],
        )

    @property
    def macs(self) -> int:
        return prod((self.batch, self.groups, self.filters, *self.out, self.channels, *self.kernel))

    def source(self, position: tuple[PrimExpr, ...], tap: tuple[PrimExpr, ...]) -> list[PrimExpr]:
        """Where in the padded image a tap of an output position lies."""
        parts = zip(position, tap, self.strides, self.dilation, strict=True)
        return [p * s + t * d for p, t, s, d in parts]


class Kernel:
    """The buffers of one convolution and the statements that both variants share."""

    def __init__(self, workload: Workload, weights: tuple[int, ...]) -> None:
        """`weights` is the shape of input 1 as the kernel reads it."""
        op = workload.op
        self.workload, self.problem = workload, Problem.of(workload)
        self.input = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "x")
        self.weights = nest.buffer(weights, op.inputs[1].dtype, "weights")
        self.operands = nest.operand_buffers(workload)
        self.output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
        shape = (*op.inputs[0].shape[:2], *self.problem.size)
        self.padded = shape != op.inputs[0].shape
        self.image: Buffer = (
            nest.buffer(shape, op.inputs[0].dtype, "image") if self.padded else self.input
        )

    def pad(self) -> Stmt:
        """Copy the input into the padded image, row by row."""
        op, before = self.workload.op, self.problem.before
        *outer, width = op.inputs[0].shape
        right = self.problem.size[-1] - before[-1] - width
        value = tirx.const(int(op.attr("pad_value")), op.inputs[0].dtype)

        def fill(index: tuple[PrimExpr, ...], first: int, count: int) -> Stmt | None:
            body = partial(self._fill, index, value, first)
            return nest.serial(count, body) if count else None

        def row(*index: PrimExpr) -> Stmt:
            inner = [i - b for i, b in zip(index[2:], before[:-1], strict=True)]
            copied = nest.sequence(
                fill(index, 0, before[-1]),
                nest.serial(
                    width,
                    lambda i: nest.write(
                        self.image,
                        nest.read(self.input, *index[:2], *inner, i),
                        *index,
                        i + before[-1],
                    ),
                ),
                fill(index, before[-1] + width, right),
            )
            inside: PrimExpr | bool = True
            for i, dim, padded in zip(inner, outer[2:], self.problem.size[:-1], strict=True):
                if dim != padded:
                    here = tirx.all(i >= 0, i < dim)
                    inside = here if inside is True else tirx.all(inside, here)
            return nest.branch(inside, copied, fill(index, 0, self.problem.size[-1]))

        return parallel_grid((*outer[:2], *self.problem.size[:-1]), row)

    def _fill(self, index: tuple[PrimExpr, ...], value: PrimExpr, first: int, i: PrimExpr) -> Stmt:
        return nest.write(self.image, value, *index, i + first)

    def finish(self, value: PrimExpr, *index: PrimExpr) -> Stmt:
        """Store the epilogue of a sum."""
        reads = [nest.reader(buffer) for buffer in self.operands]
        element = apply_epilogue(self.workload, value, reads, PLAIN, index)
        return nest.write(self.output, element, *index)

    def over_taps(self, body: Any) -> Stmt:
        """`body(channel, tap)` for all channels of a group and all taps."""
        kernel = self.problem.kernel

        def loop(axis: int, channel: PrimExpr, tap: tuple[PrimExpr, ...]) -> Stmt:
            if axis == len(kernel):
                return body(channel, tap)
            return nest.serial(kernel[axis], lambda k: loop(axis + 1, channel, (*tap, k)), "k")

        return nest.serial(self.problem.channels, lambda c: loop(0, c, ()), "ic")

    def function(self, main: Stmt) -> PrimFunc:
        """The finished function; `main` reads the padded image."""
        parameters = [self.input, self.weights, *self.operands, self.output]
        if not self.padded:
            return nest.function(parameters, main)
        return nest.function(parameters, nest.sequence(nest.allocate(self.image), self.pad(), main))


def emit_blocks(workload: Workload, packing: FilterBlocks, lanes: int) -> PrimFunc:
    """Tiles of output columns times blocks of filters."""
    problem = Problem.of(workload)
    kernel = Kernel(workload, packing.packed_shape(workload.op.inputs[1].shape))
    vectors = packing.block // lanes
    blocks = -(-problem.filters // packing.block)
    columns = nest.Split.of(problem.out[-1], TILE_ROWS)

    def tile(
        n: PrimExpr, g: PrimExpr, b: PrimExpr, outer: tuple[PrimExpr, ...], x: PrimExpr, count: int
    ) -> Stmt:
        acc = [nest.buffer((vectors, lanes), "int32", "acc", "local") for _ in range(count)]

        def each(body: Any) -> Stmt:
            return nest.sequence(
                *[
                    nest.unrolled(
                        vectors,
                        lambda v, i=i: nest.vectorized(lanes, lambda lane: body(i, v, lane)),  # type: ignore[misc]
                    )
                    for i in range(count)
                ]
            )

        def add(c: PrimExpr, tap: tuple[PrimExpr, ...]) -> Stmt:
            def term(i: int, v: PrimExpr, lane: PrimExpr) -> Stmt:
                where = problem.source((*outer, x + i), tap)
                pixel = nest.read(kernel.image, n, g * problem.channels + c, *where)
                weight = nest.read(kernel.weights, g, b, c, *tap, v * lanes + lane)
                product = tirx.Cast("int32", pixel) * tirx.Cast("int32", weight)
                return nest.write(acc[i], nest.read(acc[i], v, lane) + product, v, lane)

            return each(term)

        zero = tirx.const(0, "int32")
        result = nest.buffer((packing.block, count), "int32", "tile", "local")

        def store(f: PrimExpr) -> Stmt:
            channel = g * problem.filters + b * packing.block + f
            row = nest.vectorized(
                count,
                lambda i: kernel.finish(nest.read(result, f, i), n, channel, *outer, x + i),
            )
            whole = problem.filters % packing.block == 0
            return nest.branch(whole or b * packing.block + f < problem.filters, row) or row

        return nest.sequence(
            nest.allocate(*acc, result),
            each(lambda i, v, lane: nest.write(acc[i], zero, v, lane)),
            kernel.over_taps(add),
            each(
                lambda i, v, lane: nest.write(
                    result, nest.read(acc[i], v, lane), v * lanes + lane, nest.integer(i)
                )
            ),
            nest.serial(packing.block, store, "f"),
        )

    def task(n: PrimExpr, g: PrimExpr, b: PrimExpr, *outer: PrimExpr) -> Stmt:
        return nest.serial(
            columns.count,
            lambda part: columns.part(part, lambda x, count: tile(n, g, b, outer, x, count)),
            "tile",
        )

    grid = (problem.batch, problem.groups, blocks, *problem.out[:-1])
    return kernel.function(parallel_grid(grid, task))


def emit_rows(workload: Workload, lanes: int) -> PrimFunc:
    """A row of sums per task, one tap at a time; the weights as in the model."""
    problem = Problem.of(workload)
    kernel = Kernel(workload, workload.op.inputs[1].shape)
    width = problem.out[-1]
    scope = "local" if 4 * width <= 16 << 10 else "global"

    def task(n: PrimExpr, o: PrimExpr, *outer: PrimExpr) -> Stmt:
        sums = nest.buffer((width,), "int32", "sums", scope)
        first = tirx.floordiv(o, problem.filters) * problem.channels

        def add(c: PrimExpr, tap: tuple[PrimExpr, ...]) -> Stmt:
            weight = tirx.Cast("int32", nest.read(kernel.weights, o, c, *tap))

            def term(x: PrimExpr) -> Stmt:
                pixel = nest.read(kernel.image, n, first + c, *problem.source((*outer, x), tap))
                product = tirx.Cast("int32", pixel) * weight
                return nest.write(sums, nest.read(sums, x) + product, x)

            return nest.serial(width, term, "x")

        zero = tirx.const(0, "int32")
        return nest.sequence(
            nest.allocate(sums),
            by_vectors(width, lanes, lambda x: nest.write(sums, zero, x)),
            kernel.over_taps(add),
            by_vectors(width, lanes, lambda x: kernel.finish(nest.read(sums, x), n, o, *outer, x)),
        )

    grid = (problem.batch, problem.groups * problem.filters, *problem.out[:-1])
    return kernel.function(parallel_grid(grid, task))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Rows for any conv_integer, blocks of filters where the weights are constant."""
    op = workload.op
    if op.kind != "conv_integer":
        return ()
    problem = Problem.of(workload)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    flops, moved, lanes = 2.0 * problem.macs, traffic(workload), traits.lanes
    unit = problem.strides[-1] == 1
    found = [
        Candidate(
            name="conv_integer.rows",
            layouts=(PLAIN, PLAIN, *operands),
            output=PLAIN,
            cost=Cost(flops, moved, 0.06 if unit else 0.02),
            compute=partial(emit_rows, workload, lanes),
            schedule=nest.as_written,
        )
    ]
    if op.constant[1] and problem.filters >= FEWEST_FILTERS:
        vectors = min(2, -(-problem.filters // lanes))
        packing = FilterBlocks(vectors * lanes, problem.groups)
        full = problem.filters / (-(-problem.filters // packing.block) * packing.block)
        found.append(
            Candidate(
                name=f"conv_integer.blocks[{vectors}]",
                layouts=(PLAIN, packing, *operands),
                output=PLAIN,
                cost=Cost(flops, moved, 0.25 * full),
                compute=partial(emit_blocks, workload, packing, lanes),
                schedule=nest.as_written,
            )
        )
    return tuple(found)
