"""HostProgram ↔ JSON. Reading checks that every value is there when a step needs it."""

from __future__ import annotations

from typing import Any

from graphopt.artifact import strict_json as sj
from graphopt.artifact.plan_json import bound_from_json, bound_to_json, spec_from_json, spec_to_json
from graphopt.codegen.host_program import (
    HOST_OPERATORS,
    Block,
    Branch,
    CallSegment,
    HostCall,
    HostProgram,
    Loop,
    Scan,
    SegmentSpec,
    Step,
    Trim,
)
from graphopt.codegen.plan import TensorSpec

_MAX_AXIS = 64
_MAX_DEPTH = 64


def host_to_json(program: HostProgram) -> dict[str, Any]:
    return {
        "inputs": [spec_to_json(spec) for spec in program.inputs],
        "outputs": [spec_to_json(spec) for spec in program.outputs],
        "constants": [bound_to_json(each) for each in program.constants],
        "body": _block_to_json(program.body),
        "segments": [
            {
                "inputs": [spec_to_json(spec) for spec in segment.inputs],
                "outputs": [spec_to_json(spec) for spec in segment.outputs],
                "bound": list(segment.bound),
                "nodes": list(segment.nodes),
                "row_inputs": list(segment.row_inputs),
                "row_outputs": list(segment.row_outputs),
                "row_limit": segment.row_limit,
            }
            for segment in program.segments
        ],
    }


def _block_to_json(block: Block) -> dict[str, Any]:
    return {
        "parameters": list(block.parameters),
        "steps": [_step_to_json(step) for step in block.steps],
        "results": list(block.results),
    }


def _step_to_json(step: Step) -> dict[str, Any]:
    if isinstance(step, CallSegment):
        return {
            "step": "call",
            "segment": step.segment,
            "inputs": list(step.inputs),
            "outputs": list(step.outputs),
        }
    if isinstance(step, Trim):
        return {
            "step": "trim",
            "value": step.value,
            "count": step.count,
            "axis": step.axis,
            "output": step.output,
        }
    if isinstance(step, HostCall):
        return {
            "step": "host",
            "node": step.node,
            "operator": step.operator,
            "inputs": list(step.inputs),
            "outputs": list(step.outputs),
            "attributes": [[name, value] for name, value in step.attributes],
        }
    if isinstance(step, Branch):
        return {
            "step": "branch",
            "node": step.node,
            "condition": step.condition,
            "then": _block_to_json(step.then),
            "otherwise": _block_to_json(step.otherwise),
            "outputs": list(step.outputs),
        }
    common = {
        "node": step.node,
        "initial": list(step.initial),
        "body": _block_to_json(step.body),
        "stacked": [spec_to_json(spec) for spec in step.stacked],
        "outputs": list(step.outputs),
    }
    if isinstance(step, Loop):
        return common | {
            "step": "loop",
            "trips": step.trips,
            "condition": step.condition,
            "ranks": list(step.ranks),
        }
    return common | {
        "step": "scan",
        "batched": step.batched,
        "lengths": step.lengths,
        "scanned": list(step.scanned),
        "axes": list(step.axes),
        "backward": list(step.backward),
        "stack_axes": list(step.stack_axes),
        "stack_backward": list(step.stack_backward),
    }


def host_from_json(value: Any, where: str) -> HostProgram:
    """Read a HostProgram in which names are unique, known before they are used, and counts agree.

    Raises:
        ArtifactError: with the place and the reason.
    """
    fields = sj.record(value, where, ("inputs", "outputs", "constants", "body", "segments"))
    inputs = sj.items(fields["inputs"], f"{where}.inputs", spec_from_json)
    outputs = sj.items(fields["outputs"], f"{where}.outputs", spec_from_json)
    for kind, specs in (("inputs", inputs), ("outputs", outputs)):
        if len({spec.name for spec in specs}) != len(specs):
            raise sj.refuse(f"{where}.{kind}", "two have the same name")
    constants = sj.items(fields["constants"], f"{where}.constants", bound_from_json)
    segments = sj.items(fields["segments"], f"{where}.segments", _segment_from_json)
    reader = _Reader(segments)
    for constant in constants:
        reader.define(constant.name, f"{where}.constants")
    body = reader.block(fields["body"], f"{where}.body", 0)
    if len(body.parameters) != len(inputs) or len(body.results) != len(outputs):
        raise sj.refuse(f"{where}.body", "it does not fit the inputs and outputs")
    return HostProgram(inputs, outputs, constants, body, segments)


def _segment_from_json(value: Any, where: str) -> SegmentSpec:
    fields = sj.record(
        value,
        where,
        ("inputs", "outputs", "bound", "nodes", "row_inputs", "row_outputs", "row_limit"),
    )
    spec = SegmentSpec(
        inputs=sj.items(fields["inputs"], f"{where}.inputs", spec_from_json),
        outputs=sj.items(fields["outputs"], f"{where}.outputs", spec_from_json),
        bound=_names(fields["bound"], f"{where}.bound"),
        nodes=_names(fields["nodes"], f"{where}.nodes"),
        row_inputs=_axes(fields["row_inputs"], f"{where}.row_inputs"),
        row_outputs=_axes(fields["row_outputs"], f"{where}.row_outputs"),
        row_limit=sj.integer(fields["row_limit"], f"{where}.row_limit"),
    )
    for axes, specs in ((spec.row_inputs, spec.inputs), (spec.row_outputs, spec.outputs)):
        fits = len(axes) == len(specs) and all(
            -1 <= axis < len(each.shape) for axis, each in zip(axes, specs, strict=True)
        )
        if (spec.row_inputs or spec.row_outputs) and not fits:
            raise sj.refuse(f"{where}.row_inputs", "the axes do not fit the inputs and outputs")
    names = [each.name for each in spec.inputs]
    if list(spec.bound) != [name for name in names if name in spec.bound]:
        raise sj.refuse(f"{where}.bound", "the names are not those of some inputs")
    return spec


def _names(value: Any, where: str) -> tuple[str, ...]:
    return sj.items(value, where, sj.text)


def _flags(value: Any, where: str) -> tuple[bool, ...]:
    return sj.items(value, where, sj.flag)


def _axes(value: Any, where: str) -> tuple[int, ...]:
    return sj.items(
        value, where, lambda item, at: sj.integer(item, at, low=-_MAX_AXIS, high=_MAX_AXIS)
    )


def _specs(value: Any, where: str) -> tuple[TensorSpec, ...]:
    return sj.items(value, where, spec_from_json)


class _Reader:
    """Reads nested blocks; keeps the names that have been defined."""

    def __init__(self, segments: tuple[SegmentSpec, ...]) -> None:
        self._segments = segments
        self._used: set[str] = set()
        self._visible: set[str] = set()

    def define(self, name: str, where: str) -> str:
        """Note a new value."""
        if name in self._used:
            raise sj.refuse(where, f"{name!r} is defined twice")
        self._used.add(name)
        self._visible.add(name)
        return name

    def block(self, value: Any, where: str, depth: int) -> Block:
        """A block; what it defines is not visible after it."""
        if depth > _MAX_DEPTH:
            raise sj.refuse(where, f"more than {_MAX_DEPTH} blocks inside one another")
        fields = sj.record(value, where, ("parameters", "steps", "results"))
        outer = set(self._visible)
        parameters = self._defined(fields["parameters"], f"{where}.parameters", omitted=False)
        steps = sj.items(
            fields["steps"], f"{where}.steps", lambda item, at: self._step(item, at, depth)
        )
        results = self._read(fields["results"], f"{where}.results", omitted=False)
        self._visible = outer
        return Block(parameters, steps, results)

    def _defined(self, value: Any, where: str, omitted: bool = True) -> tuple[str, ...]:
        names = _names(value, where)
        for name in names:
            if name or not omitted:
                self.define(name, where)
        return names

    def _read(self, value: Any, where: str, omitted: bool = True) -> tuple[str, ...]:
        names = _names(value, where)
        for name in names:
            self._check(name, where, omitted)
        return names

    def _one(self, value: Any, where: str, omitted: bool = False) -> str:
        name = sj.text(value, where)
        self._check(name, where, omitted)
        return name

    def _check(self, name: str, where: str, omitted: bool) -> None:
        if name not in self._visible and not (omitted and not name):
            raise sj.refuse(where, f"no value {name!r} is there yet")

    def _step(self, value: Any, where: str, depth: int) -> Step:
        kind = value.get("step") if isinstance(value, dict) else None
        read = {
            "call": self._call,
            "trim": self._trim,
            "host": self._host,
            "branch": self._branch,
            "loop": self._loop,
            "scan": self._scan,
        }.get(kind if isinstance(kind, str) else "")
        if read is None:
            raise sj.refuse(where, "it is no step that this reader knows")
        return read(value, where, depth)

    def _call(self, value: Any, where: str, _depth: int) -> Step:
        fields = sj.record(value, where, ("step", "segment", "inputs", "outputs"))
        index = sj.integer(fields["segment"], f"{where}.segment", high=len(self._segments) - 1)
        inputs = self._read(fields["inputs"], f"{where}.inputs", omitted=False)
        outputs = self._defined(fields["outputs"], f"{where}.outputs", omitted=False)
        spec = self._segments[index]
        if len(inputs) != len(spec.inputs) or len(outputs) != len(spec.outputs):
            raise sj.refuse(where, "it does not fit the segment")
        return CallSegment(index, inputs, outputs)

    def _trim(self, value: Any, where: str, _depth: int) -> Step:
        fields = sj.record(value, where, ("step", "value", "count", "axis", "output"))
        return Trim(
            self._one(fields["value"], f"{where}.value"),
            self._one(fields["count"], f"{where}.count"),
            sj.integer(fields["axis"], f"{where}.axis", high=_MAX_AXIS),
            self.define(sj.text(fields["output"], f"{where}.output"), f"{where}.output"),
        )

    def _host(self, value: Any, where: str, _depth: int) -> Step:
        fields = sj.record(
            value, where, ("step", "node", "operator", "inputs", "outputs", "attributes")
        )
        operator = sj.text(fields["operator"], f"{where}.operator")
        if operator not in HOST_OPERATORS:
            raise sj.refuse(f"{where}.operator", f"unknown operator {operator!r}")

        def attribute(item: Any, at: str) -> tuple[str, int]:
            if not isinstance(item, list) or len(item) != 2:
                raise sj.refuse(at, "expected [name, number]")
            return sj.text(item[0], at), sj.integer(item[1], at, low=-(2**31), high=2**31)

        return HostCall(
            sj.text(fields["node"], f"{where}.node"),
            operator,
            self._read(fields["inputs"], f"{where}.inputs"),
            self._defined(fields["outputs"], f"{where}.outputs"),
            sj.items(fields["attributes"], f"{where}.attributes", attribute),
        )

    def _branch(self, value: Any, where: str, depth: int) -> Step:
        fields = sj.record(
            value, where, ("step", "node", "condition", "then", "otherwise", "outputs")
        )
        condition = self._one(fields["condition"], f"{where}.condition")
        then = self.block(fields["then"], f"{where}.then", depth + 1)
        otherwise = self.block(fields["otherwise"], f"{where}.otherwise", depth + 1)
        outputs = self._defined(fields["outputs"], f"{where}.outputs")
        if then.parameters or otherwise.parameters:
            raise sj.refuse(where, "a branch takes no parameters")
        if not len(then.results) == len(otherwise.results) == len(outputs):
            raise sj.refuse(where, "its blocks do not fit its outputs")
        return Branch(sj.text(fields["node"], f"{where}.node"), condition, then, otherwise, outputs)

    def _loop(self, value: Any, where: str, depth: int) -> Step:
        fields = sj.record(
            value,
            where,
            (
                "step",
                "node",
                "trips",
                "condition",
                "initial",
                "body",
                "ranks",
                "stacked",
                "outputs",
            ),
        )
        ranks = sj.items(fields["ranks"], f"{where}.ranks", lambda i, at: sj.integer(i, at, high=1))
        if len(ranks) != 2:
            raise sj.refuse(f"{where}.ranks", "there must be two")
        step = Loop(
            node=sj.text(fields["node"], f"{where}.node"),
            trips=self._one(fields["trips"], f"{where}.trips", omitted=True),
            condition=self._one(fields["condition"], f"{where}.condition", omitted=True),
            initial=self._read(fields["initial"], f"{where}.initial", omitted=False),
            body=self.block(fields["body"], f"{where}.body", depth + 1),
            ranks=(ranks[0], ranks[1]),
            stacked=_specs(fields["stacked"], f"{where}.stacked"),
            outputs=self._defined(fields["outputs"], f"{where}.outputs"),
        )
        count = len(step.initial)
        if len(step.body.parameters) != 2 + count:
            raise sj.refuse(f"{where}.body", "its parameters do not fit the loop")
        if len(step.body.results) != 1 + count + len(step.stacked):
            raise sj.refuse(f"{where}.body", "its results do not fit the loop")
        if len(step.outputs) > count + len(step.stacked):
            raise sj.refuse(f"{where}.outputs", "there are too many")
        return step

    def _scan(self, value: Any, where: str, depth: int) -> Step:
        fields = sj.record(
            value,
            where,
            (
                "step",
                "node",
                "batched",
                "lengths",
                "initial",
                "scanned",
                "axes",
                "backward",
                "body",
                "stack_axes",
                "stack_backward",
                "stacked",
                "outputs",
            ),
        )
        step = Scan(
            node=sj.text(fields["node"], f"{where}.node"),
            batched=sj.flag(fields["batched"], f"{where}.batched"),
            lengths=self._one(fields["lengths"], f"{where}.lengths", omitted=True),
            initial=self._read(fields["initial"], f"{where}.initial", omitted=False),
            scanned=self._read(fields["scanned"], f"{where}.scanned", omitted=False),
            axes=_axes(fields["axes"], f"{where}.axes"),
            backward=_flags(fields["backward"], f"{where}.backward"),
            body=self.block(fields["body"], f"{where}.body", depth + 1),
            stack_axes=_axes(fields["stack_axes"], f"{where}.stack_axes"),
            stack_backward=_flags(fields["stack_backward"], f"{where}.stack_backward"),
            stacked=_specs(fields["stacked"], f"{where}.stacked"),
            outputs=self._defined(fields["outputs"], f"{where}.outputs"),
        )
        count, cut, made = len(step.initial), len(step.scanned), len(step.stacked)
        if len(step.body.parameters) != count + cut or len(step.body.results) != count + made:
            raise sj.refuse(f"{where}.body", "it does not fit the scan")
        if not len(step.axes) == len(step.backward) == cut:
            raise sj.refuse(f"{where}.axes", "there must be one for each scanned value")
        if not len(step.stack_axes) == len(step.stack_backward) == made:
            raise sj.refuse(f"{where}.stack_axes", "there must be one for each stacked output")
        if len(step.outputs) > count + made:
            raise sj.refuse(f"{where}.outputs", "there are too many")
        return step
