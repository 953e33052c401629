"""Loads the OpenCL plug-in: prebuilt, from the cache, or built with the system's C++ compiler.

The plug-in registers TVM's runtime for OpenCL devices, which TVM's wheel lacks (graphopt_opencl.cc
lists the names). A built one is kept beside the compile cache, under a key of everything that goes
into it, with a digest of its bytes at its end: a file that was cut short or altered is built again.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import hashlib
import logging
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphopt.artifact.atomic import replacing
from graphopt.cache import default_cache
from graphopt.errors import ArtifactError, CompileError, DeviceError
from graphopt.runtime.library import load_runtime, visible_to_loader, wheel_folder
from graphopt.toolchain import COMPILERS, find_compiler

SOURCES = Path(__file__).parent
PREBUILT = SOURCES
"""Where wheels for one platform carry the plug-in."""

_MAIN = "graphopt_opencl.cc"
# Symbols of TVM's runtime are resolved in the process that loads the plug-in.
_FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-s")
_LIBRARIES = ("-ldl",)
_DIGEST_BYTES = 32

log = logging.getLogger(__name__)


@cache
def load() -> Any:
    """The `tvm_ffi` package, with TVM's runtime and an OpenCL runtime; builds that if it must.

    Where something else has registered an OpenCL runtime, that one stays.

    Raises:
        ArtifactError: TVM's runtime is missing.
        DeviceError: the plug-in is not there and cannot be built.
    """
    tvm_ffi = load_runtime()
    if tvm_ffi.get_global_func("device_api.opencl", allow_missing=True) is None:
        with visible_to_loader(plugin()) as path:
            try:
                ctypes.CDLL(path, ctypes.RTLD_LOCAL)  # which Python never closes
            except OSError as error:
                raise DeviceError("opencl", f"the plug-in cannot be loaded: {error}.") from error
        # A run that failed or was interrupted leaves kernels under way. The driver's threads, which
        # may still be compiling them, must not outlive what its static destructors take away.
        atexit.register(tvm_ffi.get_global_func("graphopt.opencl.drain"))
    return tvm_ffi


def plugin() -> memoryview:
    """The plug-in's verified bytes: a shared library and its digest.

    Raises:
        DeviceError: it is not there and cannot be built.
    """
    name = f"graphopt-opencl-{plugin_key()}.so"
    folder = default_cache().plugins
    for place in (PREBUILT, folder):
        found = _verified(place / name)
        if found is not None:
            return found
    with _alone(folder):
        # Another process may have built it meanwhile.
        found = _verified(folder / name)
        if found is not None:
            return found
        library = build()
        sealed = library + _digest(library)
        try:
            with replacing(folder / name, "opencl") as file:
                file.write(sealed)
        except ArtifactError as error:
            log.debug("the OpenCL plug-in is built each time: %s", error)
    return memoryview(sealed)


def plugin_key() -> str:
    """A digest of all that a built plug-in depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = (version("apache-tvm"), version("apache-tvm-ffi"))
    digest.update(repr((versions, platform.machine(), _FLAGS)).encode())
    return digest.hexdigest()


def build() -> bytes:
    """Build the plug-in; takes about ten seconds.

    Returns:
        the shared library.
    Raises:
        DeviceError: there is no C++ compiler, or it failed.
    """
    compiler = _compiler()
    tvm_ffi, tvm = load_runtime(), wheel_folder()
    assert tvm is not None, "load_runtime() found it"
    includes = [Path(tvm_ffi.libinfo.find_include_path()), tvm / "include"]
    log.info("building the OpenCL plug-in (once)")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        output = Path(folder, "plugin.so")
        # As system folders, their headers cause no warnings.
        words = [word for path in includes for word in ("-isystem", str(path))]
        command = [*compiler, *_FLAGS, *words, str(SOURCES / _MAIN), "-o", str(output)]
        try:
            done = subprocess.run(
                [*command, *_LIBRARIES], capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise DeviceError("opencl", f"cannot start {compiler[0]}: {error.strerror}.") from error
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise DeviceError(
                "opencl",
                f"{compiler[0]} cannot build the plug-in and said: "
                f"{' / '.join(said[:3]) or done.stderr.strip()[-300:] or 'nothing'}.",
                hint="a C++17 compiler with its standard library's headers is needed.",
            )
        return output.read_bytes()


def _compiler() -> tuple[str, ...]:
    try:
        compiler = find_compiler()
    except CompileError as error:
        raise DeviceError("opencl", error.reason, hint=error.hint) from error
    if compiler is None:
        raise DeviceError(
            "opencl",
            "the plug-in for OpenCL devices is built when it is first used, and there is no C++ "
            f"compiler: none of {', '.join(COMPILERS['C++'])} is on PATH.",
            hint="install one (Debian: g++), or name one in the environment variable CXX.",
        )
    return compiler


def _digest(library: bytes | memoryview) -> bytes:
    return hashlib.blake2b(library, digest_size=_DIGEST_BYTES).digest()


def _verified(path: Path) -> memoryview | None:
    """The file, if it is there and whole."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    if _digest(data[:-_DIGEST_BYTES]) == data[-_DIGEST_BYTES:]:
        return data
    log.warning("%s is damaged; it is built again", path)
    return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from building while the block runs, where the folder can be written."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed
        except OSError as error:
            log.debug("cannot lock %s: %s", folder, error)
        yield
