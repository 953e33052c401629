"""Parts of kernels that take no epilogue: their buffers, candidates and ways to share work."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tvm import tirx

from schedules import nest
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    TensorSig,
    Workload,
)
from schedules.nest import Buffer, Stmt
from schedules.vectors import over_vectors, parallel

CHUNK = 4096
"""Elements of a flat tensor that one task fills or copies."""


class Parameters:
    """A kernel's buffers, row-major: the inputs, then the outputs."""

    def __init__(self, workload: Workload) -> None:
        op = workload.op
        self.inputs: list[Buffer] = [
            nest.buffer(sig.shape, sig.dtype, f"input{i}") for i, sig in enumerate(op.inputs)
        ]
        self.outputs: list[Buffer] = [
            nest.buffer(sig.shape, sig.dtype, f"result{i}")
            for i, sig in enumerate(workload.outputs)
        ]

    def function(self, *nests: Stmt | None) -> PrimFunc:
        """The finished function, whose body is the sequence of `nests`."""
        return nest.function([*self.inputs, *self.outputs], nest.sequence(*nests))


def plain_candidate(
    name: str,
    workload: Workload,
    compute: Callable[[], PrimFunc],
    operations: float,
    passes: int = 1,
) -> Candidate:
    """The candidate of a kernel with final loops; `operations` are counted one after another."""
    sigs = (*workload.inputs, *workload.outputs)
    return Candidate(
        name=name,
        layouts=(PLAIN,) * len(workload.inputs),
        output=PLAIN,
        # Scalar code: one operation per cycle against the vectors' peak.
        cost=Cost(operations, float(sum(sig.nbytes for sig in sigs)), 0.02, passes),
        compute=compute,
        schedule=nest.as_written,
    )


def flat(buffer: Buffer) -> Callable[[PrimExpr | int], tuple[PrimExpr, ...]]:
    """Coordinates in `buffer` of a flat index."""
    shape = [int(extent) for extent in buffer.shape]

    def coordinates(index: PrimExpr | int) -> tuple[PrimExpr, ...]:
        at = nest.integer(index) if isinstance(index, int) else index
        return nest.unflatten(at, shape)

    return coordinates


def read_flat(buffer: Buffer, index: PrimExpr | int) -> PrimExpr:
    """Element `index` of `buffer` in row-major order."""
    return nest.read(buffer, *flat(buffer)(index))


def write_flat(buffer: Buffer, value: PrimExpr, index: PrimExpr | int) -> Stmt:
    """Store `value` as element `index` of `buffer` in row-major order."""
    return nest.write(buffer, value, *flat(buffer)(index))


def elements(buffer: Buffer) -> int:
    """Number of elements of a buffer."""
    return prod(int(extent) for extent in buffer.shape)


def each_chunk(count: int, body: Callable[[PrimExpr, PrimExpr], Stmt], size: int = CHUNK) -> Stmt:
    """A parallel nest over [0, count) in chunks: body(start, end) of each."""
    chunks = -(-count // size)

    def chunk(c: PrimExpr) -> Stmt:
        start = c * size
        return body(start, tirx.min(start + size, nest.integer(count)))

    return parallel(chunks, chunk)


def each_element(
    count: int, lanes: int, body: Callable[[PrimExpr], Stmt], size: int = CHUNK
) -> Stmt | None:
    """A parallel nest of body(i) for i < count, by vectors."""
    full, rest = divmod(count, size)
    if not count:
        return None

    def whole(c: PrimExpr) -> Stmt:
        stmt = over_vectors(size, lanes, lambda i: body(c * size + i))
        assert stmt is not None
        return stmt

    def last() -> Stmt:
        stmt = over_vectors(rest, lanes, lambda i: body(i + full * size))
        assert stmt is not None
        return stmt

    if not full:
        return parallel(1, lambda _: last())
    if not rest:
        return parallel(full, whole)
    return parallel(full + 1, lambda c: tirx.IfThenElse(c < full, whole(c), last()))


def copy_tensor(source: Buffer, target: Buffer, lanes: int) -> Stmt | None:
    """A parallel nest that copies a tensor to one of the same number of elements."""
    return each_element(
        elements(target), lanes, lambda i: write_flat(target, read_flat(source, i), i)
    )


def alone(body: Stmt, *scratch: Stmt) -> Stmt:
    """One nest that one worker runs; `scratch` allocates what it needs."""
    return parallel(1, lambda _: nest.sequence(*scratch, body))


def rows_of(sig: TensorSig, axis: int) -> tuple[int, int, int]:
    """(outer, length, inner) of a row-major tensor seen from `axis`."""
    return prod(sig.shape[:axis]), sig.shape[axis], prod(sig.shape[axis + 1 :])


def workers(traits: TargetTraits, work: int, least: int = 1 << 14) -> int:
    """In how many parts `work` operations are worth sharing: at most one per worker."""
    return max(1, min(traits.threads, work // least))
