"""An editable view of a Graph's dataflow block: values by name, use lists, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from graphopt.ir import Graph

Expr = Any
Var = Any

OUTPUT = ""  # stands for main's result among the users of a value


def merged(*groups: Iterable[str]) -> tuple[str, ...]:
    """Union of several groups of node ids, in order of first appearance."""
    return tuple(dict.fromkeys(node for group in groups for node in group))


def variables(expr: Expr) -> list[Var]:
    """The variables that `expr` (a binding's value or a nest of calls) reads, with repetitions."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, tvm.ir.Call):
        return [v for arg in expr.args for v in variables(arg)]
    if isinstance(expr, relax.Tuple):
        return [v for item in expr.fields for v in variables(item)]
    if isinstance(expr, relax.TupleGetItem):
        return variables(expr.tuple_value)
    return []


def substituted(expr: Expr, leaves: Mapping[str, Expr]) -> Expr:
    """`expr` with the variables named in `leaves` replaced; rebuilt nodes have no type yet."""
    if isinstance(expr, relax.Var):
        return leaves.get(expr.name, expr)
    if isinstance(expr, tvm.ir.Call):
        args = [substituted(arg, leaves) for arg in expr.args]
        if all(new is old for new, old in zip(args, expr.args, strict=True)):
            return expr
        return tvm.ir.Call(expr.op, args, expr.attrs, list(expr.ty_args))
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substituted(item, leaves) for item in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substituted(expr.tuple_value, leaves), expr.index)
    return expr


class Dataflow:
    """main's bindings, editable: the working state of one run of a pass.

    `values[name]` is what the variable `vars[name]` is bound to; `users[name]` counts who reads
    it. Dead values are removed as soon as their last user goes. `order` lists the names in
    topological order and may hold names that are dead.
    """

    def __init__(self, graph: Graph) -> None:
        function = graph.module["main"]
        self._graph = graph
        self._builder = relax.BlockBuilder()
        self.params: dict[str, Var] = {param.name: param for param in function.params}
        self.result: Expr = function.body.body
        self.sites: dict[str, tuple[str, ...]] = dict(graph.sites)
        self.values: dict[str, Expr] = {}
        self.vars: dict[str, Var] = {}
        self.users: dict[str, Counter[str]] = {name: Counter() for name in self.params}
        self.order: list[str] = []
        for block in function.body.blocks:
            for binding in block.bindings:
                self._insert(binding.var, binding.value)
                self.order.append(binding.var.name)
        for var in variables(self.result):
            self.users[var.name][OUTPUT] += 1

    def producer(self, expr: Expr) -> Expr | None:
        """What `expr` is bound to if it is a bound variable, else None."""
        return self.values.get(expr.name) if isinstance(expr, relax.Var) else None

    def use_count(self, name: str) -> int:
        """How often the value is read, main's result included."""
        return self.users[name].total()

    def typed(self, value: Expr) -> Expr:
        """`value` (a call or tuple of leaves) with its type inferred."""
        return self._builder.normalize(value)

    def define(self, hint: str, value: Expr, nodes: tuple[str, ...]) -> Var:
        """Bind a typed `value` to a new variable; the caller puts its name into an order."""
        name, suffix = f"{hint}_0", 0
        while name in self.sites or name in self.users:
            suffix += 1
            name = f"{hint}_{suffix}"
        var = relax.DataflowVar(name, value.ty)
        self.sites[name] = nodes
        self._insert(var, value)
        return var

    def rebind(self, name: str, value: Expr, nodes: tuple[str, ...]) -> None:
        """Bind `name` to another typed value of the same type."""
        old = self.values[name]
        if not tvm_ffi.structural_equal(old.ty, value.ty):
            raise ValueError(f"{name} would change its type from {old.ty} to {value.ty}")
        self.values[name] = value
        self.sites[name] = nodes
        for var in variables(value):
            self.users[var.name][name] += 1
        self._release(name, old)

    def forward(self, name: str, leaf: Expr, nodes: tuple[str, ...]) -> None:
        """Let every user of `name` read `leaf` (a variable or constant) instead.

        `nodes` go to whoever computes `leaf`; if it is a constant or a parameter, to the users.
        """
        leaves = {name: leaf}
        count = self.users[name]
        target = leaf.name if isinstance(leaf, relax.Var) else None
        for user, times in list(count.items()):
            if user == OUTPUT:
                self.result = substituted(self.result, leaves)
            else:
                self.values[user] = self.typed(substituted(self.values[user], leaves))
                if target not in self.values:
                    self.sites[user] = merged(self.sites[user], nodes)
            if target is not None:
                self.users[target][user] += times
        if target in self.values:
            self.sites[target] = merged(self.sites[target], nodes)
        count.clear()
        self._drop(name)

    def remove_dead(self) -> int:
        """Remove everything main's result does not need; returns how many bindings went."""
        before = len(self.values)
        for name in reversed(self.order):
            if name in self.values and not self.use_count(name):
                self._drop(name)
        return before - len(self.values)

    def to_graph(self) -> Graph:
        """The Graph that the view now stands for."""
        names = [name for name in self.order if name in self.values]
        renewed = {
            var.name: relax.Var(var.name, var.ty)
            for var in variables(self.result)
            if isinstance(var, relax.DataflowVar)
        }
        bindings = []
        for name in names:
            value = self.values[name]
            if renewed:
                value = self.typed(substituted(value, renewed))
            bindings.append(relax.VarBinding(renewed.get(name, self.vars[name]), value))
        old = self._graph.module["main"]
        result = substituted(self.result, renewed)
        if not isinstance(result, relax.Var):
            result = self._builder.normalize(result)
        body = self._builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], result))
        main = relax.Function(list(old.params), body, old.ret_ty, old.is_pure, old.attrs)
        module = self._graph.module.clone()
        module["main"] = main
        sites = {n: self.sites[n] for n in names if not isinstance(self.values[n], relax.Tuple)}
        return replace(self._graph, module=module, sites=sites)

    def _insert(self, var: Var, value: Expr) -> None:
        self.vars[var.name] = var
        self.sites.setdefault(var.name, ())  # main's result, a tuple, computes no node
        self.values[var.name] = value
        self.users[var.name] = Counter()
        for read in variables(value):
            self.users[read.name][var.name] += 1

    def _release(self, name: str, value: Expr) -> None:
        for var in variables(value):
            count = self.users[var.name]
            count[name] -= 1
            if not count[name]:
                del count[name]
            if not count and var.name in self.values:
                self._drop(var.name)

    def _drop(self, name: str) -> None:
        pending = [name]
        while pending:
            gone = pending.pop()
            for read in {var.name for var in variables(self.values.pop(gone))}:
                count = self.users[read]
                del count[gone]
                if not count and read in self.values:
                    pending.append(read)
