"""The engines that can be compared, as the worker process sees them: open a model, run it.

Each opener imports its engine only when called, so that a worker's memory is its engine's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.bench.opening import Engine, Opening


def _onnxruntime(opening: Opening, *, optimise: bool) -> Engine:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = opening.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    spinning = "1" if opening.settings.get("spinning", False) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    session = ort.InferenceSession(opening.model, options, providers=["CPUExecutionProvider"])
    names = list(opening.outputs)
    return Engine(
        ort.__version__,
        lambda feeds: session.run(names, feeds),
        lambda result: dict(zip(names, result, strict=True)),
    )


def open_onnxruntime(opening: Opening) -> Engine:
    """ONNX Runtime with all optimisations, sequential, one pool of `threads`."""
    return _onnxruntime(opening, optimise=True)


def open_reference(opening: Opening) -> Engine:
    """ONNX Runtime without optimisations: the meaning of a model, as far as we judge it."""
    return _onnxruntime(opening, optimise=False)


def _onnxruntime_gpu(opening: Opening, provider: str) -> Engine:
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # of CUDA, where pip installed them
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    providers = dict.fromkeys((provider, "CUDAExecutionProvider", "CPUExecutionProvider"))
    session = ort.InferenceSession(opening.model, options, providers=list(providers))
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"this ONNX Runtime cannot use {provider} here")
    names = list(opening.outputs)
    return Engine(
        ort.__version__,
        lambda feeds: session.run(names, feeds),
        lambda result: dict(zip(names, result, strict=True)),
    )


def open_onnxruntime_cuda(opening: Opening) -> Engine:
    """ONNX Runtime on the GPU; inputs and outputs travel with each run, as ours do."""
    return _onnxruntime_gpu(opening, "CUDAExecutionProvider")


def open_tensorrt(opening: Opening) -> Engine:
    """TensorRT, through ONNX Runtime's provider; float32 kept float32."""
    return _onnxruntime_gpu(opening, "TensorrtExecutionProvider")


def open_openvino(opening: Opening) -> Engine:
    """OpenVINO for latency: one stream, `threads` threads, float32 kept float32."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(opening.model)
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(opening.threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": "1",
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    names = list(opening.outputs)
    return Engine(
        ov.__version__,
        lambda feeds: request.infer(feeds, share_inputs=True, share_outputs=True),
        lambda result: {name: np.array(result[i]) for i, name in enumerate(names)},
    )


def open_graphopt(opening: Opening) -> Engine:
    """Our own artifact, loaded as a user would load it."""
    import graphopt

    program = graphopt.load(opening.model, threads=opening.threads)
    return Engine(graphopt.__version__, program.run, dict)


def open_mnn(opening: Opening) -> Engine:
    """MNN, see mobile.py, which needs onnx and is imported by its own workers alone."""
    from graphopt.bench import mobile

    return mobile.open_mnn(opening)


def open_ncnn(opening: Opening) -> Engine:
    """ncnn, likewise."""
    from graphopt.bench import mobile

    return mobile.open_ncnn(opening)


OPENERS: Mapping[str, Callable[[Opening], Engine]] = {
    "graphopt": open_graphopt,
    "mnn": open_mnn,
    "ncnn": open_ncnn,
    "onnxruntime": open_onnxruntime,
    "onnxruntime-cuda": open_onnxruntime_cuda,
    "openvino": open_openvino,
    "reference": open_reference,
    "tensorrt": open_tensorrt,
}


def compile_graphopt(
    model: str,
    out: str,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Any],
    threads: int,
    target: str,
    tuning_log: Any,
    numerics: str,
) -> None:
    """Compile `model` and save it at `out`."""
    import graphopt

    program = graphopt.compile(
        model,
        target=target,
        shapes=dict(shapes) or None,
        constants=dict(constants) or None,
        threads=threads,
        tuning_log=tuning_log,
        numerics=numerics,
    )
    program.save(out)
