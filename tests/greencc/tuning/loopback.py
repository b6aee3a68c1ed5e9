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
from pathlib import Path

import psutil

from greencc.errors import UserError
from greencc.tuning.tracker import Tracker

KEY = "test"
_TRACKER = (
    "import sys; from tvm.rpc.tracker import PopenTrackerServerState as S; "
    "S('127.0.0.1', int(sys.argv[1]), int(sys.argv[1]) + 1, silent=True)"
)
_SERVER = Path(__file__).with_name("served_device.py")
_START_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Loopback:
    """A tracker with servers. Ends all of them when it is left."""

    def __init__(self) -> None:
        self.tracker = Tracker(("127.0.0.1", free_port()))
        self.address = f"127.0.0.1:{self.tracker.address[1]}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Loopback:
        self._run("-c", _TRACKER, str(self.tracker.address[1]))
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

    def serve(self, target: Mapping[str, object], seconds: float = 0.0, token: str = "") -> subprocess.Popen[bytes]:
        """Start a server."""
        options = ("--port", free_port(), "--target", json.dumps(dict(target)), "--seconds", seconds, "--token", token)
        return self._run(str(_SERVER), str(self.tracker.address[1]), *map(str, options))

    def wait_for(self, free: int) -> None:
        """Wait until so many servers are free."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                if self.tracker.servers(KEY)[1] >= free:
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


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes that a process started."""
    return psutil.Process(process.pid).children(recursive=True)
