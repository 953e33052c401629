"""C libraries: against the same program's Session to the last bit, from C, with sanitizers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from c_driver import STRICT, build, drive, feeds, init_error, numbers
from networks import attention_block, many_tensors, quantized_network, small_network
from onnx import TensorProto, helper

import graphopt
from graphopt.codegen.c_library import processor
from graphopt.codegen.c_library.names import default_library_name, identifiers, library_name
from graphopt.codegen.c_library.toolchain import find_toolchain
from graphopt.errors import CompileError, OptionError
from graphopt.runtime.host import FLAGS, host_arch

FUNCTIONS = {"free", "init", "input", "output", "run", "strerror"}
ALLOWED = re.compile(
    r"(mem(cpy|set|cmp|move)|posix_memalign|free|syscall|getauxval|open|close|fstat|mmap|munmap"
    r"|clock_gettime|sched_yield|sigfillset|pthread_\w+|sem_\w+|_GLOBAL_OFFSET_TABLE_"
    r"|(exp|log|sin|cos|tan|tanh|erf|pow|sqrt|floor|ceil|round|rint|nearbyint|trunc|fma|fmod)f?)"
    r"(@.*)?"
)


def check_bits(found, expected):
    assert list(found) == list(expected)
    for name, want in expected.items():
        assert found[name].tobytes() == want.tobytes(), name


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A program for two threads, with a folder that holds it as the library "net"."""
    folder = tmp_path_factory.mktemp("library")
    program = graphopt.compile(small_network(), threads=2)
    program.save_c_library(folder, name="net")
    return program, folder


@pytest.mark.parametrize(
    ("make", "threads"),
    [(small_network, 2), (attention_block, 1), (quantized_network, 2), (many_tensors, 1)],
)
def test_it_computes_what_a_session_does_and_sanitizers_find_nothing(make, threads, tmp_path):
    program = graphopt.compile(make(), threads=threads)
    files = program.save_c_library(tmp_path)
    assert {file.name for file in files} == {
        *("model.h", "model.c", "libmodel.a", "libmodel.so", "modelConfig.cmake")
    }
    inputs = feeds(program)
    found = drive(build(tmp_path, "model"), tmp_path, program, inputs, threads)
    check_bits(found, program.run(inputs))


def test_one_thread_of_two_gives_the_same(small):
    program, folder = small
    inputs = feeds(program, 4)
    found = drive(build(folder, "net", sanitize=False), folder, program, inputs, 1)
    check_bits(found, program.run(inputs))


def test_only_libc_libm_and_threads_are_needed_and_only_the_interface_is_visible(small):
    _, folder = small

    def symbols(file, *flags):
        done = subprocess.run(["nm", *flags, file], cwd=folder, capture_output=True, text=True)
        return [line.split()[-1] for line in done.stdout.splitlines() if len(line.split()) > 1]

    exported = {f"net_{name}" for name in FUNCTIONS}
    internal = {"net_program_run", "net_program_serve", "net_program_weights"}
    assert set(symbols("libnet.so", "-D", "--defined-only")) == exported
    assert set(symbols("libnet.a", "-g", "--defined-only")) == exported | internal
    for undefined in (symbols("libnet.so", "-D", "-u"), symbols("libnet.a", "-u")):
        strange = [s for s in undefined if not ALLOWED.fullmatch(s) and s not in internal]
        assert undefined
        assert strange == []
    done = subprocess.run(["ldd", "libnet.so"], cwd=folder, capture_output=True, text=True)
    needed = {Path(line.split()[0]).name.split(".so")[0] for line in done.stdout.splitlines()}
    assert needed - {"linux-vdso", "ld-linux-x86-64", "ld-linux-aarch64"} <= {
        *("libc", "libm", "libpthread")
    }


def test_a_program_for_one_thread_needs_no_threads(tmp_path):
    graphopt.compile(small_network(), threads=1).save_c_library(tmp_path, name="one")
    done = subprocess.run(["nm", "-D", "-u", "libone.so"], cwd=tmp_path, capture_output=True)
    assert b"pthread" not in done.stdout
    assert b"sem_" not in done.stdout
    assert "Threads" not in (tmp_path / "oneConfig.cmake").read_text()


CPP = """
#include "net.h"
#include <cstdio>
#include <vector>
int main() {
  std::vector<float> x(NET_INPUT_X_ELEMENTS, 1.0f), y(NET_OUTPUT_Y_ELEMENTS);
  net_program *program = nullptr;
  int error = net_init(&program, nullptr);
  if (!error) {
    net_inputs inputs = {x.data()};
    net_outputs outputs = {y.data()};
    error = net_run(program, &inputs, &outputs);
    net_free(program);
  }
  std::printf("%d %.9g", error, y[3]);
  return error;
}
"""


def test_the_header_is_for_cpp_too_and_the_shared_library_works(small):
    program, folder = small
    (folder / "main.cc").write_text(CPP)
    flags = ("-std=c++98", "-DCPP", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    (folder / "header.cc").write_text('#include "net.h"\n')
    subprocess.run(["g++", *flags, "-c", "header.cc"], cwd=folder, check=True)
    command = ["g++", "main.cc", "-L.", "-lnet", "-Wl,-rpath,$ORIGIN", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run(["./main"], cwd=folder, capture_output=True, text=True)
    spec = program.inputs[0]
    expected = program.run({"x": np.ones(spec.shape, np.float32)})["y"].ravel()[3]
    assert done.stdout == f"0 {expected:.9g}"


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
def test_clang_has_nothing_to_say(small):
    _, folder = small
    subprocess.run(["clang", *STRICT, "-c", "net.c", "-o", "clang.o"], cwd=folder, check=True)


CMAKE = """
cmake_minimum_required(VERSION 3.10)
project(user C)
find_package(net CONFIG REQUIRED)
add_executable(user main.c)
target_link_libraries(user net::net)
"""


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_cmake_finds_it(shared, small, tmp_path):
    _, folder = small
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "main.c").write_text(
        "#include <net.h>\nint main(void) { net_program *p; int e = net_init(&p, 0);"
        " net_free(p); return e; }\n"
    )
    options = [f"-DCMAKE_PREFIX_PATH={folder}", f"-DBUILD_SHARED_LIBS={shared}"]
    subprocess.run(
        ["cmake", "-S", ".", "-B", "b", *options], cwd=tmp_path, check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", "b"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["b/user"], cwd=tmp_path, check=True)
    linked = subprocess.run(["ldd", "b/user"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert ("libnet.so" in linked) == (shared == "ON")


def test_two_libraries_in_one_program_do_not_meet(small, tmp_path):
    _, folder = small
    graphopt.compile(attention_block(), threads=2).save_c_library(tmp_path, name="block")
    (tmp_path / "main.c").write_text(
        '#include "net.h"\n#include "block.h"\nint main(void) {\n'
        "net_program *a; block_program *b;\n"
        "int e = net_init(&a, NULL) + block_init(&b, NULL);\n"
        "net_free(a); block_free(b); return e; }\n"
    )
    command = ["gcc", *STRICT, f"-I{folder}", "-I.", "main.c", f"{folder}/libnet.a", "libblock.a"]
    subprocess.run([*command, "-lm", "-lpthread", "-o", "main"], cwd=tmp_path, check=True)
    subprocess.run(["./main"], cwd=tmp_path, check=True)


def test_weights_in_a_file_are_checked(tmp_path):
    program = graphopt.compile(small_network(), threads=2)
    program.save_c_library(tmp_path, name="far", weights="file")
    weights = tmp_path / "far.weights"
    command = build(tmp_path, "far")
    inputs = feeds(program)
    found = drive(command, tmp_path, program, inputs, 2, weights=("far.weights",))
    check_bits(found, program.run(inputs))
    errors = numbers(tmp_path / "far.h")
    missing, wrong = errors.index("NO_WEIGHTS"), errors.index("WEIGHTS")
    assert init_error(command, tmp_path, "far.weights") == 0
    assert init_error(command, tmp_path) == missing
    assert init_error(command, tmp_path, "gone.weights") == missing
    assert init_error(command, tmp_path, ".") == missing
    good = weights.read_bytes()
    for at in (0, len(good) // 2, len(good) - 1):
        damaged = bytearray(good)
        damaged[at] ^= 1
        weights.write_bytes(damaged)
        assert init_error(command, tmp_path, "far.weights") == wrong
    for other in (good[:-1], good + b"\0", b"", good[:-64]):
        weights.write_bytes(other)
        assert init_error(command, tmp_path, "far.weights") == wrong


@pytest.mark.parametrize("length", [2, 127, 128, 129, 256, 1000])
def test_the_digest_is_blake2b(length, tmp_path):
    """Constants of any length: the file's last block is full, or is not."""
    node = helper.make_node("Add", ["x", "c"], ["y"])
    value = onnx.numpy_helper.from_array(np.arange(length).astype(np.uint8) % 7, "c")
    info = helper.make_tensor_value_info
    io = [info(name, TensorProto.UINT8, [length]) for name in "xy"]
    graph = helper.make_graph([node], "sum", io[:1], io[1:], [value])
    opset = [helper.make_opsetid("", 17)]
    program = graphopt.compile(helper.make_model(graph, opset_imports=opset, ir_version=9))
    program.save_c_library(tmp_path, weights="file")
    if not (tmp_path / "model.weights").exists():
        pytest.skip("this constant is in the code")
    assert init_error(build(tmp_path, "model", sanitize=False), tmp_path, "model.weights") == 0


@pytest.mark.skipif(host_arch() != "x86_64", reason="for processors of this architecture")
def test_a_lesser_processor_is_refused(tmp_path):
    flags = FLAGS["x86_64"]
    assert set(processor.CPUID) == set(flags)
    # Nothing has both AMD's old instructions and Intel's newest.
    graphopt.compile(small_network(), "cpu:bdver4", threads=1).save_c_library(tmp_path)
    command = build(tmp_path, "model", sanitize=False)
    assert init_error(command, tmp_path) == numbers(tmp_path / "model.h").index("PROCESSOR")


def test_every_feature_of_other_architectures_is_checked_too():
    for arch, flags in FLAGS.items():
        if arch != "x86_64":
            assert set(processor.HWCAP[arch]) == set(flags)
            assert all(row[1] for row in processor.needs(arch, flags))


def loop_model():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["v", "v"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [3]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["n", "", "x"], ["s"], "doubling", body=body),
        helper.make_node("NonZero", ["s"], ["y"], "where"),
    ]
    graph = helper.make_graph(
        nodes,
        "loops",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_control_flow_and_shapes_from_data_are_refused_by_node(tmp_path):
    program = graphopt.compile(loop_model())
    with pytest.raises(OptionError) as info:
        program.save_c_library(tmp_path / "none")
    assert "doubling (Loop is run step by step)" in info.value.reason
    assert "where (the shape of NonZero's result depends on data)" in info.value.reason
    assert info.value.node == "doubling"
    assert not (tmp_path / "none").exists()


def test_open_shapes_several_programs_and_wrong_options_are_refused(dynamic_mlp, tmp_path):
    with pytest.raises(OptionError, match="--shape NAME="):
        graphopt.compile(dynamic_mlp).save_c_library(tmp_path)
    two = graphopt.compile(dynamic_mlp, shapes=[{"x": (1, 6)}, {"x": (2, 6)}])
    with pytest.raises(OptionError, match="holds one program, and there are 2"):
        two.save_c_library(tmp_path)
    one = graphopt.compile(dynamic_mlp, shapes={"x": (1, 6)})
    with pytest.raises(OptionError, match="cannot be the name"):
        one.save_c_library(tmp_path, name="9 lives")
    with pytest.raises(OptionError, match="embedded or file"):
        one.save_c_library(tmp_path, weights="cloud")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_code_cannot_reach_are_not_embedded(dynamic_mlp, tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.shipping._MAX_EMBEDDED", 64)
    program = graphopt.compile(dynamic_mlp, shapes={"x": (3, 6)})
    with pytest.raises(OptionError, match="--weights file"):
        program.save_c_library(tmp_path)
    program.save_c_library(tmp_path, weights="file")
    assert (tmp_path / "model.weights").stat().st_size == program.report.weight_bytes


def test_a_program_from_the_cache_has_no_objects_to_link(dynamic_mlp, tmp_path):
    for _ in range(2):
        program = graphopt.compile(dynamic_mlp, shapes={"x": (3, 6)}, cache=True)
    with pytest.raises(OptionError, match="--no-cache"):
        program.save_c_library(tmp_path)


def test_without_a_compiler_the_error_says_what_to_do(tmp_path):
    with pytest.raises(CompileError, match=r"a C compiler.*cc, gcc, clang.*gcc or clang.*CC"):
        find_toolchain(host_arch(), {"PATH": str(tmp_path)})
    other = "aarch64" if host_arch() == "x86_64" else "x86_64"
    with pytest.raises(CompileError, match=r"apt-get install gcc-.*-linux-gnu libc6-dev-.*-cross"):
        find_toolchain(other, {"PATH": str(tmp_path)})


def test_names():
    assert identifiers(["x", "X", "x.1", "int", "485", "", "é"]) == [
        *("x", "X_2", "x_1", "int_", "t485", "t", "t_2")
    ]
    assert identifiers(["x", "x_rank", "y"], ["_RANK"]) == ["x", "x_rank_2", "y"]
    assert identifiers(["x_rank", "x"], ["_RANK"]) == ["x_rank", "x_2"]
    assert default_library_name("resnet-18.v2") == "resnet_18_v2"
    assert library_name(default_library_name("sem")) == "sem_model"
    for wrong in ("", "1a", "a-b", "sem", "_x", "pthread_attr"):
        with pytest.raises(OptionError):
            library_name(wrong)
