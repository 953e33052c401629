"""Which values a host program's steps read and define, and when nobody needs them any more."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.codegen.host_program import Block, Branch, Loop, Scan, Step, Trim


def outputs_of(step: Step) -> tuple[str, ...]:
    """Names of the values that a step defines in its block."""
    return (step.output,) if isinstance(step, Trim) else tuple(n for n in step.outputs if n)


def inputs_of(step: Step) -> set[str]:
    """Names of the values that a step reads, those its blocks capture too."""
    if isinstance(step, Trim):
        return {step.value, step.count}
    if isinstance(step, Branch):
        return {step.condition} | _free(step.then) | _free(step.otherwise)
    if isinstance(step, Loop):
        return {step.trips, step.condition, *step.initial} | _free(step.body)
    if isinstance(step, Scan):
        return {step.lengths, *step.initial, *step.scanned} | _free(step.body)
    return set(step.inputs)


def _free(block: Block) -> set[str]:
    made = set(block.parameters)
    found = set(block.results)
    for step in block.steps:
        found |= inputs_of(step)
        made.update(outputs_of(step))
    return found - made


def last_uses(block: Block) -> Mapping[int, list[str]]:
    """Step → values of the block itself that nothing needs after it."""
    own = set(block.parameters)
    last: dict[str, int] = {}
    for index, step in enumerate(block.steps):
        own.update(outputs_of(step))
        for name in (*inputs_of(step), *outputs_of(step)):
            last[name] = index
    found: dict[int, list[str]] = {}
    for name in sorted(own - set(block.results)):
        if name in last:
            found.setdefault(last[name], []).append(name)
    return found
