"""The verb `logs`: each action calls one function and shows what it returns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from graphopt.cli import options, render
from graphopt.cli.verbs import OK, Screen

if TYPE_CHECKING:
    from graphopt.tuning.archive import Added, TargetSummary


def logs(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt logs"""
    return _ACTIONS[args.action](args, screen)


def _list(args: argparse.Namespace, screen: Screen) -> int:
    from graphopt.tuning.archive import summarise

    with screen.busy(f"reading {args.log}"):
        found = summarise(Path(args.log))
    result = {"log": args.log, "targets": [asdict(summary) for summary in found]}
    # One table for each target: keys are long, and there are few.
    screen.show(result, *map(_summary, found), *([] if found else ["there are no records"]))
    return OK


def _merge(args: argparse.Namespace, screen: Screen) -> int:
    from graphopt.tuning.archive import merge

    with screen.busy(f"merging into {args.into}"):
        added = merge([Path(each) for each in args.logs], Path(args.into))
    _show_added(screen, args.into, added)
    return OK


def _prune(args: argparse.Namespace, screen: Screen) -> int:
    from importlib.metadata import version

    from graphopt.tuning.prune import BEST, Versions, prune
    from schedules.space import VERSION

    only = Versions(version("apache-tvm"), VERSION) if args.current else None
    with screen.busy(f"pruning {args.log}"):
        done = prune(Path(args.log), args.keep or BEST, failures=args.keep_failures, only=only)
    notes = _notes(
        (done.damaged, "lines dropped that are no records"),
        (done.newer, "lines kept that a later version of graphopt wrote"),
    )
    sizes = f"{render.size(done.bytes_before)}, now {render.size(done.bytes_after)}"
    text = f"{done.kept} records kept, {done.dropped} dropped{notes}; {sizes}"
    screen.show({"log": args.log, **asdict(done)}, text)
    return OK


def _export(args: argparse.Namespace, screen: Screen) -> int:
    from graphopt.tuning.archive import export

    path = options.writable(args.output)
    with screen.busy(f"exporting {args.log}"):
        done = export(Path(args.log), path, args.target)
    notes = _notes((done.skipped, "lines skipped that are no records"))
    text = f"wrote {done.records} records of {done.targets} targets{notes}: "
    screen.show(
        {"log": args.log, "output": str(path), **asdict(done)},
        Text(f"{text}{path} ({render.size(done.nbytes)})"),
    )
    return OK


def _import(args: argparse.Namespace, screen: Screen) -> int:
    from graphopt.tuning.archive import import_file

    with screen.busy(f"importing {args.file}"):
        added = import_file(Path(args.file), Path(args.into))
    _show_added(screen, args.into, added)
    return OK


_ACTIONS = {
    "list": _list,
    "merge": _merge,
    "prune": _prune,
    "export": _export,
    "import": _import,
}


def _show_added(screen: Screen, into: str, added: Added) -> None:
    notes = _notes((added.skipped, "lines skipped that are no records"))
    text = f"{added.added} records added to {into}, {added.present} were there already{notes}"
    screen.show({"into": into, **asdict(added)}, Text(text))


def _notes(*counts: tuple[int, str]) -> str:
    return "".join(f", {count} {what}" for count, what in counts if count)


def _summary(found: TargetSummary) -> Table:
    table = Table(title=Text(found.target), title_justify="left", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    failed = "".join(f", {count} {kind}" for kind, count in found.failed.items())
    table.add_row("records", f"{found.records}: {found.ok} ok{failed}")
    table.add_row("workloads", f"{found.workloads}, {found.kernels} kernels")
    table.add_row("size", render.size(found.nbytes))
    table.add_row("measured", _span([found.first, found.last]))
    if found.skipped:
        table.add_row("skipped", f"{found.skipped} lines that are no records")
    return table


def _span(times: Sequence[float | None]) -> str:
    days = [time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) for when in times if when]
    return " to ".join(dict.fromkeys(days)) or "at an unknown time"
