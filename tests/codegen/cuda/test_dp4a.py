"""Products and convolutions of bytes by words of four, bit for bit as in NumPy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import on_gpu
import pytest
from gpu_process import Gpu
from graphs import bytes_network
from test_cuda_models import check

from graphopt.codegen.cuda.nvcc import find_nvcc
from graphopt.codegen.cuda.source import cuda_source
from graphopt.codegen.device_kernel import device_kernel
from graphopt.codegen.device_program import device_functions
from graphopt.lowering.kernels import scheduled
from graphopt.target import TargetSpec
from schedules.gpu import conv_dp4a, matmul_dp4a
from schedules.interface import Candidate, Epilogue, Op, TensorSig, Workload

Array = np.ndarray[Any, Any]
SIGNS = [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8")]


def drawn(dtype: str, *shape: int) -> Array:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(sum(shape))
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def product(
    a: Array, b: Array, constant: bool, transposed: bool, zeros: tuple[int, int] | None
) -> tuple[Workload, Array]:
    """The workload of a · b (b given transposed or not) and its result."""
    wide = b.astype(np.int64)
    left, right = zeros or (0, 0)
    shifted = (np.swapaxes(wide, -1, -2) if transposed else wide) - right
    wanted = (a.astype(np.int64) - left) @ shifted
    attrs: tuple[Any, ...] = (("transpose_b", transposed),)
    if zeros is not None:
        attrs = (*attrs, ("zeros", zeros))
    sigs = tuple(TensorSig(array.shape, array.dtype.name) for array in (a, b))
    kind = "matmul" if zeros is None else "matmul_offset"
    op = Op(kind, sigs, TensorSig(wanted.shape, "int32"), attrs, (False, constant))
    return Workload(op, Epilogue(dtype="int32")), wanted


@pytest.mark.parametrize("signs", SIGNS)
def test_products(gpu: Gpu, signs: tuple[str, str]) -> None:
    cases = [
        (drawn(signs[0], 70, 37), drawn(signs[1], 37, 66), True, False, None),
        (drawn(signs[0], 5, 36), drawn(signs[1], 9, 36), True, True, None),
        (drawn(signs[0], 2, 9, 36), drawn(signs[1], 2, 36, 7), False, False, (3, -5)),
        (drawn(signs[0], 3, 9, 35), drawn(signs[1], 3, 7, 35), False, True, (0, 200)),
    ]
    for a, b, constant, transposed, zeros in cases:
        workload, wanted = product(a, b, constant, transposed, zeros)
        name = f"gpu.{workload.op.kind}.dp4a"
        found = gpu.call(on_gpu.run_candidate, workload, name, [a, b])
        np.testing.assert_array_equal(found, wanted)


def convolution(x: Array, w: Array, constant: bool) -> tuple[Workload, Array]:
    """Of stride (2, 1), two groups and padding of sevens, and its result."""
    image = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (0, 1)), constant_values=7)
    windows = np.lib.stride_tricks.sliding_window_view(image, w.shape[2:], (2, 3))[:, :, ::2]
    split = windows.reshape(x.shape[0], 2, -1, *windows.shape[2:])
    filters = w.astype(np.int64).reshape(2, -1, *w.shape[1:])
    wanted = np.einsum("ngcijab,gocab->ngoij", split, filters)
    wanted = wanted.reshape(x.shape[0], -1, *wanted.shape[3:])
    attrs = (
        ("strides", (2, 1)),
        ("padding", (1, 0, 1, 1)),
        ("dilation", (1, 1)),
        ("groups", 2),
        ("pad_value", 7),
    )
    sigs = tuple(TensorSig(array.shape, array.dtype.name) for array in (x, w))
    op = Op("conv_integer", sigs, TensorSig(wanted.shape, "int32"), attrs, (False, constant))
    return Workload(op, Epilogue(dtype="int32")), wanted


@pytest.mark.parametrize("signs", SIGNS)
def test_convolutions(gpu: Gpu, signs: tuple[str, str]) -> None:
    for channels, constant in ((3, True), (5, False), (8, True)):
        x = drawn(signs[0], 2, 2 * channels, 11, 9)
        w = drawn(signs[1], 34, channels, 3, 2)
        workload, wanted = convolution(x, w, constant)
        found = gpu.call(on_gpu.run_candidate, workload, "gpu.conv_integer.dp4a", [x, w])
        np.testing.assert_array_equal(found, wanted)


def test_a_network(gpu: Gpu) -> None:
    """In all orders of threads; its sums are rounded to floats once, and then divided."""
    check(gpu, *bytes_network(), 1e-5)


def offered(workload: Workload, architecture: str = "sm_75") -> list[Candidate]:
    traits = TargetSpec.parse(f"cuda:{architecture}").traits(1)
    families = (matmul_dp4a.candidates, conv_dp4a.candidates)
    return [candidate for family in families for candidate in family(workload, traits)]


def workloads() -> list[Workload]:
    a, b = drawn("uint8", 70, 37), drawn("int8", 37, 66)
    x, w = drawn("uint8", 1, 16, 11, 9), drawn("int8", 34, 8, 3, 2)
    return [product(a, b, True, False, None)[0], convolution(x, w, True)[0]]


def test_older_gpus_have_no_such_instruction() -> None:
    assert not any(offered(workload, "sm_60") for workload in workloads())


@pytest.mark.parametrize("index", [0, 1])
def test_machine_code(index: int, tmp_path: Path) -> None:
    """Each step of a thread's tile is one instruction, where a compiler for real GPUs is there."""
    target = TargetSpec.parse("cuda:sm_75").device_target()
    (candidate,) = offered(workloads()[index])
    kernel = device_kernel(scheduled(candidate), target.device, target.limits)
    (launch,) = kernel.launches
    assert dict(launch.extents) == {"blockIdx.x": (4, 2)[index], "threadIdx.x": 256}
    source = cuda_source(device_functions({"kernel": kernel}, target.device), target.device).text
    nvcc = find_nvcc(os.environ)
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    path, text = tmp_path / "kernel.cu", tmp_path / "kernel.ptx"
    path.write_text(source)
    for architecture in ("compute_75", "compute_90"):
        command = [str(nvcc.program), "-ptx", f"-arch={architecture}", "-o", str(text), str(path)]
        subprocess.run(command, check=True)
        assert text.read_text().count("dp4a.s32.s32") >= 16
