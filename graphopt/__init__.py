"""graphopt compiles ONNX models to small, fast, verified programs.

Names are resolved when they are first used: loading and running a program imports no compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.api import CompiledModel as CompiledModel
    from graphopt.api import compile as compile  # noqa: A004 (the public contract)
    from graphopt.autotuning import tune as tune
    from graphopt.codegen.plan import TensorSpec as TensorSpec
    from graphopt.compression.quantization.config import QuantizationConfig as QuantizationConfig
    from graphopt.compression.quantization.images import ImagePreprocessing as ImagePreprocessing
    from graphopt.compression.quantization.report import QuantizationReport as QuantizationReport
    from graphopt.config import CompileConfig as CompileConfig
    from graphopt.errors import ArtifactError as ArtifactError
    from graphopt.errors import CompileError as CompileError
    from graphopt.errors import DeviceError as DeviceError
    from graphopt.errors import GraphoptError as GraphoptError
    from graphopt.errors import InputError as InputError
    from graphopt.errors import ModelError as ModelError
    from graphopt.errors import OptionError as OptionError
    from graphopt.errors import TuningError as TuningError
    from graphopt.frontend.diagnose import Diagnosis as Diagnosis
    from graphopt.inspection import Inspection as Inspection
    from graphopt.inspection import inspect as inspect
    from graphopt.loaded import LoadedModel as LoadedModel
    from graphopt.loaded import load as load
    from graphopt.protecting import SignatureCheck as SignatureCheck
    from graphopt.protecting import check_signature as check_signature
    from graphopt.protecting import encrypt as encrypt
    from graphopt.protecting import sign as sign
    from graphopt.quantizing import QuantizationResult as QuantizationResult
    from graphopt.quantizing import quantize as quantize
    from graphopt.target import TargetSpec as TargetSpec
    from graphopt.verification import Verification as Verification
    from graphopt.verification import verify as verify

__version__ = "0.1.0"

_HOME = {
    "ArtifactError": "graphopt.errors",
    "CompileConfig": "graphopt.config",
    "CompileError": "graphopt.errors",
    "CompiledModel": "graphopt.api",
    "DeviceError": "graphopt.errors",
    "Diagnosis": "graphopt.frontend.diagnose",
    "GraphoptError": "graphopt.errors",
    "ImagePreprocessing": "graphopt.compression.quantization.images",
    "InputError": "graphopt.errors",
    "Inspection": "graphopt.inspection",
    "LoadedModel": "graphopt.loaded",
    "ModelError": "graphopt.errors",
    "OptionError": "graphopt.errors",
    "QuantizationConfig": "graphopt.compression.quantization.config",
    "QuantizationReport": "graphopt.compression.quantization.report",
    "QuantizationResult": "graphopt.quantizing",
    "SignatureCheck": "graphopt.protecting",
    "TargetSpec": "graphopt.target",
    "TensorSpec": "graphopt.codegen.plan",
    "TuningError": "graphopt.errors",
    "Verification": "graphopt.verification",
    "check_signature": "graphopt.protecting",
    "compile": "graphopt.api",
    "encrypt": "graphopt.protecting",
    "inspect": "graphopt.inspection",
    "load": "graphopt.loaded",
    "quantize": "graphopt.quantizing",
    "sign": "graphopt.protecting",
    "tune": "graphopt.autotuning",
    "verify": "graphopt.verification",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
