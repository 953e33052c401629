"""The ONNX backend suite on graphopt and on ONNX Runtime: python benchmarks/conformance.py

Every case runs in a forked process of its own, with limits on time and memory, and is compared at
the suite's own tolerances. The suite's expectations were computed in the case's own type: where a
result differs from one, but less from the result in float64 than the expectation does, it is the
expectation that is off, and the verdict is "finer" (neither passed nor wrong). ONNX Runtime is
given each model twice: as it is, and, where it refuses that, with operator sets that it knows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import isolation
import numpy as np
import onnx
from conformance_engines import ENGINES, Engine, Feeds, RefusalError
from double import doubled, in_double, is_float
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")

PASS, FINER, REFUSED, WRONG, CRASH, HANG = "pass", "finer", "refused", "wrong", "crash", "hang"
STATUSES = (PASS, FINER, REFUSED, WRONG, CRASH, HANG)

LIMITS = isolation.Limits(seconds=120, gigabytes=8)

# Element types that no engine here computes with; a family of their own in the report.
EXOTIC = frozenset(
    getattr(onnx.TensorProto, name)
    for name in onnx.TensorProto.DataType.keys()  # noqa: SIM118 (a protobuf enum)
    if name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2", "STRING"))
)


@dataclass(frozen=True)
class Result:
    """What one engine did with one case. family: the operator of the case's first node."""

    case: str
    kind: str
    family: str
    exotic: bool
    engine: str
    status: str
    detail: str = ""


def cases(kinds: Sequence[str] = KINDS) -> list[TestCase]:
    """The suite's cases of these kinds in a fixed order; all come with the onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the expected values overflows on purpose
        found = [case for kind in kinds for case in load_model_tests(kind=kind)]
    return sorted(found, key=lambda case: (KINDS.index(case.kind), case.name))


def stratified(items: Sequence[TestCase], part: int, seed: int = 0) -> list[TestCase]:
    """Every `part`-th case of each operator family, at least one of each."""
    families: dict[str, list[TestCase]] = {}
    for case in items:
        families.setdefault(family_of(load(case)), []).append(case)
    return [
        case
        for _, group in sorted(families.items())
        for case in group[seed % part :: part] or group[:1]
    ]


def load(case: TestCase) -> onnx.ModelProto:
    """The case's model."""
    if case.model is not None:
        return case.model
    return onnx.load(Path(case.model_dir) / "model.onnx")


def family_of(model: onnx.ModelProto) -> str:
    """The operator that a model tests: that of its last node which is not a mere helper."""
    helpers = {"Constant", "Identity", "Cast", "SequenceConstruct", "Optional"}
    nodes = [node.op_type for node in model.graph.node]
    return next((op for op in reversed(nodes) if op not in helpers), nodes[-1] if nodes else "-")


def is_exotic(model: onnx.ModelProto) -> bool:
    """Whether strings or numbers of 8-bit floats, 4 bits or fewer occur in the model."""
    graph = model.graph
    kinds = {_element(value.type) for value in (*graph.input, *graph.output, *graph.value_info)}
    kinds |= {tensor.data_type for tensor in graph.initializer}
    kinds |= {a.i for n in graph.node for a in n.attribute if a.name in ("to", "output_dtype")}
    return bool(kinds & EXOTIC)


def _element(kind: onnx.TypeProto) -> int:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _element(getattr(kind, which).elem_type)
    return getattr(kind, which).elem_type if which else 0


def data_sets(case: TestCase, model: onnx.ModelProto) -> Iterator[tuple[Feeds, list[Any]]]:
    """Inputs by name and expected outputs, for each data set of the case."""
    names = [value.name for value in model.graph.input]
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield dict(zip(names, map(_plain, inputs), strict=False)), list(map(_plain, outputs))
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
        inputs = _values(folder, "input", [value.type for value in model.graph.input])
        outputs = _values(folder, "output", [value.type for value in model.graph.output])
        yield dict(zip(names, inputs, strict=False)), outputs


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if value is None else np.asarray(value)


def _values(folder: Path, prefix: str, kinds: Sequence[onnx.TypeProto]) -> list[Any]:
    count = len(list(folder.glob(f"{prefix}_*.pb")))
    return [
        _value((folder / f"{prefix}_{i}.pb").read_bytes(), kind)
        for i, kind in zip(range(count), kinds, strict=False)
    ]


def _value(data: bytes, kind: onnx.TypeProto) -> Any:
    which = kind.WhichOneof("value")
    if which == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if which == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def judge(case: TestCase, engine: Engine) -> tuple[str, str]:
    """Run one case on one engine, here: its status and what went wrong."""
    model = load(case)
    status, detail = PASS, ""
    try:
        for feeds, expected in data_sets(case, model):
            actual = engine(model, feeds)
            problem = difference(actual, expected, case.rtol, case.atol)
            if problem:
                status, detail = FINER, problem
                if not is_finer(actual, expected, model, feeds, case):
                    return WRONG, problem
    except RefusalError as refusal:
        return REFUSED, str(refusal)
    return status, detail


def is_finer(
    actual: Sequence[Any],
    expected: Sequence[Any],
    model: onnx.ModelProto,
    feeds: Feeds,
    case: TestCase,
) -> bool:
    """Whether, where they differ, the results are nearer to float64's than the expectations are.

    Compares the worst of the elements that are outside the case's tolerance.
    """
    try:
        evaluator = ReferenceEvaluator(in_double(model))
        given = {name: doubled(value) for name, value in feeds.items()}
        exact = evaluator.run(None, given)
    except Exception:  # the evaluator raises what its NumPy code runs into
        return False
    for got, want, true in zip(actual, expected, exact, strict=True):
        if not isinstance(got, np.ndarray) or (got.dtype, got.shape) != (want.dtype, want.shape):
            return False
        if not is_float(want.dtype):
            if not np.array_equal(got, want):
                return False
            continue
        ours, theirs = got.astype(np.float64), want.astype(np.float64)
        apart = ~np.isclose(ours, theirs, rtol=case.rtol, atol=case.atol, equal_nan=True)
        errors = [np.abs(v - true)[apart].max(initial=0.0) for v in (ours, theirs)]
        if not errors[0] <= errors[1]:
            return False
    return True


def difference(actual: Sequence[Any], expected: Sequence[Any], rtol: float, atol: float) -> str:
    """What the suite's runner would find wrong with `actual`, or nothing."""
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}"
    for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
        problem = _differs(got, want, rtol, atol)
        if problem:
            return f"output {i}: {problem}"
    return ""


def _differs(got: Any, want: Any, rtol: float, atol: float) -> str:
    if isinstance(want, list):
        if not isinstance(got, list):
            return f"expected a sequence, got {type(got).__name__}"
        return difference(got, want, rtol, atol)
    if want is None or got is None:
        return "" if want is got else f"expected {type(want).__name__}, got {type(got).__name__}"
    if not isinstance(got, (np.ndarray, np.generic)):
        return f"expected an array, got {type(got).__name__}"
    if got.dtype != want.dtype:
        return f"dtype {got.dtype} instead of {want.dtype}"
    if got.shape != want.shape:
        return f"shape {got.shape} instead of {want.shape}"
    try:
        if want.dtype == object:
            np.testing.assert_array_equal(got, want)
        elif want.dtype.kind not in "fiubc":  # ml_dtypes: compared as the suite does, as floats
            np.testing.assert_allclose(
                got.astype(np.float32), want.astype(np.float32), rtol=rtol, atol=atol
            )
        else:
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    except AssertionError as error:
        return " ".join(str(error).split())[:400]
    return ""


def measure(
    chosen: Sequence[TestCase],
    engines: Iterable[str],
    jobs: int,
    limits: isolation.Limits = LIMITS,
    progress: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Results of all cases on all engines, in the order of the cases."""
    pairs = [(case, name) for case in chosen for name in engines]
    results: dict[int, Result] = {}
    calls = (partial(judge, case, ENGINES[name]) for case, name in pairs)
    for index, outcome in isolation.run_all(calls, limits, jobs):
        case, name = pairs[index]
        model = load(case)
        if outcome.ended == "returned":
            status, detail = outcome.value
        else:
            status = HANG if outcome.ended == "timeout" else CRASH
            detail = outcome.detail
        results[index] = Result(
            case.name, case.kind, family_of(model), is_exotic(model), name, status, detail
        )
        if progress is not None:
            progress(results[index])
    return [results[i] for i in range(len(pairs))]


def summary(results: Sequence[Result]) -> str:
    """Tables: all cases by engine, and graphopt's shortfalls by operator family."""
    lines = []
    header = f"{'':30s}" + "".join(f"{status:>9s}" for status in STATUSES)
    for title, part in (
        ("all cases", results),
        ("without strings, float8, float4, int4", [r for r in results if not r.exotic]),
    ):
        lines += [f"\n{title}", header]
        for engine in dict.fromkeys(r.engine for r in part):
            counts = Counter(r.status for r in part if r.engine == engine)
            lines.append(f"{engine:30s}" + "".join(f"{counts[s]:9d}" for s in STATUSES))
    ours = [r for r in results if r.engine.startswith("graphopt")]
    lines += ["\ngraphopt by operator family (families that pass as a whole are left out)", header]
    for family in sorted({r.family for r in ours if r.status != PASS}):
        counts = Counter(r.status for r in ours if r.family == family)
        lines.append(f"{family:30s}" + "".join(f"{counts[s]:9d}" for s in STATUSES))
    return "\n".join(lines)


def main() -> int:
    """Run, print, and exit with 1 if graphopt was wrong, crashed or hung anywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--engine", action="append", choices=list(ENGINES), help="default: all but OpenCL"
    )
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--part", type=int, default=1, help="every n-th case of each family")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--failures", action="store_true", help="print each case that fails")
    options = parser.parse_args()

    engines = options.engine or ["graphopt", "onnxruntime", "onnxruntime-restamped"]
    # Imported once, here, for all the forks.
    for name in engines:
        ours = name.startswith("graphopt")
        importlib.import_module("graphopt.compiler" if ours else "onnxruntime")

    chosen = [case for case in cases() if options.filter in case.name]
    if options.part > 1:
        chosen = stratified(chosen, options.part)
    done = 0

    def show(result: Result) -> None:
        nonlocal done
        done += 1
        if options.failures and result.status != PASS:
            print(f"{result.engine}: {result.case}: {result.status}: {result.detail[:300]}")
        elif sys.stderr.isatty():
            print(f"\r{done} {result.case:60.60s}", end="", file=sys.stderr)

    results = measure(chosen, engines, options.jobs, progress=show)
    print(summary(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=0))
    bad = (WRONG, CRASH, HANG)
    ours = [r for r in results if r.engine.startswith("graphopt")]
    return int(any(r.status in bad and not r.exotic for r in ours))


if __name__ == "__main__":
    sys.exit(main())
