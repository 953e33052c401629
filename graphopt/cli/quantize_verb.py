"""graphopt quantize: calls graphopt.quantize() and shows its report."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

import graphopt
from graphopt.cli import options
from graphopt.cli.render import seconds, size
from graphopt.errors import OptionError

if TYPE_CHECKING:
    from graphopt.cli.verbs import Screen
    from graphopt.compression.quantization.images import ImagePreprocessing
    from graphopt.compression.quantization.report import QuantizationReport

SHOWN = 15
"""Layers in the table on a terminal, the costliest first."""


def quantize(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt quantize"""
    path = options.writable(args.output)
    if path.exists() and Path(args.model).exists() and path.samefile(args.model):
        raise OptionError("options", f"'{path}' is the model itself.", hint="name another file.")
    report = options.writable(args.report) if args.report else None
    if report is not None and report.suffix.lower() not in (".html", ".json"):
        raise OptionError("options", f"--report '{report}' is neither .html nor .json.")
    with screen.busy(f"quantizing {args.model}"):
        result = graphopt.quantize(
            args.model,
            args.calibration,
            args.preset,
            images=_images(args),
            shapes=options.one_specialisation(args.shape),
            constants=options.one_specialisation(args.constant, "--constant"),
            threads=args.threads,
            **_given(args),
        )
        result.save(path)
    if report is not None:
        result.save_report(report)
    for warning in result.report.warnings:
        screen.err.print(f"warning: {warning}", markup=False)
    shown = {"output": str(path), **result.report.to_dict()}
    note = f"wrote {path} ({size(path.stat().st_size)})"
    screen.show(shown, Text(result.report.headline), *tables(result.report), note)
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of QuantizationConfig that the user gave."""
    names = [field.name for field in fields(graphopt.QuantizationConfig)]
    given = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _images(args: argparse.Namespace) -> ImagePreprocessing | None:
    names = ("mean", "std", "size", "color", "layout", "crop")
    given = {name: getattr(args, f"image_{name}") for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return graphopt.ImagePreprocessing(**given) if given else None


def tables(report: QuantizationReport) -> list[Table | Text]:
    """The report for a terminal: a summary, the costliest layers, what stays in float."""
    from graphopt.compression.quantization.html import changed_options
    from graphopt.compression.quantization.report import decibel

    summary = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in report.outputs.items():
        summary.add_row(Text(f"output {name}"), decibel(value))
    summary.add_row("constants", f"{size(report.bytes_before)} → {size(report.bytes_after)}")
    if report.seconds_before is not None and report.seconds_after is not None:
        before, after = seconds(report.seconds_before), seconds(report.seconds_after)
        summary.add_row("time per run", f"{before} → {after}")
    summary.add_row("calibration", Text(f"{report.data}, {report.batches} batches"))
    summary.add_row("options", Text(changed_options(report.config)))
    for tool in report.tools:
        gain = f"{decibel(tool.before)} → {decibel(tool.after)}"
        summary.add_row(Text(tool.tool), Text(f"{gain}  {tool.note}"))
    ranked = sorted(
        report.layers, key=lambda row: float("inf") if row.effect is None else row.effect
    )
    layers = Table(title=f"the costliest of {len(ranked)} layers")
    for heading in ("layer", "operator", "bits", "weights", "output", "alone"):
        layers.add_column(heading, justify="left" if heading in ("layer", "operator") else "right")
    for row in ranked[:SHOWN]:
        bits = "" if row.bits is None else str(row.bits)
        found = (decibel(value) for value in (row.weight_sqnr, row.output_sqnr, row.effect))
        layers.add_row(Text(row.node), row.op, bits, *found)
    shown: list[Table | Text] = [summary, layers]
    if report.floats:
        reasons: dict[tuple[str, str], int] = {}
        for kept in report.floats:
            reasons[kept.op, kept.reason] = reasons.get((kept.op, kept.reason), 0) + 1
        lines = [f"in float: {n} × {op}: {why}" for (op, why), n in reasons.items()]
        shown.append(Text("\n".join(lines), "dim"))
    return shown
