"""A program behind TVM's own calling convention, so that any of TVM's runtimes can run and time it.

The machine code is that of a program that is shipped (executable.py, team.py): the same kernels,
barriers and time stamps. Only what wakes the workers is different, because a foreign runtime has
no crew of ours: one parallel launch of TVM's thread pool, with a worker for each task. All memory
is flat, so every program has the same signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType

from graphopt.codegen import abi
from graphopt.codegen.executable import kernel_object, linked_object
from graphopt.codegen.kernel import Kernel, sequence
from graphopt.codegen.linker import Linker, shared_library
from graphopt.codegen.plan import Plan
from graphopt.codegen.team import UNION_VALUE, team_function, with_routines

Stmt = Any
Array = np.ndarray[Any, Any]

MEASURE, SPREAD = "measure", "spread"
"""The functions of a library, see remote_library()."""

_LINE = 64

# TVM's Python server never listens again once a session of it has ended with an error, and a signal
# is one. A kernel that crashes therefore leaves politely; its driver sees the connection close.
_GUARD_IR = """
declare ptr @signal(i32, ptr)
declare void @graphopt_leave(i32)

define void @graphopt_guard() {
  %ill = call ptr @signal(i32 4, ptr @graphopt_leave)
  %abrt = call ptr @signal(i32 6, ptr @graphopt_leave)
  %bus = call ptr @signal(i32 7, ptr @graphopt_leave)
  %fpe = call ptr @signal(i32 8, ptr @graphopt_leave)
  %segv = call ptr @signal(i32 11, ptr @graphopt_leave)
  ret void
}
"""


@dataclass(frozen=True)
class Footprint:
    """The memory that a program needs beside its code, in bytes, and how many calls it makes."""

    input_bytes: int
    output_bytes: int
    weight_bytes: int
    arena_bytes: int
    control_bytes: int
    calls: int

    @staticmethod
    def of(plan: Plan) -> Footprint:
        """That of a plan."""
        (_, inputs), (_, outputs) = _places(plan, "input"), _places(plan, "output")
        slots = abi.FIRST_IO + len(plan.inputs) + len(plan.outputs)
        control = _lines(slots * abi.SLOT_BYTES) + 2 * _LINE
        memory = (plan.weight_bytes, plan.arena_bytes)
        return Footprint(inputs, outputs, *memory, control, len(plan.calls))


def flat_inputs(plan: Plan, arrays: Mapping[str, Array]) -> Array:
    """A plan's inputs as they lie in the memory that `measure` is given: uint8 [input_bytes]."""
    starts, total = _places(plan, "input")
    flat = np.zeros(total, np.uint8)
    for spec, start in zip(plan.inputs, starts, strict=True):
        data = np.ascontiguousarray(arrays[spec.name]).reshape(-1).view(np.uint8)
        flat[start : start + data.nbytes] = data
    return flat


def named_inputs(plan: Plan, flat: Array) -> dict[str, Array]:
    """A plan's inputs by name, out of what flat_inputs() made of them; they share its memory."""
    starts, _ = _places(plan, "input")
    arrays = {}
    for spec, start in zip(plan.inputs, starts, strict=True):
        dtype, shape = np.dtype(spec.dtype), [int(size or 0) for size in spec.shape]
        end = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        arrays[spec.name] = flat[start:end].view(dtype).reshape(shape)
    return arrays


def _places(plan: Plan, space: str) -> tuple[list[int], int]:
    """Where a plan's inputs or outputs start, one after another, and their bytes together."""
    specs = plan.inputs if space == "input" else plan.outputs
    sizes = {buffer.offset: buffer.nbytes for buffer in plan.buffers if buffer.space == space}
    starts, total = [], 0
    for index in range(len(specs)):
        starts.append(total)
        total += _lines(sizes.get(index, 0))
    return starts, total


def remote_library(
    plan: Plan, kernels: Mapping[str, Kernel], target: Any, arch: str, linker: Linker
) -> bytes:
    """A shared library with two functions of TVM's convention; all arguments are uint8 [bytes].

    measure(inputs, outputs, weights, arena, control, stamps, runs) runs the program `runs` times
    and notes abi.TIMESPEC_BYTES for the start and for the end of each call, run after run, in
    `stamps`. `control` is zeroed. The process must not have used TVM's thread pool before, except
    for such libraries of as many threads: the pool gets plan.threads workers when it starts.

    spread(piece, weights) fills `weights` with copies of `piece`.

    Raises:
        CompileError: it cannot be linked.
    """
    team = tvm.ir.GlobalVar("team")
    functions = {
        team: with_routines(team_function(plan, arch, flush_subnormals=True), _GUARD_IR),
        tvm.ir.GlobalVar(MEASURE): _measure(team, plan),
        tvm.ir.GlobalVar(SPREAD): _spread(),
    }
    objects = [
        # Imported routines are inlined, so a function that has an address is one of TIR's.
        kernel_object({**kernels, "leave": Kernel(_leave(), ())}, target, arch),
        linked_object(functions, target, exported=(MEASURE, SPREAD)),
    ]
    return shared_library(objects, linker)


def _measure(team: Any, plan: Plan) -> Any:
    names = ("inputs", "outputs", "weights", "arena", "control", "stamps")
    buffers = {name: _flat(name) for name in names}
    runs, run = tirx.Var("runs", "int64"), tirx.Var("run", "int64")
    ctx = tirx.Var("ctx", PointerType(PrimType("void")))
    task = tirx.Var("task", "int32")

    def place(name: str, offset: Any) -> Any:
        if isinstance(offset, int):
            offset = tirx.const(offset, "int64")
        return tirx.handle_add_byte_offset(buffers[name].data, offset)

    barrier = Footprint.of(plan).control_bytes - 2 * _LINE
    slots = {
        abi.NUM_TASKS: tirx.const(plan.threads, "int64"),
        abi.BARRIER: place("control", barrier),
        abi.SOLO_BARRIER: place("control", barrier + _LINE),
        abi.ARENA: place("arena", 0),
        abi.WEIGHTS: place("weights", 0),
    }
    io = [place(f"{space}s", at) for space in ("input", "output") for at in _places(plan, space)[0]]
    slots |= {abi.FIRST_IO + index: where for index, where in enumerate(io)}
    stride = tirx.const((len(plan.calls) + 1) * abi.TIMESPEC_BYTES, "int64")
    call = tvm.ir.Call(team, [ctx, task], ret_ty=PrimType("void"))
    workers = tirx.For(task, 0, plan.threads, tirx.ForKind.PARALLEL, tirx.Evaluate(call))
    body = sequence(
        [
            tirx.Bind(ctx, tirx.reinterpret(ctx.ty, buffers["control"].data)),
            tirx.Evaluate(tirx.call_extern("void", "graphopt_guard")),
            _setenv("TVM_NUM_THREADS", plan.threads),
            _setenv("TVM_BIND_THREADS", 0),  # as our own workers are
            *(_set(ctx, index, value) for index, value in slots.items()),
            tirx.For(
                run,
                tirx.const(0, "int64"),
                runs,
                tirx.ForKind.SERIAL,
                sequence([_set(ctx, abi.TIMESTAMPS, place("stamps", run * stride)), workers]),
            ),
        ]
    )
    return tirx.PrimFunc([*(buffers[name] for name in names), runs], body, ret_type=None)


def _setenv(name: str, value: int) -> Stmt:
    words = (tvm.ir.StringImm(name), tvm.ir.StringImm(str(value)), tirx.const(1, "int32"))
    return tirx.Evaluate(tirx.call_extern("int32", "setenv", *words))


def _leave() -> Any:
    """Ends the process with success, whatever signal it is given."""
    leave = tirx.Evaluate(tirx.call_extern("void", "_exit", tirx.const(0, "int32")))
    return tirx.PrimFunc([tirx.Var("signal", "int32")], leave, ret_type=None)


def _spread() -> Any:
    piece, weights = _flat("piece"), _flat("weights")
    index = tirx.Var("index", "int64")
    size = piece.shape[0]
    store = tirx.BufferStore(weights, piece[tirx.truncmod(index, size)], [index])
    loop = tirx.For(index, tirx.const(0, "int64"), weights.shape[0], tirx.ForKind.SERIAL, store)
    return tirx.PrimFunc([piece, weights], loop, ret_type=None)


def _flat(name: str) -> Any:
    """Memory of any size."""
    return tirx.decl_buffer((tirx.Var(f"{name}_bytes", "int64"),), "uint8", name)


def _set(ctx: Any, index: int, value: Any) -> Stmt:
    return tirx.Evaluate(tirx.tvm_struct_set(ctx, index, UNION_VALUE, value))


def _lines(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE
