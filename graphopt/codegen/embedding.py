"""Puts a device's code into a program's shared library, where TVM's runtime looks for it."""

from __future__ import annotations

import struct

SYMBOL = "__tvm_ffi__library_bin"


def library_section(kind: str, code: bytes) -> bytes:
    """What the library's symbol SYMBOL must hold for `code` to be imported when it is opened.

    The form is tvm_ffi's: the number of bytes, then for two modules, of which the first imports
    the second, where each one's imports begin and which they are, and then name and content of
    each. The first is the library itself, which has no content here.

    Args:
        kind: of the module: `ffi.Module.load_from_bytes.<kind>` reads `code`.
    """
    tree = struct.pack("<QQQQ", 3, 0, 1, 1) + struct.pack("<QQ", 1, 1)
    content = tree + _text(b"_lib") + _text(kind.encode()) + _text(code)
    return struct.pack("<Q", len(content)) + content


def assembly(path: str) -> str:
    """Assembler source that puts the file at `path` under SYMBOL into a library."""
    return f"""\
.section .rodata
.balign 64
.globl {SYMBOL}
{SYMBOL}:
.incbin "{path}"
.section .note.GNU-stack,"",%progbits
"""


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
