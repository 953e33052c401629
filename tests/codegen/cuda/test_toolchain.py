"""Machine code for NVIDIA's GPUs, made by their compilers where those are installed."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import on_gpu
import pytest

import graphopt
from graphopt.codegen.cuda.module import cuda_module, serialized
from graphopt.codegen.cuda.nvcc import find_nvcc
from graphopt.codegen.cuda.nvrtc import find_nvrtc
from graphopt.codegen.cuda.source import Signature, cuda_source
from graphopt.codegen.cuda.toolchain import FATBIN_MAGIC, find_toolchain, machine_code
from graphopt.codegen.launch import Launch, Limits, check_limits
from graphopt.errors import CompileError, OptionError

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
ELF, PTX = 2, 1

TOOLCHAINS: dict[str, Callable[[], Any]] = {
    "nvcc": lambda: find_nvcc(os.environ),
    "nvrtc": lambda: find_nvrtc(os.environ),
}


@pytest.fixture(params=TOOLCHAINS)
def toolchain(request: pytest.FixtureRequest) -> Any:
    found = TOOLCHAINS[request.param]()
    if found is None:
        pytest.skip(f"{request.param} is not installed")
    return found


def source_of(make: Callable[[], Any]) -> str:
    _, device = on_gpu.lowered(make())
    return cuda_source(device, on_gpu.cuda_target()).text


def contents(code: bytes) -> list[tuple[int, int]]:
    """Kind (ELF or PTX) and architecture of what is in a fat binary.

    Each entry begins with its kind (16 bits); behind it, as 32 bits each, lie the sizes of its
    header (4) and, as 64 bits, of its payload (8); the architecture is at 28.
    """
    found, at = [], 16
    while at < len(code):
        (kind,) = struct.unpack_from("<H", code, at)
        header, payload = struct.unpack_from("<IQ", code, at + 4)
        (architecture,) = struct.unpack_from("<I", code, at + 28)
        found.append((kind, architecture))
        at += header + payload
    return found


@pytest.mark.parametrize("make", [on_gpu.row_sums, on_gpu.halved_exponentials])
def test_code_for_each_architecture_and_ptx(toolchain: Any, make: Callable[[], Any]) -> None:
    code = machine_code(source_of(make), ("sm_90", "sm_75", "sm_80"), toolchain)
    assert code.startswith(FATBIN_MAGIC)
    assert sorted(contents(code)) == [(PTX, 90), (ELF, 75), (ELF, 80), (ELF, 90)]


def test_errors_of_the_compiler_are_told(toolchain: Any) -> None:
    with pytest.raises(CompileError, match="forgotten"):
        machine_code("int number = forgotten;", ["sm_80"], toolchain)
    with pytest.raises(CompileError, match=r"compute_35|sm_35|gpu-architecture"):
        machine_code("int number;", ["sm_35"], toolchain)


def test_architectures_are_checked(toolchain: Any) -> None:
    with pytest.raises(OptionError, match="'80' is not a CUDA architecture"):
        machine_code("", ["80"], toolchain)


class Careless:
    """A compiler that gives source back."""

    def fat_binary(self, source: str, architectures: Any) -> bytes:
        return source.encode()


def test_source_is_never_embedded() -> None:
    _, device = on_gpu.lowered(on_gpu.reversal())
    with pytest.raises(CompileError, match="did not give a fat binary"):
        cuda_module(device, on_gpu.cuda_target(), ["sm_80"], Careless())


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match=r"CUDA_HOME names .* no bin/nvcc"):
        find_toolchain({"CUDA_HOME": str(tmp_path)})
    for module in ("nvcc", "nvrtc"):
        monkeypatch.setattr(f"graphopt.codegen.cuda.{module}._USUAL_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompileError, match=r"needs nvcc or the NVRTC library.*graphopt\[cuda\]"):
        find_toolchain({"PATH": str(tmp_path)})


def test_serialized_modules() -> None:
    """The bytes of the format; that TVM's runtime reads them, other tests show."""
    kernel = Signature("f", ("handle", "float32"), ("threadIdx.x",))
    count = struct.Struct("<Q").pack
    name = count(1) + b"f"
    arguments = count(2) + bytes([3, 64, 1, 0]) + bytes([2, 32, 1, 0])
    launch = count(1) + count(11) + b"threadIdx.x"
    wanted = count(5) + b"cubin" + count(1) + name + name + arguments + launch
    wanted += count(2) + bytes(8) + count(4) + b"code"
    assert serialized("cubin", [kernel], b"code") == wanted


def test_kernels_too_large_for_a_gpu_are_refused() -> None:
    limits = Limits(threads=1024, shared_bytes=48 << 10)
    fits = Launch((7, 1, 65535), (32, 32, 1), 48 << 10)
    check_limits({"k": fits}, limits, "a GPU")
    for launch, reason in (
        (Launch((1, 1, 1), (32, 33, 1), 0), "1056 threads in a block"),
        (Launch((1, 1, 1), (1, 1, 65), 0), "65 threads along z"),
        (Launch((1, 65536, 1), (1, 1, 1), 0), "65536 blocks along y"),
        (Launch((1, 1, 1), (1, 1, 1), (48 << 10) + 1), "49153 bytes of shared memory"),
    ):
        with pytest.raises(CompileError, match=reason):
            check_limits({"k": launch}, limits, "a GPU")


def compile_all(model: bytes, tmp_path: Path) -> graphopt.CompiledModel:
    program = graphopt.compile(model, target=f"cuda:{','.join(ARCHITECTURES)}", cache=False)
    program.save(tmp_path / "model.gopt")
    return program


def test_tensor_cores_compile(tmp_path: Path) -> None:
    if find_nvcc(os.environ) is None:
        pytest.skip("nvcc is not installed")
    program = compile_all(graphs.halves_for_tensor_cores()[0], tmp_path)
    kernels = [call.candidate for call in program.report.calls]
    assert kernels.count("gpu.matmul.tensor_cores") == 2


@pytest.mark.slow
@pytest.mark.parametrize("graph", graphs.ALL)
def test_kernels_compile(graph: Callable[[], Any], tmp_path: Path) -> None:
    if find_nvcc(os.environ) is None:
        pytest.skip("nvcc is not installed")
    compile_all(graph()[0], tmp_path)
