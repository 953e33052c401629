"""Calls a module's functions through TVM's C interface, from threads that may outlive Python.

tvm_ffi's own call leads through C++ frames. A daemon thread that returns from native code while
the interpreter goes down is ended there by unwinding, which C++ answers by aborting the process;
the frames of ctypes are C and unwind. Like tvm_ffi, ctypes releases the GIL.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.runtime.library import load_runtime

# Type indices of TVMFFIAny, see tvm/ffi/c_api.h.
_INT = 1
_POINTER = 4

_ANY = struct.Struct("=iiq")


class Arguments:
    """The arguments of a call, ready made: a pointer, then integers; and room for its result.

    Each thread has its own.
    """

    __slots__ = ("count", "result", "values")

    def __init__(self, pointer: int, *integers: int) -> None:
        self.count = 1 + len(integers)
        packed = _ANY.pack(_POINTER, 0, pointer)
        packed += b"".join(_ANY.pack(_INT, 0, value) for value in integers)
        self.values = ctypes.create_string_buffer(packed, len(packed))
        self.result = ctypes.create_string_buffer(_ANY.size)


class Function:
    """A packed function of a module; it keeps the module loaded."""

    def __init__(self, function: Any) -> None:
        """Args:
        function: a tvm_ffi.Function.
        """
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p
        )
        self._call = prototype(("TVMFFIFunctionCall", load_runtime().LIB))
        self._kept = function
        self._handle = ctypes.c_void_p(function.__chandle__())

    def __call__(self, arguments: Arguments) -> None:
        """Call it.

        Raises:
            GraphoptError: the function reports a failure, as compiled code does for arguments of
                the wrong type or number.
        """
        if self._call(self._handle, arguments.values, arguments.count, arguments.result):
            raise GraphoptError("run", "The compiled program refused its arguments.")
