"""Builds small Relax graphs for the tests of passes, and compares what passes make of them."""

from __future__ import annotations

import numpy as np
import passes_numpy
import tvm
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import bindings_of, verify_graph
from graphopt.passes.values import op_name


def const(values, dtype="float32"):
    return relax.const(np.asarray(values, dtype), dtype)


def random(*shape, seed=0):
    """A random float32 array."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def make(inputs, body):
    """A Graph of `body(*vars)`; `inputs` maps names to shapes or (shape, dtype).

    `body` returns a nest of calls or a list of them. Each binding's only node is "n:" and its op,
    with "#i" for the i-th of that op.
    """
    params = []
    for name, spec in inputs.items():
        dims, dtype = spec if isinstance(spec[0], (tuple, list)) else (spec, "float32")
        params.append(relax.Var(name, relax.TensorType(tuple(dims), dtype)))
    builder = relax.BlockBuilder()
    shared = {}

    def emit(expr):
        """Binds every inner call once, however often the nest contains the object."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([emit(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            if expr not in shared:
                shared[expr] = builder.emit(relax.TupleGetItem(emit(expr.tuple_value), expr.index))
            return shared[expr]
        if not isinstance(expr, tvm.ir.Call):
            return expr
        if expr not in shared:
            args = [emit(arg) for arg in expr.args]
            call = tvm.ir.Call(expr.op, args, expr.attrs, list(expr.ty_args))
            shared[expr] = builder.emit(call)
        return shared[expr]

    with builder.function("main", params):
        with builder.dataflow():
            found = body(*params)
            results = found if isinstance(found, list) else [found]
            outputs = builder.emit_output(relax.Tuple([emit(result) for result in results]))
        builder.emit_func_output(outputs)
    module = builder.get()
    sites, counts = {}, {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            kind = op_name(binding.value)
            if kind == "tuple":
                continue
            counts[kind] = counts.get(kind, 0) + 1
            sites[binding.var.name] = (f"n:{kind}#{counts[kind]}",)
    return Graph(module, sites, tuple(f"out{i}" for i in range(len(results))))


def kinds(graph):
    """The op names of the graph's bindings in order, without the final tuple."""
    return [op_name(b.value) for b in bindings_of(graph) if op_name(b.value) != "tuple"]


def feeds_of(graph, seed=0):
    rng = np.random.default_rng(seed)
    feeds = {}
    for param in graph.module["main"].params:
        dims = passes_numpy.shape(param)
        dtype = str(param.ty.dtype)
        values = rng.standard_normal(dims) * 2
        if dtype in ("int8", "uint8"):
            bounds = np.iinfo(dtype)
            values = rng.integers(bounds.min, bounds.max + 1, dims)
        feeds[param.name] = values.astype(dtype)
    return feeds


def assert_same_function(before, after, rtol=1e-5):
    """Both graphs give the same results on random inputs, computed in float64."""
    feeds = feeds_of(before)
    wanted = passes_numpy.run(before, feeds)
    found = passes_numpy.run(after, feeds)
    assert len(wanted) == len(found)
    for want, have in zip(wanted, found, strict=True):
        assert want.shape == have.shape
        limit = rtol * max(np.abs(want).max(), 1e-30)
        assert np.abs(want - have).max() <= limit


def fires(step, before, expected=None, rewrites=None):
    """Run a pass that must change `before`, into `expected` if given; returns the new graph."""
    outcome = step.run(before)
    assert outcome.rewrites >= 1, outcome.refusals
    if rewrites is not None:
        assert outcome.rewrites == rewrites
    verify_graph(outcome.graph)
    assert_same_function(before, outcome.graph)
    if expected is not None:
        found, wanted = outcome.graph.module["main"], expected.module["main"]
        tvm.ir.assert_structural_equal(found, wanted, map_free_vars=True)
    lost = nodes(before) - nodes(outcome.graph)
    assert not lost, lost
    again = step.run(outcome.graph)
    assert again.rewrites == 0
    return outcome.graph


def refuses(step, before, reason=None):
    """Run a pass that must leave `before` as it is; `reason` is a part of what it says, if any."""
    outcome = step.run(before)
    assert outcome.rewrites == 0
    assert outcome.graph is before
    if reason is None:
        assert not outcome.refusals
    else:
        assert any(reason in refusal.reason for refusal in outcome.refusals), outcome.refusals
        assert all(refusal.nodes for refusal in outcome.refusals)


def nodes(graph):
    return {node for ids in graph.sites.values() for node in ids}
