"""Machines for tests: a real tracker and real servers, on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from graphopt.tuning.measure.fleet import Fleet


@dataclass(frozen=True)
class Machines:
    """A tracker with two servers, each in a process group of its own."""

    tracker: subprocess.Popen[bytes]
    servers: tuple[subprocess.Popen[bytes], ...]
    ports: tuple[int, ...]
    fleet: Fleet

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """And all that it started: TVM's programs do their work in a child."""
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):  # a child that ends of itself
                each.kill()
        process.wait()

    def close(self) -> None:
        for process in (*self.servers, self.tracker):
            if process.poll() is None:
                self.kill(process)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def limited(port: int) -> tuple[str, ...]:
    return "--port", str(port), "--port-end", str(port + 1)


TVMS, OURS = ("tvm.exec.rpc_server",), ("graphopt.cli.main", "rpc-server")


def start(
    folder: Path, kinds: Sequence[tuple[str, ...]] = (TVMS, OURS), **environment: str
) -> Machines:
    """A tracker and a server of each kind, in this environment and what is added to it."""

    def run(module: str, *args: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", module, *args, "--host", "127.0.0.1"]
        with (folder / f"{len(list(folder.iterdir()))}.log").open("wb") as log:
            return subprocess.Popen(
                words,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    port, ports = free_port(), tuple(free_port() for _ in kinds)
    tracker = run("tvm.exec.rpc_tracker", *limited(port))
    where = ("--tracker", f"127.0.0.1:{port}", "--key", "board")
    servers = tuple(
        run(*kind, *(limited(mine) if kind == TVMS else ("--port", str(mine))), *where)
        for kind, mine in zip(kinds, ports, strict=True)
    )
    machines = Machines(tracker, servers, ports, Fleet("127.0.0.1", port, "board"))
    deadline = time.monotonic() + 60
    try:
        while machines.fleet.servers() < len(kinds):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    except BaseException:
        machines.close()
        raise
    return machines
