"""Workloads as JSON values and back, and the keys that records are found by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from schedules.interface import Attr, Decisions, Epilogue, Op, Step, TensorSig, Workload

KEY_BYTES = 8


def workload_to_json(workload: Workload) -> dict[str, Any]:
    """A workload as JSON values, without what is empty."""
    op, epilogue = workload.op, workload.epilogue
    plain: dict[str, Any] = {
        "kind": op.kind,
        "inputs": [_sig(sig) for sig in op.inputs],
        "output": _sig(op.output),
        "attrs": {name: _plain(value) for name, value in op.attrs},
        "constant": [int(flag) for flag in op.constant],
    }
    if op.more:
        plain["more"] = [_sig(sig) for sig in op.more]
    if epilogue != Epilogue():
        plain["epilogue"] = {
            "operands": [_sig(sig) for sig in epilogue.operands],
            "steps": [
                [step.op, list(step.args), {name: _plain(v) for name, v in step.attrs}]
                for step in epilogue.steps
            ],
            "dtype": epilogue.dtype,
            "constant": [int(flag) for flag in epilogue.constant],
        }
    return plain


def workload_from_json(plain: Mapping[str, Any]) -> Workload:
    """The workload of which workload_to_json() gave `plain`.

    Raises:
        KeyError, TypeError, ValueError: it gave something else.
    """
    op = Op(
        _text(plain["kind"]),
        tuple(_to_sig(item) for item in plain["inputs"]),
        _to_sig(plain["output"]),
        tuple((_text(name), _attr(value)) for name, value in plain["attrs"].items()),
        tuple(_flag(flag) for flag in plain["constant"]),
        tuple(_to_sig(item) for item in plain.get("more", ())),
    )
    if "epilogue" not in plain:
        return Workload(op)
    given = plain["epilogue"]
    steps = tuple(
        Step(
            _text(name),
            tuple(whole(arg) for arg in args),
            tuple((_text(key), _attr(value)) for key, value in attrs.items()),
        )
        for name, args, attrs in given["steps"]
    )
    epilogue = Epilogue(
        tuple(_to_sig(item) for item in given["operands"]),
        steps,
        _text(given["dtype"]),
        tuple(_flag(flag) for flag in given["constant"]),
    )
    return Workload(op, epilogue)


def workload_key(workload: Workload) -> str:
    """What identifies a workload in records: a hash of its JSON form."""
    return _hash(workload_to_json(workload))


def trace_key(candidate: str, decisions: Decisions) -> str:
    """What identifies a kernel of a workload: a hash of its candidate's name and its decisions."""
    return _hash([candidate, sorted(decisions)])


def whole(plain: Any) -> int:
    """A whole number from JSON.

    Raises:
        TypeError: it is something else; 2.5 must not become 2, which would fit the hash of 2.
    """
    if type(plain) is not int:
        raise TypeError(f"{plain!r} is no whole number")
    return plain


def _hash(plain: Any) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()


def _sig(sig: TensorSig) -> list[Any]:
    return [sig.dtype, *sig.shape]


def _to_sig(plain: Any) -> TensorSig:
    dtype, *shape = plain
    return TensorSig(tuple(whole(dim) for dim in shape), _text(dtype))


def _plain(value: Attr) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _attr(plain: Any) -> Attr:
    if isinstance(plain, list):
        return tuple(_attr(item) for item in plain)
    if isinstance(plain, (bool, int, float, str)):
        return plain
    raise TypeError(f"{plain!r} is no attribute")


def _flag(plain: Any) -> bool:
    if whole(plain) not in (0, 1):
        raise ValueError(f"{plain!r} is no flag")
    return bool(plain)


def _text(plain: Any) -> str:
    if not isinstance(plain, str):
        raise TypeError(f"{plain!r} is no text")
    return plain
