"""Processes that answer many requests and are replaced when they die, hang or have grown old."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import struct
import time
from collections.abc import Callable
from typing import Any

from isolation import Limits, Outcome, death, enter_child, kill_child

_HEADER = struct.Struct("<Q")


class Worker:
    """A fork of this process that runs `function` on each request.

    What this process has imported costs the fork nothing; a fork per request would cost more than
    most requests. After `lifetime` requests it is replaced, as memory leaks.
    """

    def __init__(self, function: Callable[[Any], Any], limits: Limits, lifetime: int = 200) -> None:
        self._function, self._limits, self._lifetime = function, limits, lifetime
        self._pid = 0
        self._served = 0
        self._requests = self._answers = -1
        self._deadline = 0.0

    def ask(self, request: Any) -> None:
        """Send a request; answer() waits for its outcome."""
        if not self._pid or self._served >= self._lifetime:
            self.close()
            self._start()
        self._served += 1
        self._deadline = time.monotonic() + self._limits.seconds
        data = pickle.dumps(request)
        with contextlib.suppress(BrokenPipeError):  # answer() sees how it died
            _write(self._requests, _HEADER.pack(len(data)) + data)

    def answer(self) -> Outcome:
        """What became of the request."""
        received = bytearray()
        while True:
            patience = max(0.0, self._deadline - time.monotonic())
            ready, _, _ = select.select([self._answers], [], [], patience)
            if not ready:
                self.close()
                return Outcome("timeout")
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                return death(self._reap())
            received += chunk
            if len(received) >= _HEADER.size:
                (size,) = _HEADER.unpack_from(received)
                if len(received) == _HEADER.size + size:
                    ended, value = pickle.loads(bytes(received[_HEADER.size :]))
                    if ended == "raised":
                        self._served = self._lifetime  # what failed may have left a mess
                        return Outcome("raised", detail=value)
                    return Outcome("returned", value)

    def close(self) -> None:
        """End the process."""
        if self._pid:
            kill_child(self._pid)
            self._reap()

    def _reap(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        os.close(self._requests)
        os.close(self._answers)
        self._pid = 0
        return status

    def _start(self) -> None:
        request_reader, self._requests = os.pipe()
        self._answers, answer_writer = os.pipe()
        self._served = 0
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._requests)
            os.close(self._answers)
            self._serve(request_reader, answer_writer)
        os.close(request_reader)
        os.close(answer_writer)

    def _serve(self, requests: int, answers: int) -> None:
        try:
            enter_child(self._limits)
            while header := _read(requests, _HEADER.size):
                request = pickle.loads(_read(requests, _HEADER.unpack(header)[0]))
                try:
                    message = pickle.dumps(("returned", self._function(request)))
                except BaseException as error:
                    message = pickle.dumps(("raised", f"{type(error).__name__}: {error}"[:2000]))
                _write(answers, _HEADER.pack(len(message)) + message)
        finally:
            os._exit(0)


def _read(pipe: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(pipe, size - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _write(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]
