from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from greencc.tuning import devices
from greencc.tuning.devices import DeviceLost, LocalDevice, ReferenceFailed, TrialFailed
from greencc.tuning.program import Program
from tests.greencc.tuning.small_programs import program, target


@pytest.fixture(scope="module")
def device() -> Iterator[LocalDevice]:
    found = LocalDevice(target())
    yield found
    found.close()


def test_it_is_the_target(device: LocalDevice) -> None:
    assert device.describe() == target().describe()
    assert device.name == "this machine's cpu"


@pytest.mark.parametrize("thorough", [False, True])
def test_equals_take_about_the_same_time(device: LocalDevice, thorough: bool) -> None:
    found = device.measure(program("backwards"), program("product"), thorough)
    assert 0 < found.seconds[0] < 1e-3
    assert 0 < found.reference[0] < 1e-3


def test_more_work_takes_longer(device: LocalDevice) -> None:
    found = device.measure(program("repeated"), program("product"))
    assert found.seconds[0] > 10 * found.reference[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", r"wrong result \(output 0 is off by 0.001, its largest value is"),
        ("crashing", "crashed with SIGSEGV"),
        ("greedy", "out of memory"),
    ],
)
def test_a_candidate_that_goes_wrong_fails_alone(device: LocalDevice, name: str, reason: str) -> None:
    with pytest.raises(TrialFailed, match=f"^{reason}"):
        device.measure(program(name), program("product"))
    device.measure(program("backwards"), program("product"))


def test_a_candidate_that_never_ends_is_ended() -> None:
    device = LocalDevice(target(), timeout=2)
    try:
        with pytest.raises(TrialFailed, match=r"^no result within 2(\.\d+)? s$"):
            device.measure(program("endless"), program("product"))
    finally:
        device.close()


def test_damaged_programs_fail(device: LocalDevice) -> None:
    with pytest.raises(TrialFailed, match=r"^not a program to be timed"):
        device.measure(Program(b"damaged"), program("product"))
    code = program("product").unpack()
    damaged = Program.pack(type(code)(b"\x7fELF", code.weights, code.copies, code.operands))
    with pytest.raises(TrialFailed, match="RuntimeError"):
        device.measure(damaged, program("product"))


@pytest.mark.parametrize("name", ["crashing", "greedy"])
def test_a_reference_that_goes_wrong_is_named(device: LocalDevice, name: str) -> None:
    with pytest.raises(ReferenceFailed, match=r"^(crashed with SIGSEGV|out of memory)"):
        device.measure(program("product"), program(name))
    device.measure(program("product"), program("backwards"))


def test_the_reference_is_sent_once(device: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = devices.Child.ask

    def counted(child: devices.Child, header: dict[str, object], *more: object) -> object:
        asked.append(header["do"])
        return ask(child, header, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(devices.Child, "ask", counted)
    reference = Program(program("product").data)
    device.measure(program("backwards"), program("repeated"))
    for _ in range(2):
        device.measure(program("backwards"), reference)
    assert asked == ["reference", "measure"] * 2 + ["measure"]


def test_processes_are_replaced_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_MOST_CANDIDATES", 1)
    device = LocalDevice(target())
    try:
        pids = []
        for _ in range(2):
            device.measure(program("backwards"), program("product"))
            assert device._child is not None
            pids.append(device._child.pid)
        assert pids[0] != pids[1]
        assert not psutil.pid_exists(pids[0])
    finally:
        device.close()


def test_closing_ends_a_measurement_under_way() -> None:
    device = LocalDevice(target())
    device.measure(program("backwards"), program("product"))
    threading.Timer(0.3, device.close).start()
    started = time.monotonic()
    with pytest.raises(DeviceLost, match="closed"):
        device.measure(program("endless"), program("product"))
    assert time.monotonic() - started < 9
    with pytest.raises(DeviceLost, match="closed"):
        device.measure(program("product"), program("product"))


def test_a_device_whose_process_does_not_start_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "WORKER", "tests.greencc.tuning.no_such_module")
    device = LocalDevice(target())
    with pytest.raises(DeviceLost, match="the process that measures ended with status 1"):
        device.measure(program("product"), program("product"))
