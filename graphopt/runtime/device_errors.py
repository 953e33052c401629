"""Says what the failure of a device means, from what its runtime says."""

from __future__ import annotations

from graphopt.errors import DeviceError

_NO_MEMORY = (
    "CL_MEM_OBJECT_ALLOCATION_FAILURE",
    "CL_OUT_OF_RESOURCES",
    "CL_OUT_OF_HOST_MEMORY",
    "CL_INVALID_BUFFER_SIZE",
    "out of memory",
    "cudaErrorMemoryAllocation",
)
_LOST = (
    "CL_DEVICE_NOT_AVAILABLE",
    "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST",
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "GPU is lost",
)
_LIMIT = "device limit: "
_LIMITS = (
    "CL_INVALID_WORK_GROUP_SIZE",
    "CL_INVALID_WORK_ITEM_SIZE",
    "too many resources requested",
    "invalid configuration argument",
)


def device_error(said: str, device: str) -> DeviceError:
    """The error for what a device's runtime said.

    Args:
        said: several lines, perhaps.
        device: its name.
    """
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    words = "; ".join(lines[:8])[:1000] or "it did not say why"
    if _LIMIT in words:
        reason = words.split(_LIMIT, 1)[1]
        hint = "compile the model for this device."
    elif any(name in words for name in _LIMITS):
        reason = f"a kernel is larger than {device} allows ({words})"
        hint = "compile the model for this device."
    elif any(name in words for name in _NO_MEMORY):
        reason = f"{device} has no memory left for this program ({words})"
        hint = "use smaller shapes, or close other programs that use the device."
    elif any(name in words for name in _LOST):
        reason = f"{device} was lost, or ended a kernel ({words})"
        hint = "load the program again, in a new process if that fails too."
    else:
        reason, hint = f"{device} failed: {words}", None
    return DeviceError("run", reason.rstrip(".") + ".", hint=hint)
