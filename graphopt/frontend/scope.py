"""Names, types and constants of nested graphs, while a model is cut into steps and segments."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from onnx import GraphProto, TensorProto, TypeProto, helper

from graphopt.codegen.host_program import OPTIONAL, OPTIONAL_SEQUENCE, SEQUENCE, TENSOR
from graphopt.codegen.plan import BoundInput, TensorSpec
from graphopt.frontend.model import Array
from graphopt.frontend.shapes import dimensions, tensor_type

# Larger constants that steps read are given out by segments, from the weights.
_MAX_CONSTANT_ELEMENTS = 64

_CARRIED = "biuf"  # NumPy's kinds of element types that a constant in the program can have


class Names:
    """The names and small constants of a whole program."""

    def __init__(self, array: Callable[[TensorProto], Array]) -> None:
        """Args:
        array: reads a tensor.
        """
        self._array = array
        self._used: set[str] = set()
        self._found: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.constants: list[BoundInput] = []

    def unique(self, wanted: str) -> str:
        """A name like `wanted` that nothing else has."""
        name, count = wanted, 1
        while name in self._used:
            name = f"{wanted}~{count}"
            count += 1
        self._used.add(name)
        return name

    def constant(self, wanted: str, tensor: TensorProto) -> str | None:
        """The name of a small constant of the program with this value; None if it is not small."""
        if prod(tensor.dims) > _MAX_CONSTANT_ELEMENTS:
            return None
        array = np.ascontiguousarray(self._array(tensor)).reshape(tuple(tensor.dims))
        if array.dtype.kind not in _CARRIED:
            return None
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._found:
            bits = array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "f" else array
            values = tuple(int(item) for item in bits.ravel().tolist())
            self._found[key] = name = self.unique(wanted)
            self.constants.append(BoundInput(name, str(array.dtype), array.shape, values))
        return self._found[key]


class Scope:
    """What the names in one graph stand for; a name it does not define is the outer graph's."""

    def __init__(
        self, graph: GraphProto, names: Names, outer: Scope | None = None, in_loop: bool = False
    ) -> None:
        self.in_loop = in_loop
        self._names, self._outer = names, outer
        self._types: dict[str, TypeProto] = {
            v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)
        }
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._types.update({t.name: tensor_type(t) for t in graph.initializer})
        self._local = set(self._constants) | {value.name for value in graph.input}
        self._local |= {name for node in graph.node for name in node.output if name}
        self._aliases: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def inside(self, graph: GraphProto, in_loop: bool) -> Scope:
        """The scope of a body in this graph."""
        return Scope(graph, self._names, self, in_loop)

    def alias(self, name: str, source: str) -> None:
        """Let `name`, one of this graph's, be another name of `source`."""
        self._aliases[name] = source

    def resolve(self, name: str) -> str:
        """The value that `name` is another name of, as far as this graph says."""
        while name in self._aliases:
            name = self._aliases[name]
        return name

    def _owner(self, name: str) -> Scope | None:
        return self if name in self._local or self._outer is None else None

    def type(self, name: str) -> TypeProto:
        """The type of a value; without content where nothing is known."""
        kind = self._types.get(name)
        known = kind is not None and kind.WhichOneof("value") is not None
        if kind is not None and known and name in self._local:
            return kind
        source = self.resolve(name)
        if source != name:
            return self.type(source)
        if self._owner(name) is None and self._outer is not None:
            return self._outer.type(name)
        return kind if kind is not None else TypeProto()

    def set_type(self, name: str, kind: TypeProto) -> None:
        """Note a new value of this graph."""
        self._local.add(name)
        self._types[name] = kind

    def constant(self, name: str) -> TensorProto | None:
        """The constant called `name`, if it is one."""
        name = self.resolve(name)
        if self._owner(name) is None and self._outer is not None:
            return self._outer.constant(name)
        return self._constants.get(name)

    def small_constant(self, name: str) -> bool:
        """Whether `name` is a constant that the program itself can hold."""
        tensor = self.constant(name)
        return tensor is not None and self._names.constant(name, tensor) is not None

    def define(self, name: str) -> str:
        """The unique name, from now on, of a value of this graph; "" for an omitted one."""
        if not name:
            return ""
        self._local.add(name)
        self._ids[name] = self._names.unique(name)
        return self._ids[name]

    def id(self, name: str) -> str:
        """The unique name of a value that steps can read; "" for an omitted one."""
        if not name:
            return ""
        name = self.resolve(name)
        if self._owner(name) is None and self._outer is not None:
            return self._outer.id(name)
        tensor = self._constants.get(name)
        if tensor is not None:
            found = self._names.constant(name, tensor)
            assert found is not None, f"{name} is too large for a step"
            return found
        return self._ids[name]


def unwrapped(kind: TypeProto) -> tuple[str, TypeProto]:
    """The kind of a value of this type (see host_program.KINDS), and the type of its tensors."""
    what = TENSOR
    if kind.WhichOneof("value") == "optional_type":
        what, kind = OPTIONAL, kind.optional_type.elem_type
    if kind.WhichOneof("value") == "sequence_type":
        what = SEQUENCE if what == TENSOR else OPTIONAL_SEQUENCE
        kind = kind.sequence_type.elem_type
    return what, kind


def spec_of(name: str, kind: TypeProto) -> TensorSpec:
    """A value's type as users see it; () where the rank is not known, float32 for no element type.

    For a sequence or an optional dtype and shape are those of the tensors inside.
    """
    what, inner = unwrapped(kind)
    element = inner.tensor_type.elem_type or TensorProto.FLOAT
    dtype = str(helper.tensor_dtype_to_np_dtype(element))
    return TensorSpec(name, dtype, dimensions(inner) or (), what)
