"""What int8 would gain on a target, foretold from its instruction set before anything is quantized.

The model is quantized with made-up scales, which decide no kernel, and both forms are priced as the
compiler prices them when it chooses kernels: by the static table, without compiling or measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from graphopt.compiler import pose_model
from graphopt.compression.quantization.apply import apply
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.pipeline import float_form
from graphopt.compression.quantization.placement import Placement, place
from graphopt.compression.quantization.planning import make_plan
from graphopt.compression.quantization.statistics import gather
from graphopt.config import CompileConfig
from graphopt.errors import GraphoptError
from graphopt.frontend.diagnose import node_flops
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.partition import needs_host
from graphopt.frontend.shapes import static_shape
from graphopt.lowering.choose import Assignment
from schedules.interface import TargetTraits

SPREAD = 1.6
"""How far the table may be off, either way: benchmarks/int8_forecast.py checks it."""

_MAX_ELEMENTS = 1 << 28
"""Of the weights: all are quantized, which takes several times their size."""


@dataclass(frozen=True)
class InFloat:
    """Nodes that would stay in float for one reason; their share of the multiply-adds, 0 … 1."""

    op: str
    reason: str
    nodes: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Forecast:
    """What quantize() with its defaults would gain, foretold and not measured.

    Attributes:
        way: how the target multiplies bytes.
        share: of the model's multiply-adds, how much would become integer kernels, 0 … 1.
        least, most: the whole model is expected to become this many times faster.
        floats: what would stay in float.
    """

    way: str
    share: float
    least: float
    most: float
    floats: tuple[InFloat, ...]


def forecast(
    model: OnnxModel,
    config: CompileConfig,
    shapes: Mapping[str, Sequence[int]] | None,
    constants: Mapping[str, Array] | None,
) -> Forecast | str:
    """The forecast for a loaded model, or why there is none."""
    elements = sum(prod(weight.dims) for weight in model.proto.graph.initializer)
    if elements > _MAX_ELEMENTS:
        return f"{elements / 1e9:.1f} billion weights are too many to look at without compiling"
    wanted = QuantizationConfig(method="min-max")
    try:
        prepared, base = float_form(model, wanted, shapes, constants)
        if needs_host(prepared):
            return "shapes or branches depend on data: parts of the model are compiled at run time"
        graph = Graph(base)
        placement = place(graph, wanted)
        ends = {name: np.array([-1.0, 1.0], np.float32) for name in placement.tensors}
        plan = make_plan(graph, placement, gather([ends], placement.tensors, {}), wanted)
        seconds = [_seconds(each, config) for each in (prepared, apply(base, plan))]
    except GraphoptError as error:
        return error.reason
    gain = seconds[0] / seconds[1]
    total, inside = _operations(graph, placement)
    return Forecast(
        way=way(config.target.traits(config.threads)),
        share=inside / total if total else 0.0,
        least=gain / SPREAD,
        most=gain * SPREAD,
        floats=_floats(graph, placement, total),
    )


def way(traits: TargetTraits) -> str:
    """How a target multiplies bytes, in words."""
    bits = 8 * traits.vector_bytes
    if traits.amx:
        return "AMX: tiles of bytes, 16 × 16 sums of 64 products per instruction"
    if traits.vnni:
        return f"VNNI: {traits.vector_bytes} products of bytes per {bits}-bit instruction"
    if traits.arch == "aarch64" and traits.i8mm:
        return "usdot: 16 products of bytes per instruction"
    if traits.arch == "aarch64" and traits.dotprod:
        return "sdot: 16 products of bytes per instruction"
    if traits.arch == "x86_64":
        return f"16-bit pairs: {traits.vector_bytes // 2} products per {bits}-bit instruction"
    return "bytes are widened: no instruction multiplies them"


def _seconds(model: OnnxModel, config: CompileConfig) -> float:
    """Time of the chosen kernels by the static table."""
    total = 0.0
    for problem in pose_model(model, config, {}):
        limit = problem.options.weight_limit
        assignment = Assignment(
            problem.dataflow, problem.entries, problem.offers, problem.traits, limit
        )
        total += assignment.seconds(assignment.picks())
    return total


def _flops(graph: Graph, nodes: Sequence[str] | None = None) -> int:
    static = {name: static_shape(kind) for name, kind in graph.types.items()}
    chosen = [node for node in graph.nodes if nodes is None or node.name in nodes]
    return sum(node_flops(node, static) or 0 for node in chosen)


def _operations(graph: Graph, placement: Placement) -> tuple[int, int]:
    """Operations of all products, and of those that become integer kernels."""
    inside = [group.name for group in placement.groups if group.kind == "product"]
    return _flops(graph), _flops(graph, inside)


def _floats(graph: Graph, placement: Placement, total: int) -> tuple[InFloat, ...]:
    """Refusals by operator and reason, those with the most multiply-adds first."""
    found: dict[tuple[str, str], list[str]] = {}
    for refusal in placement.refusals:
        found.setdefault((refusal.op, refusal.reason), []).append(refusal.node)
    rows = [
        InFloat(op, reason, tuple(nodes), _flops(graph, nodes) / total if total else 0.0)
        for (op, reason), nodes in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.share))
