"""How exact integer kernels are: python benchmarks/quantized_operators.py [FORM…] [--targets …]

Each form of fused operator is compared with ONNX Runtime without optimisations, on seeded random
data with scales of its ranges. A number in the middle between two integers may be rounded to
either, since ONNX Runtime sums floats and graphopt integers: the bar is one step, in a thousandth
of the elements, and the same result on every instruction set that this machine has, but for sums of
floats (softmax, layer normalisation). Exit status 1 where a form misses it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from quantized_forms import FORMS, build, reference
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import graphopt
from graphopt.errors import GraphoptError

TARGETS = ("cpu", "cpu:cascadelake", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64-v2")
MOST_OFF = 1e-3
STEPS = 1
_ANCHORS = ("conv", "matmul")


@dataclass(frozen=True)
class Exactness:
    """One form: elements compared, the share that differs and by how many steps at most.

    apart: the share that differs among targets. kernels: of the first target. missing: targets
    that this machine cannot run. floats: why something is computed in floats.
    """

    form: str
    kernels: tuple[str, ...]
    elements: int
    off: float
    steps: int
    apart: float
    missing: tuple[str, ...]
    floats: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it keeps the bar."""
        apart = MOST_OFF if FORMS[self.form].float_sums else 0.0
        return self.off <= MOST_OFF and self.steps <= STEPS and self.apart <= apart


def measure(name: str, targets: Sequence[str], seeds: int) -> Exactness:
    """One form on all targets."""
    elements, off, steps, apart = 0, 0, 0, 0
    kernels: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    missing: dict[str, None] = {}
    for seed in range(seeds):
        case = build(FORMS[name], seed)
        want = reference(case.model, case.feeds).astype(np.int32)
        results = []
        for target in targets:
            try:
                program = graphopt.compile(case.model, target=target, threads=1, tuning_log=())
                (found,) = program.run(dict(case.feeds)).values()
            except GraphoptError as error:
                if error.stage not in ("target", "load", "run"):
                    raise
                missing[target] = None
                continue
            results.append(found.astype(np.int32))
            kernels = kernels or tuple(row.candidate for row in program.report.calls)
            floats = tuple(row.reason for row in program.report.floats)
        gap = np.abs(results[0] - want)
        elements, off = elements + gap.size, off + int((gap > 0).sum())
        steps = max(steps, int(gap.max()))
        apart += sum(int((other != results[0]).sum()) for other in results[1:])
    return Exactness(
        name, kernels, elements, off / elements, steps, apart / elements, tuple(missing), floats
    )


def table(rows: Sequence[Exactness]) -> Table:
    """One line per form."""
    shown = Table(title="beside ONNX Runtime without optimisations")
    for title in ("form", "kernels", "elements", "off by one", "most steps", "between targets"):
        shown.add_column(title, justify="left" if title in ("form", "kernels") else "right")
    for row in rows:
        named = [k for k in row.kernels if k.startswith(_ANCHORS)] or [
            k for k in row.kernels if not k.startswith("layout_change")
        ]
        kernels = ", ".join(named) + (" (in floats)" if row.floats else "")
        shown.add_row(
            row.form, escape(kernels), f"{row.elements:,}", f"{row.off:.4%}", str(row.steps),
            f"{row.apart:.4%}", style=None if row.ok else "bold red",
        )  # fmt: skip
    return shown


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("forms", nargs="*", metavar="FORM", help="names, or parts of them")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = [n for n in FORMS if not args.forms or any(part in n for part in args.forms)]
    if not names:
        parser.error(f"no form has {args.forms} in its name")
    rows = [measure(name, args.targets.split(","), args.seeds) for name in names]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(rows))
    for target in dict.fromkeys(t for row in rows for t in row.missing):
        console.print(f"this machine cannot run {target}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
