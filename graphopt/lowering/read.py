"""Reads the dataflow out of a Relax graph."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.errors import CompileError
from graphopt.ir import Graph
from graphopt.lowering.dataflow import Action, Anchor, Array, Dataflow, Legalised, Operation
from graphopt.lowering.translate import is_own, translate
from schedules.interface import TensorSig

MAX_ELEMENTS = 2**31 - 1


def read_dataflow(graph: Graph) -> Dataflow:
    """The operations of main's dataflow block, with one value per tensor.

    Raises CompileError for control flow, symbolic shapes and calls that cannot be lowered.
    """
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: list[TensorSig] = []
        self.constants: dict[int, Array] = {}
        self.operations: list[Operation] = []
        self.known: dict[Any, tuple[int, ...]] = {}  # Relax var → its value ids
        self.interned: dict[tuple[bytes, str, tuple[int, ...]], int] = {}

    def read(self) -> Dataflow:
        function = self.graph.module["main"]
        inputs = []
        for param in function.params:
            self.known[param] = (self._value(_signature(param.ty, param.name)),)
            inputs.append((str(param.name), self.known[param][0]))
        for block in function.body.blocks:
            for binding in block.bindings:
                self._binding(binding)
        result = function.body.body
        fields = self._operands(result)
        outputs = tuple(zip(self.graph.outputs, fields, strict=True))
        return Dataflow(
            tuple(self.values), self.constants, tuple(inputs), outputs, tuple(self.operations)
        )

    def _binding(self, binding: Any) -> None:
        var, value = binding.var, getattr(binding, "value", None)
        if isinstance(value, relax.TupleGetItem):
            self.known[var] = (self._operands(value.tuple_value)[int(value.index)],)
        elif isinstance(value, (relax.Tuple, tvm.ir.Var)) or _is_constant(value):
            self.known[var] = self._operands(value)
        elif isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op):
            self._call(var, value)
        else:
            raise CompileError(
                "lowering", f"cannot lower a {type(value).__name__}", node=self._node(var)
            )

    def _call(self, var: Any, call: Any) -> None:
        inputs = tuple(value for arg in call.args for value in self._tensors(arg))
        nodes = self.graph.sites[var.name]
        if call.op.name == "relax.split":
            self._split(var, call, inputs[0], nodes)
            return
        fields = list(var.ty.fields) if hasattr(var.ty, "fields") else [var.ty]
        outputs = tuple(self._value(_signature(field, var.name)) for field in fields)
        self.known[var] = outputs
        action: Action | None = None
        if is_own(call) or (inputs and len(outputs) == 1):
            first = self.values[inputs[0]] if inputs else self.values[outputs[0]]
            action = translate(call, first, self.values[outputs[0]])
        if action is None:
            action = self._legalised(call, self._node(var))
        self.operations.append(Operation(action, inputs, outputs, nodes))

    def _split(self, var: Any, call: Any, source: int, nodes: tuple[str, ...]) -> None:
        """A split is one slice per output."""
        rank = len(self.values[source].shape)
        axis = int(call.attrs.axis) % rank
        outputs, begin = [], 0
        for field in var.ty.fields:
            output = self._value(_signature(field, var.name))
            start = tuple(begin if a == axis else 0 for a in range(rank))
            attrs = (("begin", start), ("strides", (1,) * rank))
            self.operations.append(Operation(Anchor("slice", attrs), (source,), (output,), nodes))
            outputs.append(output)
            begin += self.values[output].shape[axis]
        self.known[var] = tuple(outputs)

    def _legalised(self, call: Any, node: str) -> Legalised:
        """TVM's own definition of an operator for which we have no kernel family."""
        name = call.op.name
        params = [relax.Var(f"p{i}", arg.ty) for i, arg in enumerate(call.args) if _is_tensor(arg)]
        names = iter(params)
        arguments = [next(names) if _is_tensor(arg) else arg for arg in call.args]
        builder = relax.BlockBuilder()
        with builder.function("main", params):
            with builder.dataflow():
                result = builder.emit_output(
                    tvm.ir.Call(call.op, arguments, call.attrs, call.ty_args)
                )
            builder.emit_func_output(result)
        module = relax.transform.LegalizeOps()(builder.get())
        functions = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
        if len(functions) != 1:
            raise CompileError("lowering", f"no kernel for operator {name}", node=node)
        function = functions[0].without_attr("global_symbol")
        digest = hashlib.sha256(function.script().encode()).hexdigest()[:16]
        return Legalised(name, function, digest)

    def _tensors(self, arg: Any) -> tuple[int, ...]:
        return self._operands(arg) if _is_tensor(arg) else ()

    def _operands(self, expr: Any) -> tuple[int, ...]:
        """Value ids of a variable, a constant or a tuple of them."""
        if isinstance(expr, relax.Tuple):
            return tuple(value for field in expr.fields for value in self._operands(field))
        if isinstance(expr, tvm.ir.Var):
            return self.known[expr]
        return (self._constant(_array(expr)),)

    def _constant(self, array: Array) -> int:
        """The id of a constant; equal constants share one."""
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        key = (digest, str(array.dtype), array.shape)
        if key not in self.interned:
            self.interned[key] = self._value(TensorSig(array.shape, str(array.dtype)))
            self.constants[self.interned[key]] = array
        return self.interned[key]

    def _value(self, sig: TensorSig) -> int:
        if sig.elements > MAX_ELEMENTS:
            raise CompileError(
                "lowering",
                f"a tensor of shape {sig.shape} has more than {MAX_ELEMENTS} elements",
                hint="Bind smaller shapes; kernels index with 32 bits.",
            )
        self.values.append(sig)
        return len(self.values) - 1

    def _node(self, var: Any) -> str:
        return ", ".join(self.graph.sites.get(var.name, (var.name,)))


def _is_constant(expr: Any) -> bool:
    return isinstance(expr, tvm.ir.GenericConst)


def _is_tensor(expr: Any) -> bool:
    """Whether an argument is a tensor or a tuple of tensors, not a shape or number."""
    if isinstance(expr, relax.Tuple):
        return bool(expr.fields) and all(_is_tensor(field) for field in expr.fields)
    return _is_constant(expr) or (
        isinstance(expr, tvm.ir.Var) and isinstance(expr.ty, (relax.TensorType, relax.TupleType))
    )


def _array(constant: Any) -> Array:
    value = getattr(constant, "value", None)
    if value is None:
        value = constant.data
    return np.ascontiguousarray(value.numpy()) if value.ndim else np.asarray(value.numpy())


def _signature(ty: Any, name: str) -> TensorSig:
    shape = getattr(ty, "shape", None)
    if shape is None:
        raise CompileError("lowering", f"the shape of {name} is not known")
    try:
        return TensorSig(tuple(int(extent) for extent in shape.values), str(ty.dtype))
    except (TypeError, ValueError) as error:
        raise CompileError("lowering", f"{name} has a symbolic shape: {shape}") from error
