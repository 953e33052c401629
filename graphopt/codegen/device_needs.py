"""What a program needs of the device that runs it: made when compiling, checked when loading."""

from __future__ import annotations

from dataclasses import dataclass

OPENCL, CUDA = "opencl", "cuda"
KINDS = (OPENCL, CUDA)


@dataclass(frozen=True)
class DeviceNeeds:
    """The device of a program and the least that it must offer.

    Attributes:
        kind: "opencl" or "cuda".
        name: the device that it was compiled for, which is taken if it is there; "" for any.
        work_group: work-items of the largest work-group (CUDA: threads of a block).
        local_bytes: local memory (CUDA: static shared memory) that a work-group uses at most.
        alignment: in bytes, of which the place of every buffer in the arena is a multiple.
        extensions: of OpenCL ("cl_khr_fp16").
        architectures: of CUDA, that there is machine code for, oldest first ("sm_80"); those after
            the last one can translate what is there.
    """

    kind: str
    name: str
    work_group: int
    local_bytes: int
    alignment: int
    extensions: tuple[str, ...]
    architectures: tuple[str, ...]
