"""graphopt tune: the run as it goes, and its account."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import graphopt
from graphopt.cli import options
from graphopt.cli.render import seconds
from graphopt.errors import OptionError

if TYPE_CHECKING:
    from graphopt.cli.verbs import Screen
    from graphopt.tuning.outcome import Outcome, Progress

SHOWN = 12
"""Workloads that are shown while a run goes."""


def tune(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt tune"""
    plot = options.writable(args.plot) if args.plot else None
    if plot is not None:
        _require_matplotlib()
    with _live(screen.err, args.trials, args.time_limit) as watch:
        outcome = graphopt.tune(
            args.model,
            args.target,
            shapes=options.specialisations(args.shape),
            constants=options.specialisations(args.constant, "--constant"),
            threads=args.threads,
            trials=args.trials,
            log=args.log,
            time_limit=args.time_limit,
            target_latency=None if args.target_latency is None else args.target_latency / 1e3,
            fresh=args.fresh,
            numerics=args.numerics,
            max_weight_growth=args.max_weight_growth,
            rpc=args.rpc,
            watch=watch,
        )
    if plot is not None:
        _plot(outcome, plot)
    note = f"records are in {args.log}; compile with --tuning-log {args.log}"
    screen.show({"log": args.log, **outcome.to_dict()}, report(outcome), closing(outcome), note)
    return 0


def rpc_server(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt rpc-server"""
    from graphopt.tuning.measure.fleet import parse_address
    from graphopt.tuning.measure.rpc_server import serve

    tracker = parse_address(args.tracker)
    if tracker is None:
        raise OptionError("options", f"--tracker must be HOST:PORT, not {args.tracker!r}.")
    screen.err.print(f"serving '{args.key}' of {args.tracker}; end it with Ctrl-C")
    serve(tracker, args.key, args.host, args.port)
    return 0


@contextmanager
def _live(console: Console, trials: int, limit: float | None) -> Iterator[Any]:
    """Something to call with the progress; it is shown on a terminal only."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, transient=True) as live:
        yield lambda progress: live.update(progress_table(progress, trials, limit))


def progress_table(progress: Progress, trials: int, limit: float | None) -> Group:
    """The run so far."""
    table = Table(title=f"tuning: {progress.phase}")
    for name in ("workload", "uses", "kernel", "first", "best", "gain", "trials", "errors"):
        table.add_column(name, justify="left" if name in ("workload", "kernel") else "right")
    for row in progress.tasks[:SHOWN]:
        table.add_row(
            Text(row.workload),
            str(row.uses),
            Text(row.candidate),
            seconds(row.first),
            seconds(row.best),
            f"{row.first / max(row.best, 1e-12):.2f}×",
            str(row.trials),
            str(row.failed),
        )
    left = _left(progress, trials, limit)
    words = (
        f"{progress.trials} of {trials} trials ({progress.failed} failed) in "
        f"{progress.seconds:.0f} s, expected latency {seconds(progress.first_latency)} → "
        f"{seconds(progress.latency)}, {left}"
    )
    return Group(table, Text(words))


def _left(progress: Progress, trials: int, limit: float | None) -> str:
    estimates = []
    if progress.trials:
        estimates.append(progress.seconds / progress.trials * (trials - progress.trials))
    if limit is not None:
        estimates.append(limit - progress.seconds)
    return f"at most {max(0.0, min(estimates)):.0f} s left" if estimates else "starting"


def report(outcome: Outcome) -> Table:
    """What became of each workload."""
    table = Table(title=f"tuned for {outcome.target}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("workload and kernel", overflow="fold", ratio=1)
    for name in ("before", "after", "gain", "share", "trials", "from"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in outcome.rows:
        table.add_row(
            Text(f"{row.uses} × {row.workload}\n{row.candidate}"),
            seconds(row.before),
            seconds(row.after),
            f"{row.before / max(row.after, 1e-12):.2f}×",
            f"{row.share:.1%}",
            str(row.trials),
            row.origin,
        )
    return table


def closing(outcome: Outcome) -> str:
    """The run in one line."""
    return (
        f"{outcome.trials} trials in {outcome.seconds:.0f} s: {outcome.ok} kernels work, "
        f"{outcome.failed} failed. Expected latency {seconds(outcome.before)} → "
        f"{seconds(outcome.after)}. Ended because {outcome.reason}."
    )


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OptionError(
            "options", "--plot needs matplotlib.", hint="pip install 'graphopt[bench]'"
        ) from None


def _plot(outcome: Outcome, path: Path) -> None:
    """Latency over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    times = [at for at, _, _ in outcome.history]
    axes.step(times, [1e3 * latency for _, _, latency in outcome.history], where="post")
    axes.set_xlabel("seconds of tuning")
    axes.set_ylabel("expected latency (ms)")
    axes.set_title(f"{outcome.trials} trials on {outcome.target}, {time.strftime('%Y-%m-%d')}")
    axes.set_ylim(bottom=0)
    figure.savefig(path)
