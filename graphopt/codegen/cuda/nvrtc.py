"""Compiles CUDA source with the libraries NVRTC and nvFatbin, which pip can install."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import CompileError

# Majors that cubins of are loaded by the drivers that TVM's CUDA runtime needs.
_MAJORS = (13, 12)
_LIBRARIES = ("nvrtc", "nvfatbin")
_USUAL_HOME = "/usr/local/cuda"


@dataclass(frozen=True)
class Nvrtc:
    """The two libraries, and folders with the headers that generated source includes."""

    nvrtc: Path
    nvfatbin: Path
    headers: tuple[Path, ...]

    def fat_binary(self, source: str, architectures: Sequence[str]) -> bytes:
        """As Toolchain says; `architectures` in ascending order."""
        newest = architectures[-1].removeprefix("sm_")
        # NVRTC looks for its second half by name alone, which finds it once it is open.
        for half in sorted(self.nvrtc.parent.glob("libnvrtc-builtins.so.*")):
            _open(half)
        compiler = _Compiler(_open(self.nvrtc), self.headers)
        with _FatBinary(_open(self.nvfatbin)) as container:
            for name in architectures:
                container.add_cubin(compiler.compile(source, name, "CUBIN"), name[3:])
            container.add_ptx(compiler.compile(source, f"compute_{newest}", "PTX"), newest)
            return container.data()


def find_nvrtc(environment: Mapping[str, str]) -> Nvrtc | None:
    """The libraries of a toolkit, else those that pip installed; None unless both are there."""
    for root in _roots(environment):
        for major in _MAJORS:
            found = [_library(root, name, major) for name in _LIBRARIES]
            if all(found):
                nvrtc, nvfatbin = (path for path in found if path)
                return Nvrtc(nvrtc, nvfatbin, _headers(root))
    return None


def _roots(environment: Mapping[str, str]) -> list[Path]:
    homes = [environment.get(name, "").strip() for name in ("CUDA_HOME", "CUDA_PATH")]
    roots = [Path(home) for home in (*homes, _USUAL_HOME) if home]
    spec = importlib.util.find_spec("nvidia")  # a namespace that NVIDIA's wheels share
    for place in (spec and spec.submodule_search_locations) or ():
        roots += [Path(place, f"cu{major}") for major in _MAJORS]
    return roots


def _library(root: Path, name: str, major: int) -> Path | None:
    paths = [root / folder / f"lib{name}.so.{major}" for folder in ("lib64", "lib")]
    return next((path for path in paths if path.exists()), None)


def _headers(root: Path) -> tuple[Path, ...]:
    include = root / "include"
    return tuple(folder for folder in (include, include / "cccl") if folder.is_dir())


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError("codegen", f"cannot open {path}: {error}.") from error


class _Compiler:
    """NVRTC's programs, one for each architecture."""

    def __init__(self, library: ctypes.CDLL, headers: tuple[Path, ...]) -> None:
        self._library = library
        self._options = ["-default-device", "-std=c++17", *(f"-I{path}" for path in headers)]

    def compile(self, source: str, architecture: str, form: str) -> bytes:
        """The code of one architecture, as "CUBIN" or "PTX"."""
        program = ctypes.c_void_p()
        self._check(
            "CreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        )
        with ExitStack() as stack:
            stack.callback(self._library.nvrtcDestroyProgram, ctypes.byref(program))
            options = [*self._options, f"--gpu-architecture={architecture}"]
            words = (ctypes.c_char_p * len(options))(*(word.encode() for word in options))
            status = self._library.nvrtcCompileProgram(program, len(options), words)
            if status:
                said = self._read("ProgramLog", program).decode(errors="replace")
                lines = [line for line in said.splitlines() if "error" in line] or [
                    self._words(status)
                ]
                raise CompileError(
                    "codegen",
                    f"NVRTC failed for {architecture} and said: {' / '.join(lines[:3])}.",
                    hint="headers come with pip install 'graphopt[cuda]'."
                    if "could not open" in said
                    else None,
                )
            return self._read(form, program)

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._check(f"Get{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._check(f"Get{what}", program, data)
        return data.raw

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, f"nvrtc{function}")(*arguments)
        if status:
            raise CompileError("codegen", f"nvrtc{function} failed: {self._words(status)}.")

    def _words(self, status: int) -> str:
        describe = self._library.nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        return str(describe(status).decode())


class _FatBinary:
    """A fat binary that is being put together."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()

    def __enter__(self) -> _FatBinary:
        options = (ctypes.c_char_p * 2)(b"-64", b"-host=linux")
        self._check("Create", ctypes.byref(self._handle), options, ctypes.c_size_t(2))
        return self

    def __exit__(self, *_: object) -> None:
        self._library.nvFatbinDestroy(ctypes.byref(self._handle))

    def add_cubin(self, code: bytes, architecture: str) -> None:
        """Machine code for one architecture ("80")."""
        size = ctypes.c_size_t(len(code))
        self._check("AddCubin", self._handle, code, size, architecture.encode(), b"kernels")

    def add_ptx(self, code: bytes, architecture: str) -> None:
        """PTX, which drivers compile for later architectures."""
        size = ctypes.c_size_t(len(code))
        self._check("AddPTX", self._handle, code, size, architecture.encode(), b"kernels", b"")

    def data(self) -> bytes:
        """The whole."""
        size = ctypes.c_size_t()
        self._check("Size", self._handle, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._check("Get", self._handle, data)
        return data.raw

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, f"nvFatbin{function}")(*arguments)
        if status:
            raise CompileError("codegen", f"nvFatbin{function} failed with status {status}.")
