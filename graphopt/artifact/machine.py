"""Can this machine run an entry? Compares architecture and CPU features with the running CPU."""

from __future__ import annotations

from graphopt.errors import ArtifactError
from graphopt.runtime.host import host_arch, host_features


def unfit_reason(needed: str, features: tuple[str, ...]) -> str | None:
    """Why code for architecture `needed` with `features` cannot run here; None if it can."""
    if needed != host_arch():
        return f"it was compiled for {needed} and this machine is {host_arch()}"
    if absent := sorted(set(features) - host_features()):
        return f"this CPU lacks {', '.join(absent)}"
    return None


def require_fit(needed: str, features: tuple[str, ...]) -> None:
    """Raise ArtifactError unless code for `needed` with `features` can run on this machine."""
    if reason := unfit_reason(needed, features):
        raise ArtifactError(
            "load", f"The program cannot run here: {reason}.", hint="Compile it for this machine."
        )
