"""A tracker and servers on this machine, as processes that are ended by their own numbers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from greencc.errors import UserError
from greencc.tuning.tracker import Tracker

_TRACKER = (
    "import sys; from tvm.rpc.tracker import PopenTrackerServerState as S; "
    "S('127.0.0.1', int(sys.argv[1]), int(sys.argv[1]) + 1, silent=True)"
)
_PLAIN = (
    "import sys; from tvm.rpc.server import PopenRPCServerState as S; port = int(sys.argv[1]); "
    "S('127.0.0.1', port, port + 1, False, ('127.0.0.1', int(sys.argv[2])), sys.argv[3], silent=True)"
)
_SERVER = Path(__file__).with_name("served_device.py")
_START_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A server's process, and the name that its device has."""

    process: subprocess.Popen[bytes]
    name: str

    def descendants(self) -> list[psutil.Process]:
        """All processes that it started, and those that they did."""
        return psutil.Process(self.process.pid).children(recursive=True)


class Loopback:
    """A tracker with servers. Ends all of them when it is left."""

    def __init__(self) -> None:
        self.tracker = Tracker(("127.0.0.1", free_port()))
        self.address = f"127.0.0.1:{self.tracker.address[1]}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Loopback:
        self._run("-c", _TRACKER, str(self.tracker.address[1]))
        self.wait_for("", 0)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if process is not self._processes[0] else signal.SIGKILL)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def serve(self, key: str, target: Mapping[str, object], seconds: float = 0.0, token: str = "") -> Server:
        """Start a server of a key, that sleeps for a while in each measurement."""
        port = free_port()
        options = ("--key", key, "--port", port, "--target", json.dumps(dict(target)), "--seconds", seconds)
        arguments = (self.tracker.address[1], *options, "--token", token)
        return Server(self._run(str(_SERVER), *map(str, arguments)), f"127.0.0.1:{port}")

    def serve_plainly(self, key: str) -> None:
        """Start a server of TVM's own."""
        port = free_port()
        self._run("-c", _PLAIN, str(port), str(self.tracker.address[1]), key)

    def wait_for(self, key: str, free: int) -> None:
        """Wait until so many servers of a key are free."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                if self.tracker.servers(key)[1] >= free:
                    return
            except UserError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"{free} servers don't start within {_START_SECONDS:g} s")
            time.sleep(0.1)

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen([sys.executable, *arguments], env=environment)
        self._processes.append(process)
        return process
