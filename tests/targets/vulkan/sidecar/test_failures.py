"""Devices that are lost, memory that runs out, machines without Vulkan: sentences, never a crash.

A loader of our own between the runtime and Vulkan's makes them happen. Each runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greencc.runtime.vulkan import find_sidecar

pytestmark = pytest.mark.vulkan

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[3]
PRELUDE = """
import numpy as np
from greencc.errors import GreenccError
from greencc.runtime import vulkan
from vulkan_rig import ADD, SCALE, Rig, module, normal

def message(function, *arguments):
    try:
        function(*arguments)
    except (RuntimeError, GreenccError) as error:
        return str(error).splitlines()[0]
    return "no error"
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "libvulkan_shim.so"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(FOLDER / "loader_shim.cpp"), "-ldl"], check=True)
    return library


def run(program: str, **variables: object) -> list[str]:
    """Lines that a program prints which begins with PRELUDE. It must end by itself, without error."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(FOLDER)])
    command = [sys.executable, "-c", PRELUDE + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_lost_device_is_said_and_stays_lost(shim: Path) -> None:
    lines = run(
        """
rig, kernels = Rig(), module(scale=SCALE)
a = rig.upload(np.ones(64, np.float32))
rig.scale(kernels, a, 64, 2.0)
print(rig.read(a)[0][0])
rig.scale(kernels, a, 64, 2.0)
print(message(rig.read, a))
print(message(rig.scale, kernels, a, 64, 2.0))
print(message(rig.read, a))
print(message(rig.upload, normal(64)))
print(message(rig.synchronize))
print(vulkan.statistics()["submits"])
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_LOST_AFTER=1,
    )
    assert lines[0] == "2.0"
    assert "vulkan:0" in lines[1]
    assert "was lost while submitting kernels: its driver was reset" in lines[1]
    later = "was lost earlier in this process, which can't use it any more: start another"
    assert all(later in line for line in lines[2:6])
    assert lines[6] == "1"


def test_a_thread_that_waits_for_another_ones_lost_work_is_told(shim: Path) -> None:
    lines = run(
        """
import threading
rig, kernels = Rig(), module(scale=SCALE)
a = rig.upload(np.ones(64, np.float32))
rig.synchronize()
ready, done = threading.Event(), threading.Event()
def work():
    rig.scale(kernels, a, 64, 2.0)
    ready.set()
    done.wait()
thread = threading.Thread(target=work)
thread.start()
ready.wait()
print(message(rig.read, a))
done.set()
thread.join()
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_LOST_AFTER=0,
    )
    assert "was lost while submitting kernels" in lines[0]


OTHER_THREAD = '''
import threading
class Other:
    """A thread that lives while the program does, so that its stream is its own."""
    def __init__(self, work):
        self.done, ready = threading.Event(), threading.Event()
        def run():
            work()
            ready.set()
            self.done.wait()
            self.result = message(self.last)
        self.last = lambda: None
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        ready.wait()
    def end(self, last):
        self.last = last
        self.done.set()
        self.thread.join()
        return self.result
'''


def test_a_failure_that_shows_in_another_threads_call_is_the_owners(shim: Path) -> None:
    """An allocation submits what all threads have recorded. Earlier work of the thread whose submit fails is done."""
    lines = run(
        OTHER_THREAD
        + """
rig, kernels = Rig(), module(scale=SCALE)
a, b = rig.upload(np.ones(64, np.float32)), rig.upload(np.ones(64, np.float32))
rig.scale(kernels, a, 64, 2.0)
rig.synchronize()
there = []
other = Other(lambda: (rig.scale(kernels, b, 64, 2.0), there.append(rig.begin_read(b))))
print("out of device memory" in message(rig.empty, (300 << 20,), "uint8"))
print(rig.read(a)[0][0])
print(other.end(rig.synchronize))
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_REFUSE_AT=1,
        SHIM_MEMORY=200 << 20,
    )
    assert lines[:2] == ["True", "2.0"]
    assert "submitting kernels failed: out of host memory" in lines[2]


def test_a_thread_that_waits_for_failed_work_is_told_and_so_is_its_owner(shim: Path) -> None:
    lines = run(
        OTHER_THREAD
        + """
rig, kernels = Rig(), module(scale=SCALE, add=ADD)
a, b, c = rig.upload(np.ones(64, np.float32)), rig.empty((64,)), rig.empty((64,))
rig.synchronize()
other = Other(lambda: rig.add(kernels, a, a, b, 64))
print(message(rig.read, b))
print(message(rig.read, b))
print(message(rig.read, a))
rig.upload(np.full(64, 5, np.float32), b)
print(rig.read(b)[0][0])
print(other.end(lambda: rig.scale(kernels, a, 64, 2.0)))
rig.add(kernels, a, a, c, 64)
print(rig.read(c)[0][0])
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_REFUSE_AT=0,
    )
    failure = "submitting kernels failed: out of host memory"
    assert failure in lines[0]
    assert failure in lines[1]
    assert lines[2] == "no error", "what the thread only read is as it was"
    assert lines[3] == "5.0"
    assert failure in lines[4]
    assert lines[5] == "2.0"


def test_copies_to_the_host_that_are_discarded_are_not_made() -> None:
    """Those that are recorded, and those of batches that the device has; not those of another thread."""
    lines = run(
        OTHER_THREAD
        + """
vulkan.discard(0)
rig, kernels = Rig(), module(scale=SCALE)
a, b = rig.upload(np.ones(64, np.float32)), rig.upload(np.ones(64, np.float32))
rig.scale(kernels, a, 64, 2.0)
rig.synchronize()
theirs = []
other = Other(lambda: (rig.scale(kernels, b, 64, 3.0), theirs.append(rig.begin_read(b))))
submitted = rig.begin_read(a)
submitted[:] = 7
for _ in range(256):
    rig.scale(kernels, a, 64, 1.0)
recorded = rig.begin_read(a)
recorded[:] = 7
vulkan.discard(0)
print(rig.read(a)[0][0], set(submitted.tolist()), set(recorded.tolist()))
print(other.end(rig.synchronize), theirs[0][0])
vulkan.discard(99)
""",
    )
    assert lines == ["2.0 {7.0} {7.0}", "no error 3.0"]


def test_a_refused_submit_leaves_running_work_its_memory(shim: Path) -> None:
    """Batches before the refused one may still run: what they use is not given to others."""
    lines = run(
        """
rig, kernels = Rig(), module(scale=SCALE)
large, small = rig.empty((1 << 20,)), rig.empty((64,))
for _ in range(256):
    rig.scale(kernels, large, 1 << 20, 1.0)
rig.scale(kernels, small, 64, 1.0)
print(message(rig.synchronize))
address = large.data_ptr()
del large
print(rig.empty((1 << 20,)).data_ptr() == address)
rig.synchronize()
print(rig.empty((1 << 20,)).data_ptr() == address)
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_REFUSE_AT=1,
    )
    assert "submitting kernels failed: out of host memory" in lines[0]
    assert lines[1:] == ["False", "True"]


def test_memory_that_runs_out_is_said_with_numbers_and_comes_back(shim: Path) -> None:
    lines = run(
        """
rig, kernels = Rig(), module(add=ADD)
kept = [rig.empty((100 << 20,), "uint8") for _ in range(2)]
print(message(rig.empty, (100 << 20,), "uint8"))
a = rig.upload(np.ones(64, np.float32))
rig.add(kernels, a, a, a, 64)
print(rig.read(a)[0][0])
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_MEMORY=280 << 20,
    )
    assert "out of device memory: 100 MiB were asked for; this process holds 200 MiB of the device's" in lines[0]
    assert lines[1] == "2.0"


def test_memory_that_only_waits_for_kernels_is_reclaimed(shim: Path) -> None:
    """A large tensor was freed, but a kernel that was not even submitted uses it."""
    lines = run(
        """
rig, kernels = Rig(), module(scale=SCALE)
large = rig.empty((25 << 20,))
rig.scale(kernels, large, 64, 2.0)
address = large.data_ptr()
del large
before = vulkan.statistics()["submits"]
print(message(rig.empty, (25 << 20,)))
print(vulkan.statistics()["submits"] - before)
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_MEMORY=1 << 40,
    )
    assert lines == ["no error", "0"]
    lines = run(
        """
import ctypes
rig, kernels = Rig(), module(scale=SCALE)
small = rig.upload(normal(64))
parts = [rig.empty((20 << 20,), "uint8") for _ in range(3)]
for part in parts:
    kernels["scale"](rig.view(part, (64,), "float32", 0), 64, 1.0, 1, 64)
del part
parts.clear()
before = vulkan.statistics()["submits"]
print(message(rig.empty, (20 << 20,), "uint8"))
print(vulkan.statistics()["submits"] - before)
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_MEMORY=70 << 20,
    )
    assert lines == ["no error", "1"]


def test_a_device_that_does_not_open_is_closed(shim: Path) -> None:
    """Whoever asks again opens another one."""
    lines = run(
        """
rig = Rig()
for _ in range(2):
    print(message(rig.empty, (64,)), flush=True)
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_NO_CACHE=1,
    )
    assert lines[0::2] == ["destroyed", "destroyed"]
    assert all("making a pipeline cache failed: out of host memory" in line for line in lines[1::2])


def test_a_device_that_is_too_old_is_listed_with_the_reason(shim: Path) -> None:
    lines = run(
        """
print(vulkan.devices()[0]["refusal"])
rig = Rig()
print(message(rig.empty, (64,)))
""",
        GREENCC_VULKAN_LOADER=shim,
        SHIM_VERSION_1_0=1,
    )
    assert lines[0] == "it has Vulkan 1.0 only: 1.1 is needed"
    assert "can't be used: it has Vulkan 1.0 only: 1.1 is needed" in lines[1]


def test_a_machine_without_vulkan_says_so() -> None:
    lines = run(
        """
print(message(vulkan.devices))
rig = Rig()
print(rig.library.function("runtime.GetDeviceAttr")(7, 0, 0))
print(message(rig.empty, (64,)))
print(vulkan.validation_messages())
""",
        GREENCC_VULKAN_LOADER="/nowhere/libvulkan.so.1",
    )
    assert "the Vulkan loader that GREENCC_VULKAN_LOADER names can't be loaded" in lines[0]
    assert lines[1] == "0"
    assert "can't be loaded" in lines[2]
    assert lines[3] == "[]"


def test_a_forked_child_is_told_to_be_spawned() -> None:
    lines = run(
        """
import os, sys
rig = Rig()
a = rig.upload(normal(64))
rig.synchronize()
child = os.fork()
if child == 0:
    print(message(rig.upload, normal(64)), flush=True)
    del a
    sys.exit(0)  # destroys tensors and streams, which must do nothing here
_, status = os.waitpid(child, 0)
print(status, rig.read(a)[0][0] == normal(64)[0])
"""
    )
    assert "can't be used in a forked child of a process that has used it: start child processes with" in lines[0]
    assert lines[1] == "0 True"


def test_a_program_that_ends_with_work_left_ends_well() -> None:
    lines = run(
        """
import threading
rig, kernels = Rig(), module(scale=SCALE)
a = rig.upload(np.ones(1 << 20, np.float32))
for _ in range(300):
    rig.scale(kernels, a, 1 << 20, 1.0)
there = rig.begin_read(a)
threading.Thread(target=lambda: rig.scale(kernels, a, 64, 1.0)).start()
print("end")
"""
    )
    assert lines == ["end"]


def test_a_damaged_pipeline_cache_is_as_good_as_none(tmp_path: Path) -> None:
    """It is written when kernels were compiled, nothing else is left behind, and no damage of it reaches the driver."""
    program = """
rig, kernels = Rig(), module(scale=SCALE)
a = rig.upload(np.ones(64, np.float32))
rig.scale(kernels, a, 64, 2.0)
print(rig.read(a)[0][0])
"""
    folder = tmp_path / "greencc" / "vulkan"
    sidecar = str(find_sidecar())
    assert run(program, XDG_CACHE_HOME=tmp_path, GREENCC_VULKAN_LIB=sidecar) == ["2.0"]
    (file,) = folder.iterdir()
    good = file.read_bytes()
    assert good[:8] == b"gccpipe1"
    for damaged in (b"", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b"x" + good[1:]):
        file.write_bytes(damaged)
        assert run(program, XDG_CACHE_HOME=tmp_path, GREENCC_VULKAN_LIB=sidecar) == ["2.0"]
        (file,) = folder.iterdir()
        assert file.read_bytes() == good


def test_the_validation_layer_listens() -> None:
    """A kernel that writes what its entry says it reads: the hazard that no barrier is put between is reported."""
    lines = run(
        """
from vulkan_rig import Shader, buffer
wrong = Shader(ADD.body, [buffer("read"), buffer("read"), buffer("read"), ADD.parameters[3]])
rig, kernels = Rig(), module(add=wrong)
a, b = rig.upload(np.ones(64, np.float32)), rig.empty((64,))
rig.add(kernels, a, a, b, 64)
rig.add(kernels, b, b, a, 64)
rig.read(a)
messages = vulkan.validation_messages()
print(len(messages), any("SYNC-HAZARD" in message for message in messages), vulkan.validation_messages())
""",
        GREENCC_VULKAN_VALIDATION="sync",
    )
    count, found, after = lines[0].split()
    assert int(count) >= 1
    assert (found, after) == ("True", "[]")
