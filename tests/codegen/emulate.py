"""Runs a program that was compiled for another architecture, under qemu's user-mode emulation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

from graphopt.codegen import abi

# The caller's side of the ABI in C: one worker, everything read from and written to files.
MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct any { int32_t type, pad; union { int64_t i; void *p; } v; };
int __tvm_ffi_run(void *self, struct any *args, int n, struct any *result);
void TVMFFIErrorSetRaisedFromCStr(const char *k, const char *m) {
  fprintf(stderr, "%s: %s\n", k, m);
}
void TVMFFIErrorSetRaisedFromCStrParts(const char *k, const char **p, int n) {
  fprintf(stderr, "%s: ", k);
  for (int i = 0; i < n; i++) fputs(p[i], stderr);
}

static void *memory(size_t n) {
  void *p = 0;
  if (posix_memalign(&p, 64, n + 64)) exit(2);
  return p;
}

static void *read_file(const char *path, size_t n) {
  void *p = memory(n);
  FILE *f = fopen(path, "rb");
  if (!f || fread(p, 1, n, f) != n) exit(3);
  fclose(f);
  return p;
}

int main(int argc, char **argv) {
  /* arena size, weights file and size, number of inputs, then file and size of each tensor */
  struct any ctx[64] = {0}, arg = {4, 0, {0}}, result = {0};
  int inputs = atoi(argv[4]), tensors = (argc - 5) / 2;
  ctx[%(NUM_TASKS)d].v.i = 1;
  ctx[%(BARRIER)d].v.p = calloc(8, 8);
  ctx[%(SOLO_BARRIER)d].v.p = calloc(8, 8);
  ctx[%(ARENA)d].v.p = memory(atol(argv[1]));
  ctx[%(WEIGHTS)d].v.p = read_file(argv[2], atol(argv[3]));
  for (int i = 0; i < tensors; i++) {
    long n = atol(argv[6 + 2 * i]);
    ctx[%(FIRST_IO)d + i].v.p = i < inputs ? read_file(argv[5 + 2 * i], n) : memory(n);
  }
  arg.v.p = ctx;
  if (__tvm_ffi_run(0, &arg, 1, &result)) return 4;
  for (int i = inputs; i < tensors; i++) {
    FILE *f = fopen(argv[5 + 2 * i], "wb");
    fwrite(ctx[%(FIRST_IO)d + i].v.p, 1, atol(argv[6 + 2 * i]), f);
    fclose(f);
  }
  return 0;
}
"""

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64")


def missing_tools():
    """The commands needed here that this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def run_on_aarch64(program, inputs, folder: Path):
    """Outputs (name → array) of a single-threaded aarch64 `program` for `inputs`."""
    text = MAIN
    for name, value in vars(abi).items():
        text = text.replace(f"%({name})d", str(value))
    (folder / "main.c").write_text(text)
    program.module.write_to_file(str(folder / "program.o"))
    (folder / "weights.bin").write_bytes(program.weights.tobytes())
    command = ["aarch64-linux-gnu-gcc", "-O1", "main.c", "program.o", "-o", "main", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    plan = program.plan
    arguments = [str(plan.arena_bytes), "weights.bin", str(program.weights.nbytes)]
    arguments.append(str(len(plan.inputs)))
    for spec in plan.inputs:
        array = np.ascontiguousarray(inputs[spec.name], spec.dtype)
        (folder / f"{spec.name}.in").write_bytes(array.tobytes())
        arguments += [f"{spec.name}.in", str(array.nbytes)]
    for spec in plan.outputs:
        nbytes = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        arguments += [f"{spec.name}.out", str(nbytes)]
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "./main"]
    subprocess.run([*emulator, *arguments], cwd=folder, check=True, timeout=120)
    return {
        spec.name: np.frombuffer((folder / f"{spec.name}.out").read_bytes(), spec.dtype).reshape(
            spec.shape
        )
        for spec in plan.outputs
    }
