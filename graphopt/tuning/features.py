"""Features of a scheduled kernel: numbers that its time depends on, for the cost model.

They are read from the kernel's loops as they will be compiled, whatever family it comes from:
operations, loads and stores as vectors, traffic between levels of the cache, loop overhead, code
size and how evenly the workers share it. The traffic follows the usual model: what the loops inside
some level touch is read once if it all fits the cache, and again in every iteration of the loops
outside (Wolf and Lam, "A Data Locality Optimizing Algorithm", PLDI 1991). A change of what
they mean needs another records.FEATURES.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2, prod
from typing import Any

import numpy as np
from tvm import ir, s_tir, sym, tirx

from graphopt.lowering.prices import is_serial, price
from schedules.interface import Candidate, TargetTraits
from schedules.scalar_math import operands

_LAST_LEVEL_BYTES = 16 << 20
_UNLIKELY = 0.3
"""Weight of the other branch: the first is the common case in our kernels."""


@dataclass(frozen=True)
class _Loop:
    """A loop around a statement, outermost first in a nest."""

    variable: Any
    extent: float
    kind: str  # "serial", "parallel", "unrolled", "vectorized"


@dataclass(frozen=True)
class _Access:
    """A read or write of memory: which elements of a buffer, inside which loops."""

    buffer: Any
    nbytes: int  # of the buffer
    item: int  # bytes of an element
    loops: tuple[_Loop, ...]
    used: frozenset[int]  # loops (by position) that its index depends on
    weight: float

    def footprint(self, level: int) -> float:
        """Bytes that it touches inside the loops from `level` on."""
        inner = prod(
            loop.extent for i, loop in enumerate(self.loops) if i >= level and i in self.used
        )
        return min(float(self.nbytes), inner * self.item)

    def outside(self, level: int) -> float:
        """Iterations of the loops outside `level`."""
        return self.weight * prod(loop.extent for loop in self.loops[:level])


@dataclass
class _Counts:
    arithmetic: float = 0.0  # vector operations
    lanes: float = 0.0  # scalar operations they stand for
    loads: float = 0.0
    stores: float = 0.0
    registers: float = 0.0  # accesses of local buffers
    prefetches: float = 0.0
    calls: float = 0.0
    branches: float = 0.0
    iterations: float = 0.0
    code: float = 0.0
    phases: int = 0
    tasks: list[float] = field(default_factory=list)  # of each parallel loop
    scratch: float = 0.0  # bytes of a worker's buffers
    inner: float = 0.0  # operations in the largest innermost serial loop
    accesses: list[_Access] = field(default_factory=list)


def features(candidate: Candidate, function: Any, traits: TargetTraits) -> tuple[float, ...]:
    """The features of a candidate whose scheduled function is `function`."""
    walk = _Walk()
    walk.statement(function.body, _Place((), {}, 1.0, 1.0))
    counts = walk.counts
    traffic = [
        _traffic(counts.accesses, size)
        for size in (0.7 * traits.l1_bytes, 0.7 * traits.l2_bytes, 0.7 * _LAST_LEVEL_BYTES)
    ]
    tasks = min(counts.tasks, default=1.0)
    workers = 1 if is_serial(candidate.cost, traits) else traits.threads
    rounds = -(-tasks // workers)
    memory = counts.loads + counts.stores
    values = (
        counts.arithmetic,
        counts.lanes / max(counts.arithmetic, 1.0),
        counts.loads,
        counts.stores,
        counts.registers,
        counts.prefetches,
        counts.calls,
        counts.branches,
        counts.iterations,
        counts.code,
        counts.scratch,
        counts.inner,
        *traffic,
        memory / max(counts.arithmetic, 1.0),
        counts.iterations / max(counts.arithmetic, 1.0),
        *(moved / max(counts.arithmetic, 1.0) for moved in traffic),
        tasks,
        rounds * workers / max(tasks, 1.0),
        float(counts.phases),
        float(workers),
        float(traits.lanes),
        float(traits.vector_registers),
        float(traits.l2_bytes),
        candidate.cost.flops,
        candidate.cost.bytes,
        candidate.cost.efficiency,
        1e6 * price(candidate.cost, traits),
        counts.arithmetic / workers * rounds * workers / max(tasks, 1.0),
    )
    return tuple(round(log2(value + 2.0**-10), 4) for value in values)


def _traffic(accesses: Sequence[_Access], cache: float) -> float:
    """Bytes that come from beyond a cache of so many bytes.

    Accesses of one nest share the cache; each nest begins with nothing in it.
    """
    nests: dict[int, list[_Access]] = {}
    for access in accesses:
        nests.setdefault(id(access.loops[0]) if access.loops else 0, []).append(access)
    total = 0.0
    for nest in nests.values():
        deepest = max(len(access.loops) for access in nest)
        # The outermost level whose loops touch no more than fits.
        fitting = next(
            (
                level
                for level in range(deepest + 1)
                if sum(_distinct(nest, level).values()) <= cache
            ),
            deepest,
        )
        for access in _largest(nest, fitting):
            level = min(fitting, len(access.loops))
            total += access.footprint(level) * access.outside(level)
    return total


def _distinct(nest: Sequence[_Access], level: int) -> dict[int, float]:
    """Bytes touched per buffer inside `level`."""
    found: dict[int, float] = {}
    for access in nest:
        key = id(access.buffer)
        found[key] = max(found.get(key, 0.0), access.footprint(min(level, len(access.loops))))
    return found


def _largest(nest: Sequence[_Access], level: int) -> Iterator[_Access]:
    """Per buffer the access that moves the most."""
    found: dict[int, tuple[float, _Access]] = {}
    for access in nest:
        at = min(level, len(access.loops))
        moved = access.footprint(at) * access.outside(at)
        key = id(access.buffer)
        if key not in found or moved > found[key][0]:
            found[key] = (moved, access)
    return (access for _, access in found.values())


_KINDS = {
    int(tirx.ForKind.PARALLEL): "parallel",
    int(tirx.ForKind.VECTORIZED): "vectorized",
    int(tirx.ForKind.UNROLLED): "unrolled",
}


@dataclass(frozen=True)
class _Place:
    """Where a statement stands.

    loops: around it, outermost first. bound: variables with the loops (by position) that they
    depend on. times: how often it runs. copies: how often it is in the machine code.
    """

    loops: tuple[_Loop, ...]
    bound: Mapping[Any, frozenset[int]]
    times: float
    copies: float


class _Walk:
    """Collects the counts of a function."""

    def __init__(self) -> None:
        self.counts = _Counts()
        self._analyzer = sym.Analyzer()
        self._buffers: dict[Any, tuple[int, int, bool]] = {}

    def statement(self, node: Any, place: _Place) -> None:
        """Count `node`."""
        if isinstance(node, tirx.SeqStmt):
            for child in node.seq:
                if isinstance(child, tirx.Bind):
                    used = self._used(child.value, place.bound)
                    place = replace(place, bound={**place.bound, child.var: used})
                self.statement(child, place)
        elif isinstance(node, tirx.For):
            self._loop(node, place)
        elif isinstance(node, tirx.BufferStore):
            self._store(node, place)
        elif isinstance(node, tirx.IfThenElse):
            self.counts.branches += place.times
            self.statement(node.then_case, place)
            if node.else_case is not None:
                self.statement(node.else_case, replace(place, times=place.times * _UNLIKELY))
        elif isinstance(node, s_tir.SBlockRealize):
            self._block(node, place)
        elif isinstance(node, tirx.AllocBuffer):
            self._allocated(node.buffer)
        elif isinstance(node, tirx.AttrStmt):
            self.statement(node.body, place)
        elif isinstance(node, tirx.Evaluate) and isinstance(node.value, ir.Call):
            self.counts.prefetches += place.times
            self.counts.code += place.copies

    def _block(self, node: Any, place: _Place) -> None:
        known = dict(place.bound)
        for axis, value in zip(node.block.iter_vars, node.iter_values, strict=True):
            known[axis.var] = self._used(value, known)
        for buffer in node.block.alloc_buffers:
            self._allocated(buffer)
        inside = replace(place, bound=known)
        if node.block.init is not None:
            self.statement(node.block.init, inside)
        self.statement(node.block.body, inside)

    def _loop(self, node: Any, place: _Place) -> None:
        kind, extent = _KINDS.get(int(node.kind), "serial"), self._extent(node.extent)
        counts = self.counts
        if not any(loop.kind == "parallel" for loop in place.loops):
            counts.phases += not place.loops
            if kind == "parallel":
                counts.tasks.append(extent)
        inside = _Place(
            (*place.loops, _Loop(node.loop_var, extent, kind)),
            {**place.bound, node.loop_var: frozenset((len(place.loops),))},
            place.times if kind == "vectorized" else place.times * extent,
            place.copies * extent if kind == "unrolled" else place.copies,
        )
        before = counts.arithmetic
        self.statement(node.body, inside)
        if kind == "serial" and inside.times > 0:
            counts.iterations += inside.times
            counts.inner = max(
                counts.inner, min((counts.arithmetic - before) / inside.times, 256.0)
            )

    def _store(self, node: Any, place: _Place) -> None:
        loops = place.loops
        lanes = loops[-1].extent if loops and loops[-1].kind == "vectorized" else 1.0
        self._access(node.buffer, node.indices, place, store=True)
        operations = self._expression(node.value, place)
        self.counts.arithmetic += place.times * operations
        self.counts.lanes += place.times * operations * lanes
        self.counts.code += place.copies * (1 + operations)

    def _expression(self, node: Any, place: _Place) -> float:
        """Operations of an expression; notes what it reads."""
        if isinstance(node, ir.TensorLoad):
            self._access(node.source, node.indices, place, store=False)
            return 0.0
        children = operands(node)
        total = sum(self._expression(child, place) for child in children)
        if isinstance(node, ir.Call):
            self.counts.calls += place.times
            return total + 4.0
        return total + (1.0 if len(children) > 1 else 0.0)

    def _access(self, buffer: Any, indices: Any, place: _Place, *, store: bool) -> None:
        item, nbytes, local = self._buffer(buffer)
        if local:
            self.counts.registers += place.times
            return
        if store:
            self.counts.stores += place.times
        else:
            self.counts.loads += place.times
        used = frozenset[int]().union(*(self._used(index, place.bound) for index in indices))
        whole = prod(loop.extent for loop in place.loops if loop.kind != "vectorized")
        weight = place.times / max(whole, 1.0)
        self.counts.accesses.append(_Access(buffer, nbytes, item, place.loops, used, weight))

    def _used(self, index: Any, bound: Mapping[Any, frozenset[int]]) -> frozenset[int]:
        """The loops that an index depends on."""
        if isinstance(index, tirx.Var):
            return bound.get(index, frozenset())
        if isinstance(index, ir.TensorLoad):
            return frozenset()
        return frozenset[int]().union(*(self._used(child, bound) for child in operands(index)))

    def _extent(self, extent: Any) -> float:
        if isinstance(extent, tirx.IntImm):
            return float(extent.value)
        limit = self._analyzer.const_int_bound(extent).max_value
        return float(limit) if 0 < limit < 1 << 20 else 1.0

    def _buffer(self, buffer: Any) -> tuple[int, int, bool]:
        if buffer not in self._buffers:
            dtype = np.dtype(str(buffer.ty.dtype))
            nbytes = prod(int(extent) for extent in buffer.shape) * dtype.itemsize
            self._buffers[buffer] = (dtype.itemsize, nbytes, buffer.scope() == "local")
        return self._buffers[buffer]

    def _allocated(self, buffer: Any) -> None:
        self.counts.scratch += self._buffer(buffer)[1]
