"""How a model is run while it is quantized: by a callable that is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.errors import ModelError
from graphopt.frontend.model import Array, OnnxModel

Run: TypeAlias = Callable[[OnnxModel, Mapping[str, Array], Sequence[str]], Mapping[str, Array]]
"""(model, inputs by name, names of tensors) → these tensors: outputs or any computed ones."""

KernelTime: TypeAlias = tuple[tuple[str, ...], float]
"""The nodes that a kernel computes, and its seconds per run."""

Profiler: TypeAlias = Callable[[OnnxModel, Mapping[str, Array], Sequence[str]], list[KernelTime]]
"""As Run, with the time of each kernel."""

Feeds: TypeAlias = Mapping[str, Array]
Batches: TypeAlias = Iterable[Feeds]

_SAME = 1e-2
"""Largest difference, over the largest value, between a model and its canonical form. Rounding
makes a hundredth of that; a wrong rewrite makes a hundred times it."""


def observed(
    run: Run, model: OnnxModel, batches: Batches, tensors: Sequence[str]
) -> Iterator[Mapping[str, Array]]:
    """The values of `tensors`, the model's inputs among them, for each batch."""
    inputs = set(Graph(model).inputs)
    wanted = [name for name in dict.fromkeys(tensors) if name not in inputs]
    for feeds in batches:
        computed = run(model, feeds, wanted) if wanted else {}
        yield {name: feeds[name] if name in inputs else computed[name] for name in tensors}


def check_same(first: Feeds, second: Feeds, opset: int) -> None:
    """Refuse a canonical form that computes something else than the model.

    Args:
        first, second: the float outputs of the model, and of its canonical form.
        opset: of the canonical form.

    Raises:
        ModelError: an output differs, naming it.
    """
    for name in first:
        a, b = first[name].astype(np.float64), second[name].astype(np.float64)
        size = float(np.max(np.abs(a), initial=0.0))
        same = a.shape == b.shape
        if not same or float(np.max(np.abs(a - b), initial=0.0)) > _SAME * max(size, 1e-30):
            raise ModelError(
                STAGE,
                f"output '{name}' changed when the model was raised to a newer operator set or "
                "its batch normalisations were folded.",
                hint=f"export the model with opset_version={max(13, opset)}.",
            )
