"""The records that are shipped: whole, current, and of kernels that there still are."""

from __future__ import annotations

from functools import cache

import pytest
import tvm

from graphopt.target import TargetSpec
from graphopt.tuning import cost_model
from graphopt.tuning.advice import replay
from graphopt.tuning.database import read, targets
from graphopt.tuning.library import shipped
from graphopt.tuning.measure.reference import offers
from graphopt.tuning.nearness import distance
from schedules.interface import Candidate, TargetTraits, Workload
from schedules.space import VERSION

FOLDER = shipped()
assert FOLDER is not None
CONTENTS = read(FOLDER)
AVX512 = TargetTraits("x86_64", vector_bytes=64, vector_registers=32, vnni=True)


def test_every_line_is_a_current_record() -> None:
    assert CONTENTS.skipped == []
    assert len(CONTENTS.records) > 1000
    assert {(r.tvm, r.schedules, r.ok) for r in CONTENTS.records} == {
        (tvm.__version__, VERSION, True)
    }


def test_one_and_two_threads_of_avx512_with_vnni_are_covered() -> None:
    keys = list(targets(FOLDER))
    assert [key.rsplit("-", 1)[1] for key in keys] == ["t1", "t2"]
    assert all(".avx512vnni." in key for key in keys)
    # A machine of the same class with other caches and more threads has something to borrow.
    assert distance(keys[0], "x86_64-avx512.avx512vnni-l1.32k-l2.1024k-t16") is not None


def test_every_record_replays() -> None:
    """Whatever the caches: decisions are not checked against what a knob suggests."""

    @cache
    def candidates(workload: Workload) -> dict[str, Candidate]:
        return {candidate.name: candidate for candidate in offers(workload, AVX512)}

    stale = [
        (record.candidate, record.decisions, record.workload.op)
        for record in CONTENTS.records
        if record.candidate not in candidates(record.workload)
        or replay(candidates(record.workload)[record.candidate], record.decisions) is None
    ]
    assert stale == []


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_there_is_a_cost_model_for_every_number_of_threads(threads: int) -> None:
    key = "x86_64-avx512.avx512vnni-l1.32k-l2.1024k-" + f"t{threads}"
    model = cost_model.load([FOLDER], key)
    assert model is not None
    assert len(model.lessons.rows) > 4000
    assert model.scores(model.lessons.rows[:3]).shape == (3,)


def test_there_is_none_for_other_vectors() -> None:
    assert cost_model.load([FOLDER], TargetSpec.parse("aarch64:cortex-a76").key(1)) is None
