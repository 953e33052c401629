"""A tenth of the ONNX backend suite: right or refused, never wrong, never a crash or a hang."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def conformance():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("conformance")
    finally:
        sys.path.remove(str(BENCHMARKS))


# Cases that are refused for reasons which will stay. Everything else of this tenth must pass.
REFUSED = (
    "test_ai_onnx_ml_label_encoder",  # strings, as in the next four
    "test_equal_string",
    "test_regex",
    "test_string",
    "test_strnorm",
    "test_bernoulli",  # random numbers
    "test_training_dropout",
    "test_gradient",
    "test_image_decoder",
    "test_resize_downsample_scales",  # align_corners, where ONNX and ONNX Runtime disagree
)


def test_a_tenth_of_the_suite(conformance):
    chosen = conformance.stratified(conformance.cases(), 10)
    assert len(chosen) > 200
    results = conformance.measure(chosen, ["graphopt"], jobs=2)
    fine = (conformance.PASS, conformance.FINER, conformance.REFUSED)
    bad = [r for r in results if r.status not in fine]
    assert not bad, "\n".join(f"{r.case}: {r.status}: {r.detail}" for r in bad)
    refused = [
        f"{r.case}: {r.detail}"
        for r in results
        if r.status == conformance.REFUSED and not r.case.startswith(REFUSED)
    ]
    assert not refused, "\n".join(refused)


def test_strata_hold_every_family(conformance):
    cases = conformance.cases()
    assert len(cases) > 2000
    families = {conformance.family_of(conformance.load(case)) for case in cases}
    chosen = Counter(
        conformance.family_of(conformance.load(case)) for case in conformance.stratified(cases, 10)
    )
    assert set(chosen) == families


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (np.ones(3, np.float32), ""),
        (np.ones(3, np.float64), "dtype"),
        (np.ones((3, 1), np.float32), "shape"),
        (np.array([1, 1, 1.01], np.float32), "Mismatch"),
        (np.array([1, 1, np.nan], np.float32), "nan"),
        ([np.ones(3, np.float32)], "array"),
        (None, "None"),
    ],
)
def test_what_counts_as_a_difference(conformance, got, problem):
    found = conformance.difference([got], [np.ones(3, np.float32)], 1e-3, 1e-7)
    assert (problem in found) if problem else not found


def test_an_engine_that_misbehaves_is_found_out(conformance, monkeypatch):
    isolation = conformance.isolation
    case = next(c for c in conformance.cases() if c.name == "test_relu")
    import os
    import signal
    import time

    engines = {
        "wrong": lambda model, feeds: [np.zeros((3, 4, 5), np.float32)],
        "crash": lambda model, feeds: os.kill(os.getpid(), signal.SIGSEGV),
        "raises": lambda model, feeds: 1 // 0,
        "hang": lambda model, feeds: time.sleep(60),
        "greedy": lambda model, feeds: bytearray(1 << 33),
    }
    monkeypatch.setattr(conformance, "ENGINES", engines)
    limits = isolation.Limits(seconds=3, gigabytes=1)
    results = conformance.measure([case], engines, jobs=5, limits=limits)
    assert [r.status for r in results] == ["wrong", "crash", "crash", "hang", "crash"]
    assert "SIGSEGV" in results[1].detail
    assert "ZeroDivisionError" in results[2].detail
    assert "MemoryError" in results[4].detail


def test_an_expectation_that_is_off_is_told_from_a_wrong_result(conformance):
    case = next(c for c in conformance.cases() if c.name == "test_softmax_example")
    model = conformance.load(case)
    ((feeds, (want,)),) = conformance.data_sets(case, model)
    true = np.exp(feeds["x"].astype(np.float64))
    true = (true / true.sum(axis=1, keepdims=True)).astype(np.float32)
    off = want + np.float32(0.01)
    assert conformance.is_finer([true], [off], model, feeds, case)
    assert not conformance.is_finer([off], [true], model, feeds, case)
    assert not conformance.is_finer([true * np.float32(np.nan)], [off], model, feeds, case)
    assert not conformance.is_finer([true.astype(np.float64)], [off], model, feeds, case)


def test_the_models_are_those_of_the_suite(conformance):
    by_kind = Counter(case.kind for case in conformance.cases())
    assert set(by_kind) == set(conformance.KINDS)
    for case in conformance.stratified(conformance.cases(), 100)[:20]:
        model = conformance.load(case)
        assert isinstance(model, onnx.ModelProto)
        for feeds, expected in conformance.data_sets(case, model):
            assert set(feeds) <= {value.name for value in model.graph.input}
            assert len(expected) == len(model.graph.output)
