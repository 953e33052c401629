"""Products of four pairs of bytes in OpenCL C: the device's instruction, else its definition.

Programs so run on any device; whether kernels are made of such products is decided elsewhere.
"""

from __future__ import annotations

import re

NAMES = {"int32": "graphopt_dot_int", "uint32": "graphopt_dot_uint"}
"""The functions (a, b, total) of signed and of unsigned bytes in words of these types."""

_BUILT_IN = "defined(cl_khr_integer_dot_product)"


def _definition(dtype: str, scalar: str, vector: str, built_in: str) -> str:
    wide = f"convert_{scalar}4(as_{vector}4(a)) * convert_{scalar}4(as_{vector}4(b))"
    return f"""
inline {scalar} {NAMES[dtype]}({scalar} a, {scalar} b, {scalar} total) {{
#if {_BUILT_IN}
  return {built_in}(as_uint(a), as_uint(b)) + total;
#else
  {scalar}4 p = {wide};
  return p.x + p.y + p.z + p.w + total;
#endif
}}
"""


_DEFINITIONS = _definition("int32", "int", "char", "dot_4x8packed_ss_int") + _definition(
    "uint32", "uint", "uchar", "dot_4x8packed_uu_uint"
)


_FUNCTION = re.compile(r"^// Function: .*\n", re.MULTILINE)
"""What stands before each kernel; the runtime compiles each for itself."""


def with_words(source: str) -> str:
    """The source of kernels, with definitions of the functions before those that call them."""
    found, at = [], 0
    for mark in _FUNCTION.finditer(source):
        found.append(_defined(source[at : mark.start()]) + mark.group())
        at = mark.end()
    return "".join([*found, _defined(source[at:])])


def _defined(kernel: str) -> str:
    used = any(f"{name}(" in kernel for name in NAMES.values())
    return _DEFINITIONS + kernel if used else kernel
