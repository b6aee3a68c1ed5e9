"""A machine with a GPU, as far as libraries can tell: what runs on it computes nothing, and is written down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("fake_driver.cpp")


class FakeMachine:
    """Runs Python code where the driver and the CUDA runtime library are ours.

    Attributes:
        log: what was asked of them, a line each.
    """

    def __init__(self, folder: Path, devices: int = 1) -> None:
        self._folder, self._devices = folder, devices
        self._log = folder / "log"
        versions = folder / "versions"
        versions.write_text("libcudart.so.13 { global: cuda*; };\n")
        for name, extra in (("libcuda.so.1", []), ("libcudart.so.13", [f"-Wl,--version-script={versions}"])):
            command = ["g++", "-shared", "-fPIC", *extra, f"-Wl,-soname,{name}", "-o", str(folder / name), str(_SOURCE)]
            subprocess.run(command, check=True)

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def run(self, code: str, *arguments: object) -> str:
        """What Python code prints; `arguments` are in sys.argv."""
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self._folder),
            "FAKE_CUDA_LOG": str(self._log),
            "FAKE_CUDA_DEVICES": str(self._devices),
        }
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
