"""The memory that a program and its caller share: slots of `ctx` and their strides.

`ctx` is an array of 16-byte slots whose second 8 bytes hold the value (TVM's TVMFFIAny, because
TIR can read that and no other array of pointers). Imported by the runtime: nothing of TVM here.
"""

from __future__ import annotations

SLOT_BYTES = 16
VALUE_OFFSET = 8

NUM_TASKS = 0  # int64: workers of this run
BARRIER = 1  # int64*: grows for ever; in a cache line of its own
SEMAPHORES = 2  # sem_t[], SEMAPHORE_STRIDE apart: worker k waits on the k-th
STOP = 3  # int64: not 0 tells a woken worker to return
ARENA = 4  # the workspace
WEIGHTS = 5
TIMESTAMPS = 6  # struct timespec[]: at the start and after each call; null when not profiling
SOLO_BARRIER = 7  # int64*: the barrier of kernels that one worker runs alone
FIRST_IO = 8  # inputs, then outputs

SEMAPHORE_STRIDE = 64
TIMESPEC_BYTES = 16
