"""Programs that run on the devices of other machines: real servers on loopback, PoCL the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fleet_machines import OURS, TVMS, Machines, start

import graphopt
from graphopt.target import TargetSpec
from graphopt.tuning.database import read
from graphopt.tuning.measure.device import Device, Remote, load_single
from graphopt.tuning.measure.enquiry import device_there
from graphopt.tuning.measure.machine import Machine
from graphopt.tuning.measure.parcel import Parcel
from graphopt.tuning.measure.protocol import Limits, receive
from graphopt.tuning.measure.there import There

DRIVER = """
import json, sys
import graphopt

model, log, fleet = sys.argv[1:]
try:
    graphopt.compile(model, target="opencl")
except graphopt.DeviceError as error:
    assert "finds no" in str(error) or "no OpenCL" in str(error), error
else:
    raise AssertionError("this machine has a device")
outcome = graphopt.tune(model, target="opencl", trials=48, log=log, fresh=True, rpc=fleet)
print(json.dumps([outcome.target, outcome.trials, outcome.ok, outcome.reason]))
"""


@pytest.fixture(scope="module")
def machines(opencl: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    started = start(tmp_path_factory.mktemp("devices"), (OURS,))
    yield started
    started.close()


@pytest.fixture
def driverless(tmp_path: Path) -> dict[str, str]:
    """An environment in which OpenCL finds no driver."""
    folder = tmp_path / "vendors"
    folder.mkdir()
    return {"OCL_ICD_VENDORS": str(folder)}


def test_a_machine_without_a_device_tunes_for_one(
    machines: Machines, driverless: dict[str, str], tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    model, log = tmp_path / "model.onnx", tmp_path / "log"
    onnx.save(tiny_cnn, model)
    words = [sys.executable, "-c", DRIVER, str(model), str(log), str(machines.fleet)]
    environment = {**os.environ, **driverless}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    key, trials, working, reason = json.loads(done.stdout.splitlines()[-1])
    assert key == TargetSpec.parse("opencl").key(1)
    assert reason == "every kernel was measured"
    assert trials == working >= 4
    records = read(log, key).records
    assert sum(not record.final for record in records) == trials
    assert any(record.final for record in records)
    tuned = graphopt.compile(model, target="opencl", tuning_log=log)
    assert tuned.report.origins()["tuned"] >= 2
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
    expected = graphopt.compile(model).run({"x": x})
    found = tuned.run({"x": x})
    assert np.allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)


def test_a_program_gives_there_what_it_gives_here(machines: Machines) -> None:
    spec = device_there(machines.fleet, "opencl")
    here = TargetSpec.parse("opencl")
    assert (spec.device, spec.arch) == (here.device, here.arch)
    machine = Machine(spec, 1)
    single = machine.yardstick()
    remote = load_single(machines.fleet.open(60.0), single, machine.parcel(single))
    assert np.array_equal(remote.run(), Machine(here, 1).load(single).run())
    assert 0 < remote.seconds(3) < 1


def test_code_that_the_driver_cannot_build_is_the_fault_of_the_trial(machines: Machines) -> None:
    machine = Machine(TargetSpec.parse("opencl"), 1)
    single = machine.yardstick()
    parcel = machine.parcel(single)
    bad = Parcel(parcel.library.replace(b"__kernel void", b"__kernel vojd"), parcel.form)
    assert bad != parcel

    def run(device: Device, yardstick: Remote) -> dict[str, Any]:
        load_single(device, single, bad).run()
        raise AssertionError

    reports, into = os.pipe()
    report = There(machine, Limits(), machines.fleet)._outcome(into, run, 60.0)
    assert receive(reports) == {"status": "started"}
    assert report["status"] == "error"
    assert "build" in report["reason"]
    assert load_single(machines.fleet.open(60.0), single, parcel).seconds(1) > 0


def test_a_server_whose_device_is_another_one_ends_the_run(machines: Machines) -> None:
    spec = TargetSpec.parse("opencl")
    assert spec.device is not None
    other = replace(spec, device=replace(spec.device, name="Another Device"))
    reports, into = os.pipe()
    report = There(Machine(other, 1), Limits(), machines.fleet)._outcome(into, lambda *_: {}, 60.0)
    assert receive(reports) == {"status": "started"}
    assert report["status"] == "absent"
    assert "opencl-another-device" in report["reason"]
    assert spec.device.key() in report["reason"]


@pytest.mark.parametrize("target", ["opencl:No Such Device", "cuda"])
def test_servers_without_the_device(
    target: str, machines: Machines, tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(graphopt.DeviceError) as caught:
        graphopt.tune(tiny_cnn, target=target, log=tmp_path, rpc=str(machines.fleet))
    assert f"cannot run '{target}'" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_servers_of_tvm_run_no_devices(
    tiny_cnn: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tvms = start(tmp_path_factory.mktemp("tvms"), (TVMS,))
    log = tmp_path_factory.mktemp("log")
    try:
        with pytest.raises(graphopt.TuningError, match="graphopt rpc-server"):
            graphopt.tune(tiny_cnn, target="opencl", log=log, rpc=str(tvms.fleet))
    finally:
        tvms.close()
    assert not list(log.iterdir())
