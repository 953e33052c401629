"""What converters work with: reading a node's inputs and attributes, emitting Relax bindings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import tvm
from onnx import AttributeProto, NodeProto, TensorProto, helper
from tvm import relax

from graphopt.frontend.empty import settled
from graphopt.frontend.model import Array, domain_of

Expr = Any


class Unsupported(Exception):  # noqa: N818 - a refusal, turned into a ModelError by the importer
    """A converter cannot express its node; `reason` continues "node X is not supported: …"."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def shape_of(value: Expr) -> tuple[int, ...]:
    """Static shape of an emitted value."""
    try:
        return tuple(int(dim) for dim in value.ty.shape)
    except (TypeError, AttributeError):
        raise Unsupported(
            "a shape is not known at compile time", "Give the shapes of all inputs."
        ) from None


def dtype_of(value: Expr) -> str:
    """Element type of an emitted value, by NumPy's name."""
    return str(value.ty.dtype)


def constant(array: Array | float | int | bool, dtype: str | None = None) -> Expr:
    """A Relax constant of `dtype` (default: the array's own)."""
    values = np.asarray(array) if dtype is None else np.asarray(array).astype(dtype)
    if values.dtype.name == "bfloat16":
        values = values.astype(np.float32)  # what kernels compute with
    # Relax copies; an array that cannot be written to, such as a mapped file, is fine.
    return relax.const(np.asarray(values, order="C"), str(values.dtype))


def constant_array(value: Expr) -> Array | None:
    """Values of a Relax constant; None for anything else."""
    if isinstance(value, tvm.ir.GenericConst):
        return np.asarray(value.value.numpy())
    return None


MAX_ELEMENTS = 2**31 - 1  # kernels index with 32 bits
_MAX_RANK = 32
_MAX_GENERATED = 1 << 27  # elements of a constant that a node makes up, such as a Range


def _check_size(value: Expr) -> None:
    """Refuse a result that no kernel can compute."""
    dims = getattr(value.ty, "shape", None)
    if dims is None:
        return
    shape = [int(dim) for dim in dims if isinstance(dim, tvm.tirx.IntImm)]
    if any(dim < 0 for dim in shape):
        raise Unsupported(f"its result would have the shape {shape[:_MAX_RANK]}")
    if len(shape) > _MAX_RANK:
        raise Unsupported(f"its result would have {len(shape)} dimensions, over {_MAX_RANK}")
    if prod(shape) > MAX_ELEMENTS:
        raise Unsupported(
            f"its result would have the shape {shape}, over 2^31 elements", "Bind smaller shapes."
        )


def check_generated(elements: int) -> None:
    """Refuse to make up a constant of so many elements."""
    if elements > _MAX_GENERATED:
        raise Unsupported(f"it makes up a constant of {elements} elements")


class GraphEmitter:
    """The function being built: names, bindings and the sites table."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.sites: dict[str, tuple[str, ...]] = {}
        self._names: set[str] = set()

    def unique(self, wanted: str) -> str:
        """A variable name not used yet, close to `wanted` and readable in dumps."""
        base = re.sub(r"\W+", "_", wanted).strip("_") or "v"
        if base[0].isdigit():
            base = f"v{base}"
        name, count = base, 1
        while name in self._names:
            name = f"{base}_{count}"
            count += 1
        self._names.add(name)
        return name

    def reserve(self, name: str) -> None:
        """Keep `name` for an input, whatever characters it has."""
        self._names.add(name)

    def emit(self, expr: Expr, wanted: str, node: str) -> Expr:
        """Bind `expr` to a new variable that computes ONNX node `node`.

        Where tensors without elements make a kernel needless, what stands for the result.
        """
        var = self.builder.emit(expr, self.unique(wanted))
        self.sites[var.name] = (node,)
        _check_size(var)
        try:
            found = settled(var, expr)
        except NotImplementedError as error:
            raise Unsupported(str(error)) from None
        if found is None:
            return var
        return self.emit(found, wanted, node) if isinstance(found, tvm.ir.Call) else found


class NodeValues(Protocol):
    """Where a node finds its inputs by name."""

    def __getitem__(self, name: str) -> Expr | Array:
        """A constant's array, or an emitted expression."""
        ...

    def expression(self, name: str) -> Expr:
        """The same, always as an expression."""
        ...

    def element(self, name: str) -> int:
        """ONNX element type of a value that is given as codes (elements.py), 0 for any other."""
        ...


class NodeContext:
    """One node during its conversion.

    Every attribute must be read by the converter, else the importer refuses the node: an attribute
    that was overlooked would give silently wrong results.
    """

    def __init__(
        self,
        node: NodeProto,
        values: NodeValues,
        emitter: GraphEmitter,
        opsets: Mapping[str, int],
    ) -> None:
        self.node = node
        self.id = node.name
        self.op_type: str = node.op_type
        self.domain = domain_of(node)
        self.opset = opsets.get(self.domain, 1)
        self._values = values
        self._emitter = emitter
        self._attributes = {attribute.name: attribute for attribute in node.attribute}
        self._read: set[str] = set()

    def nested(self, node: NodeProto, values: NodeValues, opset: int) -> NodeContext:
        """Another node as a part of this one, with values of its own and a standard opset."""
        return NodeContext(node, values, self._emitter, {"": opset})

    # Inputs

    def __len__(self) -> int:
        return len(self.node.input)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def _value(self, index: int) -> Expr | Array:
        if not self.has(index):
            raise Unsupported(f"input {index} is missing")
        return self._values[self.node.input[index]]

    def input(self, index: int) -> Expr:
        """Input `index` as an expression: a variable or a constant."""
        if not self.has(index):
            raise Unsupported(f"input {index} is missing")
        return self._values.expression(self.node.input[index])

    def element(self, index: int) -> int:
        """ONNX element type of an input that is given as codes (elements.py), 0 for any other."""
        return self._values.element(self.node.input[index]) if self.has(index) else 0

    def inputs(self) -> list[Expr]:
        """All inputs; none may be omitted."""
        return [self.input(i) for i in range(len(self))]

    def array(self, index: int) -> Array | None:
        """Input `index` as an array if it is a constant, else None."""
        if not self.has(index):
            return None
        value = self._value(index)
        return value if isinstance(value, np.ndarray) else None

    def known(self, index: int, what: str) -> Array:
        """Input `index`, which must be a constant; `what` names it in the refusal."""
        array = self.array(index)
        if array is None:
            raise Unsupported(
                f"{what} is computed at run time",
                f"If '{self.node.input[index]}' comes from an integer input of the model, "
                "bind that input to a constant.",
            )
        return array

    def ints(self, index: int, what: str) -> list[int]:
        """Input `index` as a list of ints; must be constant."""
        return [int(v) for v in self.known(index, what).reshape(-1)]

    # Attributes

    def _attribute(self, name: str) -> AttributeProto | None:
        self._read.add(name)
        return self._attributes.get(name)

    def has_attribute(self, name: str) -> bool:
        """Whether the node states attribute `name` (counts as read)."""
        return self._attribute(name) is not None

    def int_attr(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        attribute = self._attribute(name)
        return default if attribute is None else int(attribute.i)

    def flag_attr(self, name: str, default: int = 0) -> bool:
        """An attribute that is 0 or 1; others are refused, as runtimes read them differently."""
        value = self.int_attr(name, default)
        if value not in (0, 1):
            raise Unsupported(f"{name} is {value}; it must be 0 or 1", "Correct the attribute.")
        return bool(value)

    def float_attr(self, name: str, default: float = 0.0) -> float:
        """A float attribute, as the float32 that the file holds."""
        attribute = self._attribute(name)
        return default if attribute is None else float(attribute.f)

    def string_attr(self, name: str, default: str = "") -> str:
        """A string attribute."""
        attribute = self._attribute(name)
        return default if attribute is None else attribute.s.decode("utf-8", "replace")

    def int_list(self, name: str) -> list[Any] | None:
        """An attribute with a list of integers, or None if it is not stated."""
        attribute = self._attribute(name)
        return None if attribute is None else [int(v) for v in attribute.ints]

    def attribute(self, name: str) -> Any:
        """Any attribute's value, or None if it is not stated."""
        attribute = self._attribute(name)
        return None if attribute is None else helper.get_attribute_value(attribute)

    def ignore(self, *names: str) -> None:
        """Declare that attributes change nothing about the result."""
        self._read.update(names)

    def unread(self) -> list[str]:
        """Attributes that no one looked at."""
        return sorted(set(self._attributes) - self._read)

    # Outputs

    def wants(self, index: int) -> bool:
        """Whether output `index` is used by someone."""
        return index < len(self.node.output) and bool(self.node.output[index])

    @property
    def outputs(self) -> int:
        """Number of outputs listed by the node."""
        return len(self.node.output)

    def emit(self, expr: Expr, output: int = 0) -> Expr:
        """Bind an expression (one operator call) to a variable named after output `output`."""
        names = self.node.output
        wanted = names[output] if output < len(names) and names[output] else self.id
        return self._emitter.emit(expr, wanted, self.id)

    # Operators that many converters need

    def scalar(self, value: float | int | bool, like: Expr) -> Expr:
        """A scalar constant of `like`'s element type."""
        return constant(np.asarray(value), dtype_of(like))

    def reshape(self, value: Expr, shape: Sequence[int]) -> Expr:
        """`value` with another shape; nothing is emitted where it has it already."""
        shape = tuple(int(dim) for dim in shape)
        if shape_of(value) == shape:
            return value
        if 0 in shape and 0 in shape_of(value):  # Relax takes 0 for "as before"
            return constant(np.empty(shape), dtype_of(value))
        return self.emit(relax.op.reshape(value, shape))

    def transpose(self, value: Expr, axes: Sequence[int]) -> Expr:
        """`value` with permuted axes; nothing is emitted for the identity."""
        axes = [int(axis) for axis in axes]
        if axes == list(range(len(axes))):
            return value
        return self.emit(relax.op.permute_dims(value, axes))

    def cast(self, value: Expr, dtype: str) -> Expr:
        """`value` as `dtype`; nothing is emitted where it is."""
        if dtype_of(value) == dtype:
            return value
        return self.emit(relax.op.astype(value, dtype))

    def slice(
        self,
        value: Expr,
        axes: Sequence[int],
        begin: Sequence[int],
        end: Sequence[int],
        strides: Sequence[int] | None = None,
    ) -> Expr:
        """Part of `value`; ends are exclusive and in range, nothing is emitted for all of it."""
        strides = [1] * len(axes) if strides is None else strides
        shape = shape_of(value)
        parts = zip(axes, begin, end, strides, strict=True)
        if all(b == 0 and e == shape[a] and s == 1 for a, b, e, s in parts):
            return value
        return self.emit(
            relax.op.strided_slice(value, list(axes), list(begin), list(end), list(strides))
        )


def normal_axis(axis: int, rank: int) -> int:
    """Axis counted from the front; refuses one out of range."""
    if not -rank <= axis < max(rank, 1):
        raise Unsupported(f"axis {axis} is out of range for rank {rank}")
    return axis + rank if axis < 0 else axis


def numpy_dtype(code: int) -> str:
    """The type that kernels compute with for an ONNX element type; float32 for bfloat16.

    Raises:
        Unsupported: kernels do not compute with this type.
    """
    if code == TensorProto.BFLOAT16:
        return "float32"
    try:
        name = helper.tensor_dtype_to_np_dtype(code).name
    except KeyError:
        raise Unsupported(f"element type {code} is unknown") from None
    if name not in SUPPORTED_DTYPES:
        raise Unsupported(f"element type {name} is not supported")
    return str(name)


SUPPORTED_DTYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ]
)
