"""Loading modules: light, from private memory, each its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_program import toy_code, toy_expected, toy_inputs, toy_plan, toy_weights

from graphopt.errors import ArtifactError
from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session

_HERE = Path(__file__).parent


def test_running_imports_neither_the_compiler_nor_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "toy.so").write_bytes(toy_code())
    code = f"""
import sys
from pathlib import Path
from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session
from toy_program import toy_inputs, toy_plan, toy_weights
module = open_module(Path({str(tmp_path / "toy.so")!r}).read_bytes())
Session(toy_plan(), module, toy_weights()).run(toy_inputs(1))
assert "tvm_ffi" in sys.modules
found = sorted({{name.split(".")[0] for name in sys.modules}} & {{"tvm", "torch", "onnx", "scipy"}})
print(found)
import importlib.util
print(importlib.util.find_spec("torch") is not None)  # the user can still import it
"""
    path = os.pathsep.join([str(tmp_path), str(_HERE), str(_HERE.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[]\nTrue\n", done.stderr


def test_modules_loaded_one_after_another_are_different() -> None:
    # Descriptor numbers and, with them, paths come again: the loader must not mix the files up.
    for n in (10, 20, 30, 10):
        module = open_module(toy_code(n))
        inputs = toy_inputs(1, n)
        results = Session(toy_plan(n, threads=1), module, toy_weights(n)).run(inputs)
        np.testing.assert_array_equal(results["y"], toy_expected(inputs, n)["y"])


def test_two_copies_of_one_module_share_nothing() -> None:
    first, second = open_module(toy_code()), open_module(toy_code())
    Session(toy_plan(), first, toy_weights()).run(toy_inputs(1))
    assert first["peak"]() >= 1
    assert second["peak"]() == 0


def test_functions_keep_their_module_alive_and_the_last_one_unloads_it() -> None:
    module = open_module(toy_code())
    peak = module["peak"]
    del module
    gc.collect()
    assert peak() == 0
    assert mapped()
    del peak
    gc.collect()


def mapped() -> bool:
    return "graphopt-module" in Path("/proc/self/maps").read_text()


def test_no_descriptor_is_left_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    modules = [open_module(toy_code()) for _ in range(3)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    del modules


def test_what_is_no_library_is_refused() -> None:
    for code in (b"", b"\x7fELF", b"not a library" * 1000):
        with pytest.raises(ArtifactError, match="cannot load the program"):
            open_module(code)
