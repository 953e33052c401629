"""Which groups become integer kernels, and so which tensors are in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.groups import Group, Refusal, find_groups
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.model import is_standard

_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
)
_QUANTIZED_CONTRIB = (
    "DynamicQuantize",
    "MatMulInteger",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinear",
    "QOrdered",
)
"""Beginnings of the names of other operators on integers."""


@dataclass(frozen=True)
class Placement:
    """What is in 8 bits.

    Attributes:
        groups: the integer kernels; of a weight-only model, its products.
        refusals: nodes that stay in float, with reasons.
        tensors: activations in 8 bits, in topological order.
        shared: sets of tensors with one scale; each tensor is in at most one.
    """

    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    tensors: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]


def place(
    graph: Graph, config: QuantizationConfig, in_float: Mapping[str, str] = MappingProxyType({})
) -> Placement:
    """Choose the integer kernels of a canonical float model.

    Inputs of products are in 8 bits. Data movement in front of such a tensor moves 8-bit data;
    arithmetic in front of it is an integer kernel where its own inputs come from integer kernels
    or are in 8 bits anyway.

    Args:
        in_float: anchors of groups that stay in float for accuracy, with the reasons.

    Raises:
        ModelError: the model is quantized already, or has nothing to quantize.
        OptionError: `only` or `exclude` names nothing in the model.
    """
    _refuse_quantized(graph)
    found, refusals = find_groups(graph)
    groups, dropped = _selected(graph, found, config)
    dropped += [
        Refusal(group.name, group.op, in_float[group.name])
        for group in groups
        if group.name in in_float
    ]
    groups = [group for group in groups if group.name not in in_float]
    products = [group for group in groups if group.kind == "product"]
    if not products:
        reasons = "; ".join(f"{r.node}: {r.reason}" for r in (*refusals, *dropped)[:3])
        raise ModelError(
            STAGE,
            "there is nothing to quantize: no convolution or matrix product with constant float32 "
            f"weights{f' ({reasons})' if reasons else ''}.",
        )
    refusals = _in_order(graph, (*refusals, *dropped))
    if config.activations is None:
        return Placement(tuple(products), refusals, (), ())
    demanded = _demand(graph, groups, config)
    chosen, left = [], []
    for group in groups:
        if group.kind == "product":
            residual = group.residual if group.residual in demanded else None
            chosen.append(replace(group, residual=residual))
        elif any(name in demanded for name in group.outputs) and demanded.issuperset(group.inputs):
            chosen.append(group)
        elif group.kind == "arithmetic":
            reason = "what it reads or gives is not in 8 bits"
            left.append(Refusal(group.name, group.op, reason))
    shared = _shared([group for group in chosen if group.kind == "move"], demanded)
    order = [*graph.inputs, *(name for node in graph.nodes for name in node.output)]
    tensors = tuple(name for name in order if name in demanded)
    return Placement(tuple(chosen), _in_order(graph, (*refusals, *left)), tensors, shared)


def _in_order(graph: Graph, refusals: Sequence[Refusal]) -> tuple[Refusal, ...]:
    return tuple(sorted(refusals, key=lambda refusal: graph.index[refusal.node]))


def _refuse_quantized(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op_type in _QUANTIZED or (
            not is_standard(node) and node.op_type.startswith(_QUANTIZED_CONTRIB)
        ):
            raise ModelError(
                STAGE,
                f"the model is quantized already: {node.op_type} reads '{node.input[0]}'.",
                node=node.name,
                hint="compile it as it is, or quantize the float model that it was made from.",
            )


def _selected(
    graph: Graph, groups: Sequence[Group], config: QuantizationConfig
) -> tuple[list[Group], list[Refusal]]:
    """Groups that `only` and `exclude` leave. Both may name any node of a group, or operators."""
    known = {node.name for node in graph.nodes} | {node.op_type for node in graph.nodes}
    for option in ("only", "exclude"):
        for name in getattr(config, option):
            if name not in known:
                close = [each for each in sorted(known) if name.lower() in each.lower()][:3]
                raise OptionError(
                    "options",
                    f"{option} names '{name}', which is no node or operator of the model.",
                    hint=f"did you mean {' or '.join(map(repr, close))}?" if close else None,
                )
    kept, dropped = [], []
    for group in groups:
        names = {*group.nodes, group.op}
        # `only` selects products; what stands between them follows.
        missing = bool(config.only) and group.kind == "product" and not names & {*config.only}
        if names & {*config.exclude}:
            dropped.append(Refusal(group.name, group.op, "left in float by option exclude"))
        elif missing:
            dropped.append(Refusal(group.name, group.op, "left in float by option only"))
        else:
            kept.append(group)
    return kept, dropped


def _demand(graph: Graph, groups: Sequence[Group], config: QuantizationConfig) -> set[str]:
    """The tensors that are to be in 8 bits."""
    cheap = _from_integer_kernels(graph, groups, config)
    demanded = {name for group in groups if group.kind == "product" for name in group.inputs}
    if config.io_type is not None:
        demanded |= set(graph.float_outputs)
        demanded |= {name for name in graph.inputs if graph.is_float(name)}
    while True:
        before = len(demanded)
        for group in reversed(groups):
            if not any(name in demanded for name in group.outputs):
                continue
            if group.kind == "product":
                if group.residual is not None and group.residual in cheap:
                    demanded.add(group.residual)
            elif group.kind == "move":
                demanded |= {*group.inputs, *group.outputs}
            elif all(name in cheap or name in demanded for name in group.inputs):
                demanded |= {*group.inputs}
        if len(demanded) == before:
            return demanded


def _from_integer_kernels(
    graph: Graph, groups: Sequence[Group], config: QuantizationConfig
) -> set[str]:
    """Tensors that an integer kernel could write, so that rounding them costs no pass of its own.

    `groups` are in topological order.
    """
    found = {*graph.inputs} if config.io_type is not None else set()
    for group in groups:
        if group.kind == "product" or all(name in found for name in group.inputs):
            found |= {*group.outputs}
    return found


def _shared(moves: Sequence[Group], demanded: set[str]) -> tuple[tuple[str, ...], ...]:
    """Sets of tensors that data movement gives one scale."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for group in moves:
        names = [name for name in (*group.inputs, *group.outputs) if name in demanded]
        for name in names[1:]:
            leader[find(name)] = find(names[0])
    sets: dict[str, list[str]] = {}
    for name in leader:
        sets.setdefault(find(name), []).append(name)
    return tuple(tuple(sorted(names)) for _, names in sorted(sets.items()) if len(names) > 1)
