"""What kernels say in the words of LLVM and libm, in those of OpenCL C or CUDA C++."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx

Expr = Any
Stmt = Any

_FENCE = "llvm.arithmetic.fence"
_PREFETCH = "llvm.prefetch"


def for_device(body: Stmt, kind: str) -> Stmt:
    """The statement without calls that only a CPU has.

    Args:
        kind: "opencl" or "cuda".
    """

    def call(node: Any) -> Any:
        name = str(getattr(node.op, "name", ""))
        if name in ("tirx.call_pure_extern", "tirx.call_extern"):
            return _extern(node, kind)
        if name in ("tirx.call_llvm_pure_intrin", "tirx.call_llvm_intrin"):
            return _llvm(node, kind)
        return node

    return tvm_ffi.structural_map(body, (ir.Call, call))


def _extern(node: Any, kind: str) -> Expr:
    """OpenCL's functions have one name for all types."""
    name = str(node.args[0].value)
    if kind != "opencl" or str(node.ty.dtype) != "float32" or not name.endswith("f"):
        return node
    if name == "erff":
        return node
    return tirx.call_pure_extern("float32", name[:-1], *node.args[1:])


def _llvm(node: Any, kind: str) -> Expr:
    name, operand = _intrinsic(node), node.args[-1]
    if name == _PREFETCH:
        return tirx.const(0, "int32")
    if name == _FENCE:
        if kind == "cuda":
            return tirx.call_pure_extern(
                "float32", "__fadd_rn", operand, tirx.const(-0.0, "float32")
            )
        return tirx.reinterpret("float32", tirx.reinterpret("int32", operand))
    return node
