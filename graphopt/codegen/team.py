"""The program's control flow: a team of workers calls the kernels of a plan in order.

Three functions are generated beside the kernels:

    team(ctx, task_id)   one worker's part of one run: every kernel in order, a barrier behind each
    run(ctx)             wakes the other workers, is worker 0 itself, returns when all are done
    serve(ctx, task_id)  what a parked worker executes: wait, team(), wait, … until told to stop

Launching a parallel kernel through TVM's own thread pool costs several microseconds each time;
here a whole network is launched once and a barrier costs a fraction of a microsecond.

abi.py describes `ctx`.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType

from graphopt.codegen import abi
from graphopt.codegen.kernel import sequence
from graphopt.codegen.plan import Buffer, Call, Plan

Stmt = Any
Expr = Any

_CLOCK_MONOTONIC = 1
UNION_VALUE = 15  # tirx.builtin.kTVMFFIAnyUnionValue in TVM 0.27
"""The field of a slot of ctx, for tvm_struct_get and tvm_struct_set."""

# Spin politely, and give the core away when the others are late: this machine may have fewer free
# cores than workers. The counter only grows, so it never has to be reset between barriers.
SYNCHRONISATION_IR = """
declare i32 @sched_yield()
declare i32 @sem_trywait(ptr)
declare i32 @sem_wait(ptr)

define void @graphopt_barrier(ptr %counter, i64 %tasks) {{
entry:
  %ticket = atomicrmw add ptr %counter, i64 1 acq_rel
  %round = udiv i64 %ticket, %tasks
  %next = add i64 %round, 1
  %goal = mul i64 %next, %tasks
  br label %check
check:
  %spins = phi i64 [0, %entry], [%more, %again]
  %now = load atomic i64, ptr %counter acquire, align 8
  %done = icmp uge i64 %now, %goal
  br i1 %done, label %exit, label %spin
spin:
  call void asm sideeffect "{pause}", ""()
  %more = add i64 %spins, 1
  %tired = icmp ugt i64 %more, 400
  br i1 %tired, label %yield, label %again
yield:
  %ignored = call i32 @sched_yield()
  br label %again
again:
  br label %check
exit:
  ret void
}}

define void @graphopt_wait(ptr %semaphore) {{
entry:
  br label %check
check:
  %spins = phi i64 [0, %entry], [%more, %spin]
  %failed = call i32 @sem_trywait(ptr %semaphore)
  %done = icmp eq i32 %failed, 0
  br i1 %done, label %exit, label %spin
spin:
  call void asm sideeffect "{pause}", ""()
  %more = add i64 %spins, 1
  %tired = icmp ugt i64 %more, 1000
  br i1 %tired, label %block, label %check
block:
  %interrupted = call i32 @sem_wait(ptr %semaphore)
  %retry = icmp ne i32 %interrupted, 0
  br i1 %retry, label %block, label %exit
exit:
  ret void
}}
"""
# RISC-V's pause is a fence that orders nothing, written as a number: it is in all manuals, but not
# in all assemblers.
_PAUSE = {"x86_64": "pause", "aarch64": "yield", "riscv64": ".4byte 0x0100000f"}

# Arithmetic on subnormal numbers takes a hundred times longer than on others on x86, and networks
# do produce them; as zeros they change a result by less than 1e-38. The caller's mode is restored.
FLUSH_IR = {
    "x86_64": """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define i64 @graphopt_flush_subnormals() {
  %mode = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %mode)
  %before = load i32, ptr %mode, align 4
  %flushing = or i32 %before, 32832
  store i32 %flushing, ptr %mode, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %mode)
  %result = zext i32 %before to i64
  ret i64 %result
}

define void @graphopt_restore_mode(i64 %before) {
  %mode = alloca i32, align 4
  %value = trunc i64 %before to i32
  store i32 %value, ptr %mode, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %mode)
  ret void
}
""",
    "aarch64": """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)

define i64 @graphopt_flush_subnormals() {
  %before = call i64 @llvm.aarch64.get.fpcr()
  %flushing = or i64 %before, 16777216
  call void @llvm.aarch64.set.fpcr(i64 %flushing)
  ret i64 %before
}

define void @graphopt_restore_mode(i64 %before) {
  call void @llvm.aarch64.set.fpcr(i64 %before)
  ret void
}
""",
}


def control_functions(plan: Plan, arch: str, flush_subnormals: bool) -> dict[Any, Any]:
    """GlobalVar → PrimFunc of team, run and serve for `plan`.

    Args:
        arch: "x86_64", "aarch64" or another of LLVM's.
        flush_subnormals: subnormal numbers count as zero while the program runs.
    """
    team_var = tvm.ir.GlobalVar("team")
    return {
        team_var: team_function(plan, arch, flush_subnormals),
        tvm.ir.GlobalVar("run"): _run(team_var, plan.threads),
        tvm.ir.GlobalVar("serve"): _serve(team_var),
    }


def kernel_symbol(name: str) -> str:
    """The name under which the linker knows the kernel `name`."""
    return f"graphopt_{name}"


def with_synchronisation(kernel: Any, arch: str) -> Any:
    """The kernel, with the barriers it calls linked into its module at IR level."""
    return with_routines(kernel, _synchronisation(arch))


def with_routines(function: Any, text: str) -> Any:
    """The PrimFunc, with the routines `text` linked into its module at IR level.

    Only those that its module calls are linked; not for functions of TVM's calling convention.
    """
    return function.with_body(_import(text, function.body))


def _context() -> Any:
    return tirx.Var("ctx", PointerType(PrimType("void")))


def _slot(ctx: Any, index: int, dtype: str = "handle") -> Expr:
    return tirx.tvm_struct_get(ctx, index, UNION_VALUE, dtype)


def _invoke(function: Any, arguments: list[Expr]) -> Stmt:
    return tirx.Evaluate(tvm.ir.Call(function, arguments, ret_ty=PrimType("void")))


def _extern(dtype: str, name: str, *arguments: Expr) -> Stmt:
    return tirx.Evaluate(tirx.call_extern(dtype, name, *arguments))


def _synchronisation(arch: str) -> str:
    return SYNCHRONISATION_IR.format(pause=_PAUSE.get(arch, ""))


def _import(text: str, body: Stmt) -> Stmt:
    """`body` with the routines `text` linked into its module at IR level."""
    attr = "pragma_import_llvm"
    return tirx.AttrStmt(tirx.const(0, "int32"), attr, tvm.ir.StringImm(text), body)


def team_function(plan: Plan, arch: str, flush_subnormals: bool) -> Any:
    """The PrimFunc team(ctx, task_id) of `plan`; arguments as for control_functions()."""
    flush = flush_subnormals and arch in FLUSH_IR
    ctx, task = _context(), tirx.Var("task_id", "int32")
    tasks = _slot(ctx, abi.NUM_TASKS, "int64")
    body: list[Stmt] = [_stamp(ctx, task, 0)]
    for index, call in enumerate(plan.calls):
        arguments = [_address(ctx, plan, plan.buffers[i]) for i in call.args]
        body.append(_call(ctx, task, arguments, call))
        following = plan.calls[index + 1 : index + 2]
        # What one worker runs alone needs no barrier before more that it runs alone.
        if not (call.serial and following and following[0].serial):
            body.append(_extern("void", "graphopt_barrier", _slot(ctx, abi.BARRIER), tasks))
        body.append(_stamp(ctx, task, index + 1))
    if flush:
        mode = tirx.Var("mode", "int64")
        body.insert(0, tirx.Bind(mode, tirx.call_extern("int64", "graphopt_flush_subnormals")))
        body.append(_extern("void", "graphopt_restore_mode", mode))
    routines = _synchronisation(arch) + FLUSH_IR.get(arch, "")
    return tirx.PrimFunc([ctx, task], _import(routines, sequence(body)), ret_type=None)


def _call(ctx: Any, task: Any, arguments: list[Expr], call: Call) -> Stmt:
    kernel = kernel_symbol(call.kernel)
    if not call.serial:
        tasks = tirx.Cast("int32", _slot(ctx, abi.NUM_TASKS, "int64"))
        return _extern("void", kernel, *arguments, task, tasks, _slot(ctx, abi.BARRIER))
    alone = [tirx.const(0, "int32"), tirx.const(1, "int32"), _slot(ctx, abi.SOLO_BARRIER)]
    return tirx.IfThenElse(task == 0, _extern("void", kernel, *arguments, *alone), None)


def _address(ctx: Any, plan: Plan, buffer: Buffer) -> Expr:
    """Pointer to a buffer of the plan."""
    if buffer.space == "input":
        return _slot(ctx, abi.FIRST_IO + buffer.offset)
    if buffer.space == "output":
        return _slot(ctx, abi.FIRST_IO + len(plan.inputs) + buffer.offset)
    base = _slot(ctx, abi.ARENA if buffer.space == "arena" else abi.WEIGHTS)
    return tirx.handle_add_byte_offset(base, tirx.const(buffer.offset, "int64"))


def _stamp(ctx: Any, task: Any, index: int) -> Stmt:
    """Worker 0 notes the time, when the caller asked for a profile."""
    where = tirx.handle_add_byte_offset(
        _slot(ctx, abi.TIMESTAMPS), tirx.const(index * abi.TIMESPEC_BYTES, "int64")
    )
    clock = tirx.const(_CLOCK_MONOTONIC, "int32")
    wanted = tirx.all(task == 0, _slot(ctx, abi.TIMESTAMPS, "int64") != 0)
    return tirx.IfThenElse(wanted, _extern("int32", "clock_gettime", clock, where), None)


def _run(team: Any, threads: int) -> Any:
    ctx = _context()
    body: list[Stmt] = []
    for index in range(1, threads):
        offset = tirx.const(index * abi.SEMAPHORE_STRIDE, "int64")
        semaphore = tirx.handle_add_byte_offset(_slot(ctx, abi.SEMAPHORES), offset)
        there = _slot(ctx, abi.NUM_TASKS, "int64") > index
        body.append(tirx.IfThenElse(there, _extern("int32", "sem_post", semaphore), None))
    body.append(_invoke(team, [ctx, tirx.const(0, "int32")]))
    return tirx.PrimFunc([ctx], sequence(body), ret_type=None)


def _serve(team: Any) -> Any:
    ctx, task = _context(), tirx.Var("task_id", "int32")
    offset = tirx.Cast("int64", task) * tirx.const(abi.SEMAPHORE_STRIDE, "int64")
    semaphore = tirx.handle_add_byte_offset(_slot(ctx, abi.SEMAPHORES), offset)
    stopped = _slot(ctx, abi.STOP, "int64") != 0
    body = sequence(
        [
            _extern("void", "graphopt_wait", semaphore),
            tirx.IfThenElse(stopped, tirx.Return(tirx.const(0, "int32")), None),
            _invoke(team, [ctx, task]),
        ]
    )
    loop = tirx.While(tirx.const(True, "bool"), body)
    return tirx.PrimFunc([ctx, task], loop, ret_type=PrimType("int32"))
