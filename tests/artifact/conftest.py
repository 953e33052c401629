"""Fixtures of the artifact's tests: the parts of a small but complete `.gopt`."""

from __future__ import annotations

import numpy as np
import pytest
from artifact_parts import Parts, make_parts


@pytest.fixture
def parts() -> Parts:
    return make_parts()


@pytest.fixture
def tiny() -> Parts:
    """With a module of a few bytes, for tests that try every byte of the file."""
    made = make_parts(4, [b"\x7fELF, not really"])
    return Parts(made.manifest, made.modules, np.arange(16, dtype=np.uint8))
