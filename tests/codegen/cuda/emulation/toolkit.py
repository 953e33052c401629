"""A CUDA toolkit and driver without a GPU: an `nvcc` that makes CPU code, and what runs it.

    install(folder) → bin/nvcc, lib/libcuda.so.1, lib/libcudart.so.13

Whoever starts with `folder`/bin first on PATH and has opened the two libraries (load()) sees one
CUDA device. Kernels are compiled by g++ and their threads run as fibers, in the order that the
environment variable EMULATED_ORDER names (forward, reverse, or a seed). Unless EMULATED_CHECKS is
0 when a kernel is compiled, each of its memory accesses is checked: outside of its memory, or at
the same time as another thread's, the launch fails and says so.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MAGIC = 0xBA55ED50
_COMPILER = ("g++", "-std=c++17", "-w", "-fPIC", "-U_FORTIFY_SOURCE")


def install(folder: Path) -> None:
    """Build the libraries and write the compiler's launcher; takes some seconds."""
    library, programs = folder / "lib", folder / "bin"
    library.mkdir(parents=True)
    programs.mkdir()
    driver = [str(HERE / name) for name in ("block.cc", "memory.cc", "driver.cc")]
    _build(driver, library / "libcuda.so.1", "-O2")
    # TVM's runtime asks for versioned symbols.
    versions = folder / "runtime.map"
    versions.write_text("libcudart.so.13 { global: cuda*; local: *; };\n")
    linked = f"-L{library}", "-l:libcuda.so.1", f"-Wl,--version-script={versions}"
    _build([str(HERE / "runtime.cc")], library / "libcudart.so.13", "-O1", *linked)
    nvcc = programs / "nvcc"
    nvcc.write_text(
        f"#!{sys.executable} -ES\nimport sys\nsys.path.insert(0, {str(HERE)!r})\n"
        "import toolkit\ntoolkit.main(sys.argv[1:])\n"
    )
    nvcc.chmod(0o755)


def load(folder: Path) -> None:
    """Open the libraries, so that whoever looks for NVIDIA's finds these."""
    for name in ("libcuda.so.1", "libcudart.so.13"):
        ctypes.CDLL(str(folder / "lib" / name), ctypes.RTLD_GLOBAL)


def main(arguments: list[str]) -> None:
    """What nvcc does: source to a "fat binary", whose code is a shared library here."""
    output = Path(arguments[arguments.index("-o") + 1])
    output.write_bytes(fat_binary(Path(arguments[-1]).read_text()))


def fat_binary(source: str) -> bytes:
    """The header of a real one, then the library that emulates its kernels."""
    checks = os.environ.get("EMULATED_CHECKS") != "0"
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder, "kernels.cc"), Path(folder, "kernels.so")
        path.write_text(for_cpu(source))
        _build(
            [str(path)],
            library,
            "-O1",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
            f"-I{HERE / 'include'}",
            "-include",
            "emulated_device.h",
            *(("-fsanitize=thread",) if checks else ()),
        )
        code = library.read_bytes()
    return struct.pack("<IHHQ", MAGIC, 1, 16, len(code)) + code


_DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];")
# TVM's words for products of bytes of different signs, in assembly; emulated_device.h has its own.
_ASSEMBLY = re.compile(
    r"#if defined\(__CUDA_ARCH__\) && \(__CUDA_ARCH__ >= 610\).*?#endif // __CUDA_ARCH__ >= 610",
    re.DOTALL,
)
# TVM's vectors of halves begin as zeros, which shared memory of a GPU does not.
_ZEROS = re.compile(r"(half4_bfloat164)\(\) : x\(T\(0\)\).*?\{\}")
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{'
)


def for_cpu(source: str) -> str:
    """CUDA source as C++, with a description of each kernel for the driver (driver.cc)."""
    source = _ASSEMBLY.sub("", source)
    source = _ZEROS.sub(r"\1() = default;", source)
    source = _DYNAMIC.sub(r"\1* \2 = (\1*)emulated_dynamic_shared();", source)
    descriptions = [
        f"static EMULATED_UNCHECKED void emulated_call_{name}(void** a) "
        f"{{ {name}({_arguments(parameters)}); }}\n"
        f'extern "C" EmulatedFunction emulated_{name} = {{emulated_call_{name}, '
        "__start_emulated_shared, __stop_emulated_shared, &__ehdr_start, &_end};"
        for name, parameters in _KERNEL.findall(source)
    ]
    return "\n".join((source, _DESCRIPTION, *descriptions, ""))


# The linker defines the bounds of a section and of the library; without shared memory none.
_DESCRIPTION = """
extern "C" {
extern __attribute__((weak, visibility("hidden"))) unsigned char
    __start_emulated_shared[], __stop_emulated_shared[];
extern __attribute__((visibility("hidden"))) const unsigned char __ehdr_start, _end;
}
struct EmulatedFunction {
  void (*body)(void**);
  unsigned char *shared, *shared_end;
  const unsigned char *image, *image_end;
};"""


def _arguments(parameters: str) -> str:
    types = [parameter.rsplit(" ", 1)[0] for parameter in parameters.split(", ") if parameter]
    return ", ".join(f"*({kind.strip()}*)a[{index}]" for index, kind in enumerate(types))


def _build(sources: list[str], output: Path, *options: str) -> None:
    objects = []
    compiled = [option for option in options if not option.startswith(("-l", "-L", "-Wl"))]
    linked = [option for option in options if option.startswith(("-l", "-L", "-Wl"))]
    with tempfile.TemporaryDirectory() as folder:
        for index, source in enumerate(sources):
            objects.append(f"{folder}/{index}.o")
            subprocess.run([*_COMPILER, *compiled, "-c", source, "-o", objects[-1]], check=True)
        # Linked without the sanitizer, whose calls the emulated driver answers.
        command = ["g++", "-shared", *objects, f"-Wl,-soname,{output.name}", *linked]
        subprocess.run([*command, "-o", str(output)], check=True)
