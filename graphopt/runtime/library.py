"""Opens compiled modules with TVM's small runtime; never imports `tvm`, which takes a second."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt.errors import ArtifactError

_HINT = "Install the versions that graphopt depends on: pip install graphopt."


def open_module(code: bytes | memoryview) -> Any:
    """Load a shared library from its bytes, which the caller has verified.

    Args:
        code: the ELF file. It reaches the loader through anonymous memory (or a private temporary
            file where the system has none), so nobody can change it on the way.

    Returns:
        a tvm_ffi.Module; `module["run"]` is a packed function. The code is unmapped when the last
        reference to the module and its functions goes.

    Raises:
        ArtifactError: TVM's runtime is missing, or the loader refuses the library.
    """
    tvm_ffi = load_runtime()
    with visible_to_loader(code) as path:
        try:
            # tvm_ffi.load_module() wants a path that ends in ".so", and keeps modules for ever.
            return tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(path, "so")
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError("load", f"The system cannot load the program: {reason}.") from error


def load_runtime() -> Any:
    """The `tvm_ffi` package, with libtvm_runtime opened; costs nothing the second time.

    Raises:
        ArtifactError: one of them is not installed.
    """
    with _without_torch():
        try:
            import tvm_ffi
        except ImportError as error:
            raise ArtifactError(
                "load", f"tvm_ffi cannot be imported: {error}.", hint=_HINT
            ) from error
    ctypes.CDLL(str(_runtime_path()), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def wheel_folder() -> Path | None:
    """The folder of the installed `tvm`, found without importing it; None if there is none."""
    spec = importlib.util.find_spec("tvm")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    return next((folder for folder in folders if folder.is_dir()), None)


def _runtime_path() -> Path:
    folder = wheel_folder()
    path = None if folder is None else folder / "lib" / "libtvm_runtime.so"
    if path is None or not path.exists():
        raise ArtifactError(
            "load", "libtvm_runtime.so, a part of apache-tvm, is missing.", hint=_HINT
        )
    return path


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tvm_ffi imports torch where it is installed, which takes seconds: tell it there is none."""
    if "tvm_ffi" in sys.modules or "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to block an import
    try:
        yield
    finally:
        sys.modules.pop("torch", None)


@contextlib.contextmanager
def visible_to_loader(code: bytes | memoryview) -> Iterator[str]:
    """A path under which `code` can be opened while the block runs."""
    try:
        handle = os.memfd_create("graphopt-module", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:  # mode 0700
            path = Path(folder, f"{secrets.token_hex(8)}.so")
            path.write_bytes(code)
            yield str(path)
        return
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(code)
        # The loader takes a library it has already opened for the same if the path is spelled the
        # same, and descriptors' numbers are used again: so no two spellings may be equal.
        spelling = "".join("./" if bit == "1" else "/" for bit in f"{secrets.randbits(64):064b}")
        yield f"/proc/self/fd/{spelling}{handle}"
    finally:
        os.close(handle)
