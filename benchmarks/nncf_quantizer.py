"""NNCF's post-training quantization of an ONNX model, in a process of its own.

    python benchmarks/nncf_quantizer.py MODEL.onnx DATA.npz OUT.onnx performance|mixed|transformer

DATA has the arrays of batch k under k/INPUT. NNCF is not imported into the process that measures:
it changes what it finds there.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray[Any, Any]]


def is_installed() -> bool:
    """Whether nncf is there, without importing it."""
    return importlib.util.find_spec("nncf") is not None


def quantize_with_nncf(source: Path, target: Path, batches: Sequence[Feeds], preset: str) -> None:
    """Write `source` quantized to `target`.

    Args:
        preset: "performance" (symmetric activations), "mixed" (asymmetric ones), or "transformer":
            mixed for NNCF's model type of that name, with which it also leaves normalisations and
            squares written out in single operators in float, in models of any kind.

    Raises:
        RuntimeError: NNCF failed, with what it said last.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-nncf-") as folder:
        data = Path(folder) / "data.npz"
        arrays = {f"{k}/{name}": x for k, batch in enumerate(batches) for name, x in batch.items()}
        np.savez(data, **arrays)  # type: ignore[arg-type]  # the names are none of its options
        command = [sys.executable, __file__, str(source), str(data), str(target), preset]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"NNCF: {lines[-1] if lines else f'exit status {done.returncode}'}")


def main() -> int:
    """Quantize once."""
    import nncf
    import onnx

    model, data, target, preset = sys.argv[1:]
    batches: dict[int, dict[str, Any]] = {}
    with np.load(data) as arrays:
        for name in arrays.files:
            place, _, key = name.partition("/")
            batches.setdefault(int(place), {})[key] = arrays[name]
    transformer = preset == "transformer"
    quantized = nncf.quantize(
        onnx.load(model),
        nncf.Dataset([batches[place] for place in sorted(batches)]),
        preset=nncf.QuantizationPreset("mixed" if transformer else preset),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(batches),
    )
    onnx.save(quantized, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
