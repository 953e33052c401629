"""Damaged models on graphopt and ONNX Runtime: python benchmarks/fuzz.py --count 1000 --save DIR

Pieces of real models and the operator models of ONNX's suite are damaged (nodes, attributes,
shapes, types, bytes), compiled and run. graphopt must never crash or hang, and where ONNX Runtime
without optimisations gives an answer, graphopt gives the same or refuses with a reason. A case is
known by its seed and index: --replay SEED:INDEX runs it again. Exit status 1 if a case failed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fuzz_corpus
import fuzz_engines
import fuzz_mutations
import numpy as np
from fuzz_engines import Answer
from fuzz_reduce import reductions
from fuzz_workers import Worker
from isolation import Limits, Outcome
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

AGREE, REFUSED, BOTH_REFUSE, NO_REFERENCE = "agree", "refused", "both refuse", "no reference"
UNSTABLE, OPEN = "ill-conditioned", "left open"
WRONG, CRASH, HANG = "wrong", "crash", "hang"
FAILURES = (WRONG, CRASH, HANG)
VERDICTS = (AGREE, REFUSED, BOTH_REFUSE, NO_REFERENCE, UNSTABLE, OPEN, *FAILURES)

LIMITS = Limits(seconds=60, gigabytes=6)
NUDGES = 8
MAX_REDUCTIONS = 60


@dataclass(frozen=True)
class Case:
    """A damaged model: where it comes from, what was done to it, its file."""

    seed: int
    index: int
    source: str
    mutations: tuple[str, ...]
    data: bytes


@dataclass(frozen=True)
class Verdict:
    """What came of a case; detail says why."""

    kind: str
    detail: str = ""


def make_case(corpus: fuzz_corpus.Corpus, seed: int, index: int) -> Case:
    """Case number `index` of `seed`: the same model file wherever the corpus is the same."""
    rng = random.Random(f"{seed}:{index}")
    source, model = corpus.sample(rng)
    data, mutations = fuzz_mutations.damage(model, rng)
    return Case(seed, index, source, mutations, data)


class Judge:
    """One pair of processes, graphopt's and ONNX Runtime's, and what they think of models."""

    def __init__(self) -> None:
        self._subject = Worker(fuzz_engines.run_graphopt, LIMITS)
        self._reference = Worker(fuzz_engines.run_onnxruntime, LIMITS)
        self._helper = Worker(_helped, LIMITS)

    def verdict(self, data: bytes, seed: int) -> Verdict:
        """The verdict on the model in `data` with inputs from `seed`."""
        self._subject.ask((data, seed))
        self._reference.ask((data, seed, 0))
        outcome, reference = self._subject.answer(), self._reference.answer()
        if outcome.ended == "timeout":
            return Verdict(HANG)
        if outcome.ended != "returned":
            return Verdict(CRASH, outcome.detail)
        found: Answer = outcome.value
        if found.status == "internal":
            return Verdict(CRASH, found.detail)
        if found.status == "refused":
            kind = REFUSED if _answered(reference) else BOTH_REFUSE
            return Verdict(kind, found.detail)
        if found.status == "idle" or not _answered(reference):
            return Verdict(NO_REFERENCE)
        return self._compared(data, seed, found, reference.value)

    def close(self) -> None:
        """End both processes."""
        self._subject.close()
        self._reference.close()
        self._helper.close()

    def _help(self, function: Callable[[bytes], Any], data: bytes, otherwise: Any) -> Any:
        """function(data); ONNX's own inference, which some of them call, may end its process."""
        self._helper.ask((function, data))
        outcome = self._helper.answer()
        return outcome.value if outcome.ended == "returned" else otherwise

    def _compared(self, data: bytes, seed: int, found: Answer, expected: Answer) -> Verdict:
        apart = {n: d for n, d in fuzz_engines.differences(found, expected).items() if d > 1}
        if not apart:
            return Verdict(AGREE)
        name, worst = max(apart.items(), key=lambda item: item[1])
        a, b = found.outputs.get(name), expected.outputs[name]
        assert b is not None
        detail = f"{name}: {worst:.3g} times the tolerance"
        if a is None or a.shape != b.shape or a.dtype != b.dtype:
            empty = a is not None and a.size == 0 == b.size
            if empty and self._help(fuzz_engines.may_keep_empty, data, False):
                return Verdict(OPEN, detail)
            have = "nothing" if a is None else f"{a.dtype}{list(a.shape)}"
            detail = f"{name}: {have}, expected {b.dtype}{list(b.shape)}"
            others = [moved.outputs[name] for moved in self._nudged(data, seed)]
            # Such as the number of different values among many that are rounded.
            moves = any(other is not None and other.shape != b.shape for other in others)
            return Verdict(UNSTABLE if moves else WRONG, detail)
        for is_open in (fuzz_engines.leaves_open, fuzz_engines.weights_not_finite):
            if self._help(is_open, data, False):
                return Verdict(OPEN, detail)
        for moved in self._nudged(data, seed):
            shifts = fuzz_engines.differences(moved, expected)
            apart = {n: d for n, d in apart.items() if not d <= 10 * shifts.get(n, 0)}
        return Verdict(WRONG, detail) if apart else Verdict(UNSTABLE, detail)

    def _nudged(self, data: bytes, seed: int) -> Iterator[Answer]:
        """ONNX Runtime's answers to disturbed inputs and weights."""
        for number in range(1, NUDGES + 1):
            self._reference.ask((data, seed, number))
            moved = self._reference.answer()
            if _answered(moved):
                yield moved.value

    def reduced(self, case: Case, verdict: Verdict) -> bytes:
        """A smaller model with the same kind of verdict, and the same reason if it is a crash."""
        best, tries, progress = case.data, 0, True
        while progress and tries < MAX_REDUCTIONS:
            progress = False
            for smaller in self._help(reductions, best, [])[: MAX_REDUCTIONS - tries]:
                tries += 1
                found = self.verdict(smaller, case.index)
                if found.kind == verdict.kind and signature(found) == signature(verdict):
                    best, progress = smaller, True
                    break
        return best


def _helped(request: tuple[Callable[[bytes], Any], bytes]) -> Any:
    function, data = request
    return function(data)


def _answered(outcome: Outcome) -> bool:
    return outcome.ended == "returned" and outcome.value.status == "answer"


def signature(verdict: Verdict) -> str:
    """What verdicts with the same cause have in common."""
    if verdict.kind == WRONG:
        return verdict.kind
    return f"{verdict.kind}: {re.sub(r'[0-9]+', '#', verdict.detail)[-90:]}"


def fuzz(
    corpus: fuzz_corpus.Corpus, seed: int, indices: Sequence[int], jobs: int, reduce: bool = True
) -> Iterator[tuple[Case, Verdict, bytes]]:
    """(case, verdict, model file, reduced if the case failed), in the order of `indices`."""
    judges = [Judge() for _ in range(jobs)]

    def share(number: int) -> list[tuple[Case, Verdict, bytes]]:
        judge, results = judges[number], []
        for index in batch[number::jobs]:
            case = make_case(corpus, seed, index)
            verdict = judge.verdict(case.data, index)
            failed = reduce and verdict.kind in FAILURES and verdict.kind != HANG
            results.append((case, verdict, judge.reduced(case, verdict) if failed else case.data))
        return results

    try:
        with ThreadPoolExecutor(jobs) as threads:
            for start in range(0, len(indices), 10 * jobs):
                batch = indices[start : start + 10 * jobs]
                found = [item for part in threads.map(share, range(jobs)) for item in part]
                yield from sorted(found, key=lambda item: item[0].index)
    finally:
        for judge in judges:
            judge.close()


def main() -> int:
    """Fuzz, print what came of it, save what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first case")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--replay", metavar="SEED:INDEX", help="run one case again, unreduced")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--save", type=Path, help="folder for models that failed")
    parser.add_argument("--models", nargs="*", default=list(fuzz_corpus.MODELS))
    parser.add_argument("--no-suite", action="store_true", help="no operator models")
    parser.add_argument("--json", type=Path, help="write the verdicts to this file")
    arguments = parser.parse_args()
    seed, indices = arguments.seed, range(arguments.start, arguments.start + arguments.count)
    if arguments.replay:
        seed, index = map(int, arguments.replay.split(":"))
        indices = range(index, index + 1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    warm_up()
    np.seterr(all="ignore")
    corpus = fuzz_corpus.build(arguments.models, not arguments.no_suite)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    failed: list[tuple[Case, Verdict]] = []
    rows = []
    with Progress(console=console, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("fuzzing", total=len(indices))
        found = fuzz(corpus, seed, indices, arguments.jobs, reduce=arguments.replay is None)
        for case, verdict, data in found:
            progress.advance(task)
            counts[verdict.kind] += 1
            rows.append({**_row(case), **asdict(verdict)})
            if verdict.kind in FAILURES or arguments.replay:
                failed.append((case, verdict))
                _save(arguments.save, case, verdict, data)
    console.print(_table(counts, time.monotonic() - started))
    for case, verdict in failed:
        where = (
            f"{case.seed}:{case.index} {verdict.kind} [{case.source}] {'+'.join(case.mutations)}"
        )
        console.print(
            f"{where} {case.mutations}\n    {verdict.detail[:400]}", markup=False, highlight=False
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(verdict.kind in FAILURES for _, verdict in failed) else 0


def warm_up() -> None:
    """Import what the workers need before they are forked; TVM takes seconds."""
    import onnxruntime

    import graphopt.compiler

    onnxruntime.set_default_logger_severity(4)
    graphopt.TargetSpec.parse("cpu").tvm_target(1)


def _row(case: Case) -> dict[str, object]:
    return {"index": case.index, "source": case.source, "mutations": case.mutations}


def _save(folder: Path | None, case: Case, verdict: Verdict, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{case.seed}-{case.index}-{verdict.kind}"
        (folder / f"{name}.onnx").write_bytes(data)
        text = json.dumps({"seed": case.seed, **_row(case), **asdict(verdict)}, indent=1)
        (folder / f"{name}.json").write_text(text + "\n")


def _table(counts: Counter[str], seconds: float) -> Table:
    total = sum(counts.values())
    table = Table(title=f"{total} cases in {seconds:.0f} s")
    for verdict in VERDICTS:
        table.add_column(verdict, justify="right")
    table.add_row(*(str(counts[verdict]) for verdict in VERDICTS))
    return table


if __name__ == "__main__":
    sys.exit(main())
