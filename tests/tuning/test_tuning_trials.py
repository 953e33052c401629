"""A batch of trials: what looks best is measured again, and one record comes of each trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from tuning_run import conv

from graphopt.tuning.codec import workload_key
from graphopt.tuning.measure.client import Result, Server, Trial
from graphopt.tuning.trials import measure, typical

KEY = workload_key(conv())


class Scripted(Server):
    """Gives kernels the ratios of a script, in turn; an exception in it is raised."""

    def __init__(self, script: Sequence[Sequence[float | str | BaseException]]) -> None:
        self.left = [list(each) for each in script]
        self.rounds: list[list[int]] = []

    def measure(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Result]]:
        self.rounds.append([trial.decisions[0][1] for trial in trials])
        for place, number in enumerate(self.rounds[-1]):
            said = self.left[number].pop(0)
            if isinstance(said, BaseException):
                raise said
            failed = isinstance(said, str)
            yield place, Result(said) if failed else Result("ok", said / 10, said)


def kept(server: Scripted, best: float | None = None) -> dict[int, Result]:
    found: dict[int, Result] = {}
    trials = [Trial(conv(), "direct", (("n", i),), 1.0) for i in range(len(server.left))]

    def keep(index: int, result: Result) -> None:
        assert index not in found
        found[index] = result

    try:
        measure(server, trials, {} if best is None else {KEY: best}, keep)
    except KeyboardInterrupt:
        found[-1] = Result("interrupted")
    return found


def test_only_what_beats_the_best_is_measured_again() -> None:
    server = Scripted([[2.0], [0.5, 0.9, 0.8], [1.0], ["crash"]])
    found = kept(server, best=1.0)
    assert server.rounds == [[0, 1, 2, 3], [1], [1]]
    assert found[1] == Result("ok", 0.08, 0.8)
    assert (found[0].ratio, found[2].ratio, found[3].status) == (2.0, 1.0, "crash")


def test_the_first_kernels_of_a_workload_are_measured_again() -> None:
    found = kept(Scripted([[2.0, 1.0, 1.5], [3.0, 3.0, 3.0]]))
    assert [found[0].ratio, found[1].ratio] == [1.5, 3.0]


def test_a_kernel_that_fails_once_has_failed() -> None:
    assert kept(Scripted([[0.5, "wrong", 0.5]]), best=1.0)[0].status == "wrong"


def test_an_interrupt_keeps_what_was_measured() -> None:
    server = Scripted([[2.0], [0.5, KeyboardInterrupt()], [KeyboardInterrupt()]])
    found = kept(server, best=1.0)
    assert set(found) == {0, 1, -1}
    assert found[1].ratio == 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_typical_result_is_one_of_them(count: int) -> None:
    results = [Result("ok", ratio, ratio) for ratio in (3.0, 1.0, 2.0)[:count]]
    assert typical(results).ratio == {1: 3.0, 2: 3.0, 3: 2.0}[count]
