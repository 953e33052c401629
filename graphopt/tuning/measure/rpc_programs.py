"""What our RPC server does beside TVM's: it runs programs on the device of its machine.

The functions are registered in the process that listens; sessions are processes forked from it. So
each session opens the device for itself, as drivers demand, and its programs end with it.
"""

from __future__ import annotations

import ctypes
import json
import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import tvm_ffi

from graphopt.artifact.device_json import needs_from_json
from graphopt.artifact.plan_json import plan_from_json
from graphopt.codegen.remote import named_inputs
from graphopt.errors import GraphoptError, OptionError
from graphopt.lowering.weights import aligned_empty
from graphopt.runtime.device import open_device
from graphopt.runtime.device_memory import largest_piece
from graphopt.runtime.device_session import DeviceSession
from graphopt.runtime.host import host_arch
from graphopt.runtime.library import open_module
from graphopt.target import TargetSpec
from graphopt.targets.devices import CUDA, Device
from graphopt.tuning.measure.program import Array

DESCRIBE, OPEN, RUN, PROFILE = (
    "graphopt.rpc.describe",
    "graphopt.rpc.open",
    "graphopt.rpc.run",
    "graphopt.rpc.profile",
)


def register() -> None:
    """Offer these functions to the sessions of this process's server.

    describe(target) answers JSON: machine (its name), arch and device (as asdict() gives it), or
    error. open(form, library, inputs, weights) takes DeviceForm.program and uint8 arrays, and
    answers the program's number; fewer weights than the program has are repeated. run(number,
    outputs) writes the outputs of one run, one after another, into a uint8 array, and
    profile(number, seconds, repeats) what each call takes, as float64, into another.
    """
    programs = _Programs()
    functions = {
        DESCRIBE: describe,
        OPEN: programs.open,
        RUN: programs.run,
        PROFILE: programs.profile,
    }
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)


def describe(target: str) -> str:
    """This machine, and its device that `target` names, see register()."""
    machine = {"machine": platform.node(), "arch": host_arch()}
    try:
        return json.dumps({**machine, "device": asdict(_present(target))})
    except GraphoptError as error:
        return json.dumps({**machine, "error": error.reason})


def _present(target: str) -> Device:
    device = TargetSpec.parse(target).device
    assert device is not None, "processors are not asked for"
    if device.kind == CUDA:
        found = TargetSpec.parse(CUDA).device
        assert found is not None
        if not set(found.architectures) <= set(device.architectures):
            raise OptionError("target", f"its GPU is of {found.name}, not of {target}.")
    return device


class _Programs:
    """The programs of a session, with their inputs."""

    def __init__(self) -> None:
        self._opened: list[tuple[DeviceSession, dict[str, Array]]] = []

    def open(self, form: str, library: Any, inputs: Any, weights: Any) -> int:
        given = json.loads(form)
        plan = plan_from_json(given["plan"], "$.plan")
        needs = needs_from_json(given["needs"], "$.needs")
        device = open_device(needs, largest_piece(plan))
        module = open_module(_view(library).tobytes())
        whole = aligned_empty(plan.weight_bytes)
        whole[...] = np.resize(_view(weights), plan.weight_bytes)
        session = DeviceSession(plan, module, whole, device)
        arrays = {name: array.copy() for name, array in named_inputs(plan, _view(inputs)).items()}
        self._opened.append((session, arrays))
        return len(self._opened) - 1

    def run(self, number: int, outputs: Any) -> None:
        session, inputs = self._opened[number]
        found = session.run(inputs)
        flat = [np.ascontiguousarray(found[spec.name]) for spec in session.outputs]
        written = np.concatenate([array.reshape(-1).view(np.uint8) for array in flat])
        _view(outputs)[: written.size] = written

    def profile(self, number: int, seconds: Any, repeats: int) -> None:
        session, inputs = self._opened[number]
        rows = session.profile(inputs, repeats).rows
        found = np.array([row.seconds for row in rows])
        _view(seconds)[: found.nbytes] = found.view(np.uint8)


def _view(tensor: Any) -> Array:
    """The bytes that a driver handed over, which are its own again when this call ends."""
    # TVM passes no more than a description of the memory, which cannot be given on by DLPack.
    memory = (ctypes.c_uint8 * tensor.shape[0]).from_address(tensor.data_ptr())
    return np.frombuffer(memory, np.uint8)
