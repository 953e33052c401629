"""What kernels say in the words of LLVM and libm, in those of OpenCL C or CUDA C++."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, tirx
from tvm.target import codegen

from graphopt.codegen.opencl_words import NAMES

Expr = Any
Stmt = Any


def for_device(body: Stmt, kind: str) -> Stmt:
    """The statement with what only LLVM's code generator understands, or means otherwise, replaced.

    Args:
        kind: "opencl" or "cuda".
    """

    def call(node: Any) -> Any:
        name = str(getattr(node.op, "name", ""))
        if name in ("tirx.call_pure_extern", "tirx.call_extern"):
            return _extern(node, kind)
        if name in ("tirx.call_llvm_pure_intrin", "tirx.call_llvm_intrin"):
            return _llvm(node, kind)
        if name == "tirx.reinterpret":
            return _reinterpreted(node, kind)
        return node

    rules = [(ir.Call, call)]
    if kind == "opencl":
        rules.append((tirx.FloatImm, _constant))
    return tvm_ffi.structural_map(body, rules)


def with_extrema(body: Stmt) -> Stmt:
    """The statement with min and max of floats as LLVM's code generator makes them.

    To be called when no pass of TVM follows that simplifies: the time of one is exponential in the
    depth of nested Lets, of which this makes one for each operand.
    """
    return tvm_ffi.structural_map(body, [(tirx.Min, _extremum), (tirx.Max, _extremum)])


@cache
def _intrinsic(name: str) -> int:
    """LLVM's number of an intrinsic function, by which calls know it."""
    return int(codegen.llvm_lookup_intrinsic_id(name))


def _extern(node: Any, kind: str) -> Expr:
    """OpenCL's functions of floats have one name for all types."""
    name = str(node.args[0].value)
    if kind == "opencl" and name == "__dp4a":
        dtype = str(node.ty.dtype)
        return tirx.call_pure_extern(dtype, NAMES[dtype], *node.args[1:])
    single = str(node.ty.dtype) == "float32" and name.endswith("f") and name != "erf"
    if kind != "opencl" or not single:
        return node
    return tirx.call_pure_extern("float32", name[:-1], *node.args[1:])


def _llvm(node: Any, kind: str) -> Expr:
    number, operand = int(node.args[0].value), node.args[-1]
    if number == _intrinsic("llvm.prefetch"):
        return tirx.const(0, "int32")
    if number != _intrinsic("llvm.arithmetic.fence"):
        return node
    # A product that must not be joined with an addition behind it.
    if kind == "cuda":
        zero = tirx.const(-0.0, "float32")
        return tirx.call_pure_extern("float32", "__fadd_rn", operand, zero)
    bits = tirx.call_pure_extern("int32", "as_int", operand)
    return tirx.call_pure_extern("float32", "as_float", bits)


_INTEGERS = {"int8", "int16", "int32", "int64"}
_AS_BITS = {
    # Not the other way: as_float() refuses what C widens to 64 bits, such as the smallest int.
    "opencl": {("float32", "int32"): "as_int", ("float32", "uint32"): "as_uint"},
    "cuda": {
        ("float32", "int32"): "__float_as_int",
        ("float32", "uint32"): "__float_as_uint",
        ("int32", "float32"): "__int_as_float",
        ("uint32", "float32"): "__uint_as_float",
        ("float64", "int64"): "__double_as_longlong",
        ("float64", "uint64"): "__double_as_longlong",
        ("int64", "float64"): "__longlong_as_double",
        ("uint64", "float64"): "__longlong_as_double",
        ("float16", "int16"): "__half_as_short",
        ("float16", "uint16"): "__half_as_ushort",
        ("int16", "float16"): "__short_as_half",
        ("uint16", "float16"): "__ushort_as_half",
    },
}
"""The functions that give the bits of one type as another one."""


def _reinterpreted(node: Any, kind: str) -> Expr:
    """TVM writes reinterpret() with the address of its operand, which not every value has."""
    [operand] = node.args
    source, dtype = (str(getattr(each.ty, "dtype", "")) for each in (operand, node))
    same = source.removeprefix("u") == dtype.removeprefix("u")
    if kind == "cuda" and same and dtype.removeprefix("u") in _INTEGERS:
        return tirx.Cast(dtype, operand)
    function = _AS_BITS[kind].get((source, dtype))
    return node if function is None else tirx.call_pure_extern(dtype, function, operand)


def _extremum(node: Any) -> Expr:
    """min and max as LLVM's code generator makes them: the second argument where one is NaN."""
    dtype = str(node.ty.dtype)
    if not dtype.startswith(("float", "bfloat")):
        return node
    bound: list[tuple[Any, Expr]] = []

    def once(value: Expr) -> Expr:
        if isinstance(value, (tirx.Var, tirx.FloatImm)):
            return value
        bound.append((tirx.Var("side", value.ty), value))
        return bound[-1][0]

    a, b = once(node.a), once(node.b)
    first = a < b if isinstance(node, tirx.Min) else a > b
    result = tirx.Select(first, a, b)
    for var, value in reversed(bound):
        result = tirx.Let(var, value, result)
    return result


def _constant(node: Any) -> Expr:
    """A float as it is: the code generator writes seven decimal digits of it."""
    dtype, value = str(node.ty.dtype), float(node.value)
    if dtype not in ("float32", "float64") or not np.isfinite(value):
        return node
    exact = np.dtype(dtype).type
    if exact(f"{value:.6e}") == exact(value):
        return node
    if dtype == "float32":
        bits = int(np.float32(value).view(np.int32))
        return tirx.call_pure_extern(dtype, "as_float", tirx.const(bits, "int32"))
    bits = int(np.float64(value).view(np.int64))
    return tirx.call_pure_extern(dtype, "as_double", tirx.const(bits, "int64"))
