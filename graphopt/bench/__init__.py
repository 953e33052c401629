"""Fair latency comparisons: engines in processes of their own, taking turns on the same inputs."""

from __future__ import annotations

from graphopt.bench.accuracy import output_errors, relative_error
from graphopt.bench.compare import CompileOptions, bench
from graphopt.bench.inputs import sample_inputs
from graphopt.bench.report import ratio_table, summarise, to_json
from graphopt.bench.result import EngineResult, Row, Spread, geometric_mean, paired_ratios

__all__ = [
    "CompileOptions",
    "EngineResult",
    "Row",
    "Spread",
    "bench",
    "geometric_mean",
    "output_errors",
    "paired_ratios",
    "ratio_table",
    "relative_error",
    "sample_inputs",
    "summarise",
    "to_json",
]
