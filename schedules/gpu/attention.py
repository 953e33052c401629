"""Attention on a device: scores and result as products in tiles, a softmax of rows in between.

The scores of all heads are kept in the workspace. Numerics: as gpu/matmul.py and gpu/rows.py; rows
whose mask is all −inf give NaN, as the definition does.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gpu.conv import ACCUMULATORS
from schedules.gpu.matmul import Side
from schedules.gpu.products import product_nest
from schedules.gpu.rows import softmax_rows
from schedules.gpu.tiles import Finish, Tiles
from schedules.gpu.tilings import Product, default_tiling
from schedules.interface import PLAIN, Candidate, Cost, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.scalar_values import cast


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate, for any types and places of the heads."""
    op = workload.op
    if op.kind != "attention" or op.output.dtype not in ACCUMULATORS or not op.output.elements:
        return ()
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    first, second = _products(workload)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    return (
        Candidate(
            name="gpu.attention",
            layouts=(*(PLAIN,) * len(op.inputs), *operands),
            output=PLAIN,
            cost=Cost(first.flops + second.flops, moved, 0.4, 3),
            compute=partial(_compute, workload, traits),
            schedule=nest.as_written,
        ),
    )


def _head_first(shape: tuple[int, ...], inside: bool) -> tuple[int, int, int, int]:
    """(batch, heads, rows, columns) of an operand."""
    b, h, s, d = shape
    return (b, s, h, d) if inside else (b, h, s, d)


def _products(workload: Workload) -> tuple[Product, Product]:
    op = workload.op
    inside = _inside(workload)
    b, h, s, d = _head_first(op.inputs[0].shape, inside[0])
    t = _head_first(op.inputs[1].shape, inside[1])[2]
    e = _head_first(op.inputs[2].shape, inside[2])[3]
    dtype = ACCUMULATORS[op.output.dtype]
    return Product(b * h, s, t, d, dtype), Product(b * h, s, e, t, dtype)


def _inside(workload: Workload) -> tuple[bool, ...]:
    attrs = dict(workload.op.attrs)
    found = attrs.get("heads_inside", (False,) * 4)
    assert isinstance(found, tuple)
    return tuple(bool(each) for each in found)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    op = workload.op
    inside = _inside(workload)
    inputs = [nest.buffer(sig.shape, sig.dtype, f"input{i}") for i, sig in enumerate(op.inputs)]
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")
    first, second = _products(workload)
    heads = _head_first(op.inputs[0].shape, inside[0])[1]
    scores = nest.buffer((first.groups, first.rows, first.columns), first.dtype, "scores")

    def index(which: int, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> tuple[PrimExpr, ...]:
        b, h = group // heads, group % heads
        if which < 3:
            own = _head_first(op.inputs[which].shape, inside[which])[1]
            h = h if own == heads else h // (heads // own)
        return (b, row, h, column) if inside[which] else (b, h, row, column)

    def operand(which: int, transposed: bool) -> Side:
        def read(group: PrimExpr, step: PrimExpr, line: PrimExpr) -> PrimExpr:
            row, column = (line, step) if transposed else (step, line)
            return nest.read(inputs[which], *index(which, group, row, column))

        return Side(read)

    def score(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        value = value * tirx.const(op.attr("scale"), first.dtype)
        if len(inputs) > 3:
            shape = op.inputs[3].shape
            at = (group // heads, group % heads, row, column)[4 - len(shape) :]
            where = [nest.integer(0) if n == 1 else i for n, i in zip(shape, at, strict=True)]
            value = value + cast(nest.read(inputs[3], *where), first.dtype)
        return nest.write(scores, value, group, row, column)

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        at = index(3, group, row, column)
        readers = [nest.reader(buffer) for buffer in operands]
        done = apply_epilogue(workload, cast(value, op.output.dtype), readers, PLAIN, at)
        return nest.write(result, done, *at)

    def multiply(
        product: Product, left: Side, right: Side, transposed: bool, store: Finish
    ) -> Stmt:
        assert traits.gpu is not None
        tiles = Tiles(
            product,
            default_tiling(product, traits),
            left,
            right,
            left_packed=False,
            right_packed=False,
            left_steps_first=True,
            right_steps_first=transposed,
        )
        return product_nest(tiles, traits.gpu.loops, store)

    weights = Side(lambda group, step, line: nest.read(scores, group, line, step))
    body = nest.sequence(
        nest.allocate(scores),
        multiply(first, operand(0, True), operand(1, True), True, score),
        softmax_rows(scores, traits.gpu),
        multiply(second, weights, operand(2, False), False, finish),
    )
    parameters: list[Buffer] = [*inputs, *operands, result]
    return nest.function(parameters, body)
