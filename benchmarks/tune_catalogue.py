"""Makes the records that are shipped: python benchmarks/tune_catalogue.py --log LOG [--out DIR]

Tunes the catalogue's models for 1 and 2 threads on this machine, into a log that may be gone on
with: models that are in it already explore further. With --int8, quantized ones. With --out, the
best kernel of each candidate goes from there to a folder that ships, where it joins what is there;
so do the lessons of the log's records join those of the cost model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from catalogue import MODELS, Model, select
from rich.console import Console

import graphopt
from graphopt.artifact.atomic import replacing
from graphopt.bench import sample_inputs
from graphopt.target import TargetSpec
from graphopt.tuning import cost_model
from graphopt.tuning.database import FILE, read
from graphopt.tuning.prune import choose
from graphopt.tuning.records import Record, averaged, to_line

TRIALS = 384
"""Per model; most end before, when no more gain is expected."""


def tune(
    names: list[str] | None, threads: Sequence[int], trials: int, log: Path, int8: bool
) -> None:
    """Tune models one after the other, so that each is taught by those before it."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="graphopt-models-") as folder:
        for count in threads:
            for model in select(names):
                path = model.provide(Path(folder))
                if path is None:
                    console.print(f"{model.name} is left out: its package is not installed")
                    continue
                if int8:
                    path = quantized(path, model, Path(folder))
                started = time.monotonic()
                outcome = graphopt.tune(
                    path,
                    shapes=dict(model.shapes) or None,
                    constants=dict(model.constants) or None,
                    threads=count,
                    trials=trials,
                    log=log,
                )
                console.print(
                    f"{model.name}, {count} threads: {outcome.trials} trials in "
                    f"{time.monotonic() - started:.0f} s, {outcome.before * 1e3:.3g} to "
                    f"{outcome.after * 1e3:.3g} ms ({outcome.reason})"
                )


def quantized(path: Path, model: Model, folder: Path) -> Path:
    """The model in int8. What a kernel takes does not depend on the values: any ranges will do."""
    made = folder / f"{model.name}.int8.onnx"
    if not made.exists():
        proto = onnx.load(path, load_external_data=False)
        feeds = sample_inputs(proto, model.shapes, given=model.inputs(), limits=model.limits)
        shapes, constants = dict(model.shapes) or None, dict(model.constants) or None
        graphopt.quantize(path, [feeds], shapes=shapes, constants=constants).save(made)
    return made


def ship(log: Path, out: Path) -> None:
    """Add a log's best records, and what its records teach, to those that ship."""
    new, shipped = read(log).records, read(out).records
    everything = [*shipped, *new]
    wanted = choose(everything, 1, failures=False, only=None)
    best = averaged(record for record in everything if id(record) in wanted)
    for target in sorted({record.target for record in best}):
        (out / target).mkdir(parents=True, exist_ok=True)
        with replacing(out / target / FILE, "ship") as file:
            # The cost model knows what there is to learn from the features.
            file.writelines(
                to_line(replace(record, features=())).encode()
                for record in sorted(best, key=_order)
                if record.target == target
            )
        learnt = cost_model.train(new, 2, earlier=cost_model.load([out], target))
        assert learnt is not None, f"the log has no more than {cost_model.LEAST_ROWS - 1} records"
        cost_model.save(learnt, out, target)


def _order(record: Record) -> tuple[str, str, bool]:
    return record.workload_key, record.candidate, record.final


def main() -> int:
    """Tune, then ship."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="*", choices=known, help="all by default; none to ship")
    parser.add_argument("--threads", nargs="+", type=int, default=(2, 1))
    parser.add_argument("--int8", action="store_true", help="tune the models quantized to int8")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="such as tuning_logs")
    args = parser.parse_args()
    print(f"target key for 1 thread: {TargetSpec.parse('cpu').key(1)}")
    if args.models != []:
        tune(args.models, args.threads, args.trials, args.log, args.int8)
    if args.out is not None:
        ship(args.log, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
