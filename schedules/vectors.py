"""Parts of hand-written memory-bound kernels: buffers, vector loops with remainders, row sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.interface import (
    Candidate,
    Cost,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    TensorSig,
    Workload,
)
from schedules.nest import Buffer, Stmt
from schedules.scalar_values import cast

STACK_BYTES = 16 << 10
"""Scratch up to this size is put on the stack."""


class Frame:
    """The buffers of one kernel: the anchor's inputs, the epilogue's operands, the result."""

    def __init__(self, workload: Workload, inputs: Sequence[Layout], output: Layout) -> None:
        self.workload = workload
        self.layout = output
        self.inputs: list[Buffer] = [
            nest.buffer(layout.physical(sig.shape), sig.dtype, f"input{i}")
            for i, (sig, layout) in enumerate(zip(workload.op.inputs, inputs, strict=True))
        ]
        where = operand_layouts(workload.epilogue, workload.output, output)
        self._operands = [
            nest.buffer(layout.physical(sig.shape), sig.dtype, f"operand{i}")
            for i, (sig, layout) in enumerate(zip(workload.epilogue.operands, where, strict=True))
        ]
        self.shape = output.physical(workload.output.shape)
        self._result: Buffer = nest.buffer(self.shape, workload.output.dtype, "result")

    def finish(self, value: PrimExpr, index: Sequence[PrimExpr]) -> Stmt:
        """Store the epilogue of the anchor's `value` at physical `index` of the output."""
        operands = [nest.reader(buffer) for buffer in self._operands]
        result = apply_epilogue(self.workload, value, operands, self.layout, index)
        return nest.write(self._result, result, *index)

    def function(self, *nests: Stmt | None) -> PrimFunc:
        """The finished function, whose body is the sequence of `nests`."""
        parameters = [*self.inputs, *self._operands, self._result]
        return nest.function(parameters, nest.sequence(*nests))


def candidate(
    name: str,
    workload: Workload,
    inputs: Sequence[Layout],
    output: Layout,
    compute: Callable[[], PrimFunc],
    flops_per_element: float = 1.0,
    passes: int = 1,
) -> Candidate:
    """A candidate whose cost is its traffic, for kernels written as final loops."""
    moved = sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes
    largest = max([workload.output.elements, *(sig.elements for sig in workload.op.inputs)])
    steps = len(workload.epilogue.steps) * workload.output.elements
    return Candidate(
        name=name + (f".c{output.block}" if output.block else ""),
        layouts=(*inputs, *operand_layouts(workload.epilogue, workload.output, output)),
        output=output,
        cost=Cost(flops_per_element * largest + steps, float(moved), 0.3, passes),
        compute=compute,
        schedule=nest.as_written,
    )


def lanes_of(traits: TargetTraits, *dtypes: str) -> int:
    """Elements per vector such that the widest of `dtypes` fills a register."""
    sizes = [2 if d == "bfloat16" else np.dtype(d).itemsize for d in dtypes]
    return traits.vector_bytes // max(sizes)


def over_vectors(
    count: int, lanes: int, body: Callable[[PrimExpr], Stmt], unroll: int = 1
) -> Stmt | None:
    """body(i) for i < count as vectors of `lanes`; the remainder as ever narrower vectors."""
    parts: list[Stmt | None] = []
    step = lanes * unroll
    full = count // step if unroll > 1 else 0
    if full:
        parts.append(
            nest.serial(
                full,
                lambda v: nest.unrolled(
                    unroll,
                    lambda u: nest.vectorized(lanes, lambda x: body(v * step + u * lanes + x)),
                ),
            )
        )
    done = full * step
    rest = (count - done) // lanes
    if rest:
        parts.append(
            nest.serial(
                rest,
                lambda v: nest.vectorized(lanes, lambda x: body(v * lanes + (x + done))),
            )
        )
        done += rest * lanes
    for at, width in remainder(count, done):
        parts.append(nest.vectorized(width, lambda x, at=at: body(x + at)))  # type: ignore[misc]
    return nest.sequence(*parts) if parts else None


def remainder(count: int, done: int) -> list[tuple[int, int]]:
    """Start and width of the vectors, ever narrower powers of two, that cover [done, count)."""
    parts = []
    while done < count:
        width = 1 << ((count - done).bit_length() - 1)
        parts.append((done, width))
        done += width
    return parts


def blocks_of(count: int, size: int) -> list[tuple[int, int, int]]:
    """Runs (start, number of blocks, block size) that cover `count`: full blocks, then the rest."""
    full, rest = divmod(count, size)
    runs = [(0, full, size)] if full else []
    return [*runs, (full * size, 1, rest)] if rest else runs


class RowReduction:
    """A reduction over contiguous elements: several vectors of partial results, then a tree."""

    def __init__(
        self,
        dtype: str,
        lanes: int,
        identity: PrimExpr,
        combine: Callable[[PrimExpr, PrimExpr], PrimExpr],
        unroll: int = 4,
    ) -> None:
        self.lanes, self.unroll, self.identity, self.combine = lanes, unroll, identity, combine
        self._partial: Buffer = nest.buffer((unroll * lanes,), dtype, "partial", "local")

    def start(self) -> Stmt:
        """Allocate the partial results and set them to the identity."""
        clear = nest.unrolled(
            self.unroll,
            lambda u: nest.vectorized(
                self.lanes,
                lambda x: nest.write(self._partial, self.identity, u * self.lanes + x),
            ),
        )
        return nest.sequence(nest.allocate(self._partial), clear)

    def _add(self, at: PrimExpr, value: PrimExpr) -> Stmt:
        combined = self.combine(nest.read(self._partial, at), value)
        return nest.write(self._partial, combined, at)

    def add(self, count: int, term: Callable[[PrimExpr], PrimExpr]) -> Stmt | None:
        """Take term(i) for i < count into the partial results."""
        lanes, unroll = self.lanes, self.unroll
        step = lanes * unroll
        full = count // step
        parts: list[Stmt | None] = []
        if full:
            parts.append(
                nest.serial(
                    full,
                    lambda v: nest.unrolled(
                        unroll,
                        lambda u: nest.vectorized(
                            lanes,
                            lambda x: self._add(u * lanes + x, term(v * step + (u * lanes + x))),
                        ),
                    ),
                )
            )
        done = full * step
        for u in range((count - done) // lanes):
            at = done + u * lanes
            parts.append(
                nest.vectorized(lanes, lambda x, u=u, at=at: self._add(x + u * lanes, term(x + at)))  # type: ignore[misc]
            )
        done += (count - done) // lanes * lanes
        for at, width in remainder(count, done):
            parts.append(nest.vectorized(width, lambda x, at=at: self._add(x + 0, term(x + at))))  # type: ignore[misc]
        return nest.sequence(*parts) if parts else None

    def finish(self) -> Stmt:
        """Combine the partial results; then `result` reads the total."""
        width = self.unroll * self.lanes // 2
        steps: list[Stmt] = []
        while width >= 1:
            vector = min(width, self.lanes)
            for at in range(0, width, vector):
                steps.append(
                    nest.vectorized(
                        vector,
                        lambda x, at=at, w=width: nest.write(  # type: ignore[misc]
                            self._partial,
                            self.combine(
                                nest.read(self._partial, x + at),
                                nest.read(self._partial, x + (at + w)),
                            ),
                            x + at,
                        ),
                    )
                )
            width //= 2
        return nest.sequence(*steps)

    @property
    def result(self) -> PrimExpr:
        """The reduction's value, after finish()."""
        return nest.read(self._partial, 0)


def scratch(shape: Sequence[int], dtype: str, name: str) -> Buffer:
    """A buffer of one worker, to be allocated inside a parallel loop."""
    size = prod(shape) * np.dtype(dtype).itemsize
    return nest.buffer(shape, dtype, name, "local" if size <= STACK_BYTES else "global")


def accumulator(dtype: str) -> str:
    """The dtype in which sums of `dtype` are kept."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def load_as(buffer: Buffer, dtype: str, *index: PrimExpr | int) -> PrimExpr:
    """Element of `buffer` converted to `dtype`."""
    return cast(nest.read(buffer, *index), dtype)


def parallel(extent: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    """A parallel loop that stays one nest: a loop of one iteration would dissolve into a sequence
    of nests with a barrier behind each statement."""
    if extent > 1:
        return nest.parallel(extent, body)
    return nest.parallel(2, lambda task: nest.branch(task < 1, body(nest.integer(0))))


def parallel_grid(extents: Sequence[int], body: Callable[..., Stmt]) -> Stmt:
    """One parallel loop over the product of `extents`; `body` takes the coordinates."""

    def bound(rest: tuple[PrimExpr, ...], known: tuple[PrimExpr, ...]) -> Stmt:
        if not rest:
            return body(*known)
        return nest.bind(rest[0], lambda x: bound(rest[1:], (*known, x)), "at")

    return parallel(prod(extents), lambda task: bound(nest.unflatten(task, extents), ()))


def of_type(value: PrimExpr, sig: TensorSig) -> PrimExpr:
    """`value` as the dtype of `sig`."""
    return cast(value, sig.dtype)


def let_vars(values: Sequence[PrimExpr], body: Callable[..., Stmt]) -> Stmt:
    """`body` of variables that hold `values`, each computed once."""
    names = [tirx.Var(f"s{i}", str(v.ty.dtype)) for i, v in enumerate(values)]
    bound = [tirx.Bind(var, value) for var, value in zip(names, values, strict=True)]
    return nest.sequence(*bound, body(*names))
