"""profile(): every call has a row with its nodes, and the rows sum to the whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from toy_program import toy_expected, toy_inputs, toy_plan

from graphopt.errors import InputError, OptionError
from graphopt.runtime.session import Session

NewSession = Callable[..., Session]


def test_rows_sum_to_the_whole(new_session: NewSession) -> None:
    session = new_session()
    profile = session.profile(toy_inputs(1), repeats=7)
    plan = toy_plan()
    assert [row.site for row in profile.rows] == [call.site for call in plan.calls]
    assert [row.nodes for row in profile.rows] == [call.nodes for call in plan.calls]
    assert [row.flops for row in profile.rows] == [call.flops for call in plan.calls]
    assert all(row.seconds > 0 for row in profile.rows)
    assert profile.outside_seconds > 0
    parts = sum(row.seconds for row in profile.rows) + profile.outside_seconds
    assert parts == pytest.approx(profile.total_seconds, rel=1e-12)
    shares = (
        sum(row.share for row in profile.rows) + profile.outside_seconds / profile.total_seconds
    )
    assert shares == pytest.approx(1)
    assert profile.repeats == 7


def test_time_is_put_down_to_the_call_that_takes_it(new_session: NewSession) -> None:
    profile = new_session(nap_us=5000).profile(toy_inputs(1), repeats=2)
    scale = profile.rows[0]
    assert scale.site == "scale#0"
    assert scale.seconds >= 5e-3
    assert scale.share > 0.5


def test_profiling_changes_nothing_for_later_runs(new_session: NewSession) -> None:
    session = new_session()
    for seed in range(3):
        session.profile(toy_inputs(seed), repeats=1)
        expected = toy_expected(toy_inputs(seed))
        np.testing.assert_array_equal(session.run(toy_inputs(seed))["y"], expected["y"])


def test_bad_arguments_of_profile(new_session: NewSession) -> None:
    session = new_session()
    with pytest.raises(OptionError, match="repeats is 0"):
        session.profile(toy_inputs(0), repeats=0)
    with pytest.raises(InputError, match="missing"):
        session.profile({})
