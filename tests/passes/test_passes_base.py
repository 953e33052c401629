"""The runner and the rewriting engine: invariants, reports, failures, provenance, termination."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import tvm
from passes_graph import assert_same_function, const, fires, kinds, make, nodes
from tvm import relax

from graphopt.errors import CompileError
from graphopt.ir import Graph
from graphopt.passes.arithmetic import MergeConstantChains
from graphopt.passes.base import Outcome, bindings_of, run_pipeline, verify_graph
from graphopt.passes.cleanup import RemoveDeadCode
from graphopt.passes.dataflow import Dataflow
from graphopt.passes.identities import RemoveIdentities
from graphopt.passes.pipeline import PIPELINE
from graphopt.passes.rewrite import Rule, apply_rules


def chain():
    return make({"x": (2, 3)}, lambda x: relax.op.nn.relu(relax.op.add(x, const(0.0))))


@dataclass(frozen=True)
class Failing:
    name: str = "failing"

    def run(self, graph):
        raise RuntimeError("first line\nthe cause")


@dataclass(frozen=True)
class LosingSites:
    name: str = "losing_sites"

    def run(self, graph):
        return Outcome(replace(graph, sites={}), 1)


@dataclass(frozen=True)
class Renaming:
    """Gives two bindings one name."""

    name: str = "renaming"

    def run(self, graph):
        first, second, last = bindings_of(graph)
        var = relax.DataflowVar(first.var.name, second.var.ty)
        result = relax.VarBinding(last.var, relax.Tuple([first.var, var]))
        bindings = [first, relax.VarBinding(var, second.value), result]
        old = graph.module["main"]
        seq = relax.SeqExpr([relax.DataflowBlock(bindings)], old.body.body)
        body = relax.BlockBuilder().normalize(seq)
        module = tvm.IRModule({"main": relax.Function(list(old.params), body, old.ret_ty)})
        return Outcome(Graph(module, graph.sites, graph.outputs), 1)


def test_report_counts_and_times():
    graph, reports = run_pipeline(chain(), (RemoveIdentities(), RemoveDeadCode()))
    assert [r.name for r in reports] == ["remove_identities", "remove_dead_code"]
    first, second = reports
    assert (first.rewrites, first.bindings_before, first.bindings_after) == (1, 3, 2)
    assert (second.rewrites, second.bindings_before, second.bindings_after) == (0, 2, 2)
    assert all(r.seconds > 0 for r in reports)
    assert kinds(graph) == ["nn.relu"]


def test_input_graph_is_left_as_it_is():
    graph = chain()
    text = graph.module.script()
    run_pipeline(graph, PIPELINE)
    assert graph.module.script() == text


def test_a_failure_names_the_pass_and_the_cause():
    with pytest.raises(CompileError) as caught:
        run_pipeline(chain(), (Failing(),))
    assert caught.value.stage == "failing"
    assert "the cause" in caught.value.reason
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_lost_provenance_is_found():
    with pytest.raises(CompileError, match="lost its ONNX nodes") as caught:
        run_pipeline(chain(), (LosingSites(),))
    assert caught.value.stage == "losing_sites"


def test_a_name_bound_twice_is_found():
    graph = make({"x": (2,)}, lambda x: [relax.op.exp(x), relax.op.sqrt(x)])
    with pytest.raises(CompileError, match="bound twice"):
        run_pipeline(graph, (Renaming(),))


def test_dumps_what_changed(tmp_path):
    run_pipeline(chain(), (RemoveDeadCode(), RemoveIdentities()), tmp_path / "ir")
    found = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert found == ["00_input.py", "02_remove_identities.py"]
    assert "R.add" in (tmp_path / "ir" / "00_input.py").read_text()
    assert "R.add" not in (tmp_path / "ir" / "02_remove_identities.py").read_text()


def fuse_twice(view, _var, value):
    inner = view.call(value.args[0], "exp")
    return None if inner is None else inner.args[0]


def test_new_bindings_get_the_nodes_that_were_looked_through():
    """exp(exp(x)) → x · x + x: three new bindings, all of both nodes; the rest keeps its own."""

    def rewrite(_view, x):
        return relax.op.add(relax.op.multiply(x, x), x)

    graph = make({"x": (2,)}, lambda x: relax.op.tanh(relax.op.exp(relax.op.exp(relax.op.sqrt(x)))))
    rule = Rule("test", ("exp",), fuse_twice, rewrite)
    outcome = apply_rules(graph, "test", (rule,))
    assert kinds(outcome.graph) == ["sqrt", "multiply", "add", "tanh"]
    sites = [outcome.graph.sites[b.var.name] for b in bindings_of(outcome.graph)[:-1]]
    both = ("n:exp#1", "n:exp#2")
    assert sites == [("n:sqrt#1",), both, both, ("n:tanh#1",)]


def test_a_lookup_that_leads_nowhere_gives_no_nodes():
    """Looking at an operand that stays a leaf does not make its nodes the root's."""

    def match(view, _var, value):
        view.producer(value.args[0])
        return value.args[0]

    graph = make({"x": (2,)}, lambda x: relax.op.sqrt(relax.op.exp(x)))
    rule = Rule("test", ("sqrt",), match, lambda _view, x: relax.op.tanh(x))
    outcome = apply_rules(graph, "test", (rule,))
    root = bindings_of(outcome.graph)[1]
    assert outcome.graph.sites[root.var.name] == ("n:sqrt#1",)


def test_a_removed_binding_leaves_its_nodes_with_the_producer():
    def body(x):
        return relax.op.nn.relu(relax.op.multiply(relax.op.exp(x), const(1.0)))

    graph = fires(RemoveIdentities(), make({"x": (2,)}, body))
    assert set(graph.sites.values()) == {("n:exp#1", "n:multiply#1"), ("n:nn.relu#1",)}


def test_a_value_used_elsewhere_survives_with_its_nodes():
    def body(x):
        inner = relax.op.exp(x)
        return [relax.op.exp(inner), inner]

    rule = Rule("test", ("exp",), fuse_twice, lambda _view, x: relax.op.tanh(x))
    outcome = apply_rules(make({"x": (2,)}, body), "test", (rule,))
    assert kinds(outcome.graph) == ["exp", "tanh"]
    assert list(outcome.graph.sites.values()) == [("n:exp#1",), ("n:exp#1", "n:exp#2")]


def test_rules_that_undo_each_other_are_stopped():
    there = Rule(
        "there", ("exp",), lambda _v, _x, call: call.args[0], lambda _v, x: relax.op.sin(x)
    )
    back = Rule("back", ("sin",), lambda _v, _x, call: call.args[0], lambda _v, x: relax.op.exp(x))
    graph = make({"x": (2,)}, relax.op.exp)
    with pytest.raises(CompileError, match="undo each other"):
        apply_rules(graph, "test", (there, back))


def test_a_rewrite_must_keep_the_type():
    rule = Rule("wrong", ("exp",), lambda _v, _x, call: call.args[0], lambda _v, x: relax.op.sum(x))
    graph = make({"x": (2,)}, relax.op.exp)
    with pytest.raises(ValueError, match="change its type"):
        apply_rules(graph, "test", (rule,))


def test_outputs_that_become_the_same_value():
    """Two outputs, one a copy of the other, and an input that is an output."""

    def body(x):
        y = relax.op.exp(x)
        return [y, relax.op.add(y, const(0.0)), relax.op.multiply(x, const(1.0))]

    before = make({"x": (2,)}, body)
    graph = RemoveIdentities().run(before).graph
    verify_graph(graph)
    assert kinds(graph) == ["exp"]
    assert_same_function(before, graph)
    # Nothing is left that computes the third output: it is the input.
    assert nodes(before) - nodes(graph) == {"n:multiply#1"}


def test_outputs_bound_one_by_one():
    """main may end in a tuple expression of output variables instead of a bound tuple."""
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.exp(x))
            first = builder.emit_output(relax.op.add(y, const(0.0)))
            second = builder.emit_output(relax.op.sqrt(y))
        builder.emit_func_output(relax.Tuple([first, second]))
    module = builder.get()
    names = [b.var.name for b in module["main"].body.blocks[0].bindings]
    graph = Graph(module, {n: (n,) for n in names}, ("a", "b"))
    outcome = RemoveIdentities().run(graph)
    verify_graph(outcome.graph)
    assert kinds(outcome.graph) == ["exp", "sqrt"]
    assert_same_function(graph, outcome.graph)


def test_dataflow_round_trip():
    graph = chain()
    again = Dataflow(graph).to_graph()
    tvm.ir.assert_structural_equal(again.module, graph.module)
    assert again.sites == graph.sites


def test_the_pipeline_is_idempotent_enough():
    """A second run of the whole pipeline finds nothing more in what the first one left."""

    def body(x):
        y = relax.op.nn.conv2d(x, const([[[[2.0]]], [[[4.0]]]]), padding=0)
        y = relax.op.divide(relax.op.subtract(y, const([[[1.0]], [[2.0]]])), const(4.0))
        return relax.op.minimum(relax.op.maximum(y, const(0.0)), const(6.0))

    before = make({"x": (1, 1, 4, 4)}, body)
    once, _ = run_pipeline(before, PIPELINE)
    assert kinds(once) == ["nn.conv2d", "add", "clip"]
    assert_same_function(before, once)
    assert nodes(before) == nodes(once)
    _, reports = run_pipeline(once, PIPELINE)
    assert not sum(r.rewrites for r in reports)


def test_long_chains_need_no_recursion():
    """A chain of 1500 bindings: each x + 1 merges into the one before it."""
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for _ in range(1500):
                value = builder.emit(relax.op.add(value, const(1.0)))
            result = builder.emit_output(relax.Tuple([value]))
        builder.emit_func_output(result)
    module = builder.get()
    names = [b.var.name for b in module["main"].body.blocks[0].bindings]
    graph = Graph(module, {n: (n,) for n in names}, ("y",))
    outcome = MergeConstantChains().run(graph)
    assert kinds(outcome.graph) == ["add"]
    assert len(next(iter(outcome.graph.sites.values()))) == 1500
