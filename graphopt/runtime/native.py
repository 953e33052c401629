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
_INT = 1
_POINTER = 4

_ANY = struct.Struct("=iiq")


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
        """A call with a pointer and integers as arguments, for one thread at a time.

        Calling it returns 0, or something else if the function refused its arguments. This object
        must outlive it.
        """
        packed = _ANY.pack(_POINTER, 0, pointer)
        packed += b"".join(_ANY.pack(_INT, 0, value) for value in integers)
        # The result comes behind the arguments. References keep the memory alive.
        memory = ctypes.create_string_buffer(packed + bytes(_ANY.size))
        arguments, result = ctypes.byref(memory), ctypes.byref(memory, len(packed))
        count = ctypes.c_int(1 + len(integers))
        return functools.partial(self._call, self._handle, arguments, count, result)
