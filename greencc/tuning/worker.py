"""The process that measures on a device of this machine: it loads code that may crash, hang or eat memory.

It answers two questions: `reference` loads what candidates are compared with from now on, `measure` loads a candidate
and times it. It needs TVM's runtime only, and starts in a fraction of a second.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from greencc.errors import GreenccError
from greencc.runtime.devices import Device, parse_device
from greencc.runtime.library import load_library
from greencc.tuning.channel import Channel, ChannelError, Message
from greencc.tuning.faults import FAULTS, one_line
from greencc.tuning.measure import QUICK, THOROUGH, Loaded, can_pin, compare, pin_threads
from greencc.tuning.program import Program

# The asking process ends this one when time is up. Should it have gone, this one ends by itself, so much later.
_GRACE_SECONDS = 2.0
_PRIORITY = -20


def environment(threads: int, device: Device) -> dict[str, str]:
    """Variables that the process needs: TVM's threads stay where they are put, numpy has none."""
    pinned = not device.is_gpu and can_pin(threads)
    return {"TVM_BIND_THREADS": str(int(pinned)), "OPENBLAS_NUM_THREADS": "1"}


def main(incoming: int, outgoing: int, options: Mapping[str, Any]) -> None:
    """Answer until the asking process has gone.

    Args:
        incoming: file descriptor of questions.
        outgoing: file descriptor of answers.
        options: `device` as in `--device`, `threads`, and `memory`: bytes that code may take, or null.
    """
    channel = Channel(incoming, outgoing)
    device = parse_device(options["device"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ask_for_priority()
    load_library()
    if not device.is_gpu:
        pin_threads(options["threads"])
        # Drivers of GPUs reserve addresses without end.
        if options["memory"] is not None:
            _limit_memory(options["memory"])
    worker = _Worker(device)
    try:
        channel.send({"ready": True})
        while True:
            message = channel.receive()
            signal.setitimer(signal.ITIMER_REAL, message.header["timeout"] + _GRACE_SECONDS)
            answer = worker.answer(message)
            signal.setitimer(signal.ITIMER_REAL, 0)
            channel.send(answer)
    except ChannelError:
        # At once: a candidate may have left behind what would not end.
        os._exit(0)


class _Worker:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._reference: Loaded | None = None

    def answer(self, message: Message) -> dict[str, Any]:
        header = message.header
        try:
            if header["do"] == "reference":
                self._reference = None
                self._reference = Loaded(Program(message.blobs[0]), self._device)
                return {}
            if self._reference is None:
                raise GreenccError("there is no reference")
            candidate = Loaded(Program(message.blobs[0]), self._device)
            return asdict(compare(candidate, self._reference, THOROUGH if header["thorough"] else QUICK))
        except FAULTS as error:
            return {"failed": one_line(error)}


def ask_for_priority() -> None:
    """Let whatever else runs here wait, not what is timed: where the system grants it, mostly to root only."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        # Linux may schedule sessions, of which this process has its own, before processes.
        Path("/proc/self/autogroup").write_text(str(_PRIORITY))


def _limit_memory(more: int) -> None:
    """Let this process take `more` bytes of addresses than it has now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
