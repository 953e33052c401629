"""Options: what is refused, and with what help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.config import CompileConfig
from graphopt.errors import OptionError
from graphopt.runtime.host import physical_cores


def test_defaults() -> None:
    config = CompileConfig()
    assert config == CompileConfig.of()
    assert config == CompileConfig.of(threads=None, shapes=None, tuning_log=None)
    assert config.threads == physical_cores()
    assert config.target.is_host_compatible()
    assert (config.shapes, config.numerics, config.cache) == ((), "default", False)


def test_values_are_normalised() -> None:
    config = CompileConfig.of(
        target="x86_64:x86-64-v3",
        threads=np.int64(2),
        shapes={"b": [np.int32(1), 2], "a": (3,)},
        tuning_log=[],
    )
    assert config.target.mcpu == "x86-64-v3"
    assert type(config.threads) is int
    assert config.shapes == ((("a", (3,)), ("b", (1, 2))),)
    assert config.tuning_log == ()
    assert hash(config) == hash(
        CompileConfig.of(**vars(config) | {"shapes": [{"b": (1, 2), "a": (3,)}], "constants": None})
    )


def test_several_specialisations() -> None:
    config = CompileConfig.of(shapes=[{"x": (1, 3)}, {"x": (8, 3)}])
    assert config.shapes == ((("x", (1, 3)),), (("x", (8, 3)),))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thread": 2}, "did you mean 'threads'"),
        ({"tuning_logs": None}, "did you mean 'tuning_log'"),
        ({"banana": 1}, "choose from"),
        ({"threads": 0}, "from 1 to"),
        ({"threads": -1}, "from 1 to"),
        ({"threads": True}, "from 1 to"),
        ({"threads": 2.0}, "from 1 to"),
        ({"threads": 10**9}, "from 1 to"),
        ({"numerics": "Strict"}, "did you mean 'strict'"),
        ({"numerics": "fast"}, "choose from"),
        ({"max_weight_growth": 0.5}, "at least 1"),
        ({"max_weight_growth": float("nan")}, "at least 1"),
        ({"max_weight_growth": float("inf")}, "at least 1"),
        ({"max_weight_growth": "2"}, "must be a number"),
        ({"target": 3}, "must be a name"),
        ({"target": "cpu:cascadlake"}, "cascadelake"),
        ({"shapes": "x=1,3"}, "must map input names"),
        ({"shapes": 5}, "must map input names"),
        ({"shapes": []}, "is empty"),
        ({"shapes": [("x", (1, 3))]}, "must be a dict"),
        ({"shapes": {"x": "1,3"}}, "sequence of whole numbers"),
        ({"shapes": {"x": 3}}, "sequence of whole numbers"),
        ({"shapes": {"x": (1, -3)}}, "-3"),
        ({"shapes": {"x": (1, None)}}, "leave out the inputs"),
        ({"shapes": {"x": (1, 2.5)}}, "2.5"),
        ({"shapes": {"x": (1, 2**31)}}, "2147483648"),
        ({"shapes": {3: (1,)}}, "must be a string"),
        ({"shapes": [{"x": (1,)}, {"x": [1]}]}, "given twice"),
        ({"tuning_log": "no-such-logs/"}, "there is no folder"),
        ({"tuning_log": ("no-such-logs/",)}, "there is no folder"),
        ({"dump_ir": 3}, "directory's path"),
        ({"cache": "yes"}, "True or False"),
    ],
)
def test_wrong_options_are_refused_with_help(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        CompileConfig.of(**options)


def test_dump_ir_makes_its_directory(tmp_path: Path) -> None:
    assert CompileConfig.of(dump_ir=str(tmp_path / "a" / "b")).dump_ir == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_dump_ir_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="dump_ir"):
        CompileConfig.of(dump_ir=tmp_path / "file")


def test_dump_ir_and_cache_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="contradict"):
        CompileConfig.of(dump_ir=tmp_path, cache=True)
