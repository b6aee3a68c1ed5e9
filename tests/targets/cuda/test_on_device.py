"""The cases of on_device.py: on this machine's GPU where it has one; that they are checked at all, everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import on_device
import pytest
from fake_cuda import FakeMachine

from greencc.errors import GreenccError
from greencc.runtime import cuda
from greencc.targets.cuda.architectures import nearest

_SCRIPT = Path(on_device.__file__)


def gpus() -> list[dict[str, object]]:
    try:
        return cuda.devices()
    except GreenccError:
        return []


@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_all_cases_on_this_machines_gpu(tmp_path: Path) -> None:
    on_device.prepare(tmp_path, nearest(cuda.devices()[0]["capability"]))
    done = subprocess.run([sys.executable, str(_SCRIPT), "check", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(on_device.cases())


def test_a_device_that_computes_nothing_fails(tmp_path: Path) -> None:
    name = "layers-in-a-graph"
    on_device.prepare(tmp_path, "sm_86", [name])
    machine = FakeMachine(tmp_path)
    code = f"import sys, pathlib; sys.path.insert(0, {str(_SCRIPT.parent)!r}); import on_device\n"
    printed = machine.run(code + "print(on_device.check(pathlib.Path(sys.argv[1])))", tmp_path)
    line, passed = printed.splitlines()
    assert json.loads(line)["right"] is False
    assert passed == "False"
    # A static model of 12 kernels: all but the last are recorded in the first run, and replayed by every later one.
    log = machine.log
    runs = 2 * 3 * (1 + on_device.RUNS)
    launches = [entry for entry in log if entry.startswith("launch ") and "graph" not in entry]
    recorded = [entry for entry in log if entry.startswith("captured launch")]
    assert log.count("launch graph") == runs - 1
    assert len(launches) == len(recorded) + runs
    assert not [entry for entry in log if "not while capturing" in entry]
