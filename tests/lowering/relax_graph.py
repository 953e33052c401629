"""Small Relax graphs for lowering tests."""

from __future__ import annotations

from tvm import relax

from graphopt.ir import Graph


def make_graph(inputs, body):
    """A Graph with the given inputs (name → shape or (shape, dtype)) and `body(builder, *vars)`.

    `body` returns the output expression or a list of them; every binding is its own "node".
    """
    params = []
    for name, shape in inputs.items():
        dims, dtype = shape if isinstance(shape[0], (tuple, list)) else (shape, "float32")
        params.append(relax.Var(name, relax.TensorType(tuple(dims), dtype)))
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            found = body(builder, *params)
            results = found if isinstance(found, list) else [found]
            outputs = [builder.emit_output(result) for result in results]
        builder.emit_func_output(relax.Tuple(outputs))
    module = builder.get()
    names = [b.var.name for block in module["main"].body.blocks for b in block.bindings]
    sites = {name: (f"node_{name}",) for name in names}
    return Graph(module, sites, tuple(f"out{i}" for i in range(len(results))))
