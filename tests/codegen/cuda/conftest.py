"""The GPU that tests run on: emulated, or this machine's for `make test-gpu`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from gpu_process import Gpu, toolkit

from graphopt.runtime.cuda import probe

REAL = "GRAPHOPT_TEST_GPU"
"""Set by `make test-gpu`."""


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpu]:
    """What runs CUDA programs."""
    folder = None
    if os.environ.get(REAL):
        if probe() is None:
            pytest.skip("this machine has no NVIDIA GPU with a driver")
    else:
        if shutil.which("g++") is None:
            pytest.skip("the emulated GPU needs g++")
        folder = tmp_path_factory.mktemp("emulated")
        toolkit.install(folder)
    process = Gpu(folder)
    yield process
    process.close()


@pytest.fixture(scope="session")
def emulated(gpu: Gpu) -> Gpu:
    """The emulated GPU, for tests of what only it can tell."""
    if not gpu.emulated:
        pytest.skip("on a real GPU nobody sees races or chooses the order of threads")
    return gpu
