"""Whether a node's inputs have the types that its operator takes, by ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from onnx import NodeProto, TensorProto, TypeProto, defs

from graphopt.errors import ModelError
from graphopt.frontend.model import domain_of

# ONNX Runtime's optimiser writes it into models of every operator set.
_BEFORE_THEIR_TIME = frozenset({"LayerNormalization"})

_VARIADIC = defs.OpSchema.FormalParameterOption.Variadic


def check_types(
    nodes: Sequence[NodeProto], types: Mapping[str, TypeProto], opsets: Mapping[str, int]
) -> None:
    """Refuse nodes whose operators are unknown to their set or do not take their inputs' types.

    Args:
        types: of the values that are known. opsets: version by domain, "" for ONNX's own.

    Raises:
        ModelError: there are such nodes.
    """
    found = []
    for node in nodes:
        domain = domain_of(node)
        wrong = wrong_operand(node, types, opsets.get(domain, 0))
        if wrong is not None:
            found.append((node.name, wrong))
    if found:
        listed = "; ".join(f"{name}: {wrong}" for name, wrong in found)
        raise ModelError(
            "prepare",
            f"{len(found)} node(s) are not what ONNX defines: {listed}.",
            node=found[0][0] if len(found) == 1 else None,
            hint="Correct the types in the model, or export it again.",
        )


@dataclass(frozen=True)
class _Formal:
    """An input of an operator: the parameter that stands for its type, and the types allowed.

    together: all inputs with this parameter have one type.
    """

    parameter: str
    allowed: frozenset[str]
    together: bool


def wrong_operand(node: NodeProto, types: Mapping[str, TypeProto], opset: int) -> str | None:
    """What is wrong with a node's operator or the types of its inputs; None if nothing is known.

    ONNX's inference does not look: it takes `Or` of numbers for granted.

    Args:
        types: of the values that are known.
        opset: version of the node's operator set.
    """
    domain = domain_of(node)
    if node.op_type == "Identity":
        return None  # folding puts it in for values of every kind, whatever the operator set
    first = _first_version(node.op_type, domain)
    if opset < first and node.op_type not in _BEFORE_THEIR_TIME:
        return f"{node.op_type} came with operator set {first}, the model is in {opset}"
    formals = _formals(node.op_type, domain, max(opset, first))
    bound: dict[str, tuple[int, str]] = {}
    for index, name in enumerate(node.input):
        found = _type_name(types.get(name)) if name and formals else None
        if found is None:
            continue
        formal = formals[min(index, len(formals) - 1)]
        if found not in formal.allowed:
            return f"input {index} ('{name}') is a {found}, which {node.op_type} does not take"
        if formal.together:
            other, kind = bound.setdefault(formal.parameter, (index, found))
            if kind != found:
                return f"input {index} ('{name}') is a {found}, and input {other} is a {kind}"
    return None


@cache
def _formals(op_type: str, domain: str, opset: int) -> tuple[_Formal, ...]:
    try:
        schema = defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return ()
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    return tuple(
        _Formal(
            formal.type_str,
            allowed.get(formal.type_str, frozenset({formal.type_str})),
            formal.type_str in allowed and (formal.option != _VARIADIC or formal.is_homogeneous),
        )
        for formal in schema.inputs
    )


@cache
def _first_version(op_type: str, domain: str) -> int:
    """The operator set that brought an operator; 0 if it is not ONNX's."""
    found = [s.since_version for s in _schemas() if (s.name, s.domain) == (op_type, domain)]
    return min(found, default=0)


@cache
def _schemas() -> tuple[Any, ...]:
    return tuple(defs.get_all_schemas_with_history())


def _type_name(kind: TypeProto | None) -> str | None:
    """The schemas' name of a type, as "seq(tensor(float))"; None if it is not known."""
    which = None if kind is None else kind.WhichOneof("value")
    if kind is None or which is None:
        return None
    if which in ("sequence_type", "optional_type"):
        inner = _type_name(getattr(kind, which).elem_type)
        prefix = "seq" if which == "sequence_type" else "optional"
        return None if inner is None else f"{prefix}({inner})"
    if which != "tensor_type" or not kind.tensor_type.elem_type:
        return None
    try:
        return f"tensor({TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()})"
    except ValueError:
        return None
