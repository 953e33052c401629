"""The generic schedule on functions that TVM's legalisation makes: right and parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from harness import AVX2, AVX512, check_parallel_outermost, host_target, serial_extents
from tvm import relax, s_tir

from schedules import generic

Array = np.ndarray[Any, Any]
op = relax.op


def x(*shape: int, dtype: str = "float32") -> Array:
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 3).astype(dtype)


INDEX = np.array([[2, 0, 1], [1, 1, 2]], np.int64)

CASES: dict[str, tuple[Callable[..., Any], list[Array]]] = {
    "argmax": (lambda a: op.argmax(a, 1), [x(5, 37)]),
    "argmin": (lambda a: op.argmin(a, 1, True), [x(5, 37)]),
    "gather_elements": (lambda a, i: op.gather_elements(a, i, 1), [x(2, 37), INDEX]),
    "gather_nd": (lambda a, i: op.gather_nd(a, i), [x(5, 4, 6), INDEX]),
    "scatter_elements": (
        lambda a, i, u: op.scatter_elements(a, i, u, 1, "update"),
        [x(2, 37), INDEX, x(2, 3)],
    ),
    "softmax": (lambda a: op.nn.softmax(a, -1), [x(7, 37)]),
    "layer_norm": (
        lambda a, g, b: op.nn.layer_norm(a, g, b, [-1]),
        [x(5, 37), x(37), x(37)],
    ),
    "conv2d": (lambda a, w: op.nn.conv2d(a, w, padding=1), [x(1, 3, 9, 9), x(5, 3, 3, 3)]),
    "conv1d": (lambda a, w: op.nn.conv1d(a, w), [x(1, 3, 19), x(5, 3, 3)]),
    "conv3d": (lambda a, w: op.nn.conv3d(a, w), [x(1, 3, 5, 6, 7), x(4, 3, 2, 3, 3)]),
    "matmul": (op.matmul, [x(2, 7, 9), x(9, 33)]),
    "add": (op.add, [x(3, 5, 40), x(5, 1)]),
    "gelu": (op.nn.gelu, [x(3, 197)]),
    "exp": (op.exp, [x(1001)]),
    "relu": (op.nn.relu, [x(64)]),
    "mean": (lambda a: op.mean(a, [1, 2]), [x(4, 6, 7)]),
    "max": (lambda a: op.max(a), [x(4, 6, 7)]),
    "variance": (lambda a: op.variance(a, [1]), [x(4, 60)]),
    "concat": (lambda a, b: op.concat([a, b], 1), [x(2, 3, 5), x(2, 4, 5)]),
    "permute_dims": (lambda a: op.permute_dims(a, [2, 0, 1]), [x(4, 6, 7)]),
    "reshape": (lambda a: op.reshape(a, (6, 28)), [x(4, 6, 7)]),
    "strided_slice": (lambda a: op.strided_slice(a, [1], [1], [5], [2]), [x(4, 6, 7)]),
    "tile": (lambda a: op.tile(a, (2, 3)), [x(4, 6)]),
    "repeat": (lambda a: op.repeat(a, 3, 1), [x(4, 6)]),
    "flip": (lambda a: op.flip(a, 1), [x(4, 6)]),
    "take": (lambda a, i: op.take(a, i, 0), [x(4, 6), INDEX]),
    "where": (op.where, [x(4, 6) > 0, x(4, 6), x(6)]),
    "tril": (lambda a: op.tril(a), [x(9, 9)]),
    "max_pool2d": (lambda a: op.nn.max_pool2d(a, (3, 3), padding=1), [x(1, 3, 9, 9)]),
    "adaptive_avg_pool2d": (lambda a: op.nn.adaptive_avg_pool2d(a, (3, 2)), [x(1, 3, 9, 8)]),
    "pad": (lambda a: op.nn.pad(a, [0, 0, 1, 2]), [x(5, 6)]),
    "einsum": (lambda a, b: op.einsum([a, b], "ij,kj->ik"), [x(5, 6), x(7, 6)]),
    "full_like": (lambda a: op.full_like(a, relax.const(2.0)), [x(5, 6)]),
    "batch_norm": (
        lambda a, g, b, m, v: relax.TupleGetItem(op.nn.batch_norm(a, g, b, m, op.square(v), 1), 0),
        [x(2, 5, 4, 4), x(5), x(5), x(5), x(5)],
    ),
}


def legalised(build: Callable[..., Any], inputs: list[Array]) -> list[Any]:
    """A relax module of `build` after legalisation."""
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"a{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(inputs)
    ]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(build(*variables)))
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


def run(module: Any, inputs: list[Array], traits: Any = AVX512) -> Array:
    machine = relax.VirtualMachine(relax.build(module, host_target(traits)), tvm.cpu())
    result: Array = machine["main"](*[tvm.runtime.tensor(a) for a in inputs]).numpy()
    return result


@pytest.mark.parametrize("name", CASES)
def test_same_result_as_unscheduled(name: str) -> None:
    build, inputs = CASES[name]
    module = legalised(build, inputs)
    kernels = {v: f for v, f in module.functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
    assert kernels
    for var, func in kernels.items():
        sch = s_tir.Schedule(tvm.IRModule({"main": func}))
        generic.generic_schedule(sch, AVX2)
        scheduled = sch.mod["main"]
        check_parallel_outermost(scheduled)
        module[var] = scheduled
    expected = run(legalised(build, inputs), inputs)
    np.testing.assert_allclose(run(module, inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["conv2d", "matmul", "softmax", "gelu", "exp", "concat"])
def test_all_nests_are_parallel(name: str) -> None:
    module = legalised(*CASES[name])
    for func in module.functions.values():
        if isinstance(func, tvm.tirx.PrimFunc):
            sch = s_tir.Schedule(tvm.IRModule({"main": func}))
            generic.generic_schedule(sch, AVX2)
            assert not serial_extents(sch.mod["main"]), sch.mod
