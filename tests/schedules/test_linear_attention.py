"""The linear attention kernel against NumPy in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, random_inputs, run_candidate, scheduled, serial_extents

from schedules import linear_attention
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    batch: int
    steps: int
    heads: int
    kv_heads: int
    keys: int
    values: int
    decay: str = ""  # "", "head" or "key"
    beta: str = ""  # "", "head" or "one"

    def workload(self, epilogue: Epilogue | None = None) -> Workload:
        last = {"": (), "head": (self.kv_heads,), "key": (self.kv_heads * self.keys,), "one": (1,)}
        shapes = [
            (self.batch, self.steps, self.heads * self.keys),
            (self.batch, self.steps, self.kv_heads * self.keys),
            (self.batch, self.steps, self.kv_heads * self.values),
            (self.batch, self.kv_heads, self.keys, self.values),
            *[(self.batch, self.steps, *last[kind]) for kind in (self.decay, self.beta) if kind],
        ]
        outputs = self.steps * self.heads + self.kv_heads * self.keys
        op = Op(
            "linear_attention",
            tuple(TensorSig(s) for s in shapes),
            TensorSig((self.batch * outputs * self.values,)),
            (
                ("heads", self.heads),
                ("kv_heads", self.kv_heads),
                ("scale", 0.3),
                ("decay", bool(self.decay)),
                ("beta", bool(self.beta)),
            ),
            (False,) * len(shapes),
        )
        return Workload(op, epilogue or Epilogue())

    def inputs(self) -> list[Array]:
        inputs = random_inputs(self.workload())
        keys = inputs[1].reshape(self.batch, self.steps, self.kv_heads, self.keys)
        inputs[1] = (keys / np.linalg.norm(keys, axis=-1, keepdims=True)).reshape(inputs[1].shape)
        for i in range(4, len(inputs)):  # factors between 0 and 1
            inputs[i] = 1 / (1 + np.exp(-inputs[i]))
        return inputs

    def reference(self, inputs: list[Array]) -> Array:
        q, k, v, state, *gates = (a.astype("f8") for a in inputs)
        decay = gates.pop(0) if self.decay else None
        beta = gates.pop(0) if self.beta else None
        output = np.zeros((self.batch, self.steps, self.heads, self.values))
        last = state.copy()
        for b, h in np.ndindex(self.batch, self.kv_heads):
            s = last[b, h]
            for t in range(self.steps):
                key = k[b, t].reshape(self.kv_heads, -1)[h]
                update = v[b, t].reshape(self.kv_heads, -1)[h]
                if decay is not None:
                    s *= decay[b, t].reshape(self.kv_heads, -1)[h][:, None]
                if beta is not None:
                    update = beta[b, t, h if self.beta == "head" else 0] * (update - key @ s)
                s += np.outer(key, update)
                for g in range(self.heads // self.kv_heads):
                    head = h * (self.heads // self.kv_heads) + g
                    output[b, t, head] = 0.3 * q[b, t].reshape(self.heads, -1)[head] @ s
        return np.concatenate([output.reshape(-1), last.reshape(-1)])


CASES = [
    Case(2, 5, 2, 2, 8, 16),
    Case(1, 7, 6, 2, 5, 37, decay="head"),
    Case(2, 3, 4, 1, 9, 70, decay="key", beta="head"),
    Case(1, 100, 2, 2, 16, 64, decay="key", beta="one"),
    Case(1, 1, 3, 3, 4, 1, beta="head"),
    Case(1, 2, 1, 1, 300, 64, decay="head", beta="one"),  # a state too large for the stack
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_cases(case: Case, traits: TargetTraits) -> None:
    workload, inputs = case.workload(), case.inputs()
    (candidate,) = linear_attention.candidates(workload, traits)
    actual = run_candidate(candidate, workload, inputs, traits)
    expected = case.reference(inputs)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert not serial_extents(scheduled(candidate))


def test_epilogue_and_workers() -> None:
    workload = CASES[1].workload(Epilogue((), (Step("negative", (0,)),)))
    traits = replace(AVX512, threads=3)
    (candidate,) = linear_attention.candidates(workload, traits)
    inputs = CASES[1].inputs()
    actual = run_candidate(candidate, workload, inputs, traits)
    np.testing.assert_allclose(actual, -CASES[1].reference(inputs), rtol=0, atol=1e-4)
