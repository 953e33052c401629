"""Turns a host program's steps into Python functions over a list of slots, one per value.

What is known in advance is settled here, once: an iteration of a loop costs a few microseconds
beside its kernels. The functions keep nothing between runs, so any number of threads may run them,
each with its own slots; an exception or interrupt leaves only slots behind that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from graphopt.codegen.host_program import (
    Block,
    Branch,
    CallSegment,
    HostCall,
    HostProgram,
    Loop,
    Scan,
    Step,
    Trim,
)
from graphopt.codegen.plan import BoundInput
from graphopt.errors import GraphoptError
from graphopt.runtime.host_calls import OPERATORS, HostCallError, number
from graphopt.runtime.liveness import inputs_of, last_uses, outputs_of
from graphopt.runtime.memory import new_aligned, numpy_dtype
from graphopt.runtime.profiler import Meter
from graphopt.runtime.stacking import Stack

Slots: TypeAlias = "list[Any]"
Action: TypeAlias = Callable[[Slots], None]

METER = 0
"""The slot of the run's Meter; None where nothing is measured."""


class Runner(Protocol):
    """A compiled segment."""

    def __call__(self, arrays: Sequence[Any]) -> Iterable[Any]:
        """Outputs for inputs, both in the segment's order."""
        ...

    def metered(self, arrays: Sequence[Any], meter: Meter) -> Iterable[Any]:
        """The same, and the time of its calls into `meter`."""
        ...


class Interpreter:
    """A host program, ready to run."""

    def __init__(self, program: HostProgram, runners: Sequence[Runner]) -> None:
        self._runners = runners
        self._slots: dict[str, int] = {"": METER}
        self._fixed = {constant.name: _array(constant) for constant in program.constants}
        start: list[Any] = [None]
        for name, array in self._fixed.items():
            self._slot(name)
            start.append(array)
        self.parameters = [self._slot(name) for name in program.body.parameters]
        self._body = self._block(program.body)
        self.results = [self._slots[name] for name in program.body.results]
        self._start = start + [None] * (len(self._slots) - len(start))
        self.constants = tuple(self._fixed.values())

    def run(self, inputs: Iterable[Any], meter: Meter | None = None) -> list[Any]:
        """Results for inputs, both in the program's order. Results may be views, even of inputs."""
        slots = list(self._start)
        slots[METER] = meter
        for slot, value in zip(self.parameters, inputs, strict=True):
            slots[slot] = value
        self._body(slots)
        return [slots[slot] for slot in self.results]

    def _slot(self, name: str) -> int:
        return self._slots.setdefault(name, len(self._slots))

    def _read(self, names: Iterable[str]) -> list[int]:
        """Slots of values that exist; of an omitted one, the meter's, which no step may read."""
        return [self._slots[name] for name in names]

    # Blocks

    def _block(self, block: Block) -> Action:
        for name in block.parameters:
            self._slot(name)
        actions: list[Action] = []
        unneeded = last_uses(block)
        for index, step in enumerate(block.steps):
            actions.append(self._action(step))
            dead = [self._slots[name] for name in unneeded.get(index, ()) if name in self._slots]
            if dead:
                actions.append(_forget(dead))
        if len(actions) == 1:
            return actions[0]

        def run(slots: Slots) -> None:
            for action in actions:
                action(slots)

        return run

    def _own_results(self, block: Block) -> list[int]:
        """Slots of the block's results that nothing outside of the block owns."""
        own = set(block.parameters) | {name for step in block.steps for name in outputs_of(step)}
        return [self._slots[name] for name in {*block.results, *block.parameters} & own]

    # Steps

    def _action(self, step: Step) -> Action:
        if isinstance(step, CallSegment):
            return self._call(step)
        if isinstance(step, Trim):
            return self._trim(step)
        if isinstance(step, HostCall):
            return self._host_call(step)
        if isinstance(step, Branch):
            return self._branch(step)
        if isinstance(step, Loop):
            return self._loop(step)
        return self._scan(step)

    def _call(self, step: CallSegment) -> Action:
        runner = self._runners[step.segment]
        inputs = self._read(step.inputs)
        outputs = [self._slot(name) for name in step.outputs]

        def call(slots: Slots) -> None:
            arrays = [slots[i] for i in inputs]
            meter = slots[METER]
            results = runner(arrays) if meter is None else runner.metered(arrays, meter)
            for slot, result in zip(outputs, results, strict=True):
                slots[slot] = result

        return call

    def _trim(self, step: Trim) -> Action:
        value, count = self._read((step.value, step.count))
        output = self._slot(step.output)
        lead = (slice(None),) * step.axis

        def trim(slots: Slots) -> None:
            place = *lead, slice(slots[count].item())
            slots[output] = slots[value][place]

        return trim

    def _host_call(self, step: HostCall) -> Action:
        operator, attributes = OPERATORS[step.operator], dict(step.attributes)
        names = list(step.inputs)
        while names and not names[-1]:
            del names[-1]
        inputs = [self._slots[name] if name else None for name in names]
        wanted = [(i, self._slot(name)) for i, name in enumerate(step.outputs) if name]
        node = step.node

        def call(slots: Slots) -> None:
            values = [None if i is None else slots[i] for i in inputs]
            try:
                results = operator(values, attributes)
            except HostCallError as error:
                raise GraphoptError("run", error.reason, node=node) from error
            for i, slot in wanted:
                slots[slot] = results[i]

        return call

    def _branch(self, step: Branch) -> Action:
        (condition,) = self._read((step.condition,))
        sides = []
        for block in (step.otherwise, step.then):
            run = self._block(block)
            pairs = [
                (self._slot(output), self._slots[result])
                for output, result in zip(step.outputs, block.results, strict=True)
                if output
            ]
            sides.append((run, pairs, self._own_results(block)))
        node = step.node

        def branch(slots: Slots) -> None:
            run, pairs, own = sides[bool(_flag(slots[condition], node))]
            run(slots)
            for output, result in pairs:
                slots[output] = slots[result]
            for slot in own:
                slots[slot] = None

        return branch

    def _loop(self, step: Loop) -> Action:
        trips_at, condition_at = (
            None if not name else self._slots[name] for name in (step.trips, step.condition)
        )
        initial = self._read(step.initial)
        body = self._block(step.body)
        index_at, flag_at, *carried_at = self._read(step.body.parameters)
        go_on, *results = self._read(step.body.results)
        next_at, rows_at = results[: len(initial)], results[len(initial) :]
        outputs = [self._slot(name) for name in step.outputs]
        wanted = [bool(name) for name in step.outputs]
        own = self._own_results(step.body)
        read = set(step.body.results).union(*map(inputs_of, step.body.steps))
        counts, flags = (name in read for name in step.body.parameters[:2])
        # A condition that is a constant of the program need not be read again.
        endless = step.body.results[0] in self._fixed or go_on == flag_at
        shape = (1,) * step.ranks[0]
        true = np.ones((1,) * step.ranks[1], np.bool_)
        node, specs = step.node, step.stacked
        fixed = self._fixed.get(step.body.results[0])

        def loop(slots: Slots) -> None:
            trips = None if trips_at is None else _count(slots[trips_at], node)
            going = condition_at is None or _flag(slots[condition_at], node)
            values = [slots[i] for i in initial]
            stacks = [Stack(spec, trips, node) for spec in specs]
            k = 0
            while going and (trips is None or k < trips):
                if counts:
                    slots[index_at] = np.full(shape, k, np.int64)
                if flags:
                    slots[flag_at] = true
                for slot, value in zip(carried_at, values, strict=True):
                    slots[slot] = value
                body(slots)
                if not endless:
                    going = bool(slots[go_on].item())
                elif fixed is not None:
                    going = bool(fixed.item())
                values = [slots[i] for i in next_at]
                for stack, slot in zip(stacks, rows_at, strict=True):
                    stack.add(slots[slot])
                k += 1
            for slot in own:
                slots[slot] = None
            finished = values + [stack.result() for stack in stacks]
            for slot, value, use in zip(outputs, finished, wanted, strict=False):
                if use:
                    slots[slot] = value

        return loop

    def _scan(self, step: Scan) -> Action:
        initial, scanned = self._read(step.initial), self._read(step.scanned)
        lengths_at = self._slots[step.lengths] if step.lengths else None
        body = self._block(step.body)
        parameters = self._read(step.body.parameters)
        carried_at, slices_at = parameters[: len(initial)], parameters[len(initial) :]
        results = self._read(step.body.results)
        next_at, rows_at = results[: len(initial)], results[len(initial) :]
        wanted = [(i, self._slot(name)) for i, name in enumerate(step.outputs) if name]
        own = self._own_results(step.body)
        node = step.node

        def scan(slots: Slots, values: list[Any], parts: list[Any], steps: int) -> list[Any]:
            """Final carried values, and stacked outputs with the iterations first."""
            stacks = [Stack(spec, steps, node) for spec in step.stacked]
            for k in range(steps):
                for slot, value in zip(carried_at, values, strict=True):
                    slots[slot] = value
                for slot, part, back in zip(slices_at, parts, step.backward, strict=True):
                    slots[slot] = part[steps - 1 - k if back else k]
                body(slots)
                values = [slots[i] for i in next_at]
                for stack, slot in zip(stacks, rows_at, strict=True):
                    stack.add(slots[slot])
            rows = [
                stack.result()[::-1] if back else stack.result()
                for stack, back in zip(stacks, step.stack_backward, strict=True)
            ]
            return [*values, *rows]

        def plain(slots: Slots) -> list[Any]:
            parts = [
                np.moveaxis(slots[i], axis, 0) for i, axis in zip(scanned, step.axes, strict=True)
            ]
            steps = _common_length([len(part) for part in parts], node)
            found = scan(slots, [slots[i] for i in initial], parts, steps)
            placed = [
                np.moveaxis(row, 0, axis)
                for row, axis in zip(found[len(initial) :], step.stack_axes, strict=True)
            ]
            return [*found[: len(initial)], *placed]

        def in_batch(slots: Slots) -> list[Any]:
            states, parts = [slots[i] for i in initial], [slots[i] for i in scanned]
            rows = _common_length([len(part) for part in (*states, *parts)], node)
            longest = _common_length([part.shape[1] for part in parts], node)
            lengths = [longest] * rows if lengths_at is None else slots[lengths_at].tolist()
            if len(lengths) != rows or not all(0 <= n <= longest for n in lengths):
                raise GraphoptError(
                    "run", f"lengths {lengths} for {rows} sequences of {longest}.", node=node
                )
            found = [
                scan(slots, [s[b] for s in states], [p[b, : lengths[b]] for p in parts], lengths[b])
                for b in range(rows)
            ]
            return [
                _padded([row[i] for row in found], longest if i >= len(initial) else None)
                for i in range(len(results))
            ]

        run = in_batch if step.batched else plain

        def action(slots: Slots) -> None:
            found = run(slots)
            for slot in own:
                slots[slot] = None
            for i, slot in wanted:
                slots[slot] = found[i]

        return action


def _forget(dead: list[int]) -> Action:
    def forget(slots: Slots) -> None:
        for slot in dead:
            slots[slot] = None

    return forget


def _array(constant: BoundInput) -> Any:
    dtype = numpy_dtype(constant.dtype)
    kept = np.dtype(f"u{dtype.itemsize}") if dtype.kind == "f" else dtype
    array, _ = new_aligned(constant.shape, dtype, len(constant.values) * dtype.itemsize)
    array[...] = np.array(constant.values, kept).view(dtype).reshape(constant.shape)
    return array


def _flag(value: Any, node: str) -> bool:
    try:
        return bool(number(value, "the condition"))
    except HostCallError as error:
        raise GraphoptError("run", error.reason, node=node) from error


def _count(value: Any, node: str) -> int | None:
    if value is None:
        return None
    try:
        return number(value, "the trip count")
    except HostCallError as error:
        raise GraphoptError("run", error.reason, node=node) from error


def _common_length(lengths: Sequence[int], node: str) -> int:
    if len(set(lengths)) > 1:
        raise GraphoptError("run", f"sequences have different lengths: {lengths}.", node=node)
    return lengths[0] if lengths else 0


def _padded(items: list[Any], length: int | None) -> Any:
    """The items stacked; each filled with zeros to `length` rows."""
    if length is None or all(len(item) == length for item in items):
        return np.stack(items)
    whole = np.zeros((len(items), length, *items[0].shape[1:]), items[0].dtype)
    for target, item in zip(whole, items, strict=True):
        target[: len(item)] = item
    return whole
