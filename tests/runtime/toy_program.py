"""A program written by hand in C that keeps the ABI of codegen/abi.py: the runtime's test object.

Inputs x float32 [n] and k int32 [], weights w float32 [n], outputs y float32 [n] and s float32 [1]:

    a = x · w + k          shared by the team, into the arena
    y = a + reverse(a)     shared; wrong unless the barrier before it works
    s = Σ y                one worker

With values that are small integers all results are exact. The module counts how many workers are
inside kernels at once: `peak()`.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.runtime.memory import aligned_empty

SOURCE = r"""
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

typedef struct { int32_t type; int32_t zero; int64_t value; } Any;
#define SLOT(i) (((int64_t *)ctx)[2 * (i) + 1])
#define API __attribute__((visibility("default")))

static atomic_int inside, peak;

static void enter(void) {
  int now = atomic_fetch_add(&inside, 1) + 1, seen = atomic_load(&peak);
  while (now > seen && !atomic_compare_exchange_weak(&peak, &seen, now)) {}
}

static void barrier(_Atomic int64_t *counter, int64_t tasks) {
  int64_t goal = (atomic_fetch_add(counter, 1) / tasks + 1) * tasks;
  atomic_fetch_sub(&inside, 1);
  for (int i = 1; atomic_load(counter) < goal; i++)
    if (i % 64 == 0) sched_yield();
  enter();
}

static void stamp(void *ctx, int64_t task, int i) {
  if (task == 0 && SLOT(6)) clock_gettime(CLOCK_MONOTONIC, (struct timespec *)SLOT(6) + i);
}

static void team(void *ctx, int64_t task) {
  int64_t tasks = SLOT(0), n = N, lo = task * n / tasks, hi = (task + 1) * n / tasks;
  float *a = (float *)SLOT(4), *x = (float *)SLOT(8), *y = (float *)SLOT(10);
  const float *w = (const float *)SLOT(5);
  int32_t k = *(int32_t *)SLOT(9);
  enter();
  stamp(ctx, task, 0);
  if (NAP) usleep(NAP);
  for (int64_t i = lo; i < hi; i++) a[i] = x[i] * w[i] + k;
  barrier((void *)SLOT(1), tasks);
  stamp(ctx, task, 1);
  for (int64_t i = lo; i < hi; i++) y[i] = a[i] + a[n - 1 - i];
  barrier((void *)SLOT(1), tasks);
  stamp(ctx, task, 2);
  if (task == 0) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += y[i];
    *(float *)SLOT(11) = sum;
  }
  barrier((void *)SLOT(1), tasks);
  stamp(ctx, task, 3);
  atomic_fetch_sub(&inside, 1);
}

API int __tvm_ffi_run(void *self, const Any *args, int32_t count, Any *result) {
  void *ctx = (void *)args[0].value;
  for (int64_t k = 1; k < SLOT(0); k++) sem_post((sem_t *)(SLOT(2) + 64 * k));
  team(ctx, 0);
  return 0;
}

API int __tvm_ffi_serve(void *self, const Any *args, int32_t count, Any *result) {
  void *ctx = (void *)args[0].value;
  int64_t task = args[1].value;
  for (;;) {
    while (sem_wait((sem_t *)(SLOT(2) + 64 * task))) {}
    if (SLOT(3)) return 0;
    team(ctx, task);
  }
}

API int __tvm_ffi_peak(void *self, const Any *args, int32_t count, Any *result) {
  result->type = 1;
  result->value = atomic_load(&peak);
  return 0;
}
"""


@functools.cache
def toy_code(n: int = 1000, nap_us: int = 0) -> bytes:
    """The shared library, compiled by this machine's C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "the tests need a C compiler"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "toy.c"), Path(folder, "toy.so")
        source.write_text(SOURCE)
        flags = ["-O2", "-shared", "-fPIC", f"-DN={n}", f"-DNAP={nap_us}"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        return library.read_bytes()


def toy_plan(n: int = 1000, threads: int = 2, *, serial: bool = False) -> Plan:
    """The plan of the program; `serial` declares all calls too small to share."""
    size = 4 * n
    buffers = (
        Buffer("input", 0, size),
        Buffer("input", 1, 4),
        Buffer("weight", 0, size),
        Buffer("arena", 0, size),
        Buffer("output", 0, size),
        Buffer("output", 1, 4),
    )
    calls = (
        Call("scale#0", "scale", (0, 1, 2, 3), ("Mul_0", "Add_1"), serial, 2.0 * n, 3.0 * size),
        Call("mirror#0", "mirror", (3, 4), ("Add_2",), serial, 1.0 * n, 2.0 * size),
        Call("sum#0", "sum", (4, 5), ("Sum_3",), True, 1.0 * n, 1.0 * size),
    )
    return Plan(
        inputs=(TensorSpec("x", "float32", (n,)), TensorSpec("k", "int32", ())),
        outputs=(TensorSpec("y", "float32", (n,)), TensorSpec("s", "float32", (1,))),
        buffers=buffers,
        calls=calls,
        arena_bytes=size,
        weight_bytes=size,
        threads=threads,
    )


def toy_weights(n: int = 1000) -> Any:
    """w as aligned bytes: uint8 [4 n]."""
    weights = aligned_empty((4 * n,), np.dtype(np.uint8), 4 * n)
    weights.view(np.float32)[:] = np.arange(n) % 5 - 2
    return weights


def toy_inputs(seed: int, n: int = 1000) -> dict[str, Any]:
    """Small integers, so that every result is exact."""
    x = np.random.default_rng(seed).integers(-8, 9, n).astype(np.float32)
    return {"x": x, "k": np.array(seed % 7, np.int32)}


def toy_expected(inputs: dict[str, Any], n: int = 1000) -> dict[str, Any]:
    """y and s by NumPy."""
    a = inputs["x"] * toy_weights(n).view(np.float32) + inputs["k"].astype(np.float32)
    y = a + a[::-1]
    return {"y": y, "s": y.sum(keepdims=True)}
