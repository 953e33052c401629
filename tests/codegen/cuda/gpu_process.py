"""A process with an NVIDIA GPU in it: an emulated one, or this machine's.

A process has one CUDA runtime, and other tests want none: so what needs a GPU runs elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

sys.path.insert(0, str(Path(__file__).parent / "emulation"))
import toolkit

P = ParamSpec("P")
R = TypeVar("R")

ORDERS = ("forward", "reverse", "1")
"""In which threads and blocks run; the last is the seed of a random one."""


class Gpu:
    """Calls functions where there is a GPU; they and their arguments are pickled."""

    def __init__(self, emulated: Path | None) -> None:
        """Args:
        emulated: the folder of the emulated toolkit; None for this machine's GPU.
        """
        self.emulated = emulated is not None
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _start, (emulated,))

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns there, with threads in their natural order."""
        return self.ordered("forward", function, *args, **kwargs)

    def ordered(self, order: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same with threads in another order, where the GPU is emulated."""
        return self._pool.submit(_run, order, function, args, kwargs).result(300)

    @property
    def orders(self) -> tuple[str, ...]:
        """The orders that there are: one, where we cannot choose."""
        return ORDERS if self.emulated else ORDERS[:1]

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _start(emulated: Path | None) -> None:
    if emulated is not None:
        os.environ["PATH"] = f"{emulated / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ.pop("CUDA_HOME", None)
        os.environ.pop("CUDA_PATH", None)
        toolkit.load(emulated)
    from graphopt.runtime.cuda import open_runtime

    open_runtime()


def _run(order: str, function: Callable[..., R], args: Any, kwargs: Any) -> R:
    os.environ["EMULATED_ORDER"] = order
    try:
        return function(*args, **kwargs)
    except Exception as error:  # not all of them can be pickled
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
