"""The machine's OpenCL devices: what they are and what they allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.errors import DeviceError
from graphopt.runtime.opencl.loader import load

_TYPES = {2: "cpu", 4: "gpu", 8: "accelerator"}
_DRIVERS = (
    "install the device's OpenCL driver; any CPU will do with PoCL "
    "(Debian: pocl-opencl-icd, ocl-icd-libopencl1)."
)


@dataclass(frozen=True)
class OpenclDevice:
    """A device, by number: GPUs come first, then accelerators, then CPUs.

    Attributes:
        index: its number, which programs run on.
        platform, name, vendor, version, driver: as the driver tells them.
        type: "gpu", "accelerator" or "cpu".
        compute_units: that run work-groups at the same time.
        max_work_group: work-items of a work-group. work_item_sizes: along each of three axes.
        local_bytes: local memory of a work-group. global_bytes: all memory of the device.
        max_alloc_bytes: of one piece of memory.
        base_align_bytes: of where a part of a piece of memory may begin.
        extensions: by OpenCL's names ("cl_khr_fp16").
        fp16, fp64: whether there is arithmetic of half and double precision.
    """

    index: int
    platform: str
    name: str
    vendor: str
    version: str
    driver: str
    type: str
    compute_units: int
    max_work_group: int
    work_item_sizes: tuple[int, int, int]
    local_bytes: int
    global_bytes: int
    max_alloc_bytes: int
    base_align_bytes: int
    extensions: tuple[str, ...]
    fp16: bool
    fp64: bool

    def unfit(self, needs: DeviceNeeds) -> str | None:
        """Why it cannot run a program with these needs; None if it can."""
        if needs.work_group > self.max_work_group:
            return (
                f"it allows work-groups of {self.max_work_group} work-items, not {needs.work_group}"
            )
        if needs.local_bytes > self.local_bytes:
            return f"it has {self.local_bytes} bytes of local memory, not {needs.local_bytes}"
        if absent := sorted(set(needs.extensions) - set(self.extensions)):
            return f"it lacks {', '.join(absent)}"
        if needs.alignment % self.base_align_bytes:
            return (
                f"parts of its memory begin at multiples of {self.base_align_bytes} bytes, "
                f"not of {needs.alignment}"
            )
        return None


def devices() -> tuple[OpenclDevice, ...]:
    """The devices of this machine; none where there is no driver.

    Raises:
        ArtifactError, DeviceError: as loader.load().
    """
    facts = _function("graphopt.opencl.devices")()
    return tuple(_device(index, dict(each)) for index, each in enumerate(facts))


def require_devices() -> tuple[OpenclDevice, ...]:
    """The devices of this machine, at least one.

    Raises:
        DeviceError: there is none, with the reason; and as loader.load().
    """
    found = devices()
    if not found:
        raise DeviceError(
            "opencl", f"there is no OpenCL device: {missing_reason()}.", hint=_DRIVERS
        )
    return found


def missing_reason() -> str:
    """Why there is no device, in a few words; "" where there is one.

    Raises:
        ArtifactError, DeviceError: as loader.load().
    """
    return str(_function("graphopt.opencl.missing")())


def _function(name: str) -> Any:
    found = load().get_global_func(name, allow_missing=True)
    if found is None:
        raise DeviceError(
            "opencl",
            "another OpenCL runtime for TVM is in this process, which cannot run graphopt's "
            "programs.",
            hint="run graphopt's programs in a process of their own.",
        )
    return found


def _device(index: int, facts: dict[str, Any]) -> OpenclDevice:
    extensions = tuple(sorted(str(facts["extensions"]).split()))
    first, second, third = (int(size) for size in facts["work_item_sizes"])
    return OpenclDevice(
        index=index,
        platform=str(facts["platform"]),
        name=str(facts["name"]),
        vendor=str(facts["vendor"]),
        version=str(facts["version"]),
        driver=str(facts["driver"]),
        type=_TYPES.get(int(facts["type"]) & 14, "other"),
        compute_units=int(facts["compute_units"]),
        max_work_group=int(facts["max_work_group"]),
        work_item_sizes=(first, second, third),
        local_bytes=int(facts["local_bytes"]),
        global_bytes=int(facts["global_bytes"]),
        max_alloc_bytes=int(facts["max_alloc_bytes"]),
        base_align_bytes=int(facts["base_align_bytes"]),
        extensions=extensions,
        fp16="cl_khr_fp16" in extensions,
        fp64="cl_khr_fp64" in extensions or bool(facts["doubles"]),
    )
