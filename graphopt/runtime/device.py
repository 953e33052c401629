"""A device that programs run on: opened once it is known to fit, with its memory.

OpenCL and CUDA are reached alike, through TVM's device interface. They differ in what stands for a
part of a piece of memory: for CUDA an address in it, for OpenCL an object of its own.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphopt.codegen.device_needs import OPENCL, DeviceNeeds
from graphopt.errors import DeviceError
from graphopt.runtime.device_errors import device_error
from graphopt.runtime.native import DEVICE, INT, TENSOR, Function, raised

_DL_TYPES = {"cuda": 2, "opencl": 4}  # DLPack's numbers
_DL_CPU = 1


@dataclass(frozen=True)
class Offer:
    """What a device of this machine offers: as DeviceNeeds, of which `unfit` checks the rest.

    max_alloc_bytes: of one piece of memory.
    """

    index: int
    name: str
    max_alloc_bytes: int
    unfit: Callable[[DeviceNeeds], str | None]


class Memory:
    """A piece of a device's memory, given back when nothing refers to it any more.

    handle: what stands for it in a program's table.
    """

    def __init__(self, tensor: Any, nbytes: int) -> None:
        self._tensor = tensor
        self.handle = int(tensor.data_ptr())
        self.nbytes = nbytes


class View:
    """A part of a piece of memory, which it keeps."""

    def __init__(
        self,
        memory: Memory,
        handle: int,
        nbytes: int,
        release: Callable[[int], None] | None = None,
    ) -> None:
        self.memory = memory
        self.handle = handle
        self.nbytes = nbytes
        if release is not None:
            # When the process ends, the driver may be gone before.
            weakref.finalize(self, release, handle).atexit = False


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Transfer:
    """Copies between one place on a device and the host, in either direction."""

    def __init__(self, copy: Function, device: Device, memory: Memory | View, upload: bool) -> None:
        shape = (ctypes.c_int64 * 1)(memory.nbytes)
        kind = _DL_TYPES[device.kind]
        self._there = _Tensor(memory.handle, kind, device.index, 1, 1, 8, 1, shape, None, 0)
        self._host = _Tensor(None, _DL_CPU, 0, 1, 1, 8, 1, shape, None, 0)
        self._kept = (shape, memory)
        ends = [ctypes.addressof(self._host), ctypes.addressof(self._there)]
        source, target = ends if upload else reversed(ends)
        self._call = copy.bind((TENSOR, source), (TENSOR, target)) if memory.nbytes else None

    def __call__(self, place: int) -> int:
        """Copy from or to the address `place`; 0 if that went well, else see native.raised()."""
        if self._call is None:
            return 0
        self._host.data = place
        return self._call()


class Device:
    """A device, opened."""

    def __init__(self, tvm_ffi: Any, kind: str, offer: Offer) -> None:
        self._ffi = tvm_ffi
        self.kind, self.index, self.name = kind, offer.index, offer.name
        number = _DL_TYPES[kind]
        self._device = tvm_ffi.device(kind, offer.index)
        self._allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        self._copy = Function(tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo"))
        self._select = Function(tvm_ffi.get_global_func("__tvm_set_device"))
        self._sync = Function(tvm_ffi.get_global_func("runtime.Device_StreamSync"))
        self._selected = (INT, number), (INT, offer.index)
        self._synced = (DEVICE, number | offer.index << 32), (INT, 0)

    def allocate(self, nbytes: int) -> Memory:
        """A new piece of memory, uninitialised.

        Raises:
            DeviceError: there is none left.
        """
        shape = self._ffi.Shape((max(1, nbytes),))
        try:
            tensor = self._allocate(shape, self._ffi.dtype("uint8"), self._device, None)
        except (RuntimeError, MemoryError) as error:
            raise device_error(str(error), self.name) from error
        return Memory(tensor, nbytes)

    def view(self, memory: Memory, offset: int, nbytes: int) -> View:
        """The part of `memory` that begins at `offset`, of nbytes > 0.

        Raises:
            DeviceError: nothing may begin there on this device.
        """
        if self.kind != OPENCL:
            return View(memory, memory.handle + offset, nbytes)
        make = self._ffi.get_global_func("graphopt.opencl.view")
        release = self._ffi.get_global_func("graphopt.opencl.release")
        try:
            handle = make(ctypes.c_void_p(memory.handle), offset, nbytes)
        except RuntimeError as error:
            raise device_error(str(error), self.name) from error
        view = int(handle.value)
        return View(memory, view, nbytes, lambda value: release(ctypes.c_void_p(value)))

    def transfer(self, memory: Memory | View, upload: bool) -> Transfer:
        """Copies of all of `memory` from (`upload`) or to the host, for one thread at a time."""
        return Transfer(self._copy, self, memory, upload)

    def select(self) -> None:
        """Let this thread's launches go to this device."""
        self.check(self._select.bind(*self._selected)())

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        self.check(self._sync.bind(*self._synced)())

    def check(self, status: int) -> None:
        """Raise DeviceError if a native call in this thread returned `status` ≠ 0."""
        if status:
            raise device_error(raised(), self.name)

    def record(self) -> None:
        """Time this thread's launches from now on; OpenCL only."""
        self._ffi.get_global_func("graphopt.opencl.record")(self.index)

    def mark(self) -> None:
        """What is launched from now on counts for another row."""
        self._ffi.get_global_func("graphopt.opencl.mark")()

    def recorded(self) -> list[int]:
        """End that: nanoseconds of the launches before each mark, by the device's clock."""
        return [int(value) for value in self._ffi.get_global_func("graphopt.opencl.recorded")()]


def open_device(needs: DeviceNeeds, largest: int) -> Device:
    """The device of this machine that a program runs on: the one it was made for, else any.

    Args:
        largest: bytes of the largest piece of memory that it needs.
    Raises:
        DeviceError: none fits, with the reason for each; or there is none.
        ArtifactError: a part of TVM's runtime is missing.
    """
    tvm_ffi, offers = _opencl() if needs.kind == OPENCL else _cuda()
    reasons = {}
    for offer in sorted(offers, key=lambda each: each.name != needs.name):
        reason = offer.unfit(needs)
        if reason is None and largest > offer.max_alloc_bytes:
            reason = f"it gives at most {offer.max_alloc_bytes} bytes at once, not {largest}"
        if reason is None:
            return Device(tvm_ffi, needs.kind, offer)
        reasons[offer.name] = reason
    raise DeviceError(
        "load",
        "the program cannot run here: "
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        + ".",
        hint="compile the model for this machine's device.",
    )


def _opencl() -> tuple[Any, list[Offer]]:
    from graphopt.runtime.opencl.devices import OpenclDevice, require_devices
    from graphopt.runtime.opencl.loader import load

    def offer(device: OpenclDevice) -> Offer:
        return Offer(device.index, device.name, device.max_alloc_bytes, device.unfit)

    return load(), [offer(device) for device in require_devices()]


def _cuda() -> tuple[Any, list[Offer]]:
    from graphopt.runtime.cuda import Gpu, gpus, open_runtime

    def offer(gpu: Gpu) -> Offer:
        return Offer(gpu.index, gpu.name, gpu.memory_bytes, gpu.unfit)

    found = gpus()
    if not found:
        raise DeviceError("load", "NVIDIA's driver finds no GPU.")
    return open_runtime(), [offer(gpu) for gpu in found]
