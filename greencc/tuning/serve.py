"""`greencc serve-device`: offers a device of this machine to tuners elsewhere, through TVM's RPC.

    this process -> TVM's server process -> a process for each session -> the process that measures

Each ends when the one before it does, however that ends. A candidate can only crash the last one, and a session that
crashes takes TVM's server with it, which then is started again.

The server offers three functions: `challenge` gives a word to prove the token with, `describe` takes the proof and
tells what the device is, `measure` measures.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from types import FrameType
from typing import Any

import tvm_ffi
from tvm import rpc

from greencc.errors import GreenccError, UserError
from greencc.tuning.credentials import proof
from greencc.tuning.devices import Device, DeviceLost, LocalDevice, ReferenceFailed, TrialFailed
from greencc.tuning.fleet import CHALLENGE, DESCRIBE, MEASURE
from greencc.tuning.program import Program
from greencc.tuning.tracker import Address
from greencc.version import __version__

_LOOK_SECONDS = 0.5
# A server that ends again and again is started after ever longer pauses.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Described:
    """A target of this machine, without the compiler that knows it.

    Attributes:
        place: `cpu`, or a GPU as in `vulkan:1`.
        threads: threads of a run.
        fields: what `Target.describe` says.
    """

    place: str
    threads: int
    fields: Mapping[str, object]

    def describe(self) -> dict[str, object]:
        """See Target."""
        return dict(self.fields)


@dataclass(frozen=True)
class Service:
    """What is served, and where.

    Attributes:
        target: the device.
        tracker: where it is registered.
        key: under which key.
        host: address to listen on; others than 127.0.0.1 let other machines run code here.
        ports: the first free one is taken.
        token: what tuners must prove to know; empty for nothing.
        open_device: makes the device of a session.
    """

    target: Described
    tracker: Address
    key: str
    host: str = "127.0.0.1"
    ports: range = range(9090, 9200)
    token: str = ""
    open_device: Callable[[Described], Device] = LocalDevice


def serve(service: Service, log: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT comes, in the main thread.

    Raises:
        UserError: packages for it are missing, or the address can't be listened on.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        pause = _FIRST_PAUSE
        while not stopping.is_set():
            started = time.monotonic()
            server = _start(service)
            log(f"serving {service.target.place} under key {service.key} on {service.host}:{server.port}")
            try:
                while server.proc.is_alive() and not stopping.wait(_LOOK_SECONDS):
                    pass
            finally:
                server.terminate()
            if not stopping.is_set():
                pause = _FIRST_PAUSE if time.monotonic() - started > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
                log(f"the server ended; it starts again in {pause:g} s")
                stopping.wait(pause)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    log("stopped")


def _start(service: Service) -> Any:
    for package in ("cloudpickle", "psutil"):
        if find_spec(package) is None:
            raise UserError(f"serving a device needs {package}: pip install 'greencc[tune]'")
    # The server's process, and those of its sessions, need nothing of the compiler.
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    try:
        return rpc.Server(
            host=service.host,
            port=service.ports.start,
            port_end=service.ports.stop,
            tracker_addr=service.tracker,
            key=service.key,
            silent=True,
            server_init_callback=partial(initialise, service, os.getpid()),
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"--host {service.host}: can't listen on ports {_text(service.ports)}: {reason}") from error


def initialise(service: Service, parent: int) -> None:
    """What TVM's server process does before it listens; `parent` is the process that started it."""
    die_with_parent(parent)
    # Ctrl-C in the terminal reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _end_process
    os.register_at_fork(after_in_child=partial(die_with_parent, os.getpid()))
    session = Session(service)
    for name, function in ((CHALLENGE, session.challenge), (DESCRIBE, session.describe), (MEASURE, session.measure)):
        tvm_ffi.register_global_func(name, function, override=True)


class Session:
    """What one client has asked for. Each session is a copy of the server's process, and begins with this as it was."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._challenge = ""
        self._is_open = False
        self._device: Device | None = None
        self._reference: Program | None = None

    def challenge(self) -> str:
        """A word to prove the token with."""
        self._challenge = secrets.token_hex(16)
        return self._challenge

    def describe(self, proven: str) -> str:
        """What the device is, as JSON, to who has proven the token."""
        expected = proof(self._service.token, self._challenge)
        if not self._challenge or not secrets.compare_digest(expected, str(proven)):
            _log("a tuner with another token was refused")
            return json.dumps({"refused": "it wants another token (--token-file)"})
        self._is_open = True
        _log("a tuner is connected")
        versions = {"tvm": version("apache-tvm"), "greencc": __version__}
        return json.dumps({"describes": self._service.target.describe(), **versions})

    def measure(self, header: str, candidate: bytes, reference: bytes) -> str:
        """What `Device.measure` returns or raises, as JSON.

        Args:
            header: JSON: `thorough`, and `reference`: the reference's digest.
            candidate: the candidate's program.
            reference: the reference's, or nothing where it is the one of the call before.
        """
        if not self._is_open:
            return json.dumps({"lost": "it was not shown the token"})
        question = json.loads(str(header))
        if reference:
            self._reference = Program(bytes(reference))
        if self._reference is None or self._reference.digest != question["reference"]:
            return json.dumps({"lost": "it has another reference"})
        if self._device is None:
            self._device = self._service.open_device(self._service.target)
        try:
            found = self._device.measure(Program(bytes(candidate)), self._reference, bool(question["thorough"]))
            return json.dumps(asdict(found))
        except TrialFailed as error:
            of_reference = isinstance(error, ReferenceFailed)
            _log(f"{'the reference' if of_reference else 'a candidate'} failed: {error}")
            return json.dumps({"failed": str(error), "reference": of_reference})
        except (DeviceLost, GreenccError) as error:
            _log(f"the device is lost: {error}")
            return json.dumps({"lost": str(error)})


def die_with_parent(parent: int) -> None:
    """Have the system end this process when its parent has ended, however it does (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def parse_ports(text: str) -> range:
    """`9090` or `9090..9199` as ports.

    Raises:
        UserError: it is not written so, or holds no port.
    """
    low, dots, high = text.partition("..")
    if not dots:
        high = low
    if low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high) < 65536:
        return range(int(low), int(high) + 1)
    raise UserError(f"--port {text}: write a port, or bounds as in 9090..9199")


def _end_process(arguments: threading.ExceptHookArgs) -> None:
    """End a process whose thread that listens has failed: it would go on and serve nobody."""
    _log(f"the server failed: {arguments.exc_value}")
    os._exit(1)


def _log(message: str) -> None:
    print(log_line(message), file=sys.stderr, flush=True)


def log_line(message: str) -> str:
    """A line of the log."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {' '.join(message.split())}"


def _text(ports: range) -> str:
    return f"{ports.start}..{ports.stop - 1}"
