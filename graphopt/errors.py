"""The errors graphopt raises: stage, ONNX node where there is one, reason, and what to do."""

from __future__ import annotations


class GraphoptError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        stage: the stage that failed ("load", "prepare", "import", a pass's name, "lowering", …).
        reason: what happened, one sentence.
        node: id of the ONNX node concerned, or None.
        hint: what the user can do about it, or None.
    """

    def __init__(
        self, stage: str, reason: str, *, node: str | None = None, hint: str | None = None
    ) -> None:
        self.stage = stage
        self.reason = reason
        self.node = node
        self.hint = hint
        where = f"{stage}, node {node}" if node else stage
        super().__init__(f"[{where}] {reason}" + (f" Hint: {hint}" if hint else ""))


class ModelError(GraphoptError):
    """The ONNX model cannot be read, is invalid, or uses something that is not supported."""


class OptionError(GraphoptError):
    """An option, target or argument of the API is unknown, contradictory or out of range."""


class InputError(GraphoptError):
    """The tensors given to run() do not fit the program's inputs."""


class CompileError(GraphoptError):
    """A stage after import failed; a defect of graphopt or of its toolchain."""


class ArtifactError(GraphoptError):
    """A .gopt file is damaged, altered, of a foreign version, or cannot run on this machine."""


class DeviceError(GraphoptError):
    """A device is missing, lost, out of memory, or too small for a program."""


class TuningError(GraphoptError):
    """Tuning cannot go on: the log cannot be written, or nothing can be measured."""


def last_line(error: BaseException) -> str:
    """The last line of an error's text: TVM puts the cause there."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
