"""The engine of the rewriting passes: rules of pattern, check and rewrite, applied to a Graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tvm
from tvm import relax

from graphopt.errors import CompileError
from graphopt.ir import Graph
from graphopt.passes.base import Outcome, Refused
from graphopt.passes.dataflow import OUTPUT, Dataflow, Expr, Var, merged, variables
from graphopt.passes.values import Array, array_of, op_name, scalar_of

M = TypeVar("M")


class View:
    """What a rule may ask about the graph around the binding it is tried at.

    It remembers which bindings were looked at: those that lie between the root and the leaves of
    the replacement are what the match looked through, and their nodes go to the new bindings.
    """

    def __init__(self, dataflow: Dataflow, root: str) -> None:
        self._dataflow = dataflow
        self.root = root
        self.seen: set[str] = set()
        self.others: dict[str, Expr] = {}

    def producer(self, expr: Expr) -> Expr | None:
        """The value a variable is bound to; None for parameters and constants."""
        value = self._dataflow.producer(expr)
        if value is not None:
            self.seen.add(expr.name)
        return value

    def call(self, expr: Expr, *names: str) -> Expr | None:
        """The call that computes `expr` if its op is one of `names` ("add", "nn.conv2d", …)."""
        value = self.producer(expr)
        return value if value is not None and op_name(value) in names else None

    def users(self, expr: Expr) -> tuple[str, ...]:
        """Names of the bindings that read `expr`; "" stands for main's result."""
        return tuple(self._dataflow.users[expr.name]) if isinstance(expr, relax.Var) else ()

    def value(self, name: str) -> Expr:
        """What the binding `name` is bound to."""
        self.seen.add(name)
        return self._dataflow.values[name]

    def variable(self, name: str) -> Var:
        """The variable of the binding `name`."""
        return self._dataflow.vars[name]

    def used_once(self, expr: Expr) -> bool:
        """Whether `expr` is read exactly once, so that changing it changes nothing else."""
        return isinstance(expr, relax.Var) and self._dataflow.use_count(expr.name) == 1

    def has_one_user(self, expr: Expr) -> bool:
        """Whether one other binding only reads `expr`, perhaps twice, as x · x does."""
        users = self.users(expr)
        return len(users) == 1 and users[0] != OUTPUT

    def constant(self, expr: Expr) -> Array | None:
        """The array of a constant (not to be written to), else None."""
        value = self._dataflow.producer(expr)
        return array_of(expr if value is None else value)

    def is_constant(self, expr: Expr) -> bool:
        """Whether `expr` is a constant, without reading it."""
        value = self._dataflow.producer(expr)
        return op_name(expr if value is None else value) == "constant"

    def scalar(self, expr: Expr) -> float | None:
        """The value of a constant with one element, else None."""
        value = self._dataflow.producer(expr)
        return scalar_of(expr if value is None else value)


@dataclass(frozen=True)
class Rule(Generic[M]):
    """One rewriting rule. `roots` are the ops whose bindings it is tried at.

    match: the pattern: what was found, or None. check: why the match must be left alone, or
    None. rewrite: the replacement of the root: a nest of calls, a variable or a constant, with
    the root's shape and dtype. None of the three changes anything itself.
    """

    name: str
    roots: tuple[str, ...]
    match: Callable[[View, Var, Expr], M | None]
    rewrite: Callable[[View, M], Expr]
    check: Callable[[View, M], str | None] = lambda _view, _match: None


def apply_rules(graph: Graph, stage: str, rules: Sequence[Rule[Any]]) -> Outcome:
    """Apply `rules` to every binding in topological order until none fires.

    New bindings are visited, too. Sweeps are repeated, since a rewrite may enable one before it.
    Raises CompileError if the rules undo each other for ever.
    """
    dataflow = Dataflow(graph)
    by_op: dict[str, list[Rule[Any]]] = {}
    for rule in rules:
        for root in rule.roots:
            by_op.setdefault(root, []).append(rule)
    dataflow.remove_dead()  # a dead user would make a value look shared
    rewrites = 0
    budget = 100 + 30 * len(dataflow.order)
    while True:
        refusals: list[Refused] = []
        fired = _sweep(dataflow, by_op, refusals, budget - rewrites, stage)
        rewrites += fired
        if not fired:
            break
    return Outcome(dataflow.to_graph() if rewrites else graph, rewrites, tuple(refusals))


def _sweep(
    dataflow: Dataflow,
    by_op: dict[str, list[Rule[Any]]],
    refusals: list[Refused],
    budget: int,
    stage: str,
) -> int:
    fired = 0
    done: list[str] = []
    pending = dataflow.order[::-1]
    while pending:
        name = pending.pop()
        value = dataflow.values.get(name)
        if value is None:
            continue
        new = None
        for rule in by_op.get(op_name(value), ()):
            new = _apply(dataflow, rule, name, value, refusals)
            if new is not None:
                break
        if new is None:
            done.append(name)
            continue
        fired += 1
        if fired > budget:
            raise CompileError(stage, f"The rules undo each other at {name}")
        pending.append(name)
        pending.extend(reversed(new))
    dataflow.order = done
    return fired


def _apply(
    dataflow: Dataflow, rule: Rule[Any], name: str, value: Expr, refusals: list[Refused]
) -> list[str] | None:
    """Try one rule at one binding; the names of new bindings if it fired, else None."""
    view = View(dataflow, name)
    match = rule.match(view, dataflow.vars[name], value)
    if match is None:
        return None
    reason = rule.check(view, match)
    if reason is not None:
        refusals.append(Refused(rule.name, reason, name, dataflow.sites[name]))
        return None
    replacement = rule.rewrite(view, match)
    return _substitute(dataflow, view, name, replacement)


def _substitute(dataflow: Dataflow, view: View, root: str, replacement: Expr) -> list[str]:
    leaves = {v.name for e in (replacement, *view.others.values()) for v in variables(e)}
    new: list[str] = []
    shared: dict[Any, Var] = {}
    roots = {root: replacement, **view.others}
    nodes = {name: _looked_through(dataflow, view, name, leaves) for name in roots}
    everyone = merged(*nodes.values())
    plans = []
    for name, expr in roots.items():
        inner = everyone if len(roots) > 1 else nodes[name]
        plans.append((name, _flattened(dataflow, root, expr, inner, new, shared)))
    for name, value in plans:
        if isinstance(value, relax.Var) or op_name(value) == "constant":
            dataflow.forward(name, value, nodes[name])
        else:
            dataflow.rebind(name, value, nodes[name])
    return [n for n in new if n in dataflow.values]


def _looked_through(dataflow: Dataflow, view: View, root: str, leaves: set[str]) -> tuple[str, ...]:
    """Nodes of the bindings seen on the way from `root` to the leaves of its replacement."""
    found: list[str] = []
    pending, visited = [root], {root}
    while pending:
        name = pending.pop()
        found.append(name)
        for var in variables(dataflow.values[name]):
            inside = var.name in view.seen and var.name not in leaves
            if inside and var.name not in visited:
                visited.add(var.name)
                pending.append(var.name)
    return merged(*(dataflow.sites[name] for name in reversed(found)))


def _flattened(
    dataflow: Dataflow,
    hint: str,
    expr: Expr,
    nodes: tuple[str, ...],
    new: list[str],
    shared: dict[Any, Var],
) -> Expr:
    """`expr` as one typed value of leaves; inner calls become new bindings, equal objects one."""

    def leaf(item: Expr) -> Expr:
        if isinstance(item, relax.Tuple):
            return relax.Tuple([leaf(field) for field in item.fields])
        if not isinstance(item, (relax.TupleGetItem, tvm.ir.Call)):
            return item
        if item not in shared:
            var = dataflow.define(hint, flat(item), nodes)
            new.append(var.name)
            shared[item] = var
        return shared[item]

    def flat(item: Expr) -> Expr:
        if isinstance(item, tvm.ir.Call):
            args = [leaf(arg) for arg in item.args]
            item = tvm.ir.Call(item.op, args, item.attrs, list(item.ty_args))
            return dataflow.typed(item)
        if isinstance(item, relax.TupleGetItem):
            return dataflow.typed(relax.TupleGetItem(leaf(item.tuple_value), item.index))
        return dataflow.typed(leaf(item)) if isinstance(item, relax.Tuple) else item

    return flat(expr)
