"""Permission for tile registers: asked for where the processor has them, once per process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


@pytest.mark.skipif("amx_tile" not in _FLAGS, reason="this processor has no AMX")
def test_features_name_tiles_exactly_if_the_system_grants_them() -> None:
    """In a process of its own, which has not asked before."""
    code = (
        "from graphopt.runtime.host import TILES, host_features\n"
        "from graphopt.runtime.tiles import tiles_allowed\n"
        "found = TILES <= host_features()\n"
        "print(found == tiles_allowed())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_refusal_hides_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.runtime import host

    monkeypatch.setattr(host, "tiles_allowed", lambda: False)
    monkeypatch.setattr(host.Path, "read_text", lambda *_, **__: "flags : amx_tile amx_int8 avx2\n")
    monkeypatch.setattr(host, "host_arch", lambda: "x86_64")
    assert host.host_features.__wrapped__() == {"avx2"}
