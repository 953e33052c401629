"""tune(): measures kernels for a model and keeps what was learnt in a log."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt.codegen.linker import find_linker
from graphopt.compiler import pose_model
from graphopt.config import CompileConfig, ConstantsOption, ShapesOption
from graphopt.errors import OptionError
from graphopt.frontend.load import load_model, require_weights
from graphopt.frontend.model import OnnxModel
from graphopt.lowering.lower import Problem
from graphopt.signature import constant_arrays, signature_of
from graphopt.target import TargetSpec
from graphopt.targets.devices import DEVICES
from graphopt.tuning import cost_model
from graphopt.tuning.database import Writer, read
from graphopt.tuning.library import folders, records
from graphopt.tuning.measure.enquiry import device_there
from graphopt.tuning.measure.fleet import Fleet
from graphopt.tuning.outcome import Outcome, Progress
from graphopt.tuning.tuner import Budget, Tuner
from graphopt.variants import profiler


def tune(
    model: Any,
    target: Any = "cpu",
    *,
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
    threads: int | None = None,
    trials: int = 1000,
    log: str | os.PathLike[str] = "tuning_logs/",
    time_limit: float | None = None,
    target_latency: float | None = None,
    fresh: bool = False,
    numerics: str = "default",
    max_weight_growth: float | None = None,
    rpc: str | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Measure kernels for a model, here or on other machines, for compile(tuning_log=log) to use.

    Records are appended to `log` as soon as a kernel is measured, so nothing is lost if this is
    interrupted or killed, and a further run goes on where this one ended. A kernel that fails,
    crashes, hangs or gives wrong numbers costs one trial and nothing else.

    Args:
        model: a path, the bytes of an .onnx file, or a ModelProto.
        target: what this machine is; "cpu", or a level that it supports, such as "cpu:x86-64-v3".
        shapes, constants: as for compile(); with several sets, all of them are tuned together.
        threads: workers that share one run; None for the physical cores. Records count for as many.
        trials: distinct kernels to measure at most.
        log: a folder; made if there is none.
        time_limit: seconds, everything included.
        target_latency: in seconds; stop when the model is expected to take no more.
        fresh: neither the shipped records and cost model nor those in `log` are used.
        numerics, max_weight_growth: as for compile().
        rpc: "HOST:PORT/KEY" of a tracker of TVM's: kernels are built here and run on the servers
            that have registered there under this key, as many at once as there are. `target` and
            `threads` are theirs; a device needs `graphopt rpc-server` there, and nothing here.
        watch: called with the progress after every batch.

    Raises:
        OptionError: an option is wrong, the log cannot be written, or this machine cannot run code
            for the target.
        ModelError, CompileError: as for compile(); there is no linker for the target of `rpc`.
        TuningError: the log cannot be written any more, or nothing can be measured.
        DeviceError: there is no such device, here or at the servers of `rpc`.
    """
    fleet = Fleet.parse(rpc) if rpc is not None else None
    config = CompileConfig.of(
        target=target if fleet is None else _target_there(fleet, target),
        shapes=shapes,
        constants=constants,
        threads=threads,
        numerics=numerics,
        max_weight_growth=max_weight_growth,
    )
    _check(trials, time_limit, target_latency)
    if fleet is None:
        _require_host(config)
    else:
        find_linker(config.target.arch)  # a missing one is said before the work, not after it
    folder = Path(log)
    key = config.target.key(config.threads)
    with Writer(folder, key) as writer:
        loaded = load_model(model)
        require_weights(loaded)
        problems = pose(loaded, config)
        logs = [] if fresh else [folder, *folders(None)]
        known = records(logs).records
        pretrained = cost_model.load(logs, key)
        tuner = Tuner(
            problems,
            config.target,
            config.threads,
            writer,
            known,
            profiler(config, fleet),
            pretrained,
            fleet=fleet,
            watch=watch or (lambda progress: None),
        )
        budget = Budget(trials, time_limit or math.inf, target_latency or 0.0)
        outcome = tuner.run(budget)
    learnt = cost_model.train(read(folder).records, config.threads, pretrained)
    if learnt is not None:
        cost_model.save(learnt, folder, key)
    return outcome


def pose(model: OnnxModel, config: CompileConfig) -> list[Problem]:
    """What there is to choose from, for each set of shapes.

    Raises:
        OptionError: the model leaves shapes open that `config` does not give.
    """
    signature = signature_of(model)
    problems = []
    for bound, values in config.specialisations or (((), ()),):
        arrays = constant_arrays(signature, values)
        shapes = {name: shape for name, shape in bound if name not in arrays}
        signature.bind(shapes | {name: array.shape for name, array in arrays.items()})
        problems += pose_model(model, config, shapes, arrays)
    return problems


def _check(trials: int, time_limit: float | None, target_latency: float | None) -> None:
    if isinstance(trials, bool) or not hasattr(trials, "__index__") or trials < 1:
        raise OptionError("options", f"trials must be a whole number above 0, not {trials!r}.")
    for name, value in (("time_limit", time_limit), ("target_latency", target_latency)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise OptionError("options", f"{name} must be a time in seconds, not {value!r}.")


def _target_there(fleet: Fleet, target: Any) -> Any:
    """The target; of a device what the fleet's servers say of it, who alone have it."""
    name = target.name if isinstance(target, TargetSpec) else target
    if isinstance(name, str) and name.strip().partition(":")[0] in DEVICES:
        return device_there(fleet, name.strip())
    return target


def _require_host(config: CompileConfig) -> None:
    if not config.target.is_host_compatible():
        raise OptionError(
            "tune",
            f"this machine cannot run code for '{config.target.name}'.",
            hint="tune on a machine of that kind and copy its log, or reach one with rpc.",
        )
