"""Models on an OpenCL device, through every stage, against ONNX Runtime and the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import graphopt
from graphopt.artifact import bundle
from graphopt.cli.main import main
from graphopt.codegen.device_kernel import DeviceKernel
from graphopt.compiler import lower_chosen, pose_model
from graphopt.config import CompileConfig
from graphopt.frontend.load import load_model
from graphopt.frontend.partition import needs_host
from graphopt.frontend.prepare import prepare
from graphopt.lowering.weights import WeightPool
from graphopt.runtime.opencl.devices import OpenclDevice
from graphopt.target import TargetSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from catalogue import MODELS

TOLERANCE = 1e-4

pytestmark = pytest.mark.usefixtures("opencl")


def reference(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if value.dtype.kind == "f":
            error = np.abs(found[name] - value).max() / np.abs(value).max()
            assert error <= TOLERANCE, name
        else:
            np.testing.assert_array_equal(found[name], value)


def feeds(seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, 12, 12), np.float32)}


@pytest.fixture(scope="module")
def program(opencl: Sequence[OpenclDevice], tiny_cnn: onnx.ModelProto) -> graphopt.CompiledModel:
    return graphopt.compile(tiny_cnn, "opencl")


@pytest.fixture(scope="module")
def saved(program: graphopt.CompiledModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opencl") / "cnn.gopt"
    program.save(path)
    return path


def test_a_model_runs_on_the_device(
    program: graphopt.CompiledModel, tiny_cnn: onnx.ModelProto
) -> None:
    for seed in range(3):
        assert_near(program.run(feeds(seed)), reference(tiny_cnn, feeds(seed)))
    assert program.report.target.startswith("opencl")


def test_shapes_are_compiled_as_they_come(dynamic_mlp: onnx.ModelProto) -> None:
    model = graphopt.compile(dynamic_mlp, "opencl")
    rng = np.random.default_rng(0)
    for rows in (1, 5):
        given = {
            spec.name: rng.standard_normal([dim or rows for dim in spec.shape]).astype(spec.dtype)
            for spec in model.inputs
        }
        assert_near(model.run(given), reference(dynamic_mlp, given))


def test_a_saved_program_runs_without_the_compiler(
    saved: Path, tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", **feeds(4))
    script = f"""
import sys
import numpy as np
import graphopt
model = graphopt.load({str(saved)!r})
outputs = model.run(dict(np.load({str(tmp_path / "in.npz")!r})))
np.savez({str(tmp_path / "out.npz")!r}, **outputs)
assert "tvm" not in sys.modules and "onnx" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert_near(dict(np.load(tmp_path / "out.npz")), reference(tiny_cnn, feeds(4)))


# The first kernels are under way, or being compiled in the driver's threads, when the last one
# cannot be built and the process ends.
FAILING = """
import numpy as np
from onnx import parser
import graphopt
from graphopt.codegen import device_program

def serialized(format, signatures, source, make=device_program.serialized):
    head, mark, last = source.rpartition(b"// Function: ")
    return make(format, signatures, head + mark + last.replace(b"{", b"{ nonsense", 1))

device_program.serialized = serialized
model = parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 16, 64, 64] x, float[16, 16, 3, 3] w, float[40, 40] q)
    => (float[1, 16, 64, 64] z, float[40, 40] r) {
        y = Conv<pads=[1, 1, 1, 1]>(x, w) z = Softmax<axis=1>(y)
        r0 = MatMul(q, q) r1 = Softmax<axis=1>(r0) r = Transpose<perm=[1, 0]>(r1)
    }''')
program = graphopt.compile(model, "opencl", tuning_log=())
try:
    program.run({spec.name: np.ones(spec.shape, np.float32) for spec in program.inputs})
except graphopt.DeviceError as error:
    print(error.reason)
"""


def test_a_process_ends_in_order_after_a_kernel_that_cannot_be_built(
    opencl: Sequence[OpenclDevice], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING],
        env={**os.environ, "POCL_CACHE_DIR": str(tmp_path)},  # with nothing compiled before
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "building the kernel" in done.stdout


def test_two_threads_get_their_own_results(saved: Path, tiny_cnn: onnx.ModelProto) -> None:
    model = graphopt.load(saved)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            expected = reference(tiny_cnn, feeds(seed))
            for _ in range(30):
                assert_near(model.run(feeds(seed)), expected)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_manifest_says_what_the_device_must_offer(
    saved: Path, opencl: Sequence[OpenclDevice]
) -> None:
    artifact = bundle.load(saved)
    (entry,) = artifact.manifest.entries
    assert entry.needs is not None
    assert entry.needs.kind == "opencl"
    assert entry.needs.name == opencl[0].name
    assert 1 <= entry.needs.work_group <= opencl[0].max_work_group
    for changes, reason in (
        ({"work_group": 1 << 20}, "work-groups"),
        ({"extensions": ("cl_graphopt_none",)}, "lacks cl_graphopt_none"),
    ):
        greedy = replace(entry, needs=replace(entry.needs, **changes))  # type: ignore[arg-type]
        manifest = replace(artifact.manifest, entries=(greedy,))
        data = bundle.to_bytes(manifest, [bytes(m) for m in artifact.modules], artifact.weights)
        with pytest.raises(graphopt.DeviceError, match=reason):
            graphopt.load(data)


def test_calls_are_profiled_with_their_nodes(saved: Path) -> None:
    profile = graphopt.load(saved).profile(feeds(), repeats=3)
    assert {node for row in profile.rows for node in row.nodes} >= {"stem", "mix", "head"}
    assert all(row.seconds > 0 for row in profile.rows)


def test_verbs_take_the_device(
    saved: Path,
    tiny_cnn: onnx.ModelProto,
    tmp_path: Path,
    opencl: Sequence[OpenclDevice],
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnx.save(tiny_cnn, tmp_path / "cnn.onnx")
    assert main(["verify", str(saved), "--against", str(tmp_path / "cnn.onnx"), "--json"]) == 0
    capsys.readouterr()
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed["opencl"]] == [each.name for each in opencl]
    assert listed["cpu"]["cores"] >= 1
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert opencl[0].name in shown
    assert "cl_khr" in shown


def test_counts_may_depend_on_data(opencl: Sequence[OpenclDevice]) -> None:
    """NonZero looks at the bits of a difference, which has no address."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[n] y) <float half = {0.5}> {
            a = Sub(x, half) b = NonZero(a) t = Transpose<perm=[1, 0]>(b) y = GatherND(x, t)
        }"""
    )
    compiled = graphopt.compile(model, "opencl")
    given = {"x": np.array([[0.5, 1, -2, 0.5], [3, 0.5, 0.25, 7]], np.float32)}
    for _ in range(2):
        assert_near(compiled.run(given), reference(model, given))
        given = {"x": given["x"] + np.float32(0.25)}


@pytest.mark.parametrize(
    ("lacking", "dtype"), [({"fp16": False}, "float16"), ({"fp64": False}, "double")]
)
def test_a_type_that_the_device_lacks_is_refused_with_the_node(
    opencl: Sequence[OpenclDevice], lacking: dict[str, bool], dtype: str
) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g ({dtype}[4, 5] x) => ({dtype}[4, 5] y) {{ a = Exp(x) y = Sin(a) }}"""
    )
    spec = TargetSpec.parse("opencl")
    assert spec.device is not None
    gpu = replace(spec.device.gpu, **lacking)  # type: ignore[arg-type]
    spec = replace(spec, device=replace(spec.device, gpu=gpu))
    with pytest.raises(graphopt.DeviceError, match=r"cl_khr_fp(16|64)") as caught:
        graphopt.compile(model, spec)
    assert caught.value.node is not None
    assert "Exp#0" in caught.value.node


def test_unknown_devices_are_refused_with_those_there_are(
    tiny_cnn: onnx.ModelProto, opencl: Sequence[OpenclDevice]
) -> None:
    with pytest.raises(graphopt.OptionError, match="no OpenCL device has 'nonesuch'") as caught:
        graphopt.compile(tiny_cnn, "opencl:nonesuch")
    assert opencl[0].name in str(caught.value.hint)


@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_tiny"])
def test_no_kernel_of_a_benchmark_graph_is_left_on_the_host(
    opencl: Sequence[OpenclDevice], name: str, tmp_path: Path
) -> None:
    """All nodes are in calls of the device's kernels; none but small ones run on one thread."""
    (entry,) = (model for model in MODELS if model.name == name)
    shapes = {name: tuple(shape) for name, shape in entry.shapes.items()}
    model = load_model(entry.provide(tmp_path))
    assert not needs_host(prepare(model, shapes, {}))
    config = CompileConfig(target=TargetSpec.parse("opencl"), tuning_log=())
    (problem,) = pose_model(model, config, shapes)
    emitted = lower_chosen(problem, problem.choice(), config, WeightPool())
    plan = emitted.plan
    assert {node for call in plan.calls for node in call.nodes} >= {
        node for group in problem.entries for node in getattr(group, "nodes", ())
    }
    for call in plan.calls:
        kernel = emitted.kernels[call.kernel]
        assert isinstance(kernel, DeviceKernel)
        threads = max(prod(extent for _, extent in launch.extents) for launch in kernel.launches)
        sizes = [plan.buffers[index].nbytes for index in call.args]
        assert threads > 1 or max(sizes) <= 4096, call.nodes


@pytest.mark.slow
def test_a_part_of_the_suite_of_operators(tmp_path: Path) -> None:
    # A process of its own, because it forks one for each case, before which no driver may start.
    script = Path(__file__).parents[1] / "benchmarks" / "conformance.py"
    found = tmp_path / "results.json"
    words = ["--engine", "graphopt-opencl", "--part", "30", "--json", str(found)]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = [each["status"] for each in json.loads(found.read_text()) if not each["exotic"]]
    assert statuses.count("pass") > 0.9 * len(statuses)


@pytest.mark.slow
def test_a_few_trials_make_records(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    outcome = graphopt.tune(tiny_cnn, "opencl", trials=6, log=tmp_path, fresh=True)
    assert outcome.ok >= 1
    assert outcome.ok + outcome.failed == outcome.trials <= 6
    tuned = graphopt.compile(tiny_cnn, "opencl", tuning_log=tmp_path)
    assert_near(tuned.run(feeds(5)), reference(tiny_cnn, feeds(5)))
