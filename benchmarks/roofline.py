"""Each kernel's place under the machine's roof, and its share of a model's time.

    python benchmarks/roofline.py resnet18 --out resnet18.png
    python benchmarks/roofline.py path/to/model.onnx --shape x=1,3,224,224 --top 20

The roof of a kernel is the least time its arithmetic or its bytes can take at the peaks measured
here (Williams, Waterman, Patterson: "Roofline", 2009). Bytes are what the kernel must touch once,
so a kernel whose data is still in a cache may move them faster than the memory roof.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from catalogue import MODELS, Model, materialised
from compare import parse_shape
from machine import Machine, measure
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import sample_inputs
from graphopt.runtime.host import physical_cores


@dataclass(frozen=True)
class Site:
    """One kernel call site: seconds per run, arithmetic and bytes per run."""

    site: str
    nodes: tuple[str, ...]
    seconds: float
    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


def profile(program: Any, feeds: Any, runs: int) -> list[Site]:
    """Time of each call site over `runs` runs, and of what is no kernel as a site of its own."""
    measured = program.profile(feeds, runs)
    sites = [
        Site(row.site, tuple(row.nodes), row.seconds, row.flops, row.bytes) for row in measured.rows
    ]
    return [*sites, Site("outside kernels", (), measured.outside_seconds, 0.0, 0.0)]


def table(sites: Sequence[Site], machine: Machine, top: int) -> Table:
    """The `top` sites by time, and the whole."""
    total = sum(site.seconds for site in sites)
    view = Table(title="call sites by time")
    for heading in ("site", "ONNX nodes"):
        view.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=48)
    for heading in ("µs", "time", "GFLOP/s", "GB/s", "of peak", "of roof"):
        view.add_column(heading, justify="right")
    for site in sorted(sites, key=lambda s: -s.seconds)[:top]:
        _add(view, site, total, machine)
    roof = sum(machine.roof(site.flops, site.bytes) for site in sites)
    flops = sum(site.flops for site in sites)
    moved = sum(site.bytes for site in sites)
    view.add_section()
    view.add_row(
        "all",
        f"{len(sites)} sites",
        f"{total * 1e6:.0f}",
        "100%",
        f"{flops / total / 1e9:.1f}",
        f"{moved / total / 1e9:.1f}",
        f"{flops / total / machine.flops:.0%}",
        f"{roof / total:.0%}",
    )
    return view


def _add(view: Table, site: Site, total: float, machine: Machine) -> None:
    seconds = max(site.seconds, 1e-9)
    view.add_row(
        site.site,
        ", ".join(site.nodes),
        f"{seconds * 1e6:.1f}",
        f"{seconds / total:.1%}",
        f"{site.flops / seconds / 1e9:.1f}",
        f"{site.bytes / seconds / 1e9:.1f}",
        f"{site.flops / seconds / machine.flops:.0%}",
        f"{machine.roof(site.flops, site.bytes) / seconds:.0%}",
    )


def plot(sites: Sequence[Site], machine: Machine, title: str, out: Path) -> None:
    """Draw the roofs and one dot per site, its area the share of time; write a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    total = sum(site.seconds for site in sites)
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    intensity = np.logspace(-2, 3.5, 200)
    for name, bandwidth, style in (
        ("memory", machine.memory, "-"),
        ("L2", machine.cache, "--"),
    ):
        roof = np.minimum(machine.flops, intensity * bandwidth) / 1e9
        axes.plot(intensity, roof, style, color="0.3", label=f"{name} {bandwidth / 1e9:.0f} GB/s")
    shown = [site for site in sites if site.flops > 0 and site.bytes > 0 and site.seconds > 0]
    axes.scatter(
        [site.intensity for site in shown],
        [site.flops / site.seconds / 1e9 for site in shown],
        s=[4 + 2000 * site.seconds / total for site in shown],
        alpha=0.5,
    )
    for site in sorted(shown, key=lambda s: -s.seconds)[:6]:
        axes.annotate(
            f"{site.site} {site.seconds / total:.0%}",
            (site.intensity, site.flops / site.seconds / 1e9),
            fontsize=7,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP / byte",
        ylabel="GFLOP/s",
        title=f"{title}: {machine.threads} threads, peak {machine.flops / 1e9:.0f} GFLOP/s",
    )
    axes.legend(loc="lower right")
    figure.savefig(out, dpi=130)
    plt.close(figure)


def find(name: str, shapes: dict[str, tuple[int, ...]]) -> Model:
    """Return the catalogue's model `name`, or one made of the path `name`."""
    for model in MODELS:
        if model.name == name:
            return model
    return Model(Path(name).stem, str(Path(name).resolve()), shapes=shapes)


def main() -> int:
    """Measure the machine, then the model if one is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a name of the catalogue or an ONNX file")
    parser.add_argument("--shape", action="append", type=parse_shape, default=[])
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--runs", type=int, default=20, help="profiled runs (default: 20)")
    parser.add_argument("--top", type=int, default=25, help="sites to list (default: 25)")
    parser.add_argument("--out", type=Path, help="write the plot to this PNG")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    threads = arguments.threads or physical_cores()
    machines = [measure(count) for count in dict.fromkeys((1, threads))]
    for machine in machines:
        console.print(
            f"{machine.threads} thread(s): {machine.flops / 1e9:.0f} GFLOP/s, "
            f"memory {machine.memory / 1e9:.1f} GB/s, L2 {machine.cache / 1e9:.0f} GB/s"
        )
    if machines[-1].flops < 0.7 * threads * machines[0].flops:
        console.print("[yellow]the machine is busy: the roofs for all threads are too low")
    sites: list[Site] = []
    if arguments.model:
        model = find(arguments.model, dict(arguments.shape))
        with tempfile.TemporaryDirectory() as folder:
            path = model.provide(Path(folder))
            if path is None:
                console.print(f"[red]{arguments.model}: no such file, or its package is missing")
                return 2
            graph = onnx.load(materialised(path, Path(folder)))
            feeds = sample_inputs(graph, model.shapes, given=model.inputs(), limits=model.limits)
            program = graphopt.compile(path, shapes=dict(model.shapes) or None, threads=threads)
            sites = profile(program, feeds, arguments.runs)
        console.print(table(sites, machines[-1], arguments.top))
        if arguments.out:
            plot(sites, machines[-1], model.name, arguments.out)
    if arguments.json:
        figures = {
            "machines": [asdict(machine) for machine in machines],
            "sites": [asdict(site) for site in sites],
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
