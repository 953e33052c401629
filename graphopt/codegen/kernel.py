"""Turns a scheduled PrimFunc into a kernel: raw pointers in, its parallel loops shared by a team.

A kernel has the signature

    kernel(params…, workspace…, task_id: i32, num_tasks: i32, barrier: i64*)

and no calling convention of TVM's: the linker joins all kernels of a program (executable.py),
and its team function calls them in order (team.py). Each worker runs every kernel on its
share of each parallel loop; a barrier follows each loop that a later one may depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType

PrimFunc = Any
Stmt = Any

STACK_BYTES = 32 << 10
"""Scratch up to this size lives on a worker's stack, larger scratch in the workspace."""


@dataclass(frozen=True)
class Workspace:
    """Memory a kernel needs beside its parameters; one piece per worker if not `shared`."""

    nbytes: int
    shared: bool


@dataclass(frozen=True)
class Kernel:
    """A lowered kernel: its function (pointers only) and the workspaces it takes."""

    function: PrimFunc
    workspaces: tuple[Workspace, ...]


class HasWorkspaces(Protocol):
    """A kernel of any kind of target, as the plan sees it."""

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """Memory it needs beside its parameters; its arguments after those."""
        ...


class KernelMaker(Protocol):
    """Makes kernels while others are still being scheduled: jobs.py, or device_jobs.py."""

    def add(self, name: str, function: PrimFunc) -> None:
        """Start on the kernel `name`, a scheduled block-form PrimFunc."""
        ...

    def kernel(self, name: str) -> HasWorkspaces:
        """The kernel added as `name`, lowered; raises what went wrong when it was."""
        ...


def lower(function: PrimFunc, target: Any, vectors: bool = True, sharing: bool = True) -> PrimFunc:
    """Lower a scheduled block-form PrimFunc to flat loops.

    Args:
        target: a tvm Target.
        vectors: make vector operations of vectorised loops; otherwise they become ordinary loops.
        sharing: scratch that is never needed at the same time may lie at the same place.
    """
    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(vectors),
        *([tirx.transform.StorageRewrite()] if sharing else []),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        # Not CommonSubexprElim: inside a Let it replaces an expression by a variable that another
        # branch defines. LLVM does this job as well.
    ]
    module = tvm.IRModule({"main": function.with_attr("target", target)})
    with target:
        return tvm.ir.transform.Sequential(passes)(module)["main"]


def pointer(dtype: str) -> Any:
    """The type of a pointer to elements of `dtype`."""
    return PointerType(PrimType(dtype))


def sequence(statements: Sequence[Stmt]) -> Stmt:
    """The statements in order; a SeqStmt of fewer than two is prohibited."""
    if len(statements) == 1:
        return statements[0]
    return tirx.SeqStmt(list(statements)) if statements else tirx.Evaluate(tirx.const(0, "int32"))


def to_kernel(function: PrimFunc) -> Kernel:
    """Give a lowered PrimFunc the kernel signature and split its outermost parallel loops."""
    builder = _KernelBuilder()
    return builder.build(function)


class _KernelBuilder:
    """Collects parameters, declarations and phases while it walks the top of the function."""

    def __init__(self) -> None:
        self.task = tirx.Var("task_id", "int32")
        self.tasks = tirx.Var("num_tasks", "int32")
        self.barrier = tirx.Var("barrier", pointer("int64"))
        self.params: list[Any] = []
        self.workspace_params: list[Any] = []
        self.workspaces: list[Workspace] = []

    def build(self, function: PrimFunc) -> Kernel:
        self.params, body = declared(function.params)
        for statement in statements(function.body):
            if isinstance(statement, tirx.AllocBuffer):
                body.append(self._allocate(statement))
            elif isinstance(statement, (tirx.DeclBuffer, tirx.Bind)):
                body.append(statement)
            else:
                body += [self._share(statement), self._wait()]
        nest = sequence(body[:-1])  # the program has a barrier of its own after each kernel
        # Without these attributes a later pass cannot tell where memory lives.
        nest = tirx.AttrStmt("default", "device_type", tirx.const(1, "int32"), nest)
        nest = tirx.AttrStmt("default", "device_id", tirx.const(0, "int32"), nest)
        signature = [*self.params, *self.workspace_params, self.task, self.tasks, self.barrier]
        kernel = tirx.PrimFunc(signature, nest, ret_type=None)
        kernel = kernel.with_attr("tirx.noalias", True)
        return Kernel(kernel, tuple(self.workspaces))

    def _share(self, statement: Stmt) -> Stmt:
        """This worker's share of a parallel loop; the first worker does anything else."""
        if not isinstance(statement, tirx.For) or statement.kind != tirx.ForKind.PARALLEL:
            return tirx.IfThenElse(self.task == 0, self._hoist(statement), None)
        begin = self.task * statement.extent // self.tasks
        end = (self.task + 1) * statement.extent // self.tasks
        return tirx.For(
            statement.loop_var,
            statement.min + begin,
            end - begin,
            tirx.ForKind.SERIAL,
            self._hoist(statement.body),
        )

    def _wait(self) -> Stmt:
        tasks = tirx.Cast("int64", self.tasks)
        return tirx.Evaluate(tirx.call_extern("void", "graphopt_barrier", self.barrier, tasks))

    def _allocate(self, statement: Any) -> Stmt:
        """An allocation outside loops: shared by the workers, unless it is a worker's registers.

        Those come here when a parallel loop had one iteration and dissolved.
        """
        buffer = statement.buffer
        if buffer.scope() == "local" and nbytes(buffer) <= STACK_BYTES:
            return statement
        return self._workspace(buffer, shared=True)

    def _workspace(self, buffer: Any, shared: bool) -> Stmt:
        """Declare `buffer` in a new workspace parameter (this worker's piece if not shared)."""
        dtype = dtype_of(buffer)
        data = tirx.Var(f"{buffer.name}_data", pointer(dtype))
        size = -(-nbytes(buffer) // 64) * 64
        self.workspace_params.append(data)
        self.workspaces.append(Workspace(size, shared))
        if shared:
            return tirx.DeclBuffer(buffer, data=data)
        offset = tirx.Cast("int64", self.task) * tirx.const(size, "int64")
        moved = tirx.handle_add_byte_offset(data, offset)
        return tirx.DeclBuffer(buffer, data=tirx.reinterpret(pointer(dtype), moved))

    def _hoist(self, statement: Stmt) -> Stmt:
        """Move scratch that is too large for the stack into the workspace."""

        def place(allocation: Any) -> Stmt:
            if nbytes(allocation.buffer) <= STACK_BYTES:
                return allocation
            return self._workspace(allocation.buffer, shared=False)

        return with_allocations(statement, place)


def with_allocations(statement: Stmt, place: Callable[[Any], Stmt]) -> Stmt:
    """The statement with place(allocation) for each allocation, and no parallel loops left."""
    if isinstance(statement, tirx.SeqStmt):
        return sequence([with_allocations(child, place) for child in statement.seq])
    if isinstance(statement, tirx.For):
        body = with_allocations(statement.body, place)
        # Only outermost loops are shared; inside one, this worker runs all of it.
        inner = statement.kind == tirx.ForKind.PARALLEL
        if body.same_as(statement.body) and not inner:
            return statement
        return tirx.For(
            statement.loop_var,
            statement.min,
            statement.extent,
            tirx.ForKind.SERIAL if inner else statement.kind,
            body,
            statement.thread_binding,
            statement.annotations,
        )
    if isinstance(statement, tirx.AttrStmt):
        body = with_allocations(statement.body, place)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    if isinstance(statement, tirx.IfThenElse):
        other = statement.else_case
        otherwise = None if other is None else with_allocations(other, place)
        then = with_allocations(statement.then_case, place)
        return tirx.IfThenElse(statement.condition, then, otherwise)
    return place(statement) if isinstance(statement, tirx.AllocBuffer) else statement


def declared(buffers: Sequence[Any]) -> tuple[list[Any], list[Stmt]]:
    """Pointers for a function's buffers, and the statements that make the buffers of them."""
    pointers, body = [], []
    for buffer in buffers:
        data = tirx.Var(f"{buffer.name}_data", pointer(dtype_of(buffer)))
        pointers.append(data)
        if isinstance(buffer.elem_offset, tirx.Var):  # some of topi's functions allow for one
            body.append(tirx.Bind(buffer.elem_offset, tirx.const(0, _type(buffer.elem_offset))))
        body.append(tirx.DeclBuffer(buffer, data=data))
    return pointers, body


def statements(body: Stmt) -> list[Stmt]:
    """The statements of a function's body, nested sequences flattened."""
    if isinstance(body, tirx.SeqStmt):
        return [inner for child in body.seq for inner in statements(child)]
    if isinstance(body, tirx.AttrStmt) and str(body.attr_key).startswith("pragma_"):
        return statements(body.body)  # TVM's hints; none means anything to this code generator
    return [body]


def _type(variable: Any) -> str:
    return str(variable.ty.dtype)


def dtype_of(buffer: Any) -> str:
    """The element type of a buffer."""
    return str(buffer.ty.dtype)


def nbytes(buffer: Any) -> int:
    """The size of a buffer in bytes."""
    dtype = tvm.DataType(dtype_of(buffer))
    elements = prod(int(extent) for extent in buffer.shape)
    return elements * int(dtype.lanes) * -(-int(dtype.bits) // 8)
