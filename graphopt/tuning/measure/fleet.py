"""Machines that run kernels for us: TVM's RPC servers, found through TVM's tracker.

Whatever talks to them may be kept waiting for ever by a machine that has gone, so all of this runs
in children that have a deadline; only the address is read elsewhere.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from typing import Any

from graphopt.errors import OptionError, last_line
from graphopt.tuning.measure.device import Device

REACH_SECONDS = 10.0
"""For so long a tracker, or a server that registers with it, is waited for."""


class AbsentError(Exception):
    """There is nobody to run kernels; trying again would not help."""


def parse_address(text: str) -> tuple[str, int] | None:
    """Host and port of "HOST:PORT"; None where it is not written like that."""
    match = re.fullmatch(r"(\[[^\]]+\]|[^\[\]/:]+):(\d{1,5})", text.strip())
    if match is None or not 0 < int(match[2]) < 1 << 16:
        return None
    return match[1].strip("[]"), int(match[2])


@dataclass(frozen=True)
class Fleet:
    """Servers that have registered with a tracker under one key."""

    host: str
    port: int
    key: str

    @staticmethod
    def parse(text: str) -> Fleet:
        """The fleet at "HOST:PORT/KEY".

        Raises:
            OptionError: it is not written like that.
        """
        place, _, key = text.strip().partition("/")
        address = parse_address(place)
        if address is None or not key or key.split() != [key]:
            raise OptionError(
                "options",
                f"rpc must be HOST:PORT/KEY, not {text!r}.",
                hint="the tracker's address and the key of its servers, as in 10.0.0.5:9190/pi4.",
            )
        return Fleet(*address, key)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.key}"

    def servers(self) -> int:
        """How many there are, waiting for the first.

        Raises:
            AbsentError: the tracker does not answer, or knows of none.
        """
        deadline = time.monotonic() + REACH_SECONDS
        while True:
            wanted = f"server:{self.key}"
            known: list[dict[str, Any]] = self._tracker(deadline).summary()["server_info"]
            count = len([each for each in known if each.get("key") == wanted])
            if count:
                return count
            if time.monotonic() > deadline:
                keys = sorted({str(each.get("key")).partition(":")[2] for each in known})
                raise AbsentError(
                    f"no server with the key '{self.key}' has registered with the tracker at "
                    f"{self.host}:{self.port}; it knows {', '.join(keys) or 'none at all'}."
                )
            time.sleep(0.5)

    def open(self, seconds: float) -> Device:
        """A session with a free server, which ends it after `seconds`; waits for one.

        Raises:
            AbsentError: as servers().
        """
        self.servers()
        tracker = self._tracker(time.monotonic() + REACH_SECONDS)
        try:
            return Device(tracker.request(self.key, session_timeout=seconds))
        except Exception as error:  # TVM raises many types
            raise AbsentError(f"no server of {self} can be reached: {last_line(error)}") from None

    def _tracker(self, deadline: float) -> Any:
        from tvm import rpc

        while True:
            try:
                # TVM's client tries for a minute, and does not say why it fails.
                socket.create_connection((self.host, self.port), 5.0).close()
                return rpc.connect_tracker(self.host, self.port)
            except (OSError, RuntimeError) as error:
                if time.monotonic() > deadline:
                    raise AbsentError(
                        f"the tracker at {self.host}:{self.port} does not answer: "
                        f"{getattr(error, 'strerror', None) or error}."
                    ) from None
            time.sleep(0.5)
