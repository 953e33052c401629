"""TVM's RPC server, for a machine that runs kernels for tuning runs elsewhere.

It also runs programs on the machine's device, which takes more than TVM's functions.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0


def serve(tracker: tuple[str, int], key: str, host: str = "127.0.0.1", port: int = 9090) -> None:
    """Run kernels for whoever asks the tracker, until the process is interrupted.

    Whoever can reach this machine's `port` can have it execute anything.

    Args:
        tracker: host and port of TVM's RPC tracker.
        key: what tuning runs ask the tracker for.
        host, port: where to listen: port, or one of the hundred after it.

    Raises:
        OptionError: there is no such address, or no free port.
    """
    from tvm.rpc import server

    from graphopt.tuning.measure.rpc_programs import register

    register()
    listening = _listen(host, port)
    mine = listening.getsockname()[1]
    log.info("listening at %s:%d, for %s of %s:%d", host, mine, key, *tracker)
    home = Path.cwd()
    while True:
        try:
            server._listen_loop(listening, mine, key, tracker, None, None)
        # TVM 0.27's loop ends for good when a session ends with an error, and it takes a driver
        # that is killed, or a kernel that crashes, for one. It changes the working folder as well.
        except (OSError, RuntimeError) as error:
            log.warning("a session ended badly: %s", error)
            os.chdir(home)
            time.sleep(PAUSE_SECONDS)


def _listen(host: str, port: int) -> Any:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for each in range(port, min(port + 100, 1 << 16)):
        try:
            listening.bind((host, each))
            listening.listen(1)
            return listening
        except OSError as error:
            reason = error.strerror
    raise OptionError("options", f"cannot listen at {host}:{port} or on a port after it: {reason}.")
