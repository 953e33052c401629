"""What the driver and the measure server say to one another: JSON in frames over pipes."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What a child of the server may take: seconds for each step, bytes beyond what it inherits.

    device_seconds: to be given another machine, where kernels run on others. session_seconds: with
    one, for a kernel; final_seconds: for the programs of the finals.
    """

    build_seconds: float = 20.0
    run_seconds: float = 15.0
    reference_seconds: float = 120.0
    device_seconds: float = 120.0
    session_seconds: float = 60.0
    final_seconds: float = 270.0
    memory_bytes: int = 4 << 30


_HEADER = struct.Struct("<Q")


class ClosedError(Exception):
    """The other side has closed its end, or died."""


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write one message.

    Raises:
        ClosedError: nobody reads.
    """
    data = json.dumps(message).encode()
    data = _HEADER.pack(len(data)) + data
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        raise ClosedError from None


def receive(descriptor: int) -> dict[str, Any]:
    """Read one message.

    Raises:
        ClosedError: nobody writes any more.
    """
    (size,) = _HEADER.unpack(_exactly(descriptor, _HEADER.size))
    message: dict[str, Any] = json.loads(_exactly(descriptor, size))
    return message


def _exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, min(size - len(data), 1 << 20))
        if not piece:
            raise ClosedError
        data += piece
    return data
