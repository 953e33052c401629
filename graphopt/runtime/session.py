"""Session: runs one compiled program, from any number of threads, with so many workers."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.codegen.plan import Plan, TensorSpec
from graphopt.errors import GraphoptError, OptionError
from graphopt.runtime.binding import Arrays, InputBinder, OutputBinder, deliver
from graphopt.runtime.crew import Crew, Program, Turn
from graphopt.runtime.memory import ALIGNMENT, address
from graphopt.runtime.profiler import Meter, Profile, Stopwatch, summarise
from graphopt.runtime.workers import Workers, call_if_alive

log = logging.getLogger(__name__)


class Session:
    """A program that is ready to run.

    Safe to use from several threads: all runs together occupy at most `threads` workers, the
    calling threads included. A lone run is shared by the whole team; when callers queue, each
    run takes one worker. Results do not depend on which. A forked child gets a team of its own.
    Sessions may share their workers: then the bound holds for all of them together.
    """

    def __init__(
        self,
        plan: Plan,
        module: Any,
        weights: NDArray[np.uint8],
        threads: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Prepare to run `plan`.

        Args:
            module: exports the packed functions `run(ctx)` and `serve(ctx, task_id)`, see
                codegen/abi.py.
            weights: uint8 [plan.weight_bytes], 64-byte aligned; borrowed and never written.
            threads: workers of all runs together; those the program was compiled for by default,
                and never more than that.
            workers: shared with other sessions, in place of `threads`.

        Raises:
            OptionError: threads < 1.
            GraphoptError: the weights are too few or not aligned.
        """
        if workers is None:
            workers = _own_workers(plan.threads, threads)
        aligned = not plan.weight_bytes or address(weights) % ALIGNMENT == 0
        if weights.nbytes < plan.weight_bytes or not aligned:
            raise GraphoptError(
                "run",
                f"weights of {weights.nbytes} bytes at {address(weights):#x}; "
                f"{plan.weight_bytes} bytes aligned to {ALIGNMENT} are needed.",
            )
        self.plan = plan
        self.threads = min(workers.limit, plan.threads)
        self._inputs = InputBinder(plan.inputs)
        self._outputs = OutputBinder(plan.outputs)
        self._program = Program(plan, module, weights)
        self._workers = workers
        self._crew = Crew(self._program, workers)
        # Registered after the workers' own hook, so they are new when this is called.
        os.register_at_fork(after_in_child=call_if_alive(weakref.WeakMethod(self._renew)))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each input."""
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each output."""
        return self.plan.outputs

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]] | NDArray[Any],
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run the program once.

        Args:
            inputs: an array per input name, or one array if there is one input. C-contiguous
                arrays aligned to 64 bytes are read where they are, others are copied.
            out: arrays to write results into, by output name; any subset of the outputs. They may
                overlap inputs, not each other.

        Returns:
            an array per output name: those of `out`, and new ones that nothing else refers to.

        Raises:
            InputError: a name, shape, element type or byte order is wrong (all are listed).
            GraphoptError: the session is closed, or there is no memory for a workspace.
        """
        arrays = self._inputs.check(inputs)
        mine = self._outputs.check(out) if out is not None else {}
        results, written = self._outputs.arrays(mine)
        crew = self._crew
        turn = Turn(crew.claim)
        try:
            job = crew.enter(turn)
            read = self._inputs.addresses(arrays, job.workspace, mine)
            job.run(read + written)
        finally:
            crew.leave(turn)
        return deliver(results, mine) if mine else results

    def call(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]] | None:
        """As `run`, in the order of inputs and outputs; None where the arrays do not fit."""
        if not self._inputs.fit(arrays):
            return None
        results, written = self._outputs.fresh()
        crew = self._crew
        turn = Turn(crew.claim)
        try:
            job = crew.enter(turn)
            job.run(self._inputs.places(arrays, job.workspace) + written)
        finally:
            crew.leave(turn)
        return results

    def profile(
        self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any], repeats: int = 20
    ) -> Profile:
        """Time every kernel call of the program.

        Args:
            inputs: as for `run`.
            repeats: runs to measure, after one that is not counted.

        Raises:
            InputError: the inputs do not fit.
            OptionError: repeats < 1.
        """
        if repeats < 1:
            raise OptionError("profile", f"repeats is {repeats}; at least 1 is needed.")
        arrays = self._inputs.check(inputs)
        watches = [self._timed(arrays)[1] for _ in range(repeats + 1)]
        return summarise(self.plan, watches[1:])

    def metered(self, inputs: Mapping[str, NDArray[Any]], meter: Meter) -> Arrays:
        """As `run`, with the times of the kernel calls noted in `meter`."""
        results, watch = self._timed(self._inputs.check(inputs))
        meter.add(self.plan, watch.calls)
        return results

    def _timed(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[Arrays, Stopwatch]:
        watch = Stopwatch(len(self.plan.calls))
        results, written = self._outputs.arrays({})
        crew = self._crew
        turn = Turn(crew.claim)
        try:
            watch.start()
            job = crew.enter(turn)
            read = self._inputs.addresses(arrays, job.workspace, {})
            job.run(read + written, watch)
        finally:
            crew.leave(turn)
            watch.stop()
        return results, watch

    def close(self) -> None:
        """Stop the workers, after runs that are under way; later runs raise GraphoptError.

        Sessions that share the workers are closed too.
        """
        self._workers.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _renew(self) -> None:
        """In a forked child: other threads of the parent keep what they had of the crew's."""
        self._crew = Crew(self._program, self._workers)


def _own_workers(compiled: int, wanted: int | None) -> Workers:
    wanted = compiled if wanted is None else wanted
    if wanted < 1:
        raise OptionError("run", f"threads is {wanted}; at least 1 is needed.")
    if wanted != compiled:
        log.warning(
            "the program was compiled and tuned for %d threads; it runs with %d",
            *(compiled, min(wanted, compiled)),
        )
    return Workers(min(wanted, compiled))
