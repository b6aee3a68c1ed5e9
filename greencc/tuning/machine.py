"""The machine's limits, measured as candidates are: in a process of its own, before which others' work waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from greencc.errors import GreenccError
from greencc.limits import Limits, measure_limits
from greencc.targets.cpu.target import CpuTarget, recorded_target
from greencc.tuning.channel import Channel
from greencc.tuning.child import Child, ChildFailed
from greencc.tuning.worker import ask_for_priority

_SECONDS = 120.0


def limits_of(target: CpuTarget) -> Limits:
    """The limits of this machine with the threads of `target`.

    Raises:
        GreenccError: they can't be measured.
    """
    options = {"target": target.describe(), "threads": target.threads}
    try:
        child = Child("greencc.tuning.machine", options, {"TVM_BIND_THREADS": "0"})
        try:
            return Limits(**child.ask({}, (), _SECONDS).header)
        finally:
            child.close()
    except ChildFailed as error:
        raise GreenccError(f"the machine's limits can't be measured: the process {error}") from error


def main(incoming: int, outgoing: int, options: Mapping[str, Any]) -> None:
    """Measure once: see Child."""
    channel = Channel(incoming, outgoing)
    ask_for_priority()
    channel.send({"ready": True})
    channel.receive()
    channel.send(asdict(measure_limits(recorded_target(options["target"], options["threads"]))))
