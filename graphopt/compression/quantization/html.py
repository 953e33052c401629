"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from html import escape

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.report import (
    LayerRow,
    QuantizationReport,
    TensorRow,
    decibel,
)
from graphopt.compression.quantization.svg import histogram, sqnr_plot

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
  color: #1d2433; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.headline { font-size: 1.1rem; padding: .8rem 1rem; background: #fff4e0;
  border-left: 4px solid #d97706; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; } th, td { padding: .25rem .6rem;
  text-align: left; border-bottom: 1px solid #e3e6ec; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg text { font-size: 11px; fill: #5b6477; } .grid { stroke: #e3e6ec; }
.bar { fill: #9db7e0; } .line { fill: none; stroke: #b4442f; stroke-width: 1.5; }
.dot { fill: #b4442f; } .edge { stroke: #b4442f; stroke-width: 1.5; }
.worst td { background: #fff4e0; } .note { color: #5b6477; }
"""


def to_html(report: QuantizationReport) -> str:
    """The page. Names of nodes and tensors may be anything: all text is escaped."""
    parts = [
        "<h1>Quantization report</h1>",
        f'<p class="headline">{escape(report.headline)}</p>',
        *(f'<p class="note">{escape(warning)}</p>' for warning in report.warnings),
        _summary(report),
        _tools(report),
        "<h2>Accuracy through the network</h2>",
        '<p class="note">Line: SQNR of each layer\'s output, all before it quantized. Bars: of the '
        "model's outputs with that layer alone quantized. Higher is better.</p>",
        sqnr_plot(
            [row.node for row in report.layers],
            [row.output_sqnr for row in report.layers],
            [row.effect for row in report.layers],
        ),
        "<h2>Layers</h2>",
        _layers(report),
        "<h2>Tensors in 8 bits</h2>",
        '<p class="note">Histograms are logarithmic; the red lines mark the kept range.</p>',
        _tensors(report.tensors),
        "<h2>What stays in float</h2>",
        _table(
            ("node", "operator", "why"),
            [(row.node, row.op, row.reason) for row in report.floats],
        ),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Quantization report</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _summary(report: QuantizationReport) -> str:
    rows = [(f"output {name}", decibel(value)) for name, value in report.outputs.items()]
    rows.append(
        ("constants", f"{report.bytes_before / 1e6:.2f} MB → {report.bytes_after / 1e6:.2f} MB")
    )
    if report.seconds_before is not None and report.seconds_after is not None:
        before, after = report.seconds_before * 1e3, report.seconds_after * 1e3
        rows.append(("time per run", f"{before:.3g} ms → {after:.3g} ms"))
    rows.append(("calibration", f"{report.data}, {report.batches} batches"))
    rows.append(("compared on", f"{report.compared} batches"))
    rows.append(("options", changed_options(report.config)))
    return _table((), rows)


def changed_options(config: QuantizationConfig) -> str:
    """The options that differ from their defaults."""
    standard = asdict(QuantizationConfig())
    names = [field.name for field in fields(config)]
    values = asdict(config)
    found = [f"{n}={values[n]}" for n in names if values[n] != standard[n]]
    return ", ".join(found) or "defaults"


def _tools(report: QuantizationReport) -> str:
    if not report.tools:
        return ""
    rows = [(t.tool, decibel(t.before), decibel(t.after), t.note) for t in report.tools]
    return "<h2>Accuracy tools</h2>" + _table(("tool", "before", "after", "what it did"), rows)


def _layers(report: QuantizationReport) -> str:
    effects = [row.effect for row in report.layers if row.effect is not None]
    worst = min(effects, default=None)
    rows = [_layer(row) for row in report.layers]
    marks = [worst is not None and row.effect == worst for row in report.layers]
    heads = (
        "layer", "operator", "bits", "scale", "weights", "output", "alone", "reads", "with it",
    )  # fmt: skip
    return _table(heads, rows, marks)


def _layer(row: LayerRow) -> tuple[str, ...]:
    bits = "" if row.bits is None else str(row.bits)
    return (
        row.node,
        row.op,
        bits,
        _scales(row.scales),
        decibel(row.weight_sqnr) if row.bits is not None else "",
        decibel(row.output_sqnr),
        decibel(row.effect),
        ", ".join(row.reads),
        ", ".join(row.nodes[1:]),
    )


def _scales(scales: tuple[float, float] | None) -> str:
    if scales is None:
        return ""
    least, largest = (f"{scale:.3g}" for scale in scales)
    return least if least == largest else f"{least} to {largest}"


def _tensors(tensors: Sequence[TensorRow]) -> str:
    heads = ("tensor", "scale", "zero", "range", "seen", "clipped", "SQNR", "")
    cells = "".join(f"<th>{head}</th>" for head in heads)
    rows = []
    for row in tensors:
        values = (
            row.tensor,
            f"{row.scale:.4g}",
            str(row.zero),
            f"[{row.low:.4g}, {row.high:.4g}]",
            f"[{row.least:.4g}, {row.largest:.4g}]",
            f"{row.clipped:.2%}",
            decibel(row.sqnr),
        )
        plot = histogram(row.sketch, row.least, row.largest, row.low, row.high)
        rows.append(
            "<tr>" + "".join(f"<td>{escape(v)}</td>" for v in values) + f"<td>{plot}</td></tr>"
        )
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], marks: Sequence[bool] | None = None
) -> str:
    head = "<tr>" + "".join(f"<th>{escape(text)}</th>" for text in heads) + "</tr>" if heads else ""
    body = []
    for place, row in enumerate(rows):
        kind = ' class="worst"' if marks is not None and marks[place] else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in row)
        body.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="scroll"><table>{head}{"".join(body)}</table></div>'
