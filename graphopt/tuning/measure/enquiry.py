"""Asks a fleet what a device is: python -m graphopt.tuning.measure.enquiry FLEET TARGET."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from graphopt.errors import DeviceError, TuningError
from graphopt.target import TargetSpec
from graphopt.targets.devices import Device
from graphopt.tuning.measure.device import ForeignError
from graphopt.tuning.measure.fleet import AbsentError, Fleet
from graphopt.tuning.measure.protocol import Limits

ANSWER_SECONDS = 60.0
"""A driver that is started for the first time takes its time; a plug-in may have to be built."""


def device_there(fleet: Fleet, target: str) -> TargetSpec:
    """The device `target` as the first free server of a fleet has it, and that one's processor.

    Raises:
        TuningError: no server answers, or it is none of ours.
        DeviceError: it has no such device.
    """
    words = [sys.executable, "-m", "graphopt.tuning.measure.enquiry", str(fleet), target]
    limits = Limits()
    seconds = limits.device_seconds + ANSWER_SECONDS
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TuningError("measure", f"no server of {fleet} answered in {seconds:.0f} s.") from None
    except OSError as error:
        raise TuningError("measure", f"cannot start a process: {error.strerror}.") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise TuningError("measure", f"a server of {fleet} could not be asked: {said[-1]}")
    answer = json.loads(lines[-1])
    if "absent" in answer:
        raise TuningError("measure", answer["absent"])
    if "error" in answer:
        raise DeviceError(
            "measure",
            f"the server {answer['machine']} of {fleet} cannot run '{target}': {answer['error']}",
        )
    return TargetSpec.for_device(target, Device.from_dict(answer["device"]), answer["arch"])


def _asked(fleet: Fleet, target: str) -> dict[str, Any]:
    try:
        return fleet.open(ANSWER_SECONDS).describe(target)
    except (AbsentError, ForeignError) as error:
        return {"absent": str(error)}


if __name__ == "__main__":
    print(json.dumps(_asked(Fleet.parse(sys.argv[1]), sys.argv[2])))
