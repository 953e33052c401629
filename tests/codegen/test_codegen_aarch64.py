"""Programs for aarch64: cross-compiled here, run under emulation, compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from emulate import missing_tools, run_on_aarch64
from networks import (
    attention_block,
    pairs_and_packed_weights,
    quantized_network,
    small_network,
)

import graphopt
from graphopt.compiler import Program, compile_model
from graphopt.config import CompileConfig
from graphopt.frontend.load import load_model

pytestmark = pytest.mark.skipif(
    bool(missing_tools()),
    reason=f"needs {missing_tools()}: apt-get install g++-aarch64-linux-gnu qemu-user",
)


@pytest.mark.parametrize("make", [small_network, attention_block])
def test_an_aarch64_program_computes_the_same(make, tmp_path):
    model = make()
    config = CompileConfig.of(target="aarch64:cortex-a76", threads=1)
    program = compile_model(load_model(model), config, {})
    assert isinstance(program, Program)
    dims = program.plan.inputs[0].shape
    x = np.random.default_rng(2).standard_normal(dims).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": x})[0]
    found = run_on_aarch64(program, {"x": x}, tmp_path)["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("processor", ["cortex-a76", "neoverse-v2"])
def test_products_of_bytes_are_instructions_and_exact(processor, tmp_path):
    """The first has products of signed bytes, the second of unsigned with signed ones."""
    model = quantized_network()
    program = compile_model(
        load_model(model), CompileConfig.of(target=f"aarch64:{processor}", threads=1), {}
    )
    assert isinstance(program, Program)
    assert {call.candidate for call in program.report.calls} >= {
        "conv_integer.dots",
        "conv_integer.dots[narrow]",
        "conv_integer.depthwise",
        "matmul.dots",
    }
    instruction = "sdot" if processor == "cortex-a76" else "usdot"
    assert f"\t{instruction}\t" in program.module.inspect_source("asm")
    x = np.random.default_rng(7).standard_normal((1, 3, 14, 14)).astype(np.float32)
    # The same file on this machine, whose instructions are others.
    expected = graphopt.compile(model, threads=1).run({"x": x})["y"]
    found = run_on_aarch64(program, {"x": x}, tmp_path)["y"]
    assert np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize("processor", ["cortex-a76", "neoverse-v2"])
def test_bytes_that_are_packed_at_run_time_and_at_compile_time(processor, tmp_path):
    model = pairs_and_packed_weights()
    config = CompileConfig.of(target=f"aarch64:{processor}", threads=1)
    program = compile_model(load_model(model), config, {})
    assert isinstance(program, Program)
    names = {call.candidate for call in program.report.calls}
    assert names >= {"matmul.dots[packed]", "matmul_nbits.digits"}
    rng = np.random.default_rng(7)
    shapes = {"x": (2, 13, 44), "v": (1, 44)}
    feeds = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = run_on_aarch64(program, feeds, tmp_path)
    for name, want in zip(("y", "z"), session.run(None, feeds), strict=True):
        assert np.abs(found[name] - want).max() <= 1e-4 * np.abs(want).max()
