"""ncnn and MNN, as the worker process sees them: each converts a model to a format of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.bench.inputs import graph_inputs
from graphopt.bench.opening import Array, Engine, Feeds, Opening

_CONVERSION_SECONDS = 300.0
_PNNX_TYPES = {"float32": "f32", "float16": "f16", "int32": "i32", "int64": "i64", "uint8": "u8"}


def open_ncnn(opening: Opening) -> Engine:
    """ncnn in float32, all its algorithms allowed, on a model converted by pnnx.

    Raises:
        RuntimeError: pnnx is not installed, or cannot convert the model.
        ValueError: the converted model has other inputs or outputs.
    """
    import ncnn

    model = onnx.load(opening.model)
    with tempfile.TemporaryDirectory(prefix="graphopt-ncnn-") as folder:
        stem = _pnnx(model, Path(folder))
        net = ncnn.Net()
        net.opt.num_threads = opening.threads
        for name in ("packed", "storage", "arithmetic"):
            setattr(net.opt, f"use_fp16_{name}", False)
        net.opt.use_bf16_storage = False
        if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
            raise RuntimeError("ncnn does not load what pnnx converted")
    names = [value.name for value in graph_inputs(model)]
    if len(net.input_names()) != len(names) or len(net.output_names()) != len(opening.outputs):
        raise ValueError("pnnx converted it to a model with other inputs or outputs")

    def run(feeds: Feeds) -> list[Any]:
        extractor = net.create_extractor()
        for index, name in enumerate(names):
            extractor.input(f"in{index}", ncnn.Mat(feeds[name], batch_index=0))
        return [extractor.extract(f"out{index}")[1] for index in range(len(opening.outputs))]

    def named(result: list[Any]) -> dict[str, Array]:
        arrays = [np.array(mat.numpy(batch_index=0)) for mat in result]
        return dict(zip(opening.outputs, arrays, strict=True))

    return Engine(str(ncnn.__version__), run, named)


def _pnnx(model: onnx.ModelProto, folder: Path) -> Path:
    """Convert; returns the path of the parameters and of the weights without their endings."""
    spec = importlib.util.find_spec("pnnx")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pnnx is not installed (pip install --no-deps pnnx)")
    program = Path(spec.submodule_search_locations[0]) / "pnnx"
    onnx.save(model, folder / "model.onnx")
    shapes = []
    for value in graph_inputs(model):
        tensor = value.type.tensor_type
        sizes = [str(dim.dim_value) for dim in tensor.shape.dim]
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        shapes.append(f"[{','.join(sizes)}]{_PNNX_TYPES.get(kind, kind)}")
    command = [str(program), "model.onnx", f"inputshape={','.join(shapes)}", "fp16=0"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, timeout=_CONVERSION_SECONDS, check=False
    )
    stem = folder / "model.ncnn"
    if done.returncode or not stem.with_suffix(".ncnn.param").is_file():
        raise RuntimeError(f"pnnx cannot convert it (exit status {done.returncode})")
    return stem


def open_mnn(opening: Opening) -> Engine:
    """MNN in float32, on the CPU, on a model converted by MNN's own converter.

    Raises:
        RuntimeError: it cannot be converted or loaded.
    """
    # The converter's module of this name, not MNN.tools.mnnconvert around it: that one installs a
    # package by itself when it is imported, to report what is converted.
    import _tools
    import MNN

    with tempfile.TemporaryDirectory(prefix="graphopt-mnn-") as folder:
        path = str(Path(folder) / "model.mnn")
        files = ("--modelFile", opening.model, "--MNNModel", path)
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--bizCode", "graphopt", *files])
        if not Path(path).is_file():
            raise RuntimeError("MNN cannot convert it")
        net = MNN.Interpreter(path)
        session = net.createSession(
            {"backend": "CPU", "numThread": opening.threads, "precision": "high"}
        )
    kinds = {
        np.dtype(np.float32): MNN.Halide_Type_Float,
        np.dtype(np.int32): MNN.Halide_Type_Int,
        np.dtype(np.uint8): MNN.Halide_Type_Uint8,
    }
    layout = MNN.Tensor_DimensionType_Caffe
    inputs = net.getSessionInputAll(session)

    def run(feeds: Feeds) -> dict[str, Any]:
        for name, tensor in inputs.items():
            array = feeds[name]
            if array.dtype == np.int64:  # MNN has no such type
                array = array.astype(np.int32)
            tensor.copyFrom(MNN.Tensor(array.shape, kinds[array.dtype], array, layout))
        net.runSession(session)
        return {
            name: _to_host(MNN, net.getSessionOutput(session, name)) for name in opening.outputs
        }

    def named(result: dict[str, Any]) -> dict[str, Array]:
        return {name: np.array(host.getNumpyData()) for name, host in result.items()}

    return Engine(str(MNN.version()), run, named)


def _to_host(mnn: Any, tensor: Any) -> Any:
    """A copy of the tensor in the layout of ONNX."""
    shape, kind = tensor.getShape(), tensor.getDataType()
    size = np.float32 if kind == mnn.Halide_Type_Float else np.int32
    host = mnn.Tensor(shape, kind, np.empty(shape, size), mnn.Tensor_DimensionType_Caffe)
    tensor.copyToHostTensor(host)
    return host
