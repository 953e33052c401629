"""Applies an epilogue to elements of a blocked or row-major output: every kernel's last stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tvm import te, tirx

from schedules.interface import (
    PLAIN,
    Epilogue,
    Layout,
    PrimExpr,
    Step,
    TensorSig,
    TETensor,
    Workload,
)
from schedules.scalar import evaluate
from schedules.scalar_math import as_float, defines
from schedules.scalar_quantized import level, scaled
from schedules.scalar_values import constant
from schedules.scalar_zero import keeps_zero


def operand_layouts(epilogue: Epilogue, output: TensorSig, layout: Layout) -> tuple[Layout, ...]:
    """The layout each operand must have where the output has `layout`.

    An operand that is broadcast along axis 1 has no channels to block and stays row-major.
    """
    return tuple(
        layout if layout.block and sig.shape[1] == output.shape[1] else PLAIN
        for sig in epilogue.operands
    )


def logical_index(index: Sequence[PrimExpr], layout: Layout) -> tuple[PrimExpr, ...]:
    """Logical coordinates of a physical index."""
    if not layout.block:
        return tuple(index)
    return (index[0], index[1] * layout.block + index[-1], *index[2:-1])


def physical_index(index: Sequence[PrimExpr], layout: Layout) -> tuple[PrimExpr, ...]:
    """Physical coordinates of a logical index; the inverse of logical_index."""
    if not layout.block:
        return tuple(index)
    block = layout.block
    return (index[0], index[1] // block, *index[2:], index[1] % block)


def read_operand(
    tensor: TETensor, sig: TensorSig, layout: Layout, output: Layout, index: Sequence[PrimExpr]
) -> PrimExpr:
    """Element of a broadcast operand for the output element at physical `index`.

    Where operand and output are blocked alike, the block coordinates are passed through unchanged,
    so that no division stands in the way of vectorisation.
    """
    if layout.block and layout == output:
        inner = (*index[:2], *index[2:-1])
        read = [0 if dim == 1 else i for dim, i in zip(sig.shape, inner, strict=True)]
        read[1] = index[1]
        return tensor(*read, index[-1])
    logical = logical_index(index, output)
    return tensor(*[0 if dim == 1 else i for dim, i in zip(sig.shape, logical, strict=True)])


def apply_epilogue(
    workload: Workload,
    value: PrimExpr | None,
    operands: Sequence[TETensor],
    layout: Layout,
    index: Sequence[PrimExpr],
) -> PrimExpr:
    """The group's result at physical `index` of the output, given the anchor's `value` there.

    Lanes past the last channel become zero, unless every step maps zeros to zero anyway and the
    anchor's padding lanes are zero (`value` then is, too).
    """
    epilogue = workload.epilogue
    output = workload.output
    layouts = operand_layouts(epilogue, output, layout)
    values: list[PrimExpr | None] = [value]
    uses = Counter(i for step in epilogue.steps for i in step.args)
    bindings: list[tuple[PrimExpr, PrimExpr]] = []
    if value is not None and uses[0] > 1:
        values = [bind(value, bindings)]
    for tensor, sig, where in zip(operands, epilogue.operands, layouts, strict=True):
        values.append(read_operand(tensor, sig, where, layout, index))
    for step in epilogue.steps:
        made = _made_here(epilogue, step)
        args = [values[i] for i in step.args]
        if made is None:
            stepped = evaluate(step, args)
        else:
            exact = level(made.op, [values[i] for i in made.args], dict(made.attrs))
            stepped = scaled(exact, args[1], dict(step.attrs))
        values.append(bind(stepped, bindings) if uses[len(values)] > 1 else stepped)
    result = values[-1]
    if layout.block and output.shape[1] % layout.block and not keeps_zero(epilogue, value is None):
        channel = logical_index(index, layout)[1]
        result = tirx.Select(channel < output.shape[1], result, constant(0, epilogue.dtype))
    for var, bound in reversed(bindings):
        result = tirx.Let(var, bound, result)
    return result


def _made_here(epilogue: Epilogue, step: Step) -> Step | None:
    """The step that quantized what `step` dequantizes with the same zero point, if there is one."""
    first = 1 + len(epilogue.operands)
    if step.op != "dequantize" or step.args[0] < first:
        return None
    made = epilogue.steps[step.args[0] - first]
    if made.op not in ("quantize", "requantize"):
        return None

    def value(index: int) -> object:
        constant = epilogue.steps[index - first] if index >= first else None
        return constant.attrs if constant and constant.op == "constant" else index

    return made if value(made.args[2]) == value(step.args[2]) else None


_SMALL_INTEGERS = ("int8", "uint8", "int16", "uint16")


def bind(value: PrimExpr, bindings: list[tuple[PrimExpr, PrimExpr]]) -> PrimExpr:
    """A variable for `value`, noted in `bindings`: an expression is a tree, where a value that
    several steps use would be repeated. Immediates and variables stay as they are; integers
    too, as let() says, unless they define variables."""
    dtype = str(value.ty.dtype)
    plain = isinstance(value, (tirx.IntImm, tirx.FloatImm, tirx.Var))
    if dtype in _SMALL_INTEGERS and isinstance(value, (tirx.Cast, tirx.Let)):
        # What quantization made is a long expression: it is kept as the float it is exactly.
        return tirx.Cast(dtype, tirx.Cast("int32", bind(tirx.Cast("float32", value), bindings)))
    if plain:
        return value
    if "float" not in dtype:
        if not defines(value):
            return value
        carrier, back = as_float(value)
        return back(bind(carrier, bindings))
    var = tirx.Var(f"value{len(bindings)}", dtype)
    bindings.append((var, value))
    return var


def output_stage(
    workload: Workload,
    value: Callable[..., PrimExpr] | None,
    operands: Sequence[TETensor],
    layout: Layout,
) -> TETensor:
    """The final TE stage, named "output"; `value(*physical_index)` reads the anchor's result."""
    return te.compute(
        layout.physical(workload.output.shape),
        lambda *index: apply_epilogue(
            workload, None if value is None else value(*index), operands, layout, index
        ),
        name="output",
    )


def operand_placeholders(workload: Workload, layout: Layout) -> list[TETensor]:
    """Placeholders of the epilogue's operands, named operand0, operand1, …"""
    epilogue = workload.epilogue
    layouts = operand_layouts(epilogue, workload.output, layout)
    return [
        te.placeholder(where.physical(sig.shape), sig.dtype, name=f"operand{i}")
        for i, (sig, where) in enumerate(zip(epilogue.operands, layouts, strict=True))
    ]
