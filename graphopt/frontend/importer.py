"""Turns a prepared ONNX model into a Relax graph, node by node."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TypeProto
from tvm import relax

from graphopt.errors import ModelError
from graphopt.frontend.converters import CONVERTERS
from graphopt.frontend.elements import (
    CODES,
    Operands,
    codes_of,
    element_name,
    kept_as,
    narrowed,
    output_element,
)
from graphopt.frontend.emit import (
    Expr,
    GraphEmitter,
    NodeContext,
    Unsupported,
    constant,
)
from graphopt.frontend.model import Array, OnnxModel, domain_of, is_standard
from graphopt.frontend.operand_types import wrong_operand
from graphopt.frontend.shapes import graph_inputs, static_shape, tensor_type, unbound_inputs
from graphopt.ir import Graph

logger = logging.getLogger(__name__)

_MAX_NODES = 20_000  # several times what the largest networks have; compiling more takes hours
_MAX_TRIED_BYTES = 1 << 20
_MAX_LISTED = 50  # refusals in an error; inspect() lists all


@dataclass(frozen=True)
class UnsupportedNode:
    """Why one node cannot be imported."""

    node: str
    op_type: str
    domain: str
    opset: int
    reason: str
    hint: str | None = None

    def __str__(self) -> str:
        operator = f"{self.domain}.{self.op_type}" if self.domain else self.op_type
        text = f"{self.node}: {operator} (operator set {self.opset}) — {self.reason}"
        return f"{text} [{self.hint}]" if self.hint else text


class Values(Mapping[str, Any]):
    """What names stand for during the import; constants are read when they are needed.

    In a `trial`, which only asks what can be imported, large weights are stood in for by variables:
    those of a model of several GB are not copied.
    """

    def __init__(self, model: OnnxModel, trial: bool = False) -> None:
        self.model = model
        self.trial = trial
        self.tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}
        self.known: dict[str, Expr | Array] = {}
        self.elements: dict[str, int] = {
            name: tensor.data_type
            for name, tensor in self.tensors.items()
            if tensor.data_type in CODES
        }
        self._expressions: dict[str, Expr] = {}

    def __getitem__(self, name: str) -> Expr | Array:
        if name not in self.known:
            tensor = self.tensors[name]
            self.known[name] = codes_of(self.model.array(tensor), tensor.data_type)
        return self.known[name]

    def element(self, name: str) -> int:
        """ONNX element type of a value that is kept as codes, 0 for any other."""
        return self.elements.get(name, 0)

    def expression(self, name: str) -> Expr:
        """A value as an expression; all uses of a constant share one Relax constant."""
        value = self[name]
        if not isinstance(value, np.ndarray):
            return value
        if name not in self._expressions:
            if self.trial and value.nbytes > _MAX_TRIED_BYTES:
                kind = relax.TensorType(value.shape, str(value.dtype))
                self._expressions[name] = relax.Var("weight", kind)
            else:
                self._expressions[name] = constant(value)
        return self._expressions[name]

    def note(self, name: str, element: int) -> None:
        """Note the ONNX element type of a new value."""
        if element in CODES:
            self.elements[name] = element

    def __contains__(self, name: object) -> bool:
        return name in self.known or name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter({**self.tensors, **self.known})

    def __len__(self) -> int:
        return len({**self.tensors, **self.known})


def import_model(model: OnnxModel) -> Graph:
    """Import a model that prepare() returned and whose inputs are all bound.

    Raises:
        ModelError: an input is unbound, or nodes are not supported (all of them are listed).
    """
    unbound = unbound_inputs(model)
    if unbound:
        shown = ", ".join(f"'{name}'" for name in unbound)
        raise ModelError(
            "import",
            f"The shapes of these inputs are not known: {shown}.",
            hint="Give them with shapes={...}.",
        )
    nodes = len(model.proto.graph.node)
    if nodes > _MAX_NODES:
        raise ModelError(
            "import",
            f"The model has {nodes} nodes after preparation; {_MAX_NODES} can be compiled.",
            hint="Compile it in parts, or export loops as Loop or Scan.",
        )
    unsupported, graph = _run(model)
    if unsupported or graph is None:
        raise _unsupported_error(unsupported)
    return graph


def without_converter(model: OnnxModel) -> tuple[UnsupportedNode, ...]:
    """The nodes of a graph whose operator has no converter at all; bodies are not looked into."""
    opsets = model.opsets
    return tuple(
        _refusal(node, opsets, _unknown(node))
        for node in model.proto.graph.node
        if not _is_known(node)
    )


def refuse_unknown(models: Iterable[OnnxModel]) -> None:
    """Raise ModelError if nodes of these models have no converter (all of them are listed)."""
    unsupported = [item for model in models for item in without_converter(model)]
    if unsupported:
        raise _unsupported_error(unsupported)


def unsupported_nodes(model: OnnxModel) -> tuple[UnsupportedNode, ...]:
    """The nodes of a prepared model that import_model would refuse, without raising."""
    return _run(model, trial=True)[0]


def _unsupported_error(unsupported: Sequence[UnsupportedNode]) -> ModelError:
    listed = "\n".join(f"  - {item}" for item in unsupported)
    return ModelError(
        "import",
        f"{len(unsupported)} node(s) cannot be compiled:\n{listed}",
        node=unsupported[0].node if len(unsupported) == 1 else None,
    )


def _run(model: OnnxModel, trial: bool = False) -> tuple[tuple[UnsupportedNode, ...], Graph | None]:
    proto = model.proto
    opsets = model.opsets
    emitter = GraphEmitter()
    values = Values(model, trial)
    refused: list[UnsupportedNode] = []
    types = {tensor.name: tensor_type(tensor) for tensor in proto.graph.initializer}
    declared = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    types.update({value.name: value.type for value in declared})
    parameters = []
    for value in graph_inputs(proto.graph):
        emitter.reserve(value.name)
        parameter = _parameter(value.name, value.type, refused)
        if parameter is not None:
            parameters.append(parameter)
            values.known[value.name] = parameter
            values.note(value.name, value.type.tensor_type.elem_type)
    builder = emitter.builder
    with builder.function("main", parameters):
        with builder.dataflow():
            for node in proto.graph.node:
                if all(name in values for name in node.input if name):
                    reason = _convert(node, values, emitter, opsets, types)
                    if reason is not None:
                        refused.append(_refusal(node, opsets, reason))
                elif not _is_known(node):
                    # Behind a refused node: only what is wrong with this one itself.
                    refused.append(_refusal(node, opsets, _unknown(node)))
                if refused:
                    _stand_in(node, values, types)
            results = []
            for output in proto.graph.output:
                if output.name in values:
                    results.append(values.expression(output.name))
                elif not refused:
                    raise ModelError("import", f"Nothing computes the output '{output.name}'.")
            bound = builder.emit_output(relax.Tuple(results), emitter.unique("outputs"))
        builder.emit_func_output(bound)
    if refused:
        return tuple(refused), None
    names = tuple(output.name for output in proto.graph.output)
    ports = [value.name for value in (*graph_inputs(proto.graph), *proto.graph.output)]
    elements = {n: element_name(values.element(n)) for n in ports if values.element(n)}
    return (), Graph(builder.get(), dict(emitter.sites), names, elements)


def _is_known(node: NodeProto) -> bool:
    domain = domain_of(node)
    plain = domain == "" and node.op_type in ("Identity", "Constant")
    return plain or (domain, node.op_type) in CONVERTERS


def _parameter(name: str, kind: Any, refused: list[UnsupportedNode]) -> Expr | None:
    shape = static_shape(kind)
    reason = None
    dtype = ""
    if shape is None:
        reason = "only tensors of known shape can be inputs"
    else:
        try:
            dtype = kept_as(kind.tensor_type.elem_type)
        except Unsupported as refusal:
            reason = refusal.reason
    if reason is not None:
        refused.append(UnsupportedNode(name, "Input", "", 0, reason))
        return None
    return relax.Var(name, relax.TensorType(shape, dtype))


def _convert(
    node: NodeProto,
    values: Values,
    emitter: GraphEmitter,
    opsets: Mapping[str, int],
    types: Mapping[str, TypeProto],
) -> Unsupported | None:
    """Convert one node; returns why not, if not."""
    domain = domain_of(node)
    if domain == "" and node.op_type == "Identity":
        values.known[node.output[0]] = values[node.input[0]]
        values.note(node.output[0], values.element(node.input[0]))
        return None
    if domain == "" and node.op_type == "Constant":
        return Unsupported("the model was not prepared")
    converter = CONVERTERS.get((domain, node.op_type))
    if converter is None:
        return _unknown(node)
    wrong = wrong_operand(node, types, opsets.get(domain, 0))
    if wrong is not None:
        return Unsupported(wrong, "Correct the types in the model, or export it again.")
    operands = Operands(values, emitter, node)
    context = NodeContext(node, operands, emitter, opsets)
    try:
        produced = converter(context)
        operands.check()
        unread = context.unread()
        if unread:
            raise Unsupported(f"attribute {', '.join(unread)} is not supported")
        results = produced if isinstance(produced, tuple) else (produced,)
        for i, name in enumerate(node.output):
            if name:
                if i >= len(results) or results[i] is None:
                    raise Unsupported(f"output {i} ('{name}') is not supported")
                element = output_element(node, i, values, types, opsets)
                values.known[name] = narrowed(node, i, results[i], element, emitter)
                values.note(name, element)
    except Unsupported as refusal:
        return refusal
    except ModelError as error:
        return Unsupported(error.reason, error.hint)
    except Exception as error:
        # TVM refuses a call by exceptions of many types; a model must not crash the importer.
        logger.debug("conversion of %s failed", node.name, exc_info=True)
        detail = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return Unsupported(f"the conversion failed: {detail[0]}")
    return None


def _unknown(node: NodeProto) -> Unsupported:
    if node.domain == "com.microsoft.nchwc":
        return Unsupported(
            "its layout is private to ONNX Runtime and to the machine it was optimised on",
            "Optimise the model with ORT_ENABLE_EXTENDED at most, or give the original model.",
        )
    if not is_standard(node):
        return Unsupported(
            f"there is no converter for operators of domain '{node.domain}'",
            "Export the model without vendor-specific operators.",
        )
    if node.op_type in ("If", "Loop", "Scan"):
        return Unsupported(
            "control flow that depends on run-time values is not supported",
            "Bind the integer or boolean inputs it depends on to constants.",
        )
    return Unsupported("there is no converter for this operator")


def _refusal(node: NodeProto, opsets: Mapping[str, int], reason: Unsupported) -> UnsupportedNode:
    domain = domain_of(node)
    return UnsupportedNode(
        node.name, node.op_type, domain, opsets.get(domain, 0), reason.reason, reason.hint
    )


def _stand_in(node: NodeProto, values: Values, types: Mapping[str, Any]) -> None:
    """Let the import go on behind a refused node, to find all that is wrong in one go."""
    for name in node.output:
        kind = types.get(name)
        shape = static_shape(kind)
        if not name or name in values or shape is None or kind is None:
            continue
        element = kind.tensor_type.elem_type
        try:
            values.known[name] = relax.Var(name, relax.TensorType(shape, kept_as(element)))
        except Unsupported:
            continue
        values.note(name, element)
