"""Results as tables for people; the JSON forms come from the results themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from graphopt.cache import CacheEntry
    from graphopt.extensions import Extension
    from graphopt.frontend.diagnose import Tensor
    from graphopt.inspection import Inspection
    from graphopt.report import Report
    from graphopt.runtime.profiler import Profile
    from graphopt.verification import Verification


FLOATS = 5
"""Reasons for what stays in float that are shown; --json has all."""


def size(nbytes: float) -> str:
    """Bytes in words: "12.3 MB"."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def seconds(value: float) -> str:
    """A duration in words: "12.3 ms"."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def inspection(found: Inspection) -> list[Table | Text]:
    """What a model takes, gives and contains, and what of it would not compile."""
    table = plain_table()
    for role, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            table.add_row(role, Text(_tensor(tensor)))
    opsets = ", ".join(f"{name or 'ai.onnx'} {v}" for name, v in found.opsets.items())
    operators = ", ".join(f"{name} {count}" for name, count in found.histogram.items())
    table.add_row("opsets", Text(opsets))
    table.add_row("nodes", f"{found.original_nodes} in the file, {found.nodes} after preparation")
    table.add_row("operators", Text(operators))
    table.add_row("parameters", f"{found.parameters:,} ({size(found.parameter_bytes)})")
    if found.flops is not None:
        table.add_row("operations", f"{found.flops / 1e9:.3g} GFLOP")
    parts = [f"packed weights up to {size(found.packed_bytes)}"]
    if found.activation_bytes is not None:
        parts.append(f"activations about {size(found.activation_bytes)}")
    table.add_row("memory", ", ".join(parts))
    for name, places in found.dimensions.items():
        table.add_row("open dimension", Text(f"{name} in {', '.join(places)}"))
    rate = found.float_operations_per_cycle
    table.add_row("target", f"{found.target}, {rate} float32 operations per cycle and vector unit")
    for extension in found.extensions:
        table.add_row(*_extension(extension))
    for row in _forecast(found):
        table.add_row(*row)
    shown: list[Table | Text] = [table]
    if found.unbound:
        names = ", ".join(found.unbound)
        shown.append(Text(f"open shapes: {names}; give them with --shape NAME=1,…", "yellow"))
    shown += [Text(f"note: {note}", "yellow") for note in found.doubtful]
    if found.unsupported:
        bad = Table(title=f"{len(found.unsupported)} nodes would not import", style="red")
        for heading in ("node", "operator", "reason", "what to do"):
            bad.add_column(heading)
        for node in found.unsupported:
            operator = f"{node.domain or 'ai.onnx'} {node.opset}: {node.op_type}"
            bad.add_row(*map(Text, (node.node, operator, node.reason, node.hint or "")))
        shown.append(bad)
    else:
        shown.append(Text("every node would import", "green"))
    return shown


def _forecast(found: Inspection) -> Iterator[tuple[str, Text]]:
    """What int8 would gain: plainly a forecast."""
    if found.int8 is None:
        yield "int8 forecast", Text(f"none: {found.no_int8}", "dim")
        return
    int8 = found.int8
    yield (
        "int8 forecast",
        Text(
            f"{int8.least:.1f} to {int8.most:.1f} times as fast as float32 (foretold from the "
            f"instruction set, not measured); {int8.share:.0%} of the multiply-adds in integers"
        ),
    )
    yield "", Text(int8.way)
    for row in int8.floats[:FLOATS]:
        part = f" ({row.share:.0%} of the multiply-adds)" if row.share else ""
        yield "", Text(f"in float: {len(row.nodes)} × {row.op}{part}: {row.reason}", "dim")


def _extension(extension: Extension) -> tuple[Text, Text]:
    if not extension.present:
        return Text(f"no {extension.name}"), Text(extension.brings, "dim")
    unused = "" if extension.used else " (not used yet by this version)"
    return Text(extension.name), Text(f"{extension.brings}{unused}")


def _tensor(tensor: Tensor) -> str:
    if tensor.shape is None:
        return f"{tensor.name}: {tensor.dtype}[…]"
    dims = ", ".join("?" if dim is None else str(dim) for dim in tensor.shape)
    return f"{tensor.name}: {tensor.dtype}[{dims}]"


def report(account: Report) -> Table:
    """What a compilation did, in a few lines."""
    shapes = "  ".join(
        f"{n}={','.join(map(str, s))}"
        for n, s in account.shapes.items()
        if n not in account.constants
    )
    constants = "  ".join(f"{n}={value}" for n, value in account.constants.items())
    fired = {row.name: row.rewrites for row in account.passes if row.rewrites}
    origins = ", ".join(f"{count} {name}" for name, count in account.origins().items())
    table = plain_table()
    table.add_row("shapes", Text(shapes or "(none)"))
    if constants:
        table.add_row("constants", Text(constants))
    table.add_row("target", f"{account.target}, {account.threads} threads")
    table.add_row("ONNX nodes", str(account.nodes))
    table.add_row("operations", f"{account.operations} in {account.groups} groups after the passes")
    table.add_row("passes", Text(", ".join(f"{n} {c}" for n, c in fired.items()) or "none fired"))
    table.add_row("kernels", f"{account.kernels} distinct, {len(account.calls)} calls ({origins})")
    for reason, count in Counter(row.reason for row in account.floats).items():
        table.add_row("in floats", Text(f"{count} quantized operators: {reason}"))
    table.add_row("layout changes", str(account.layout_changes))
    table.add_row(
        "weights",
        f"{size(account.weight_bytes)} packed, {size(account.constant_bytes)} in the model",
    )
    table.add_row("workspace", size(account.arena_bytes))
    if account.seconds:
        spent = ", ".join(f"{stage} {seconds(s)}" for stage, s in account.seconds.items())
        table.add_row("time", spent)
    return table


def verification(result: Verification) -> Table:
    """The per-output error table."""
    table = Table(title=f"max|y − ref| / max|ref|, at most {result.tolerance:.0e}")
    table.add_column("output")
    table.add_column("type")
    table.add_column("error", justify="right")
    table.add_column("")
    for check in result.outputs:
        verdict = Text("ok", "green") if check.ok else Text("WRONG", "bold red")
        kind = f"{check.dtype}{list(check.shape)}"
        table.add_row(Text(check.name), Text(kind), f"{check.error:.2e}", verdict)
    return table


def profile(result: Profile, top: int | None = None) -> Table:
    """One line per call site, slowest first, and one for the time outside kernels."""
    table = Table(title=f"{seconds(result.total_seconds)} per run, mean of {result.repeats} runs")
    for heading in ("time", "share", "GFLOP/s", "GB/s"):
        table.add_column(heading, justify="right")
    table.add_column("kernel")
    table.add_column("ONNX nodes")
    rows = sorted(result.rows, key=lambda row: -row.seconds)
    for row in rows[:top]:
        table.add_row(
            seconds(row.seconds),
            f"{row.share:.1%}",
            _rate(row.flops, row.seconds),
            _rate(row.bytes, row.seconds),
            Text(row.kernel),
            Text(", ".join(row.nodes)),
        )
    if top is not None and len(rows) > top:
        rest = sum(row.seconds for row in rows[top:])
        share = sum(row.share for row in rows[top:])
        table.add_row(seconds(rest), f"{share:.1%}", "", "", f"{len(rows) - top} others", "")
    outside = result.outside_seconds
    share = outside / result.total_seconds if result.total_seconds else 0.0
    table.add_row(seconds(outside), f"{share:.1%}", "", "", "outside kernels", "")
    return table


def profile_json(result: Profile) -> dict[str, Any]:
    """A profile as plain values; times in seconds."""
    return asdict(result)


def cache(entries: Sequence[CacheEntry], folder: str, limit: int) -> Table:
    """What the compile cache holds."""
    table = plain_table()
    table.add_row("folder", Text(folder))
    table.add_row("entries", str(len(entries)))
    table.add_row("size", f"{size(sum(entry.nbytes for entry in entries))} of {size(limit)}")
    return table


def arrays(values: Mapping[str, Any]) -> Table:
    """Names, types and ranges of arrays."""
    table = Table()
    for heading in ("output", "type", "min", "mean", "max"):
        table.add_column(heading, justify="left" if heading in ("output", "type") else "right")
    for name, array in values.items():
        wide = array.astype("float64") if array.size else array
        figures = (wide.min(), wide.mean(), wide.max()) if array.size else (math.nan,) * 3
        kind = f"{array.dtype}{list(array.shape)}"
        table.add_row(Text(name), Text(kind), *(f"{figure:.4g}" for figure in figures))
    return table


def _rate(amount: float, duration: float) -> str:
    return f"{amount / duration / 1e9:.1f}" if amount and duration > 0 else ""


def plain_table() -> Table:
    """Names and values without lines."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table
