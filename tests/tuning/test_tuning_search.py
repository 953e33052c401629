"""The search, the cost model and the advice, on kernels whose times are made up."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_run import KEY, TARGET, conv, record

from graphopt.lowering.kernels import scheduled
from graphopt.tuning import cost_model
from graphopt.tuning.advice import advise, replay
from graphopt.tuning.cost_model import CostModel, load, save, train
from graphopt.tuning.features import features
from graphopt.tuning.measure.reference import offers
from graphopt.tuning.records import Record
from graphopt.tuning.search import Search, expected_gain
from graphopt.tuning.tasks import Standing, Task, Worth
from schedules.interface import Candidate, Decisions

TRAITS = TARGET.traits(1)


def candidate(name: str, workload=None) -> Candidate:
    return next(c for c in offers(workload or conv(), TRAITS) if c.name == name)


def made_up(count: int) -> list[Record]:
    """Records of kernels whose ratio is 2 to the first feature, times their second."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        x = rng.uniform(0, 3, 6)
        ratio = float(2 ** x[0] * (1 + x[1]))
        decisions = (("filters", i), ("vectors", 1))
        found.append(record(ratio=ratio, decisions=decisions, features=tuple(x)))
    return found


# --- the cost model ------------------------------------------------------------------------------


def test_the_model_ranks_kernels_that_it_has_not_seen() -> None:
    known, unseen = made_up(300)[:200], made_up(300)[200:]
    model = train(known, 1)
    assert model is not None
    scores = model.scores([r.features for r in unseen])
    best = min(r.ratio for r in known)
    truth = [math.log2(best / r.ratio) for r in unseen]
    assert np.corrcoef(scores, truth)[0, 1] > 0.95


def test_the_model_survives_a_file(tmp_path) -> None:
    model = train(made_up(40), 1)
    assert model is not None
    (tmp_path / KEY).mkdir()
    save(model, tmp_path, KEY)
    again = load([tmp_path / "none", tmp_path], KEY)
    assert again is not None
    rows = [r.features for r in made_up(10)]
    np.testing.assert_array_equal(again.scores(rows), model.scores(rows))


def test_a_file_that_is_no_model_is_passed_over(tmp_path) -> None:
    (tmp_path / KEY).mkdir()
    (tmp_path / KEY / "cost_model.bin").write_bytes(b"nonsense")
    assert load([tmp_path], KEY) is None
    with pytest.raises(ValueError, match="not a cost model"):
        CostModel.from_bytes(b"")
    model = train(made_up(40), 1)
    assert model is not None
    with pytest.raises(ValueError, match="damaged"):
        CostModel.from_bytes(model.to_bytes()[:-1])


def test_a_model_is_taught_more() -> None:
    first = train(made_up(200)[:120], 1)
    assert first is not None
    second = train(made_up(200)[100:], 1, CostModel.from_bytes(first.to_bytes()))
    assert second is not None
    assert len(second.lessons.rows) == 200  # the twenty that both were taught by count once
    rows = [r.features for r in made_up(300)[200:]]
    alone = train(made_up(200)[100:], 1)
    assert alone is not None
    truth = [-math.log2(r.ratio) for r in made_up(300)[200:]]
    taught, cold = (np.corrcoef(m.scores(rows), truth)[0, 1] for m in (second, alone))
    assert taught > cold


def test_recent_records_count_more() -> None:
    """The same kernels were slow elsewhere and are fast here: the model says what holds here."""
    here = made_up(60)
    best = min(record.ratio for record in here)
    elsewhere = [
        replace(r, ratio=16.0 * best / r.ratio, decisions=(("filters", 100 + i), ("vectors", 1)))
        for i, r in enumerate(here)
    ]
    features = [r.features for r in here]
    truth = [-math.log2(r.ratio) for r in here]
    alike, recent = (train([*elsewhere, *here], 1, recent=count) for count in (0, 60))
    assert alike is not None
    assert recent is not None
    scores = [np.corrcoef(model.scores(features), truth)[0, 1] for model in (alike, recent)]
    assert scores[1] > scores[0] + 0.3


def test_lessons_are_not_endless(monkeypatch) -> None:
    monkeypatch.setattr(cost_model, "MOST_LESSONS", 100)
    first = train(made_up(90), 1)
    second = train(made_up(150)[90:], 1, first)
    assert second is not None
    assert len(second.lessons.rows) == 100
    new = np.asarray([r.features for r in made_up(150)[90:]], np.float32)
    np.testing.assert_array_equal(second.lessons.rows[-60:], new)


def test_lessons_of_other_features_are_forgotten() -> None:
    first = train([replace(r, features=(*r.features, 1.0)) for r in made_up(50)], 1)
    second = train(made_up(40), 1, first)
    assert second is not None
    assert second.lessons.rows.shape == (40, second.width)


def test_too_few_records_make_no_model() -> None:
    assert train(made_up(5), 1) is None
    assert train([replace(r, features=()) for r in made_up(50)], 1) is None


# --- features ----------------------------------------------------------------------------------


def test_features_tell_kernels_apart() -> None:
    seen = {}
    for found in offers(conv(), TRAITS):
        values = features(found, scheduled(found), TRAITS)
        assert all(math.isfinite(value) for value in values)
        seen[found.name] = values
    assert len(set(seen.values())) == len(seen)
    assert len({len(values) for values in seen.values()}) == 1


def test_features_count_operations() -> None:
    found = candidate("conv2d.direct[blocked]")
    operations = 2.0 ** features(found, scheduled(found), TRAITS)[0]
    multiply_adds = 16 * 14 * 14 * 32 * 9 / TRAITS.lanes
    # A product and a sum for each, but for the taps that fall on padding; the epilogue is little.
    assert 1.7 * multiply_adds < operations < 2.3 * multiply_adds


# --- expected gain -----------------------------------------------------------------------------


@given(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-2), st.floats(0.02, 0.6))
def test_expected_gain_is_that_of_a_log_normal_time(threshold, seconds, deviation) -> None:
    rng = np.random.default_rng(0)
    times = seconds * np.exp(deviation * rng.standard_normal(20000))
    sampled = np.maximum(0, threshold - times).mean()
    found = expected_gain(threshold, seconds, deviation)
    assert found == pytest.approx(sampled, rel=0.15, abs=2e-2 * seconds)
    assert found >= max(0.0, threshold - seconds * math.exp(deviation**2 / 2)) - 1e-12


def test_no_gain_where_nothing_can_be_gained() -> None:
    assert expected_gain(0.0, 1.0, 0.1) == 0.0
    assert expected_gain(1e-6, 1.0, 0.1) == pytest.approx(0.0, abs=1e-12)


# --- the search ----------------------------------------------------------------------------------


def search(names: tuple[str, ...]) -> tuple[Search, list[Task], Standing]:
    tasks = [Task(conv(), candidate(name), 1) for name in names]
    worth = {
        task.name: Worth(1e-3 * (i + 1), 1e-3, chosen=i == 0, measured=False)
        for i, task in enumerate(tasks)
    }
    chosen = (tasks[0].name,)
    return Search(tasks, TRAITS), tasks, Standing(1e-3, worth, chosen, {}, False)


def test_defaults_come_first_but_for_hopeless_ones() -> None:
    found, tasks, standing = search(
        ("conv2d.winograd4", "conv2d.direct[blocked]", "conv2d.winograd2", "conv2d.lines")
    )
    batch = found.propose(3, standing, None, 0.3)
    assert [p.candidate for p in batch] == [task.candidate for task in tasks[:3]]
    later = found.propose(8, standing, None, 0.3)
    assert tasks[3].candidate not in [p.candidate for p in later]  # four times the best


def test_no_kernel_is_proposed_twice() -> None:
    found, tasks, standing = search(("conv2d.direct[blocked]",))
    seen = set()
    for _ in range(12):
        for proposal in found.propose(8, standing, None, 0.3):
            assert proposal.decisions not in seen
            seen.add(proposal.decisions)
            found.tell(tasks[0].name, proposal.decisions, 1.0)
    assert len(seen) > 60


def test_a_small_space_is_exhausted() -> None:
    found, tasks, standing = search(("conv2d.lines",))
    seen: list[Decisions] = []
    for _ in range(60):
        batch = found.propose(8, standing, None, 0.3)
        seen += [proposal.decisions for proposal in batch]
        if not batch:
            break
    assert len(seen) == len(set(seen))
    space = tasks[0].candidate.space
    assert space is not None
    fitting = [
        {"filters": a, "vectors": b}
        for a in space.knobs[0].values
        for b in space.knobs[1].values
        if space.make({"filters": a, "vectors": b})
    ]
    assert len(seen) > 0.8 * len(fitting)


def test_known_records_are_not_measured_again() -> None:
    found, tasks, standing = search(("conv2d.winograd4",))
    found.tell(tasks[0].name, tasks[0].candidate.decisions, 1.0)
    batch = found.propose(8, standing, None, 0.3)
    assert tasks[0].candidate.decisions not in {p.decisions for p in batch}


def test_what_is_good_for_one_epilogue_is_tried_for_another() -> None:
    first = Task(conv(), candidate("conv2d.direct[blocked]"), 1)
    bare = conv(after=False)
    second = Task(bare, candidate("conv2d.direct[blocked]", bare), 1)
    found = Search([first, second], TRAITS)
    worth = {t.name: Worth(1e-3, 1e-3, chosen=True, measured=True) for t in (first, second)}
    standing = Standing(2e-3, worth, (first.name, second.name), {}, True)
    for task in (first, second):
        found.tell(task.name, task.candidate.decisions, 1.0)
    values = dict(first.candidate.decisions) | {"pixels": 5, "vectors": 1}
    good = tuple(values.items())
    found.tell(first.name, good, 0.5)
    found.propose(1, standing, None, 0.3)
    pool = found._pools[second.name]
    assert good in pool.known


def test_what_was_best_on_another_machine_is_tried() -> None:
    found, tasks, standing = search(("conv2d.direct[blocked]",))
    decisions = tasks[0].candidate.decisions
    good = tuple((dict(decisions) | {"pixels": 5, "vectors": 1}).items())
    found.seed(tasks[0].name, good)
    found.seed(tasks[0].name, (("unknown", 1),))
    found.seed(("no", "task"), good)
    found.propose(2, standing, None, 0.3)
    assert good in found._pools[tasks[0].name].known


def test_random_proposals_leave_hopeless_candidates_alone() -> None:
    found, tasks, standing = search(("conv2d.winograd4", "conv2d.lines", "conv2d.winograd2"))
    for task in tasks:
        found.tell(task.name, task.candidate.decisions, 1.0)
    names = {p.candidate.name for _ in range(6) for p in found.propose_randomly(8, standing)}
    assert "conv2d.winograd4" in names


# --- advice ------------------------------------------------------------------------------------


def lines(ratio: float, filters: int, **more) -> Record:
    decisions = (("filters", filters), ("vectors", 1))
    return record(ratio=ratio, decisions=decisions, **more)


def test_the_best_record_is_offered_with_its_time() -> None:
    advice = advise([lines(3.0, 2), lines(2.0, 4), lines(9.0, 5)], KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert offer.origin == "tuned"
    assert dict(offer.candidate.decisions)["filters"] == 4
    assert offer.seconds == pytest.approx(2.0e-3)


def test_kernels_measured_in_turns_beat_luck() -> None:
    advice = advise([lines(2.0, 2, final=True), lines(1.5, 4)], KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert dict(offer.candidate.decisions)["filters"] == 2


def test_the_finals_of_a_kernel_are_averaged() -> None:
    # The first was lucky once.
    finals = [lines(ratio, 2, final=True) for ratio in (1.0, 3.0)]
    advice = advise([*finals, lines(1.8, 4, final=True)], KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert dict(offer.candidate.decisions)["filters"] == 4
    advice = advise(finals, KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert offer.seconds == pytest.approx(2.0e-3)


def test_times_alone_are_corrected_by_what_kernels_take_in_a_program() -> None:
    # One kernel took 1.5 times as long in the program as alone: so will, by estimate, another.
    known = [lines(2.0, 2), lines(3.0, 2, final=True)]
    other = record(candidate="conv2d.winograd4", ratio=2.2, decisions=())
    default = candidate("conv2d.winograd4")
    other = replace(other, decisions=default.decisions)
    advice = advise([*known, other], KEY)
    found = advice(conv(), [candidate("conv2d.lines"), default])
    assert [offer.seconds for offer in found] == pytest.approx([3.0e-3, 3.3e-3])


def test_a_kernel_that_was_ever_wrong_is_not_offered() -> None:
    advice = advise([lines(1.0, 2), lines(1.0, 2, status="wrong"), lines(3.0, 4)], KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert dict(offer.candidate.decisions)["filters"] == 4


def test_failures_are_not_offered() -> None:
    advice = advise([lines(1.0, 2, status="wrong"), lines(3.0, 4)], KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert dict(offer.candidate.decisions)["filters"] == 4


def test_other_thread_counts_are_borrowed_from_without_their_times() -> None:
    other = TARGET.key(7)
    advice = advise([lines(1.0, 2, target=other)], KEY)
    (offer,) = advice(conv(), [candidate("conv2d.lines")])
    assert (offer.origin, offer.seconds) == ("borrowed", None)
    assert dict(offer.candidate.decisions)["filters"] == 2


def test_other_instruction_sets_are_not_borrowed_from() -> None:
    other = "x86_64-sse2-l1.32k-l2.256k-t1"
    advice = advise([lines(1.0, 2, target=other)], KEY)
    default = candidate("conv2d.lines")
    assert advice(conv(), [default])[0].candidate == default


def test_the_nearest_target_is_borrowed_from() -> None:
    near, far = lines(2.0, 2, target=TARGET.key(2)), lines(1.0, 4, target=TARGET.key(64))
    (offer,) = advise([far, near], KEY)(conv(), [candidate("conv2d.lines")])
    assert dict(offer.candidate.decisions)["filters"] == 2


def test_a_record_that_no_longer_replays_is_left_out_with_a_warning(caplog) -> None:
    stale = record(decisions=(("tiles", 3),))
    advice = advise([stale], KEY)
    default = candidate("conv2d.lines")
    with caplog.at_level(logging.WARNING):
        offers_found = [advice(conv(), [default])[0] for _ in range(3)]
    assert all(offer.candidate == default for offer in offers_found)
    assert caplog.text.count("fits its space no more") == 1
    assert replay(default, (("filters", 99), ("vectors", 99))) is None


def test_the_digest_changes_with_the_advice() -> None:
    one, two = advise([lines(3.0, 2)], KEY), advise([lines(3.0, 4)], KEY)
    assert one.digest() != two.digest()
    assert one.digest() == advise([lines(3.0, 2), lines(5.0, 4)], KEY).digest()
