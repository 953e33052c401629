"""Builds and runs kernel candidates on the host, checks the rules of schedules/README, times them.

Import it from a test in this directory with `from harness import run_candidate` (pytest puts the
directory on sys.path, since test directories are not packages).
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import tvm
from tvm import s_tir, tirx

from schedules.interface import Candidate, Epilogue, Layout, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]

# TVM makes its pool at the first parallel loop, by default for half the CPUs.
os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))

AVX512 = TargetTraits("x86_64", vector_bytes=64, vector_registers=32, vnni=True)
AVX2 = TargetTraits("x86_64", vector_bytes=32, vector_registers=16)
AMX = TargetTraits("x86_64", vector_bytes=64, vector_registers=32, vnni=True, amx=True)
SSE = TargetTraits("x86_64", vector_bytes=16, vector_registers=16, fma=False)
ALL_TRAITS = (AVX512, AVX2, SSE)


@functools.cache
def host_target(traits: TargetTraits) -> Any:
    """A target that runs on this machine and is as close to `traits` as the machine allows."""
    if platform.machine() != "x86_64":
        return tvm.target.Target({"kind": "llvm"})
    host = tvm.target.codegen.llvm_get_system_cpu()
    has_avx512 = tvm.target.codegen.llvm_cpu_has_features(
        "avx512f", tvm.target.Target({"kind": "llvm", "mcpu": host})
    )
    if traits.amx:
        mcpu = "sapphirerapids"
    elif traits.vbmi and has_avx512:
        mcpu = "icelake-server"
    elif traits.vector_bytes >= 64 and has_avx512:
        mcpu = "cascadelake" if traits.vnni else "skylake-avx512"
    elif traits.vector_bytes >= 32:
        mcpu = "haswell"
    else:
        mcpu = "x86-64"
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu})


def to_physical(array: Array, layout: Any) -> Array:
    """`array` (logical shape) as `layout` (Layout or Packing) stores it; padding lanes are zero."""
    if not isinstance(layout, Layout):
        packed: Array = layout.pack(array)
        return np.ascontiguousarray(packed)
    if not layout.block:
        return np.ascontiguousarray(array)
    block = layout.block
    channels = array.shape[1]
    blocks = -(-channels // block)
    padding = [(0, 0)] * array.ndim
    padding[1] = (0, blocks * block - channels)
    padded = np.pad(array, padding)
    split = padded.reshape(array.shape[0], blocks, block, *array.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def to_logical(array: Array, layout: Layout, shape: tuple[int, ...]) -> Array:
    """Inverse of to_physical for a Layout; asserts that padding lanes hold zeros."""
    if not layout.block:
        return array.reshape(shape)
    merged = np.moveaxis(array, -1, 2)
    merged = merged.reshape(shape[0], -1, *shape[2:])
    assert not np.any(merged[:, shape[1] :]), "padding lanes of a blocked output must be zero"
    return np.ascontiguousarray(merged[:, : shape[1]])


def scheduled(candidate: Candidate) -> Any:
    """The candidate's scheduled PrimFunc; the parallel-outermost rule is checked."""
    sch = s_tir.Schedule(tvm.IRModule({"main": candidate.compute()}))
    candidate.schedule(sch)
    func = sch.mod["main"]
    check_parallel_outermost(func)
    return func


def build(candidate: Candidate, traits: TargetTraits) -> Any:
    """The candidate as a TVM module for this host whose "main" has the packed API."""
    func = scheduled(candidate)
    # As graphopt.codegen: TVM's elimination of common subexpressions is wrong inside a Let.
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        return tvm.driver.build(tvm.IRModule({"main": func}), target=host_target(traits))


def physical_arguments(
    candidate: Candidate, workload: Workload, inputs: Sequence[Array], fill: float = float("nan")
) -> list[Array]:
    """Packed inputs and an output full of `fill`, so that elements left unwritten show up."""
    assert len(inputs) == len(workload.inputs) == len(candidate.layouts)
    for array, sig in zip(inputs, workload.inputs, strict=True):
        assert array.shape == sig.shape, (array.shape, sig)
        assert array.dtype == np.dtype(sig.dtype), (array.dtype, sig)
    packed = [to_physical(a, where) for a, where in zip(inputs, candidate.layouts, strict=True)]
    shape = candidate.output.physical(workload.output.shape)
    dtype = np.dtype(workload.output.dtype)
    start = fill if dtype.kind == "f" else 0
    return [*packed, np.full(shape, start, dtype)]


def run_candidate(
    candidate: Candidate, workload: Workload, inputs: Sequence[Array], traits: TargetTraits
) -> Array:
    """Run `candidate` on logical `inputs` and return the logical output.

    Asserts that the schedule keeps the rule about parallel loops and that the padding lanes of a
    blocked output are zero.
    """
    arrays = physical_arguments(candidate, workload, inputs)
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    build(candidate, traits)["main"](*tensors)
    return to_logical(tensors[-1].numpy(), candidate.output, workload.output.shape)


def gflops(
    candidate: Candidate,
    workload: Workload,
    inputs: Sequence[Array],
    traits: TargetTraits,
    flops: float | None = None,
    threads: int = 1,
    seconds: float = 0.05,
    repeat: int = 5,
) -> float:
    """Best of `repeat` timings in GFLOP/s; `flops` defaults to the candidate's cost."""
    work = candidate.cost.flops if flops is None else flops
    return work / timer(candidate, workload, inputs, traits, threads)(seconds, repeat) / 1e9


def timer(
    candidate: Candidate,
    workload: Workload,
    inputs: Sequence[Array],
    traits: TargetTraits,
    threads: int = 1,
) -> Callable[[float, int], float]:
    """A function (seconds, repeat) → best time of one call in seconds, for interleaved timing."""
    module = build(candidate, traits)
    tensors = [tvm.runtime.tensor(a) for a in physical_arguments(candidate, workload, inputs, 0)]
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    once = module.time_evaluator("main", tvm.cpu(), number=1, repeat=3)(*tensors)

    def measure(seconds: float = 0.05, repeat: int = 5) -> float:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
        number = max(1, int(seconds / repeat / min(once.results)))
        evaluator = module.time_evaluator("main", tvm.cpu(), number=number, repeat=repeat)
        return float(min(evaluator(*tensors).results))

    return measure


def nests(func: Any) -> Iterator[Any]:
    """The statements a function's body is a sequence of, in order."""

    def walk(stmt: Any) -> Iterator[Any]:
        kind = type(stmt).__name__
        if kind == "SeqStmt":
            for child in stmt.seq:
                yield from walk(child)
        elif kind == "SBlockRealize" and not len(stmt.block.iter_vars):
            yield from walk(stmt.block.body)
        elif kind == "AttrStmt":
            yield from walk(stmt.body)
        elif kind not in ("AllocBuffer", "DeclBuffer", "Bind"):
            yield stmt

    yield from walk(func.body)


def loops(stmt: Any) -> Iterator[Any]:
    """Every loop in `stmt`, outer ones first."""
    if isinstance(stmt, tirx.For):
        yield stmt
    block = getattr(stmt, "block", None)
    parts = [getattr(block or stmt, name, None) for name in ("init", "body", "then_case")]
    for child in (*getattr(stmt, "seq", ()), *parts, getattr(stmt, "else_case", None)):
        if child is not None:
            yield from loops(child)


def check_parallel_outermost(func: Any) -> None:
    """Assert that every `parallel` loop of `func` is the outermost loop of a nest of its body."""
    outermost = [s for s in nests(func) if isinstance(s, tirx.For)]
    allowed = sum(loop.kind == tirx.ForKind.PARALLEL for loop in outermost)
    found = [s.loop_var for s in loops(func.body) if s.kind == tirx.ForKind.PARALLEL]
    assert len(found) == allowed, f"parallel loops that are not outermost among {found}"


def serial_extents(func: Any) -> list[int]:
    """Extents of the outermost loops that are not parallel; 1 for a nest without a loop.

    A test that wants all of a kernel shared among the workers asserts that this is empty.
    """
    serial = [
        s for s in nests(func) if not (isinstance(s, tirx.For) and s.kind == tirx.ForKind.PARALLEL)
    ]
    return [int(s.extent) if isinstance(s, tirx.For) else 1 for s in serial]


_REFERENCE: Mapping[str, Callable[..., Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "negative": np.negative,
    "abs": np.abs,
    "sigmoid": scipy.special.expit,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": scipy.special.erf,
    "sqrt": np.sqrt,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


def reference_epilogue(
    epilogue: Epilogue, value: Array | None, operands: Sequence[Array], shape: tuple[int, ...]
) -> Array:
    """The epilogue in NumPy, in the dtype of its arguments (pass float64 for a reference)."""
    values: list[Any] = [value, *operands]
    for step in epilogue.steps:
        args = [values[i] for i in step.args]
        if step.op == "constant":
            values.append(np.asarray(step.attr("value")))
        elif step.op == "clip":
            values.append(np.clip(args[0], step.attr("min"), step.attr("max")))
        else:
            values.append(_REFERENCE[step.op](*args))
    return np.ascontiguousarray(np.broadcast_to(values[-1], shape))


def random_inputs(workload: Workload, seed: int = 0, scale: float = 1.0) -> list[Array]:
    """Standard-normal float inputs (small integers for integer dtypes) for `workload`."""
    rng = np.random.default_rng(seed)

    def draw(sig: TensorSig) -> Array:
        if np.dtype(sig.dtype).kind == "f":
            return (rng.standard_normal(sig.shape) * scale).astype(sig.dtype)
        return rng.integers(0, 4, sig.shape).astype(sig.dtype)

    return [draw(sig) for sig in workload.inputs]


def relative_error(actual: Array, reference: Array) -> float:
    """max|actual − reference| / max|reference|; infinite where non-finite values differ."""
    if not np.array_equal(np.isfinite(actual), np.isfinite(reference)):
        return float("inf")
    scale = float(np.max(np.abs(reference), initial=0)) or 1.0
    difference = np.abs(actual.astype(np.float64) - reference.astype(np.float64))
    return float(np.max(difference, initial=0)) / scale
