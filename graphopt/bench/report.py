"""Comparisons as a table, as JSON and as one line per peer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from graphopt.bench.result import EngineResult, Row, Spread, geometric_mean


def _milliseconds(result: EngineResult) -> str:
    return "–" if math.isnan(result.latency) else f"{result.latency * 1e3:.3g}"


def _ratio(spread: Spread | None) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})" if spread else "–"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.0f}" if count else "–"


def ratio_table(rows: Sequence[Row], peers: Sequence[str], subject: str = "graphopt") -> Table:
    """One line per model: latencies in ms, paired ratios (median and quartiles), error, memory."""
    table = Table(title=f"latency of {subject} ÷ peer (below 1: {subject} is faster)")
    table.add_column("model")
    for heading in (f"{subject} ms", *(f"{peer} ms" for peer in peers)):
        table.add_column(heading, justify="right")
    beside = list(dict.fromkeys(engine.name for row in rows for engine in row.beside))
    for engine in (*peers, *beside):
        table.add_column(f"÷ {engine}", justify="right")
    for heading in ("error", "compile s", "compile MB", "run MB"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        ratios = row.ratios
        compile_seconds = row.subject.compile_seconds
        table.add_row(
            row.model,
            _milliseconds(row.subject),
            *(_milliseconds(peer) for peer in row.peers),
            *(_ratio(ratios.get(peer)) for peer in peers),
            *(_ratio(row.ratios_beside.get(engine)) for engine in beside),
            "–" if math.isnan(row.subject.error) else f"{row.subject.error:.1e}",
            "–" if math.isnan(compile_seconds) else f"{compile_seconds:.1f}",
            _megabytes(row.subject.compile_peak_bytes),
            "/".join(_megabytes(r.run_peak_bytes) for r in (row.subject, *row.peers)),
            Text("ok", "green") if row.ok else Text("FAILED", "red"),
        )
    return table


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """Geometric mean of the median ratios to each peer and to the fastest, over good rows."""
    good = [row for row in rows if row.ok]
    peers = list(dict.fromkeys(name for row in good for name in row.ratios))
    means = {
        peer: geometric_mean(row.ratios[peer].median for row in good if peer in row.ratios)
        for peer in peers
    }
    if peers:
        means["fastest"] = geometric_mean(row.ratio_to_fastest for row in good)
    return means


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that was measured, as plain values; a nan becomes null."""
    return {
        "rows": [
            {
                **_plain(asdict(row)),
                "ok": row.ok,
                "ratios": {peer: asdict(spread) for peer, spread in row.ratios.items()},
                "ratios_beside": {name: asdict(each) for name, each in row.ratios_beside.items()},
                "ratio_to_fastest": _plain(row.ratio_to_fastest),
            }
            for row in rows
        ],
        "geometric_mean": _plain(summarise(rows)),
        "failed": [row.model for row in rows if not row.ok],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
