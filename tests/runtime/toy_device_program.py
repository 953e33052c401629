"""The program of toy_program.py for an OpenCL device, host code and kernels written by hand.

The plan is the same. `sum` is one work-group, which uses local memory.
"""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.codegen.embedding import assembly, library_section

GROUP = 64

KERNELS = f"""
// Function: scale
__kernel void scale(__global const float *x, __global const int *k, __global const float *w,
                    __global float *a) {{
  int i = get_global_id(0);
  if (i < N) a[i] = x[i] * w[i] + k[0];
}}
// Function: mirror
__kernel void mirror(__global const float *a, __global float *y) {{
  int i = get_global_id(0);
  if (i < N) y[i] = a[i] + a[N - 1 - i];
}}
// Function: sum
__kernel void sum(__global const float *y, __global float *s) {{
  __local float parts[{GROUP}];
  int k = get_local_id(0);
  float part = 0;
  for (int i = k; i < N; i += {GROUP}) part += y[i];
  parts[k] = part;
  barrier(CLK_LOCAL_MEM_FENCE);
  if (k == 0) {{
    for (int i = 1; i < {GROUP}; i++) part += parts[i];
    s[0] = part;
  }}
}}
"""

ARGUMENTS = {"scale": 4, "mirror": 2, "sum": 2}

HOST = r"""
#include <stdint.h>

typedef struct { int32_t type; int32_t zero; int64_t value; } Any;
#define API __attribute__((visibility("default")))

API void *__tvm_ffi__library_ctx;
int TVMFFIEnvModLookupFromImports(void *context, const char *name, void **found);
int TVMFFIFunctionCall(void *function, Any *args, int32_t count, Any *result);

static int launch(const char *name, const int64_t *table, const int *buffers, int count,
                  int64_t groups) {
  void *function;
  int failed = TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, name, &function);
  if (failed) return failed;
  Any args[8], result = {0, 0, 0};
  for (int i = 0; i < count; i++) args[i] = (Any){4, 0, table[buffers[i]]};
  args[count] = (Any){1, 0, groups};
  args[count + 1] = (Any){1, 0, GROUP};
  return TVMFFIFunctionCall(function, args, count + 2, &result);
}

static int part(const int64_t *table, int64_t begin, int64_t end) {
  int failed = 0;
  int64_t groups = (N + GROUP - 1) / GROUP;
  if (begin <= 0 && 0 < end) failed = launch("scale", table, (int[]){0, 1, 2, 3}, 4, groups);
  if (!failed && begin <= 1 && 1 < end) failed = launch("mirror", table, (int[]){3, 4}, 2, groups);
  if (!failed && begin <= 2 && 2 < end) failed = launch("sum", table, (int[]){4, 5}, 2, 1);
  return failed;
}

API int __tvm_ffi_run(void *self, const Any *args, int32_t count, Any *result) {
  return part((const int64_t *)args[0].value, 0, 3);
}

API int __tvm_ffi_part(void *self, const Any *args, int32_t count, Any *result) {
  return part((const int64_t *)args[0].value, args[1].value, args[2].value);
}
"""


def opencl_module(source: str, arguments: dict[str, int]) -> bytes:
    """Kernels that take so many buffers, and run on axis x, as the plug-in reads them."""
    handle = struct.pack("<BBH", 3, 64, 1)
    parts = [_text("cl"), _count(arguments)]
    for name, count in arguments.items():
        tags = ("blockIdx.x", "threadIdx.x")
        parts += [_text(name), _text(name), struct.pack("<Q", count), handle * count]
        parts += [_count(tags), *map(_text, tags), struct.pack("<Q", count), bytes(4 * count)]
    return b"".join(parts) + _text(source)


@functools.cache
def toy_device_code(n: int = 1000, group: int = GROUP, source: str = KERNELS) -> bytes:
    """The shared library, with the kernels in it.

    Args:
        group: work-items of a work-group, as the host code has it.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "the tests need a C compiler"
    kernels = opencl_module(re.sub(r"\bN\b", str(n), source), ARGUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        host, device = Path(folder, "toy.c"), Path(folder, "device.bin")
        embedded, library = Path(folder, "device.s"), Path(folder, "toy.so")
        host.write_text(HOST)
        device.write_bytes(library_section("opencl", kernels))
        embedded.write_text(assembly(str(device)))
        flags = ["-O1", "-shared", "-fPIC", f"-DN={n}", f"-DGROUP={group}"]
        files = [str(host), str(embedded)]
        subprocess.run([compiler, *flags, *files, "-o", str(library)], check=True)
        return library.read_bytes()


def toy_needs(**changes: object) -> DeviceNeeds:
    """What the program needs of a device."""
    fields: dict[str, object] = {
        "kind": "opencl",
        "name": "",
        "work_group": GROUP,
        "local_bytes": 4 * GROUP,
        "alignment": 4096,
        "extensions": (),
        "architectures": (),
    }
    return DeviceNeeds(**{**fields, **changes})  # type: ignore[arg-type]


def _count(items: Sequence[object] | dict[str, int]) -> bytes:
    return struct.pack("<Q", len(items))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
