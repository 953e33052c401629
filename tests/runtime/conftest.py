"""Fixtures of the runtime's tests: sessions on the toy program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from toy_program import toy_code, toy_plan, toy_weights

from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session


@pytest.fixture
def new_session() -> Iterator[Callable[..., Session]]:
    """Makes sessions on a fresh module each, and closes them after the test."""
    made: list[Session] = []

    def make(
        n: int = 1000,
        threads: int = 2,
        *,
        serial: bool = False,
        nap_us: int = 0,
        use: int | None = None,
    ) -> Session:
        module: Any = open_module(toy_code(n, nap_us))
        plan = toy_plan(n, threads, serial=serial)
        made.append(Session(plan, module, toy_weights(n), use))
        return made[-1]

    yield make
    for session in made:
        session.close()
