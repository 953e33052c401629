"""Inlines functions: the model's own, and those that define some standard operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TypeProto, defs

from graphopt.errors import ModelError
from graphopt.frontend.definitions import affine_grid
from graphopt.frontend.model import domain_of, subgraphs
from graphopt.frontend.operand_types import check_types
from graphopt.frontend.rename import rename_nodes
from graphopt.frontend.shapes import static_shape

_MAX_DEPTH = 64
_MAX_INLINED = 1_000_000  # nodes; calls of calls can ask for any number of them

# Operators whose definition in the ONNX standard, a function of simpler ones, is what we compile.
_DEFINED_BY_FUNCTION = frozenset(
    (
        "AffineGrid",
        "Attention",
        "CausalConvWithState",
        "CenterCropPad",
        "FlexAttention",
        "NegativeLogLikelihoodLoss",
        "RotaryEmbedding",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
    )
)

_FLAGS = frozenset(("align_corners", "interleaved", "is_causal"))

Functions = Mapping[tuple[str, str, str], FunctionProto]


def inline_functions(proto: ModelProto) -> None:
    """Replace every call of a model-local function by its body, in place.

    Nodes of a body get the id `CALL/NODE`. Raises ModelError for recursive functions and for a
    body whose operator set means something else than the model's.
    """
    if not proto.functions:
        return
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    _merge_opsets(proto)
    _check_size(proto.graph.node, functions)
    _inline_graph(proto.graph, functions, 0)
    del proto.functions[:]


def standard_body(
    node: NodeProto, types: Mapping[str, TypeProto], opsets: Mapping[str, int]
) -> list[NodeProto] | None:
    """The nodes that define a composite standard operator, with ids `NODE/INNER`.

    None if the operator is not composite, or its definition is written in an operator set that
    means something else than the model's.
    """
    domain = domain_of(node)
    if domain not in ("", "ai.onnx.preview") or node.op_type not in _DEFINED_BY_FUNCTION:
        return None
    try:
        schema = defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except defs.SchemaError:
        return None
    _check_flags(node)
    if node.op_type == "AffineGrid":
        size = static_shape(types.get(node.input[1])) or ()
        if size not in ((4,), (5,)):
            return None
        aligned = any(a.name == "align_corners" and a.i for a in node.attribute)
        function = affine_grid(size[0] - 2, aligned)
    elif schema.has_context_dependent_function:
        check_types([node], types, opsets)  # ONNX believes that they are right, and crashes
        if any(name not in types for name in node.input if name):
            return None
        kinds = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
        try:
            asked = _without_idle_softcap(node).SerializeToString()
            data = schema.get_context_dependent_function(asked, kinds)
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                "prepare",
                f"ONNX cannot define this {node.op_type}: {str(error).splitlines()[0]}.",
                node=node.name,
                hint="Check its inputs, attributes and body.",
            ) from error
        function = FunctionProto.FromString(data)
    elif schema.has_function:
        function = schema.function_body
    else:
        return None
    for opset in function.opset_import:
        used = [inner for inner in function.node if inner.domain == opset.domain]
        version = opsets.get(opset.domain, opset.version)
        if not all(_same_meaning(inner, version, opset.version) for inner in used):
            return None
    body = _body(node, function)
    for i, inner in enumerate(body):
        inner.name = f"{inner.name}#{i}"
    return body


def _check_flags(node: NodeProto) -> None:
    """Refuse attributes that are neither 0 nor 1, as runtimes read them differently."""
    for attribute in node.attribute:
        if attribute.name in _FLAGS and attribute.i not in (0, 1):
            raise ModelError(
                "prepare",
                f"{attribute.name} is {attribute.i}; it must be 0 or 1.",
                node=node.name,
                hint="Correct the attribute.",
            )


def _without_idle_softcap(node: NodeProto) -> NodeProto:
    """The node without a softcap that is not positive.

    Runtimes, and ONNX's reference, take it for none; ONNX's definition would divide by it.
    """
    if not any(a.name == "softcap" and not a.f > 0 for a in node.attribute):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    kept = [a for a in node.attribute if a.name != "softcap"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _merge_opsets(proto: ModelProto) -> None:
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    for function in proto.functions:
        for opset in function.opset_import:
            version = versions.setdefault(opset.domain, opset.version)
            if version == opset.version:
                continue
            for node in function.node:
                if node.domain == opset.domain and not _same_meaning(node, version, opset.version):
                    raise ModelError(
                        "prepare",
                        f"Function {function.name} uses {node.op_type} of operator set "
                        f"{opset.version}, the model imports {version}, where it differs.",
                        hint="Export the model with one operator set version.",
                    )
    del proto.opset_import[:]
    for domain, version in versions.items():
        proto.opset_import.add(domain=domain, version=version)


def _same_meaning(node: NodeProto, a: int, b: int) -> bool:
    try:
        first = defs.get_schema(node.op_type, a, node.domain)
        second = defs.get_schema(node.op_type, b, node.domain)
    except defs.SchemaError:
        return True  # unknown operators are reported by the importer
    return bool(first.since_version == second.since_version)


def _inline_graph(graph: Any, functions: Functions, depth: int) -> None:
    nodes = list(_inlined(graph.node, functions, depth))
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _check_size(nodes: Any, functions: Functions) -> None:
    """Refuse functions that call themselves, or that become too many nodes."""
    sizes: dict[tuple[str, str, str], int] = {}

    def size(inner: Any, depth: int) -> int:
        total = 0
        for node in inner:
            total += 1 + sum(size(graph.node, depth) for graph in subgraphs(node))
            key = (node.domain, node.op_type, node.overload)
            if key in functions and key not in sizes:
                if depth >= _MAX_DEPTH:
                    raise ModelError(
                        "prepare",
                        f"Function {node.op_type} calls itself, or calls nest over {_MAX_DEPTH} "
                        "deep.",
                        node=node.name,
                    )
                sizes[key] = size(functions[key].node, depth + 1)
            total += sizes.get(key, 0)
        return total

    for node in nodes:
        if size([node], 0) > _MAX_INLINED:
            raise ModelError(
                "prepare",
                f"Function {node.op_type} stands for more than {_MAX_INLINED} nodes.",
                node=node.name,
            )


def _inlined(nodes: Any, functions: Functions, depth: int) -> Iterator[NodeProto]:
    for node in nodes:
        for graph in subgraphs(node):
            _inline_graph(graph, functions, depth)
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            yield node
            continue
        yield from _inlined(_body(node, function), functions, depth + 1)


def _body(call: NodeProto, function: FunctionProto) -> list[NodeProto]:
    names = {
        formal: call.input[i] if i < len(call.input) else ""
        for i, formal in enumerate(function.input)
    }
    for i, formal in enumerate(function.output):
        if formal not in names and i < len(call.output) and call.output[i]:
            names[formal] = call.output[i]
    body = []
    for template in function.node:
        node = NodeProto()
        node.CopyFrom(template)
        for name in node.output:
            if name:
                names.setdefault(name, f"{call.name}/{name}")
        body.append(node)
    # Formal outputs that are formal inputs, passed straight through, need a node of their own.
    passed = [
        NodeProto(op_type="Identity", input=[names[name]], output=[call.output[i]])
        for i, name in enumerate(function.output)
        if name in function.input and i < len(call.output) and call.output[i]
    ]
    attributes = {a.name: a for a in function.attribute_proto}
    attributes.update({a.name: a for a in call.attribute})
    _bind_attributes(body, attributes)
    rename_nodes(body, names)
    for node in (*body, *passed):
        node.name = f"{call.name}/{node.name or node.op_type}"
    return [*body, *passed]


def _bind_attributes(nodes: Any, values: Mapping[str, AttributeProto]) -> None:
    for node in nodes:
        kept = []
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                value = values.get(attribute.ref_attr_name)
                if value is None:
                    continue  # the operator's own default applies
                bound = AttributeProto()
                bound.CopyFrom(value)
                bound.name = attribute.name
                kept.append(bound)
            else:
                copy = AttributeProto()
                copy.CopyFrom(attribute)
                kept.append(copy)
        del node.attribute[:]
        node.attribute.extend(kept)
        for graph in subgraphs(node):
            _bind_attributes(graph.node, values)
