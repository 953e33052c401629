"""The parts of a small but complete `.gopt`, around the runtime's toy program."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from toy_program import toy_code, toy_plan, toy_weights

from graphopt.artifact.manifest import Entry, Manifest
from graphopt.runtime.host import host_arch


@dataclass(frozen=True)
class Parts:
    """What `save` takes."""

    manifest: Manifest
    modules: list[bytes]
    weights: Any


def make_parts(n: int = 1000, modules: list[bytes] | None = None, **changes: Any) -> Parts:
    """One entry with the toy program; `changes` go into the entry."""
    plan = toy_plan(n)
    entry = {
        "plan": plan,
        "target": "x86_64-sse2",
        "architecture": host_arch(),
        "features": (),
        "weights_offset": 0,
        **changes,
    }
    manifest = Manifest(
        inputs=plan.inputs,
        outputs=plan.outputs,
        entries=(Entry(**entry),),
        versions={"graphopt": "0.1.0", "tvm": "0.27.0.post1", "tvm_ffi": "0.1.14.post1"},
        report={"passes": [{"name": "fold", "rewrites": 3}], "warnings": ["größer"]},
    )
    return Parts(manifest, [toy_code(n)] if modules is None else modules, toy_weights(n))
