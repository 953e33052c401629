"""Every form of fused integer operator keeps the bar, on every instruction set of this host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from quantized_forms import FORMS
from quantized_operators import TARGETS, measure

FLOATS = ("transposed conv",)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_forms(name):
    found = measure(name, TARGETS, seeds=1)
    assert found.ok, found
    assert bool(found.floats) == (name in FLOATS)
