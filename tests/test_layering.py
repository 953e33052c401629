"""The house's layering, read from the source: which part may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Small vocabularies without imports of their own stage: whoever needs the words may have them.
VOCABULARY = {
    "graphopt.errors",
    "graphopt.cache",
    "graphopt.toolchain",
    "graphopt.artifact.atomic",
    "graphopt.codegen.plan",
    "graphopt.codegen.device_needs",
    "graphopt.codegen.host_program",
    "graphopt.codegen.abi",
    "graphopt.codegen.kernel",
    "graphopt.runtime.host",
    "graphopt.runtime.tiles",
    "graphopt.weight_budget",
    "graphopt.integer_kernels",
}

# Data flows one way. Each stage may import itself, the vocabulary and what is listed here.
IR = {"graphopt.ir", "graphopt.ops"}
STAGES: dict[str, set[str]] = {
    "graphopt.frontend": IR,
    "graphopt.compression": {"graphopt.frontend"},
    "graphopt.passes": IR,
    "graphopt.lowering": IR | {"schedules"},
    "graphopt.codegen": set(),
    "graphopt.artifact": set(),
    "graphopt.runtime": set(),
    # Measures kernels as lowering, codegen and runtime would run them.
    "graphopt.tuning": {
        "graphopt.lowering",
        "graphopt.codegen",
        "graphopt.runtime",
        "graphopt.artifact.atomic",
        "graphopt.artifact.plan_json",  # programs go to other machines as they go into files
        "graphopt.artifact.device_json",
        "graphopt.target",
        "graphopt.targets",
        "schedules",
    },
}

# What `import graphopt`, load() and Session reach: it must not need the compiler.
LIGHT = (
    "graphopt.__init__",
    "graphopt.loaded",
    "graphopt.bundling",
    "graphopt.programs",
    "graphopt.staging",
    "graphopt.specialisations",
    "graphopt.report",
    "graphopt.errors",
    "graphopt.cache",
    "graphopt.toolchain",
    "graphopt.samples",
    "graphopt.codegen.plan",
    "graphopt.codegen.device_needs",
    "graphopt.codegen.host_program",
    "graphopt.codegen.abi",
    "graphopt.artifact",
    "graphopt.runtime",
)
HEAVY = {"tvm", "onnx", "scipy", "xgboost", "onnxruntime"}


def inside(module: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in packages)


def is_typing_only(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_in(body: list[ast.stmt], package: str, everywhere: bool) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}: relative imports hide the layers"
            name = node.module or ""
            # `from graphopt import ops` names a module, `from graphopt.ops import x` its content.
            for alias in node.names:
                full = f"{name}.{alias.name}"
                yield full if as_module(full) else name
        elif isinstance(node, ast.If) and is_typing_only(node):
            continue
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody", "handlers"):
                inner = getattr(node, field, [])
                yield from imports_in(inner, package, everywhere)


def as_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("graphopt", "schedules"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


def imports(module: str, everywhere: bool = True) -> set[str]:
    tree = ast.parse(modules()[module].read_text())
    return set(imports_in(tree.body, module, everywhere))


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("graphopt", "schedules")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    allowed = {stage} | STAGES[stage] | VOCABULARY
    members = [module for module in modules() if inside(module, {stage})]
    assert members, f"{stage} is empty: is this test still looking at the right place?"
    for module in members:
        wrong = {name for name in ours(imports(module)) if not inside(name, allowed)}
        assert not wrong, f"{module} imports {sorted(wrong)}"


def test_the_vocabulary_belongs_to_no_stage() -> None:
    for module in VOCABULARY:
        wrong = {name for name in ours(imports(module)) if not inside(name, VOCABULARY)}
        assert not wrong, f"{module} imports {sorted(wrong)}"


def test_schedules_import_only_the_standard_library_numpy_and_tvm() -> None:
    allowed = {"schedules", "numpy", "tvm", *sys.stdlib_module_names}
    for module in modules():
        if inside(module, {"schedules"}):
            wrong = {name for name in imports(module) if name.split(".")[0] not in allowed}
            assert not wrong, f"{module} imports {sorted(wrong)}"


def test_only_the_compiler_sees_all_stages() -> None:
    compiling = {"graphopt.passes", "graphopt.codegen.executable"}
    # The measure server makes programs of one kernel.
    exempt = ("graphopt.compiler", "graphopt.passes", "graphopt.codegen", "graphopt.tuning.measure")
    for module in modules():
        if inside(module, exempt):
            continue
        wrong = {name for name in imports(module) if inside(name, compiling)}
        assert not wrong, f"{module} imports {sorted(wrong)}; only graphopt.compiler may"


def test_nothing_imports_the_command_line_or_the_api_from_below() -> None:
    above = {"graphopt.cli", "graphopt.api", "graphopt.verification", "graphopt.compiler"}
    below = (*STAGES, *IR, *VOCABULARY, "graphopt.target", "graphopt.config", "schedules")
    for module in modules():
        if inside(module, below):
            wrong = {name for name in imports(module) if inside(name, above)}
            assert not wrong, f"{module} imports {sorted(wrong)}"


def test_loading_reaches_no_compiler_at_import_time() -> None:
    for module in modules():
        if inside(module, LIGHT):
            names = imports(module, everywhere=False)
            wrong = {name for name in names if name.split(".")[0] in HEAVY}
            wrong |= {name for name in ours(names) - {"graphopt"} if not inside(name, LIGHT)}
            assert not wrong, f"{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("name", ["load", "LoadedModel", "TensorSpec", "InputError", "__version__"])
def test_public_names_of_the_runtime_import_no_compiler(name: str) -> None:
    script = f"import sys, graphopt; graphopt.{name}\nprint(*(sys.modules.keys() & {HEAVY!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_importing_graphopt_is_light() -> None:
    script = "import sys, graphopt; print(*(m for m in sys.modules if m.startswith('graphopt')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["graphopt"]
