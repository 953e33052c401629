"""What a pass is, and the runner that checks, times, counts and records what passes do."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tvm import relax

from graphopt.errors import CompileError, GraphoptError, last_line
from graphopt.ir import Graph

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A place where a pass's pattern was found and its check said no.

    site: name of the binding the pattern ends in; nodes: ids of its ONNX nodes.
    """

    rule: str
    reason: str
    site: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What one run of a pass gives: the new graph, how often it fired, where it would not."""

    graph: Graph
    rewrites: int
    refusals: tuple[Refused, ...] = ()


@dataclass(frozen=True)
class PassReport:
    """One line of the compilation report. `bindings_*` count main's bindings."""

    name: str
    rewrites: int
    refusals: tuple[Refused, ...]
    seconds: float
    bindings_before: int
    bindings_after: int


class Pass(Protocol):
    """A frozen dataclass whose fields are the pass's options."""

    @property
    def name(self) -> str:
        """The pass's name in reports, errors and dumps."""
        ...

    def run(self, graph: Graph) -> Outcome:
        """Return the rewritten graph; the input graph is left as it is."""
        ...


def bindings_of(graph: Graph) -> list[Any]:
    """All bindings of main, in order."""
    return [b for block in graph.module["main"].body.blocks for b in block.bindings]


def verify_graph(graph: Graph) -> None:
    """Check the invariants stated in graphopt.ir.Graph; raises ValueError saying what is broken."""
    relax.analysis.well_formed(graph.module)
    function = graph.module["main"]
    blocks = function.body.blocks
    if len(blocks) > 1 or (blocks and not isinstance(blocks[0], relax.DataflowBlock)):
        raise ValueError("main is not one dataflow block")
    names = {param.name for param in function.params}
    if len(names) != len(function.params):
        raise ValueError("two parameters share a name")
    for binding in bindings_of(graph):
        name = binding.var.name
        if name in names:
            raise ValueError(f"the name {name} is bound twice")
        names.add(name)
        if name not in graph.sites and not isinstance(binding.value, relax.Tuple):
            raise ValueError(f"{name} has lost its ONNX nodes")


def run_pipeline(
    graph: Graph, passes: Sequence[Pass], dump_dir: Path | None = None
) -> tuple[Graph, tuple[PassReport, ...]]:
    """Run `passes` in order; returns the final graph and one report per pass.

    The graph is verified before the first pass and after every pass that changed it. With
    `dump_dir`, the IR after each pass that changed something is written there as
    NN_name.py (00_input.py is what came in); weights are left out of the text.

    Raises:
        CompileError: a pass failed or left a broken graph; its stage is the pass's name.
    """
    with _Verifier() as verifier:
        return _run(graph, passes, dump_dir, verifier)


def _run(
    graph: Graph, passes: Sequence[Pass], dump_dir: Path | None, verifier: _Verifier
) -> tuple[Graph, tuple[PassReport, ...]]:
    verifier.check(graph, "passes")
    if dump_dir is not None:
        dump_dir.mkdir(parents=True, exist_ok=True)
        _dump(graph, dump_dir / "00_input.py")
    reports: list[PassReport] = []
    for index, step in enumerate(passes, start=1):
        before = len(bindings_of(graph))
        started = time.perf_counter()
        try:
            outcome = step.run(graph)
        except Exception as error:
            verifier.wait()  # the cause may be what an earlier pass left behind
            if isinstance(error, GraphoptError):
                raise
            raise CompileError(step.name, f"The pass failed: {last_line(error)}") from error
        if outcome.rewrites:
            graph = outcome.graph
            verifier.check(graph, step.name)
        report = PassReport(
            name=step.name,
            rewrites=outcome.rewrites,
            refusals=outcome.refusals,
            seconds=time.perf_counter() - started,
            bindings_before=before,
            bindings_after=len(bindings_of(graph)),
        )
        logger.debug("%s: %d rewrites in %.3f s", report.name, report.rewrites, report.seconds)
        reports.append(report)
        if dump_dir is not None and outcome.rewrites:
            _dump(graph, dump_dir / f"{index:02d}_{step.name}.py")
    verifier.wait()
    return graph, tuple(reports)


class _Verifier:
    """Verifies graphs in a thread: the next pass need not wait, as no pass changes its input."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "graphopt-verify")
        self._checks: list[tuple[str, Future[None]]] = []

    def __enter__(self) -> _Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def check(self, graph: Graph, stage: str) -> None:
        """Begin to verify what `stage` made."""
        self._checks.append((stage, self._thread.submit(verify_graph, graph)))

    def wait(self) -> None:
        """Wait for all checks; CompileError naming the first stage whose graph is broken."""
        for stage, check in self._checks:
            try:
                check.result()
            except Exception as error:
                reason = f"The graph is not well-formed: {last_line(error)}"
                raise CompileError(stage, reason) from error


def _dump(graph: Graph, path: Path) -> None:
    path.write_text(graph.module.script(show_meta=False) + "\n", encoding="utf-8")
