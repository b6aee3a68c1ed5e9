"""Four servers and a tracker on this machine. Tests of one file share them, each leaves them free again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from greencc.errors import UserError
from greencc.tuning import fleet as fleets
from greencc.tuning.devices import TrialFailed
from greencc.tuning.fleet import Fleet
from greencc.tuning.measure import Measurement
from greencc.tuning.pool import Job, Outcome, Pool
from greencc.tuning.serve import Described
from greencc.tuning.tracker import Tracker
from tests.greencc.tuning.loopback import Loopback, Server, free_port
from tests.greencc.tuning.small_programs import program, target

pytestmark = pytest.mark.slow

SLEEP_SECONDS = 0.4
FIELDS = target().describe()
PLACE = Described("cpu", 1, FIELDS)


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    with Loopback() as found:
        yield found


@pytest.fixture(scope="module")
def servers(loopback: Loopback) -> list[Server]:
    found = [loopback.serve("four", FIELDS, SLEEP_SECONDS) for _ in range(4)]
    # For tests below, so that all start at once.
    loopback.serve("mixed", FIELDS)
    loopback.serve("mixed", {**FIELDS, "mcpu": "z80", "threads": 7})
    loopback.serve("secret", FIELDS, token="open sesame")
    loopback.wait_for("four", 4)
    return found


@contextmanager
def joined(loopback: Loopback, key: str, count: int, **options: object) -> Iterator[Fleet]:
    loopback.wait_for(key, count)
    fleet = Fleet(loopback.address, key, PLACE, **options)  # type: ignore[arg-type]
    try:
        yield fleet
    finally:
        fleet.pool.close()


def jobs(count: int, name: str = "backwards") -> list[Job]:
    return [Job(program(name), program("product"), key=i) for i in range(count)]


def seconds_of(pool: Pool, count: int) -> float:
    started = time.monotonic()
    assert len(list(pool.measure(jobs(count)))) == count
    return time.monotonic() - started


def assert_whole(found: list[tuple[Job, Outcome]], count: int) -> None:
    assert sorted(job.key for job, _ in found) == list(range(count))
    assert all(isinstance(outcome, Measurement) for _, outcome in found)


def test_four_servers_measure_three_times_as_much_as_one(loopback: Loopback, servers: list[Server]) -> None:
    with joined(loopback, "four", 4) as fleet:
        seconds_of(fleet.pool, 12)  # each server's process that measures starts
        assert sorted(device.name for device in fleet.pool.devices) == sorted(server.name for server in servers)
        one = Pool(fleet.pool.devices[:1])
        assert 16 / seconds_of(fleet.pool, 16) >= 3 * 4 / seconds_of(one, 4)


def test_a_candidate_that_goes_wrong_is_told_and_the_server_goes_on(loopback: Loopback, servers: list[Server]) -> None:
    with joined(loopback, "four", 4) as fleet:
        for name, reason in (("crashing", "crashed with SIGSEGV"), ("wrong", "wrong result"), ("endless", "no result")):
            ((_, outcome),) = fleet.pool.measure(jobs(1, name))
            assert isinstance(outcome, TrialFailed)
            assert str(outcome).startswith(reason)
        assert len(fleet.pool.devices) == 4
        assert_whole(list(fleet.pool.measure(jobs(4))), 4)


def test_other_targets_are_refused_by_name_and_others_go_on(loopback: Loopback, servers: list[Server]) -> None:
    said: list[str] = []
    with joined(loopback, "mixed", 2, log=said.append) as fleet:
        (device,) = fleet.pool.devices
        assert device.describe() == FIELDS
        assert_whole(list(fleet.pool.measure(jobs(2))), 2)
    (refusal,) = (line for line in said if "joins" not in line)
    assert "is not used: it is another target: mcpu is z80, not " in refusal
    assert "; threads is 7, not 1" in refusal


def test_a_fleet_of_other_targets_alone_is_an_error(loopback: Loopback, servers: list[Server]) -> None:
    loopback.wait_for("mixed", 2)
    other = Described("cpu", 1, {**FIELDS, "triple": "riscv64-linux-gnu"})
    with pytest.raises(UserError, match=r"--rpc-key mixed at .* can be used: .*triple is .*; .*triple is"):
        Fleet(loopback.address, "mixed", other)


def test_the_token_is_asked_for(loopback: Loopback, servers: list[Server], tmp_path: Path) -> None:
    loopback.wait_for("secret", 1)
    with pytest.raises(UserError, match=r"can be used: .*it wants another token \(--token-file\)"):
        Fleet(loopback.address, "secret", PLACE)
    token = tmp_path / "token"
    token.write_text("open sesame\n")
    with joined(loopback, "secret", 1, token_file=token) as fleet:
        assert_whole(list(fleet.pool.measure(jobs(1))), 1)


def test_a_hanging_server_is_dropped_and_its_trial_measured_elsewhere(
    loopback: Loopback, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "_WAY_SECONDS", 3.0)
    with joined(loopback, "four", 4, seconds=1.0) as fleet:
        stopped = servers.pop()
        processes: list[psutil.Process] = []
        found = []
        try:
            for outcome in fleet.pool.measure(jobs(12)):
                if not found:
                    processes = stopped.descendants()
                    for process in processes:
                        process.suspend()
                found.append(outcome)
            assert_whole(found, 12)
            assert stopped.name not in {device.name for device in fleet.pool.devices}
        finally:
            for process in processes:
                process.kill()
            stopped.process.kill()


def test_a_killed_server_loses_nothing_and_another_takes_its_place(loopback: Loopback, servers: list[Server]) -> None:
    loopback.wait_for("four", len(servers))
    said: list[str] = []
    with joined(loopback, "four", len(servers), log=said.append) as fleet:
        killed = servers.pop()
        orphans: list[psutil.Process] = []
        found = []
        for outcome in fleet.pool.measure(jobs(16)):
            found.append(outcome)
            if len(found) == 3:
                orphans = killed.descendants()
                killed.process.kill()
                servers.append(loopback.serve("four", FIELDS, SLEEP_SECONDS))
        assert_whole(found, 16)
        assert killed.name not in {device.name for device in fleet.pool.devices}
        assert any(line.startswith(f"{killed.name} is lost: its server failed, or has gone") for line in said)
        # The listening process, the session and the process that measures end with it.
        assert len(orphans) == 3
        assert psutil.wait_procs(orphans, timeout=10)[1] == []
        deadline = time.monotonic() + 60
        while servers[-1].name not in {device.name for device in fleet.pool.devices} and time.monotonic() < deadline:
            time.sleep(0.1)
        assert_whole(list(fleet.pool.measure(jobs(8))), 8)


def test_sigterm_ends_a_server_with_its_children(loopback: Loopback, servers: list[Server]) -> None:
    with joined(loopback, "four", len(servers)) as fleet:
        list(fleet.pool.measure(jobs(2)))
        ended = servers.pop()
        children = ended.descendants()
        ended.process.send_signal(signal.SIGTERM)
        assert ended.process.wait(20) == 0
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_session_that_crashes_does_not_end_the_service(loopback: Loopback, servers: list[Server]) -> None:
    with joined(loopback, "four", len(servers)) as fleet:
        assert_whole(list(fleet.pool.measure(jobs(len(servers)))), len(servers))
        victim = servers[0]
        (listening,) = psutil.Process(victim.process.pid).children()
        (session,) = listening.children()
        session.kill()
        assert_whole(list(fleet.pool.measure(jobs(4))), 4)
    loopback.wait_for("four", len(servers))
    assert victim.process.poll() is None


def test_a_server_that_greencc_does_not_serve_is_refused(loopback: Loopback, servers: list[Server]) -> None:
    loopback.serve_plainly("plain")
    loopback.wait_for("plain", 1)
    with pytest.raises(UserError, match="it is no device that greencc serves"):
        Fleet(loopback.address, "plain", PLACE)


def test_without_servers_it_says_what_to_do(loopback: Loopback) -> None:
    with pytest.raises(UserError, match=r"--rpc-key none .* is free: start one with greencc serve-device"):
        Fleet(loopback.address, "none", PLACE, patience=1)


def test_a_request_that_nobody_answers_is_left(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greencc.tuning.tracker._SECONDS", 0.3)
    assert loopback.tracker.request("none") is None


def test_without_a_tracker_it_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"can't be reached .*: start one with python -m tvm.exec.rpc_tracker --host"):
        Fleet(f"127.0.0.1:{free_port()}", "four", PLACE)


def test_something_else_that_listens_is_no_tracker() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="is no RPC tracker"):
            Tracker(listener.getsockname()).servers("four")
        thread.join()
