from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from greencc.errors import GreenccError
from greencc.tuning.devices import DeviceLost, TrialFailed
from greencc.tuning.measure import Measurement
from greencc.tuning.pool import Job, Pool
from greencc.tuning.program import Program

REFERENCE = Program(b"reference")


class Scripted:
    """A device that does what a function says with each candidate."""

    def __init__(self, name: str, act: Callable[[Program], None] = lambda candidate: None) -> None:
        self.name, self._act = name, act
        self.measured: list[bytes] = []
        self.is_closed = False

    def describe(self) -> dict[str, object]:
        return {}

    def measure(self, candidate: Program, reference: Program, thorough: bool = False) -> Measurement:
        assert reference is REFERENCE
        self._act(candidate)
        self.measured.append(candidate.data)
        return Measurement((1.0,), (0.0,), (float(thorough),))

    def close(self) -> None:
        self.is_closed = True


def jobs(count: int) -> list[Job]:
    return [Job(Program(b"%d" % i), REFERENCE, thorough=i % 2 == 1, key=i) for i in range(count)]


def lose(candidate: Program) -> None:
    raise DeviceLost("unplugged")


def lose_at(data: bytes) -> Callable[[Program], None]:
    def act(candidate: Program) -> None:
        time.sleep(0.01)
        if candidate.data == data:
            raise DeviceLost("unplugged")

    return act


def test_every_job_has_one_outcome_and_all_devices_work() -> None:
    devices = [Scripted(f"d{i}", lambda candidate: time.sleep(0.01)) for i in range(3)]
    found = list(Pool(devices).measure(jobs(30)))
    assert sorted(job.key for job, _ in found) == list(range(30))
    assert sum(len(device.measured) for device in devices) == 30
    assert all(device.measured for device in devices)
    for job, outcome in found:
        assert isinstance(outcome, Measurement)
        assert outcome.reference == (float(job.thorough),)
        assert job.candidate.data in {d.name: d for d in devices}[outcome.device].measured


def test_no_jobs_are_no_outcomes() -> None:
    assert list(Pool([Scripted("a")]).measure([])) == []


def test_a_failed_trial_is_an_outcome() -> None:
    def refuse(candidate: Program) -> None:
        if candidate.data == b"1":
            raise TrialFailed("wrong result")

    outcomes = {job.key: outcome for job, outcome in Pool([Scripted("a", refuse)]).measure(jobs(3))}
    assert str(outcomes[1]) == "wrong result"
    assert isinstance(outcomes[0], Measurement)
    assert isinstance(outcomes[2], Measurement)


def test_jobs_of_a_lost_device_are_measured_elsewhere() -> None:
    said: list[str] = []
    lost, good = Scripted("lost", lose), Scripted("good", lambda candidate: time.sleep(0.005))
    pool = Pool([lost, good], log=said.append)
    found = list(pool.measure(jobs(10)))
    assert sorted(job.key for job, _ in found) == list(range(10))
    assert all(isinstance(outcome, Measurement) and outcome.device == "good" for _, outcome in found)
    assert pool.devices == (good,)
    assert lost.is_closed
    assert not good.is_closed
    assert said == ["lost is lost: unplugged"]


def test_without_devices_it_ends() -> None:
    pool = Pool([Scripted("a", lose), Scripted("b", lose)])
    with pytest.raises(DeviceLost, match=r"no device is left: [ab]: unplugged"):
        list(pool.measure(jobs(4)))
    with pytest.raises(DeviceLost, match="no device is left"):
        list(pool.measure(jobs(1)))


def test_devices_join_while_it_runs_and_are_waited_for() -> None:
    pool = Pool([Scripted("a", lose)], patience=20)
    late = Scripted("late")
    threading.Timer(0.5, pool.add, (late,)).start()
    found = list(pool.measure(jobs(5)))
    assert len(found) == len(late.measured) == 5


def test_a_candidate_that_costs_three_devices_is_left() -> None:
    devices = [Scripted(f"d{i}", lose_at(b"2")) for i in range(4)]
    pool = Pool(devices)
    outcomes = {job.key: outcome for job, outcome in pool.measure(jobs(8))}
    assert str(outcomes.pop(2)) == "3 devices were lost while they measured it"
    assert len(outcomes) == 7
    assert all(isinstance(outcome, Measurement) for outcome in outcomes.values())
    assert len(pool.devices) == 1


def test_a_fault_of_ours_is_raised_not_waited_for() -> None:
    def fail(candidate: Program) -> None:
        raise KeyError("oops")

    with pytest.raises(GreenccError, match="a fault of greencc") as caught:
        list(Pool([Scripted("a", fail)]).measure(jobs(2)))
    assert isinstance(caught.value.__cause__, KeyError)


def test_jobs_are_taken_as_devices_get_free() -> None:
    taken: list[int] = []

    def source():
        for job in jobs(20):
            taken.append(job.key)
            yield job

    pool = Pool([Scripted("a")])
    running = pool.measure(source())
    next(running)
    assert len(taken) <= 3
    running.close()
    assert len(taken) <= 3
    # Whatever was left, the device goes on with what comes next.
    assert len(list(pool.measure(jobs(3)))) == 3


def test_an_interrupted_iteration_leaves_no_thread() -> None:
    before = threading.active_count()
    running = Pool([Scripted("a"), Scripted("b")]).measure(jobs(9))
    next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt())
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_closed_pool_takes_no_device() -> None:
    first, late = Scripted("first"), Scripted("late")
    pool = Pool([first])
    pool.close()
    pool.add(late)
    assert first.is_closed
    assert late.is_closed
    assert pool.devices == ()
