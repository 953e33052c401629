"""Finding a linker, and linking with it."""

from __future__ import annotations

import ctypes
import stat
from pathlib import Path

import pytest
from tvm import te

from graphopt.codegen.executable import control_object, kernel_object
from graphopt.codegen.kernel import lower, to_kernel
from graphopt.codegen.linker import Linker, find_linker, shared_library
from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.codegen.team import kernel_symbol
from graphopt.errors import CompileError
from graphopt.runtime.host import host_arch
from graphopt.runtime.library import open_module
from graphopt.target import TargetSpec


def fake(folder: Path, name: str, script: str = "exit 0") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def doubling(size: int = 64) -> tuple[bytes, ...]:
    """The object files of a program that doubles `size` floats."""
    target = TargetSpec.parse("cpu")
    x = te.placeholder((size,), name="x")
    y = te.compute((size,), lambda i: x[i] + x[i], name="y")
    kernel = to_kernel(lower(te.create_prim_func([x, y]), target.tvm_target(2)))
    spec = TensorSpec("x", "float32", (size,))
    plan = Plan(
        inputs=(spec,),
        outputs=(TensorSpec("y", "float32", (size,)),),
        buffers=(Buffer("input", 0, 4 * size), Buffer("output", 0, 4 * size)),
        calls=(Call("s", "k", (0, 1), ("n",), True, float(size), 8.0 * size),),
        arena_bytes=0,
        weight_bytes=0,
        threads=2,
    )
    machine = target.tvm_target(2)
    control = control_object(plan, machine, target.arch)
    return control, kernel_object({"k": kernel}, machine, target.arch)


def test_cxx_wins_and_may_have_arguments(tmp_path: Path) -> None:
    fake(tmp_path, "g++")
    mine = fake(tmp_path, "my-cxx")
    path = str(tmp_path)
    assert find_linker(host_arch(), {"PATH": path}).command == (str(tmp_path / "g++"),)
    found = find_linker(host_arch(), {"PATH": path, "CXX": "my-cxx -fuse-ld=lld"})
    assert found.command == (mine, "-fuse-ld=lld")


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_the_usual_names_are_found(tmp_path: Path, name: str) -> None:
    expected = fake(tmp_path, name)
    assert find_linker(host_arch(), {"PATH": str(tmp_path)}).command == (expected,)


def test_without_a_linker_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"c\+\+, g\+\+, clang\+\+.*CXX") as info:
        find_linker(host_arch(), {"PATH": str(tmp_path)})
    assert info.value.stage == "link"


def test_a_wrong_cxx_is_not_passed_over_silently(tmp_path: Path) -> None:
    fake(tmp_path, "g++")
    with pytest.raises(CompileError, match="CXX names 'no-such-thing'"):
        find_linker(host_arch(), {"PATH": str(tmp_path), "CXX": "no-such-thing"})


def test_other_architectures_need_their_cross_compiler(tmp_path: Path) -> None:
    other = "aarch64" if host_arch() == "x86_64" else "x86_64"
    fake(tmp_path, "g++")
    environment = {"PATH": str(tmp_path), "CXX": "g++"}
    with pytest.raises(CompileError, match=f"{other}-linux-gnu-g"):
        find_linker(other, environment)
    cross = fake(tmp_path, f"{other}-linux-gnu-g++")
    assert find_linker(other, environment).command == (cross,)


def test_equal_programs_link_to_equal_bytes_that_load() -> None:
    linker = find_linker(host_arch())
    first = shared_library(doubling(), linker)
    assert shared_library(doubling(), linker) == first
    assert shared_library(doubling(128), linker) != first
    assert open_module(first)["run"] is not None


def test_only_the_entry_points_are_visible_to_other_libraries(tmp_path: Path) -> None:
    library = tmp_path / "program.so"
    library.write_bytes(shared_library(doubling(), find_linker(host_arch())))
    opened = ctypes.CDLL(str(library))
    assert hasattr(opened, "__tvm_ffi_run")
    assert hasattr(opened, "__tvm_ffi_serve")
    assert not hasattr(opened, kernel_symbol("k"))


def test_a_failing_linker_is_quoted(tmp_path: Path) -> None:
    broken = fake(tmp_path, "broken", "echo 'no room left' >&2; exit 7")
    with pytest.raises(CompileError, match=r"status 7 and said: no room left"):
        shared_library(doubling(), Linker(host_arch(), (broken,)))


def test_a_linker_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot start"):
        Linker(host_arch(), (str(tmp_path / "gone"),)).link((), tmp_path / "v", tmp_path / "out.so")
