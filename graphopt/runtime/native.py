"""Calls a module's functions through TVM's C interface, from threads that may outlive Python.

tvm_ffi's own call leads through C++ frames. A daemon thread that returns from native code while
the interpreter goes down is ended there by unwinding, which C++ answers by aborting the process;
the frames of ctypes are C and unwind. Like tvm_ffi, ctypes releases the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any

from graphopt.runtime.library import load_runtime

# Type indices of TVMFFIAny, see tvm/ffi/c_api.h.
INT = 1
POINTER = 4
DEVICE = 6
TENSOR = 7

_ANY = struct.Struct("=iiq")
# An error object: its header, then bytes and their number of its kind and of its message.
_HEADER_BYTES = 24
_TEXTS = struct.Struct("=QQQQ")


class Function:
    """A packed function of a module; it keeps the module loaded."""

    def __init__(self, function: Any) -> None:
        """Args:
        function: a tvm_ffi.Function.
        """
        # Without declared argument types ctypes takes its own objects as they are, which is fast.
        prototype = ctypes.CFUNCTYPE(ctypes.c_int)
        self._call = prototype(("TVMFFIFunctionCall", load_runtime().LIB))
        self._handle = ctypes.c_void_p(function.__chandle__())
        self._kept = function

    def prepare(self, pointer: int, *integers: int) -> Callable[[], int]:
        """A call with a pointer and integers as arguments; see bind()."""
        return self.bind((POINTER, pointer), *((INT, value) for value in integers))

    def bind(self, *arguments: tuple[int, int]) -> Callable[[], int]:
        """A call with these arguments, for one thread at a time.

        Calling it returns 0, or something else if the function failed: raised() then says why.
        This object must outlive it.

        Args:
            arguments: pairs of a type (INT, POINTER, …) and a value.
        """
        packed = b"".join(_ANY.pack(kind, 0, value) for kind, value in arguments)
        # The result comes behind the arguments. References keep the memory alive.
        memory = ctypes.create_string_buffer(packed + bytes(_ANY.size))
        given, result = ctypes.byref(memory), ctypes.byref(memory, len(packed))
        count = ctypes.c_int(len(arguments))
        return functools.partial(self._call, self._handle, given, count, result)


def raised() -> str:
    """What the call that failed last in this thread said; "" if that is not known."""
    library = load_runtime().LIB
    error = ctypes.c_void_p()
    library.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
    if not error.value:
        return ""
    try:
        texts = ctypes.string_at(error.value + _HEADER_BYTES, _TEXTS.size)
        _, _, message, nbytes = _TEXTS.unpack(texts)
        return ctypes.string_at(message, nbytes).decode(errors="replace")
    finally:
        library.TVMFFIObjectDecRef(error)
