"""What benchmarks/quantization_accuracy.py found, as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paired import Difference


def table(name: str, found: Mapping[str, Any]) -> str:
    """Markdown: one line per quantizer."""
    lines = [
        f"**{name}**: {found['decisions']} {found['unit']} in {found['samples']} samples, "
        f"{found['seeds']} seeds; float32 errs in {found['float32']:.2f} %.",
        "",
        "| quantizer | errors, % | drop, points | changed, % | graphopt less it, points "
        "| products in integers | of the MACs | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for quantizer, row in found["rows"].items():
        drop = Difference(**row["drop"])
        versus = row.get("graphopt less it")
        lines.append(
            f"| {quantizer} | {row['errors']:.2f} | {_interval(drop)} | {row['changed']:.2f} "
            f"| {_interval(Difference(**versus)) if versus else ''} "
            f"| {row['quantized']} of {row['products']} | {row['of_macs']:.0%} "
            f"| {row['seconds to quantize']:.0f} |"
        )
    lines += [f"| {each} | failed: {why} |" for each, why in found["failures"].items()]
    return "\n".join(lines)


def _interval(value: Difference) -> str:
    return f"{value.mean:+.2f} ({value.low:+.2f} … {value.high:+.2f})"
