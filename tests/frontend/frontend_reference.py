"""Runs imported graphs with stock TVM and models with ONNX Runtime, for comparison.

TVM's default CPU pipeline is slow but independent of graphopt's own lowering. The operators that
only graphopt has are computed here by NumPy, straight from the ONNX specification.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
import tvm_ffi
from tvm import relax

from graphopt.frontend.importer import import_model
from graphopt.frontend.load import load_model
from graphopt.frontend.prepare import prepare
from graphopt.ir import Graph
from graphopt.ops import base

_COUNTER = itertools.count()
MODELS = Path(__file__).parents[2] / "benchmarks" / "models"


def package_file(package: str, path: str) -> Path:
    """A file of an installed package that is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / path


def benchmark_model(name: str) -> onnx.ModelProto:
    """One of benchmarks/models with seeded weights."""
    sys.path.insert(0, str(MODELS))
    try:
        from materialize import materialize
    finally:
        sys.path.pop(0)
    return materialize(MODELS / f"{name}.onnx")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def numpy_lstm(x, w, r, b, h, c, attrs: dict[str, Any]) -> np.ndarray:
    out = np.zeros((len(x) + 2, *h.shape), x.dtype)
    for t in _steps(x, attrs):
        i, o, f, g = np.split(x[t] @ w.T + h @ r.T + sum(np.split(b, 2)), 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out[t] = h
    out[-2], out[-1] = h, c
    return out


def numpy_gru(x, w, r, b, h, attrs: dict[str, Any]) -> np.ndarray:
    out = np.zeros((len(x) + 1, *h.shape), x.dtype)
    wz, wr, wh = np.split(w, 3)
    rz, rr, rh = np.split(r, 3)
    bz, br, bh, cz, cr, ch = np.split(b, 6)
    for t in _steps(x, attrs):
        z = sigmoid(x[t] @ wz.T + h @ rz.T + bz + cz)
        reset = sigmoid(x[t] @ wr.T + h @ rr.T + br + cr)
        if attrs["linear_before_reset"]:
            n = np.tanh(x[t] @ wh.T + reset * (h @ rh.T + ch) + bh)
        else:
            n = np.tanh(x[t] @ wh.T + (reset * h) @ rh.T + bh + ch)
        h = (1 - z) * n + z * h
        out[t] = h
    out[-1] = h
    return out


def numpy_rnn(x, w, r, b, h, attrs: dict[str, Any]) -> np.ndarray:
    out = np.zeros((len(x) + 1, *h.shape), x.dtype)
    for t in _steps(x, attrs):
        h = np.tanh(x[t] @ w.T + h @ r.T + sum(np.split(b, 2)))
        out[t] = h
    out[-1] = h
    return out


def _steps(x: np.ndarray, attrs: dict[str, Any]) -> range:
    """Steps in the layer's order; these references are of plain layers (test_recurrent.py has the
    others)."""
    assert not attrs["clip"]
    assert not attrs["lengths"]
    assert {name for name, *_ in attrs["activations"]} <= {"sigmoid", "tanh"}
    return range(len(x))[:: -1 if attrs["reverse"] else 1]


def _coordinate(i: int, size: int, out: int, scale: float, mode: str) -> float:
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * (size - 1) / (out - 1) if out > 1 else 0.0
    if mode == "pytorch_half_pixel" and out <= 1:
        return 0.0
    return (i + 0.5) / scale - 0.5


def _cubic(f: float, a: float) -> tuple[float, ...]:
    def near(s: float) -> float:
        return ((a + 2) * s - (a + 3)) * s * s + 1

    def far(s: float) -> float:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a

    return far(1 + f), near(f), near(1 - f), far(2 - f)


def _weights(size: int, out: int, scale: float, attrs: dict[str, Any]) -> np.ndarray:
    """Matrix (out, size) that resizes one axis."""
    matrix = np.zeros((out, size))
    for i in range(out):
        x = _coordinate(i, size, out, np.float32(scale), attrs["coordinate"])
        if attrs["method"] == "nearest":
            rounding = {
                "floor": np.floor,
                "ceil": np.ceil,
                "round_prefer_floor": lambda v: np.ceil(v - 0.5),
                "round_prefer_ceil": lambda v: np.floor(v + 0.5),
            }[attrs["rounding"]]
            matrix[i, int(np.clip(rounding(x), 0, size - 1))] = 1
            continue
        base = int(np.floor(x))
        f = x - base
        if attrs["method"] == "linear":
            taps = [(base, 1 - f), (base + 1, f)]
        else:
            coefficients = _cubic(f, attrs["cubic_a"])
            taps = list(zip(range(base - 1, base + 3), coefficients, strict=True))
            if attrs["exclude_outside"]:
                taps = [(j, v) for j, v in taps if 0 <= j < size]
                total = sum(v for _, v in taps)
                taps = [(j, v / total) for j, v in taps]
        for j, value in taps:
            matrix[i, min(max(j, 0), size - 1)] += value
    return matrix


def numpy_resize(x: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    (h, w), (sh, sw) = attrs["size"], attrs["scales"]
    rows = _weights(x.shape[2], h, sh, attrs)
    columns = _weights(x.shape[3], w, sw, attrs)
    return np.einsum("ih,jw,nchw->ncij", rows, columns, x).astype(x.dtype)


def _packed(name: str, function: Any, call: Any) -> Any:
    def run(*tensors: Any) -> None:
        *inputs, output = tensors
        output.copyfrom(function(*[t.numpy() for t in inputs]))

    unique = f"frontend_test.{name}.{next(_COUNTER)}"
    tvm_ffi.register_global_func(unique, run, override=True)
    return relax.call_dps_packed(unique, list(call.args), call.ty)


def _legalize() -> dict[str, Any]:
    def layer(name: str, function: Any) -> Any:
        def legalize(_: Any, call: Any) -> Any:
            attrs = base.attributes(call)
            return _packed(name, lambda *a: function(*a, attrs), call)

        return legalize

    def resize(_: Any, call: Any) -> Any:
        attrs = base.attributes(call)
        return _packed("resize", lambda x: numpy_resize(x, attrs), call)

    return {
        "graphopt.lstm": layer("lstm", numpy_lstm),
        "graphopt.gru": layer("gru", numpy_gru),
        "graphopt.rnn": layer("rnn", numpy_rnn),
        "graphopt.resize2d": resize,
    }


def run_graph(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of an imported graph, by stock TVM."""
    target = tvm.target.Target({"kind": "llvm", "num-cores": 2})
    module = relax.transform.LegalizeOps(_legalize())(graph.module)
    pipeline = relax.backend.cpu_generic.get_default_pipeline(target)
    machine = relax.VirtualMachine(relax.build(module, target, relax_pipeline=pipeline), tvm.cpu())
    names = [parameter.name for parameter in graph.module["main"].params]
    results = machine["main"](*[tvm.runtime.tensor(feeds[name]) for name in names])
    return {name: r.numpy() for name, r in zip(graph.outputs, results, strict=True)}


def run_onnxruntime(model: bytes | str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by ONNX Runtime with optimisations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def run_onnxruntime_apart(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As run_onnxruntime, in a child process, which some models crash."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, **feeds)
        code = (
            "import sys, numpy, frontend_reference as f\n"
            "feeds = dict(numpy.load(sys.argv[2]))\n"
            "numpy.savez(sys.argv[3], **f.run_onnxruntime(sys.argv[1], feeds))\n"
        )
        command = [sys.executable, "-c", code, str(path), str(given), str(made)]
        subprocess.run(command, check=True, cwd=Path(__file__).parent, timeout=120)
        return dict(np.load(made))


def imported(
    source: Any,
    shapes: dict[str, tuple[int, ...]] | None = None,
    constants: dict[str, np.ndarray] | None = None,
) -> Graph:
    """Load, prepare and import; checks that every binding has a site."""
    graph = import_model(prepare(load_model(source), shapes, constants))
    bindings = graph.module["main"].body.blocks[0].bindings
    names = [binding.var.name for binding in bindings]
    assert len(set(names)) == len(names)
    assert len(graph.module["main"].body.blocks) == 1
    assert set(names[:-1]) == set(graph.sites)
    return graph


def assert_close(
    got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float = 1e-4
) -> None:
    """max|got − want| ≤ tolerance·max|want| per output; integers and non-finite values exactly."""
    assert list(got) == list(want)
    for name, expected in want.items():
        actual = got[name]
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            continue
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=name)
        if finite.any():
            error = np.abs(actual[finite].astype("f8") - expected[finite].astype("f8")).max()
            scale = np.abs(expected[finite].astype("f8")).max()
            assert error <= tolerance * max(scale, 1e-30), (name, error, scale)
