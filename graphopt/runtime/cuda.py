"""NVIDIA's driver and runtime: what GPUs there are, TVM's CUDA runtime on top; without `tvm`."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.errors import ArtifactError
from graphopt.runtime.library import load_runtime

DRIVER = "libcuda.so.1"
RUNTIME = "libcudart.so.13"
"""The runtime that TVM's CUDA library is linked with."""

# Attributes of a device, as the driver numbers them.
_THREADS, _SHARED, _PROCESSORS, _MAJOR, _MINOR = 1, 8, 16, 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        index: its number, as the driver counts.
        architecture: such as "sm_80".
        memory_bytes: its memory.
        multiprocessors, max_threads, shared_bytes: how many it has, threads in a block, and bytes
            that these share without asking for more.
        driver: the version of CUDA that the driver supports, such as "13.0".
    """

    index: int
    name: str
    architecture: str
    memory_bytes: int
    multiprocessors: int
    max_threads: int
    shared_bytes: int
    driver: str

    def unfit(self, needs: DeviceNeeds) -> str | None:
        """Why it cannot run a program with these needs; None if it can."""
        if not any(_runs(self.architecture, made) for made in needs.architectures) and not (
            needs.architectures and _number(self.architecture) > _number(needs.architectures[-1])
        ):
            return f"it is {self.architecture}, the code is for {', '.join(needs.architectures)}"
        if needs.work_group > self.max_threads:
            return f"it allows blocks of {self.max_threads} threads, not {needs.work_group}"
        if needs.local_bytes > self.shared_bytes:
            return f"it has {self.shared_bytes} bytes of shared memory, not {needs.local_bytes}"
        return None


def _runs(architecture: str, made: str) -> bool:
    """Whether machine code made for `made` runs there: on the same and later ones of its tens."""
    ours, theirs = _number(architecture), _number(made)
    return ours // 10 == theirs // 10 and ours >= theirs


def _number(architecture: str) -> int:
    """80 for "sm_80"."""
    return int(re.sub(r"\D", "", architecture))


def probe() -> Gpu | None:
    """The first GPU of this machine; None if there is none, or no driver."""
    try:
        found = gpus()
    except ArtifactError:
        return None
    return found[0] if found else None


def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; empty if the driver finds none.

    Raises:
        ArtifactError: there is no driver, or it does not start.
    """
    driver = _open_driver()
    status = driver.cuInit(0)
    if status == 100:  # "no device"
        return ()
    if status:
        raise ArtifactError("load", f"NVIDIA's driver does not start: {_words(driver, status)}.")
    count = ctypes.c_int()
    _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
    return tuple(_gpu(driver, index) for index in range(count.value))


@cache
def open_runtime() -> Any:
    """The `tvm_ffi` package, with TVM's device API for CUDA and its loader of CUDA modules.

    Raises:
        ArtifactError: the driver, NVIDIA's runtime or TVM's library is missing or does not fit.
    """
    tvm_ffi = load_runtime()
    _open_driver()
    _open_library()
    path = _tvm_library()
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ArtifactError("load", f"TVM's CUDA runtime cannot be opened: {error}.") from error
    return tvm_ffi


def _open_driver() -> Any:
    try:
        return ctypes.CDLL(DRIVER, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ArtifactError(
            "load",
            f"there is no NVIDIA driver on this machine: {error}.",
            hint="install the driver of the GPU; compiling for 'cuda:sm_80' and the like needs "
            "none.",
        ) from error


def _open_library() -> None:
    """Open NVIDIA's runtime: the system's, else a toolkit's, else the one that pip installed."""
    for name in (RUNTIME, *_libraries(os.environ)):
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    raise ArtifactError(
        "load",
        f"NVIDIA's CUDA runtime ({RUNTIME}) is not installed.",
        hint="pip install 'graphopt[cuda]', or name a toolkit's folder in CUDA_HOME.",
    )


def _libraries(environment: Mapping[str, str]) -> Iterator[str]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(variable, "").strip():
            yield str(Path(environment[variable], "lib64", RUNTIME))
    yield str(Path("/usr/local/cuda/lib64", RUNTIME))
    spec = importlib.util.find_spec("nvidia")  # a namespace that NVIDIA's wheels share
    for place in (spec and spec.submodule_search_locations) or ():
        yield str(Path(place, "cu13", "lib", RUNTIME))


def _tvm_library() -> Path:
    spec = importlib.util.find_spec("tvm")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "lib", "libtvm_runtime_cuda.so")
        if path.exists():
            return path
    raise ArtifactError("load", "libtvm_runtime_cuda.so, a part of apache-tvm, is missing.")


def _gpu(driver: Any, index: int) -> Gpu:
    device, version, nbytes = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), index))
    _check(driver, driver.cuDeviceGetName(name, len(name), device))
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(nbytes), device))
    _check(driver, driver.cuDriverGetVersion(ctypes.byref(version)))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), number, device))
        return value.value

    return Gpu(
        index,
        name.value.decode(errors="replace"),
        f"sm_{attribute(_MAJOR)}{attribute(_MINOR)}",
        nbytes.value,
        attribute(_PROCESSORS),
        attribute(_THREADS),
        attribute(_SHARED),
        f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _check(driver: Any, status: int) -> None:
    if status:
        raise ArtifactError("load", f"NVIDIA's driver failed: {_words(driver, status)}.")


def _words(driver: Any, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    return text.value.decode(errors="replace") if text.value else f"status {status}"
