"""Turns a scheduled PrimFunc into launches on a device: one for each loop nest of its body.

A nest that is bound to threads is a device function as it stands. Of any other nest, a parallel
outermost loop is spread over blocks of threads, one iteration each; a nest without one is run by a
single thread. So every kernel that can be computed at all can be computed on the device. A launch
begins when the one before it has ended, which takes the place of a CPU's barriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from graphopt.codegen.device_intrinsics import for_device
from graphopt.codegen.kernel import (
    Workspace,
    declared,
    dtype_of,
    lower,
    nbytes,
    pointer,
    sequence,
    statements,
    with_allocations,
)

PrimFunc = Any
Stmt = Any
Var = Any

PRIVATE_BYTES = 4 << 10
"""Scratch of one thread up to this size is its own memory; larger scratch is in the workspace."""
SCRATCH_BYTES = 64 << 20
"""A launch whose threads need scratch in the workspace has only as many as fit in this."""
NEST_THREADS = 64
"""Threads of a block for a nest that no schedule has bound to threads."""
BLOCK, THREAD = "blockIdx.x", "threadIdx.x"

Extents = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LaunchLimits:
    """How many threads a block and how many blocks a grid may have along its first axis."""

    threads: int
    blocks: int = (1 << 31) - 1


@dataclass(frozen=True)
class Launch:
    """A device function and how it is started.

    Attributes:
        body: its statements, which use `parameters`.
        parameters: the pointers that it takes (tirx Vars).
        arguments: for each, its place among the kernel's arguments: parameters, then workspaces.
        extents: tags of blocks and threads with their numbers, in the order it expects them.
    """

    body: Stmt
    parameters: tuple[Var, ...]
    arguments: tuple[int, ...]
    extents: Extents


@dataclass(frozen=True)
class DeviceKernel:
    """A lowered kernel of a device: launches in order, and the workspaces that it takes."""

    launches: tuple[Launch, ...]
    workspaces: tuple[Workspace, ...]


def device_kernel(function: PrimFunc, target: Any, limits: LaunchLimits) -> DeviceKernel:
    """Lower a scheduled block-form PrimFunc for the device `target` (a tvm Target)."""
    # Nests without threads were written for CPUs, whose vectors are not this device's.
    vectors = _has_threads(function.body)
    # Scratch that shares memory cannot be moved, and threads would need barriers in between.
    lowered = lower(function, target, vectors, sharing=False)
    return _Builder(str(target.kind.name), limits).build(lowered)


class _Builder:
    """Collects a kernel's arguments and declarations while it walks the top of the function."""

    def __init__(self, kind: str, limits: LaunchLimits) -> None:
        self.kind, self.limits = kind, limits
        self.arguments: list[Var] = []
        self.workspaces: list[Workspace] = []
        self.declarations: list[Stmt] = []

    def build(self, function: PrimFunc) -> DeviceKernel:
        self.arguments, self.declarations = declared(function.params)
        nests: list[Stmt] = []
        for statement in statements(function.body):
            if isinstance(statement, tirx.AllocBuffer):
                buffer = statement.buffer
                data = self._workspace(buffer, nbytes(buffer))
                self.declarations.append(tirx.DeclBuffer(buffer, data=data))
            elif isinstance(statement, (tirx.DeclBuffer, tirx.Bind)):
                self.declarations.append(statement)
            elif not isinstance(statement, tirx.Evaluate):
                nests.append(statement)
        launches = tuple(self._launch(*self._threads(nest)) for nest in nests)
        return DeviceKernel(launches, tuple(self.workspaces))

    def _workspace(self, buffer: Any, size: int) -> Var:
        data = tirx.Var(f"{buffer.name}_data", pointer(dtype_of(buffer)))
        self.arguments.append(data)
        self.workspaces.append(Workspace(-(-size // 64) * 64, shared=True))
        return data

    def _threads(self, nest: Stmt) -> tuple[Stmt, Extents]:
        """The nest as the work of one thread, and how many threads there are."""
        bound = _bound_extents(nest)
        if bound:
            return nest, tuple(bound.items())
        block, thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
        if not isinstance(nest, tirx.For) or nest.kind != tirx.ForKind.PARALLEL:
            alone = self._with_scratch(nest, tirx.const(0, "int32"), 1)
            return _bind(alone, (block, BLOCK, 1), (thread, THREAD, 1))
        count = int(nest.extent)
        scratch = _scratch_bytes(nest)
        most = max(1, SCRATCH_BYTES // scratch) if scratch else count
        size = max(1, min(NEST_THREADS, self.limits.threads, count, most))
        blocks = max(1, min(-(-count // size), most // size, self.limits.blocks))
        total = blocks * size
        task = block * size + thread
        body = self._with_scratch(nest.body, task, total)
        rounds = -(-count // total)
        turn = tirx.Var("turn", "int32")
        index = task if rounds == 1 else turn * total + task
        if count % total:
            body = tirx.IfThenElse(nest.loop_var < nest.min + nest.extent, body, None)
        start = tirx.Cast(str(nest.loop_var.ty.dtype), index) + nest.min
        body = sequence([tirx.Bind(nest.loop_var, start), body])
        if rounds > 1:
            zero, many = tirx.const(0, "int32"), tirx.const(rounds, "int32")
            body = tirx.For(turn, zero, many, tirx.ForKind.SERIAL, body)
        return _bind(body, (block, BLOCK, blocks), (thread, THREAD, size))

    def _with_scratch(self, statement: Stmt, task: Any, tasks: int) -> Stmt:
        """The statement with each thread's scratch in its own memory, or if it is large at its
        part of a workspace."""
        moved: dict[Any, tuple[Any, Any]] = {}

        def place(allocation: Any) -> Stmt:
            buffer = allocation.buffer
            shape, dtype = [int(extent) for extent in buffer.shape], dtype_of(buffer)
            if nbytes(buffer) <= PRIVATE_BYTES:
                own = tirx.decl_buffer(shape, dtype, buffer.name, scope="local", layout=None)
                moved[buffer] = own, 0
                return tirx.AllocBuffer(own)
            [elements] = shape
            whole = tirx.decl_buffer((tasks * elements,), dtype, buffer.name, layout=None)
            moved[buffer] = whole, task * elements
            return tirx.DeclBuffer(whole, data=self._workspace(buffer, tasks * nbytes(buffer)))

        statement = with_allocations(statement, place)

        def load(node: Any) -> Any:
            if node.source not in moved:
                return node
            buffer, start = moved[node.source]
            return tirx.BufferLoad(buffer, [node.indices[0] + start, *node.indices[1:]])

        def store(node: Any) -> Any:
            if node.buffer not in moved:
                return node
            buffer, start = moved[node.buffer]
            return tirx.BufferStore(
                buffer, node.value, [node.indices[0] + start, *node.indices[1:]]
            )

        if not moved:
            return statement
        rules = [(ir.TensorLoad, load), (tirx.BufferStore, store)]
        return tvm_ffi.structural_map(statement, rules)

    def _launch(self, body: Stmt, extents: Extents) -> Launch:
        """The launch of a nest, with the declarations and arguments that it uses."""
        body = for_device(body, self.kind)
        for declaration in reversed(self.declarations):
            defined = (
                declaration.buffer if isinstance(declaration, tirx.DeclBuffer) else declaration.var
            )
            if _uses(body, defined):
                body = sequence([declaration, *statements(body)])
        used = [index for index, var in enumerate(self.arguments) if _uses(body, var)]
        return Launch(body, tuple(self.arguments[i] for i in used), tuple(used), extents)


def _uses(body: Stmt, var: Var) -> bool:
    return any(free.same_as(var) for free in tirx.analysis.undefined_vars(body, []))


def _bind(body: Stmt, *threads: tuple[Var, str, int]) -> tuple[Stmt, Extents]:
    """The statement run by blocks and threads; of each the variable, the tag and the number."""
    for var, tag, number in reversed(threads):
        axis = tirx.IterVar(ir.Range(0, number), var, tirx.IterVar.ThreadIndex, tag)
        body = tirx.AttrStmt(axis, "thread_extent", tirx.const(number, "int32"), body)
    return body, tuple((tag, number) for _, tag, number in threads)


def _bound_extents(nest: Stmt) -> dict[str, int]:
    """Tags and extents of the blocks and threads that a lowered nest is bound to."""
    found: dict[str, int] = {}

    def note(node: Any) -> None:
        if str(node.attr_key) == "thread_extent":
            found[str(node.node.thread_tag)] = int(node.value)

    tvm_ffi.structural_walk(nest, (tirx.AttrStmt, note), order="pre")
    return found


def _has_threads(body: Stmt) -> bool:
    """Whether a loop of a function that is not lowered yet is bound to threads."""
    found: list[Any] = []

    def note(node: Any) -> None:
        if node.kind == tirx.ForKind.THREAD_BINDING:
            found.append(node)

    tvm_ffi.structural_walk(body, (tirx.For, note))
    return bool(found)


def _scratch_bytes(nest: Stmt) -> int:
    """How much of the workspace each thread of a nest needs."""
    sizes = [0]

    def note(allocation: Any) -> Stmt:
        size = nbytes(allocation.buffer)
        sizes.append(size if size > PRIVATE_BYTES else 0)
        return allocation

    with_allocations(nest, note)
    return sum(sizes)
