"""The fuzzer: a short run of it, and that it would notice what it is there to notice."""

from __future__ import annotations

import os
import random
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import fuzz  # noqa: E402
import fuzz_corpus  # noqa: E402
import fuzz_engines  # noqa: E402
import fuzz_mutations  # noqa: E402
from fuzz_engines import Answer  # noqa: E402
from fuzz_reduce import reductions  # noqa: E402
from fuzz_workers import Worker  # noqa: E402
from isolation import Limits, Outcome  # noqa: E402

CASES = 24


@pytest.fixture(scope="module")
def corpus() -> fuzz_corpus.Corpus:
    fuzz.warm_up()
    models = ["cnn_dynamic", "bilstm"]
    models += ["ppocr_cls"] if find_spec("rapidocr") else []
    return fuzz_corpus.build(models, suite=False)


def chain(*operators: str) -> onnx.ModelProto:
    """x → operators, one after another → y, all float32 [2, 3]."""
    names = ["x", *(f"v{i}" for i in range(1, len(operators))), "y"]
    nodes = [
        helper.make_node(operator, [names[i]], [names[i + 1]])
        for i, operator in enumerate(operators)
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_short_run_finds_nothing(corpus: fuzz_corpus.Corpus) -> None:
    found = list(fuzz.fuzz(corpus, 2024, range(CASES), jobs=2))
    assert [case.index for case, _, _ in found] == list(range(CASES))
    bad = [(case.index, verdict) for case, verdict, _ in found if verdict.kind in fuzz.FAILURES]
    assert not bad
    assert sum(verdict.kind == fuzz.AGREE for _, verdict, _ in found) >= CASES // 4


def test_a_case_is_known_by_its_seed_and_index(corpus: fuzz_corpus.Corpus) -> None:
    first = [fuzz.make_case(corpus, 5, index).data for index in range(12)]
    assert [fuzz.make_case(corpus, 5, index).data for index in range(12)] == first
    assert len(set(first)) > 6


def test_pieces_are_valid_models(corpus: fuzz_corpus.Corpus) -> None:
    rng = random.Random(0)
    sizes = set()
    for _ in range(60):
        _, model = corpus.sample(rng)
        onnx.checker.check_model(model)
        sizes.add(len(model.graph.node))
    assert min(sizes) == 1
    assert max(sizes) > 3


@pytest.mark.parametrize("mutation", dict.fromkeys(fuzz_mutations.MUTATIONS))
def test_every_mutation_changes_models(
    mutation: fuzz_mutations.Mutation, corpus: fuzz_corpus.Corpus
) -> None:
    rng = random.Random(1)
    changed = 0
    for _ in range(30):
        _, model = corpus.sample(rng)
        before = model.SerializeToString()
        changed += mutation(model, rng) and model.SerializeToString() != before
    assert changed > 0


def answer(**outputs: np.ndarray) -> Answer:
    return Answer("answer", outputs)


def judged(monkeypatch: pytest.MonkeyPatch, subject: object, model: onnx.ModelProto):
    """The verdict when graphopt is replaced by `subject`."""
    monkeypatch.setattr(fuzz_engines, "run_graphopt", subject)
    judge = fuzz.Judge()
    try:
        return judge.verdict(model.SerializeToString(), 0)
    finally:
        judge.close()


def test_wrong_answers_crashes_and_hangs_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain("Relu")
    x = fuzz_engines.feeds_for(model.SerializeToString(), 0)["x"]
    relu = np.maximum(x, 0)
    cases = {
        fuzz.AGREE: lambda _: answer(y=relu),
        fuzz.WRONG: lambda _: answer(y=relu * np.float32(1.001)),
        fuzz.REFUSED: lambda _: Answer("refused", {}, "no"),
        fuzz.CRASH: lambda _: os.abort(),
        fuzz.HANG: lambda _: time.sleep(60),
    }
    monkeypatch.setattr(fuzz, "LIMITS", Limits(seconds=2, gigabytes=6))
    for expected, subject in cases.items():
        assert judged(monkeypatch, subject, model).kind == expected
    assert judged(monkeypatch, lambda _: answer(y=relu[None]), model).kind == fuzz.WRONG
    assert judged(monkeypatch, lambda _: Answer("internal", {}, "?"), model).kind == fuzz.CRASH


def test_an_ill_conditioned_answer_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain("Exp")  # then y = exp(x) − exp(x·(1 + 1e-6)), all cancellation
    model.graph.node[0].output[0] = "e"
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [1 + 1e-6])
    model.graph.initializer.append(scale)
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["x", "s"], ["m"]),
            helper.make_node("Exp", ["m"], ["n"]),
            helper.make_node("Sub", ["e", "n"], ["y"]),
        ]
    )
    x = fuzz_engines.feeds_for(model.SerializeToString(), 0)["x"].astype(np.float64)
    exact = (np.exp(x) - np.exp(x * (1 + 1e-6))).astype(np.float32)
    assert judged(monkeypatch, lambda _: answer(y=exact), model).kind == fuzz.UNSTABLE


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([3.4e38, 1.0], [np.inf, 1.0], True),
        ([1e4, 1.0], [1e4, 1.5], True),  # within 1e-4 of the largest
        ([1.0, 1.0], [1.0, 1.01], False),
    ],
)
def test_how_tensors_are_compared(found: list, expected: list, equal: bool) -> None:
    a, b = (np.asarray(values, np.float32) for values in (found, expected))
    assert (fuzz_engines.difference(a, b) <= 1) is equal
    assert fuzz_engines.difference(a.astype(np.float64), b) == np.inf
    assert fuzz_engines.difference(a[None], b) == np.inf


def test_reductions_are_smaller_and_lead_to_the_culprit() -> None:
    model = chain("Relu", "Exp", "Sin", "Neg", "Abs")

    def guilty(data: bytes) -> bool:
        candidate = onnx.ModelProto.FromString(data)
        onnx.checker.check_model(candidate, full_check=True)
        return any(node.op_type == "Sin" for node in candidate.graph.node)

    data = model.SerializeToString()
    while smaller := next(filter(guilty, reductions(data)), None):
        assert len(smaller) < len(data)
        data = smaller
    assert [node.op_type for node in onnx.ModelProto.FromString(data).graph.node] == ["Sin"]
    assert reductions(b"\xff") == []


def test_workers_are_replaced_when_they_die_hang_or_grow_old() -> None:
    def serve(request: str) -> object:
        if request == "die":
            os.abort()
        if request == "sleep":
            time.sleep(30)
        if request == "raise":
            raise ValueError("no")
        return os.getpid()

    worker = Worker(serve, Limits(seconds=1, gigabytes=4), lifetime=2)

    def ask(request: str) -> Outcome:
        worker.ask(request)
        return worker.answer()

    try:
        first, second, third = (ask("pid").value for _ in range(3))
        assert first == second != third
        assert ask("die") == Outcome("died", detail="SIGABRT")
        assert ask("sleep") == Outcome("timeout")
        assert ask("raise") == Outcome("raised", detail="ValueError: no")
        assert ask("pid").ended == "returned"
    finally:
        worker.close()
