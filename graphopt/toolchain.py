"""Finds this machine's compilers of C and C++."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping

from graphopt.errors import CompileError

COMPILERS = {"C++": ("c++", "g++", "clang++"), "C": ("cc", "gcc", "clang")}
VARIABLES = {"C++": "CXX", "C": "CC"}
"""The environment's variable that names the compiler of each language."""


def find_compiler(
    environment: Mapping[str, str] | None = None, language: str = "C++"
) -> tuple[str, ...] | None:
    """The words of the command: the environment's CXX or CC, else the first of COMPILERS on PATH.

    Args:
        environment: where the variable and PATH are looked up; the process's by default.
        language: "C++" or "C".
    Returns:
        None where there is none.
    Raises:
        CompileError: the variable names no program.
    """
    env = os.environ if environment is None else environment
    path, variable = env.get("PATH", ""), VARIABLES[language]
    named = shlex.split(env.get(variable, ""))
    for name in [named[0]] if named else COMPILERS[language]:
        program = shutil.which(name, path=path)
        if program is not None:
            return (program, *named[1:])
    if named:
        raise CompileError(
            "link",
            f"{variable} names '{named[0]}', which is not an executable program.",
            hint=f"correct the environment variable {variable} or remove it.",
        )
    return None
