"""Records as lines: every one comes back as it was, and no damaged one comes back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_records import failure, record, workload

from graphopt.tuning.codec import trace_key, workload_from_json, workload_key, workload_to_json
from graphopt.tuning.records import (
    FAILURES,
    FEATURES,
    VERSION,
    Record,
    RecordError,
    from_line,
    to_line,
)
from schedules.interface import Epilogue, Op, Step, TensorSig, Workload

sigs = st.builds(
    TensorSig,
    st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple),
    st.sampled_from(["float32", "int8", "bool", "float16"]),
)
attr = st.recursive(
    st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
attrs = st.dictionaries(st.text(max_size=8), attr, max_size=4).map(lambda d: tuple(d.items()))
flags = st.lists(st.booleans(), max_size=3).map(tuple)
several = st.lists(sigs, max_size=3).map(tuple)
ops = st.builds(Op, st.text(min_size=1), several, sigs, attrs, flags, several)
steps = st.builds(
    Step, st.text(max_size=8), st.lists(st.integers(0, 99), max_size=3).map(tuple), attrs
)
epilogues = st.builds(
    Epilogue,
    several,
    st.lists(steps, max_size=3).map(tuple),
    st.sampled_from(["float32", "int8"]),
    flags,
)
workloads = st.builds(Workload, ops, st.just(Epilogue()) | epilogues)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(workloads)
def test_a_workload_comes_back_as_it_was(made: Workload) -> None:
    back = workload_from_json(json.loads(json.dumps(workload_to_json(made))))
    assert back == made
    assert repr(back) == repr(made)  # 1, 1.0 and True are equal, but not the same
    assert workload_key(back) == workload_key(made)


def test_keys_tell_workloads_and_kernels_apart() -> None:
    made = workload()
    others = [
        workload(9),
        Workload(made.op),
        replace(made, op=replace(made.op, kind="conv2d")),
        replace(made, op=replace(made.op, attrs=(("transpose", 0), ("scale", 0.5)))),
        replace(made, op=replace(made.op, constant=(True, True))),
        replace(made, op=replace(made.op, more=(TensorSig((1,)),))),
        replace(made, epilogue=replace(made.epilogue, dtype="int8")),
    ]
    assert len({workload_key(each) for each in [made, *others]}) == len(others) + 1
    assert trace_key("a", (("x", 1), ("y", 2))) == trace_key("a", (("y", 2), ("x", 1)))
    kernels = [("a", (("x", 1),)), ("a", (("x", 2),)), ("b", (("x", 1),)), ("a", ())]
    assert len({trace_key(*kernel) for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize("status", FAILURES)
def test_failures_come_back(status: str) -> None:
    made = failure(status=status, reason="line one\nline two é")
    assert from_line(to_line(made)) == made
    assert to_line(made).count("\n") == 1


@given(
    workloads,
    st.dictionaries(st.text(max_size=8), st.integers(-(1 << 40), 1 << 40), max_size=4),
    st.floats(1e-9, 1e3),
    st.lists(st.floats(-1e6, 1e6), max_size=4),
    st.booleans(),
)
def test_a_record_comes_back(
    made: Workload, decisions: dict[str, int], ratio: float, features: list[float], final: bool
) -> None:
    before = record(
        workload=made,
        decisions=tuple(decisions.items()),
        ratio=ratio,
        features=tuple(features),
        final=final,
        when=1.7e9 + 0.25,
    )
    line = to_line(before)
    back = from_line(line)
    assert to_line(back) == line
    assert back.ratio == pytest.approx(ratio, rel=1e-4)
    assert back.features == pytest.approx(before.features, rel=1e-4)
    assert back == replace(before, ratio=back.ratio, features=back.features, when=back.when)


def test_features_of_another_meaning_are_not_read() -> None:
    assert from_line(changed(fv=FEATURES + 1)) == replace(record(), features=())


# --- damage --------------------------------------------------------------------------------------


def changed(base: Record | None = None, **fields: Any) -> str:
    """A record's line with other fields; None drops one."""
    plain = json.loads(to_line(base or record())) | fields
    return json.dumps({key: value for key, value in plain.items() if value is not None}) + "\n"


def damaged_workload(**fields: Any) -> dict[str, Any]:
    return {"workload": workload_to_json(workload()) | fields}


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, 10**30])
def test_other_versions_say_so(version: int) -> None:
    with pytest.raises(RecordError, match=f"its version is {version}, not {VERSION}") as caught:
        from_line(changed(v=version, workload="of another form"))
    assert caught.value.newer == (version > VERSION)


FOREIGN = [
    "",
    "\n",
    "null",
    "3",
    "[]",
    "{}",
    '"v"',
    '{"v":true}',
    '{"v":"1"}',
    "\x00",
    "[" * 99_999,
]


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_lines_are_no_records(line: str) -> None:
    with pytest.raises(RecordError):
        from_line(line)


DAMAGE: dict[str, dict[str, Any]] = {
    "another size": {"workload": workload_to_json(workload(9))},
    "another decision": {"decisions": {"tile": 5, "unroll": 1}},
    "a decision less": {"decisions": {"tile": 4}},
    "another candidate": {"candidate": "matmul.plain"},
    "another kind": damaged_workload(kind="conv2d"),
    "an attribute of another type": damaged_workload(attrs={"transpose": 0, "scale": 0.5}),
    "broken workload hash": {"w": "0" * 16},
    "broken kernel hash": {"t": 7},
    "no workload": {"workload": None},
    "no hash": {"w": None},
    "no time": {"seconds": None},
    "no target": {"target": None},
    "NaN seconds": {"seconds": math.nan},
    "infinite ratio": {"ratio": math.inf},
    "negative seconds": {"seconds": -1e-5},
    "no seconds at all": {"seconds": 0},
    "ratio of zero": {"ratio": 0.0},
    "negative error": {"error": -1e-9},
    "seconds beyond floats": {"seconds": 10**400},
    "seconds as text": {"seconds": "0.1"},
    "seconds as a flag": {"seconds": True},
    "NaN date": {"when": math.nan},
    "negative date": {"when": -5},
    "a date that no calendar has": {"when": 1e300},
    "unknown status": {"status": "fine"},
    "status of another type": {"status": ["ok"]},
    "final as text": {"final": "no"},
    "reason of another type": {"reason": 3},
    "schedules as text": {"schedules": "1"},
    "infinite schedules": {"schedules": math.inf},
    "tvm of another type": {"tvm": 0.27},
    "features as text": {"features": "12"},
    "NaN features": {"features": [1.0, math.nan]},
    "a decision that is no whole number": {"decisions": {"tile": 4.5, "unroll": 1}},
    "a decision that is a flag": {"decisions": {"tile": 4, "unroll": True}},
    "decisions as a list": {"decisions": [["tile", 4]]},
    "workload of another type": {"workload": []},
    "a size that is no whole number": damaged_workload(
        inputs=[["float32", 8.5, 16], ["float32", 16, 4]]
    ),
    "a size that is text": damaged_workload(output=["float32", "8", 4]),
    "flags that are none": damaged_workload(constant=[0, 2]),
    "attributes that are none": damaged_workload(attrs={"scale": None}),
    "a target that is a path": {"target": "../elsewhere"},
    "a target that is hidden": {"target": ".hidden"},
    "an empty target": {"target": ""},
    "a target no file can be named": {"target": "\ud800"},
}


@pytest.mark.parametrize("fields", DAMAGE.values(), ids=DAMAGE)
def test_damaged_records_are_refused(fields: dict[str, Any]) -> None:
    assert from_line(changed()) == record()
    with pytest.raises(RecordError):
        from_line(changed(**fields))


def test_no_part_of_a_line_is_a_record() -> None:
    line = to_line(record()).rstrip("\n")
    for length in range(len(line)):
        with pytest.raises(RecordError):
            from_line(line[:length])


@given(st.integers(0, len(to_line(record())) - 1), st.characters(codec="utf-8"))
@settings(max_examples=300)
def test_a_changed_character_never_crashes_a_reader(place: int, character: str) -> None:
    line = to_line(record())
    damaged = line[:place] + character + line[place + 1 :]
    try:
        back = from_line(damaged)
    except RecordError:
        return
    # What the hashes do not cover may change; what was computed may not.
    assert (back.workload, back.decisions) == (record().workload, record().decisions)


@given(st.sampled_from(sorted(json.loads(to_line(record(final=True))))), json_values)
@settings(max_examples=300)
def test_no_value_of_a_field_crashes_a_reader(field: str, value: Any) -> None:
    plain = json.loads(to_line(record(final=True))) | {field: value}
    try:
        back = from_line(json.dumps(plain))
    except RecordError:
        return
    assert to_line(from_line(to_line(back))) == to_line(back)
