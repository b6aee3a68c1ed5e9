"""Sessions: how trials are shared out, when they end, and that one that was cut off goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_lab import RULE, FakeLab, seconds, task

from greencc.targets.tuning.planned import Decision
from greencc.tuning.database import Database
from greencc.tuning.devices import DeviceLost
from greencc.tuning.payback import Payback
from greencc.tuning.records import Scope
from greencc.tuning.session import Budget, Outcome, Session
from greencc.tuning.tasks import Task

SCOPE = Scope({"kind": "cpu", "mcpu": "tested", "threads": 2}, "0.27.0", "0.1.0")


class Clock:
    """A meter whose time and energy pass by questions."""

    method = "estimate"

    def __init__(self, step: float = 0.0, joules: float = 1.0) -> None:
        self.passed, self.spent, self._step, self._joules = 0.0, 0.0, step, joules

    @property
    def seconds(self) -> float:
        self.passed += self._step
        return self.passed

    @property
    def joules(self) -> float | None:
        self.spent += self._joules
        return self.spent

    def watts(self, threads: int) -> float | None:
        return 5.0 * threads


def run(
    folder: Path,
    tasks: list[Task],
    lab: FakeLab,
    *,
    trials: int | None = None,
    time_budget: float | None = None,
    runs: int | None = None,
    meter: Clock | None = None,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """A session on a database, and its events."""
    events: list[dict[str, Any]] = []
    database = Database(folder)
    with database.writer(SCOPE) as writer:
        session = Session(
            tasks,
            lab,
            database.records(SCOPE),
            writer,
            budget=Budget(trials, time_budget, runs),
            threads=2,
            listen=events.append,
            meter=meter or Clock(),  # type: ignore[arg-type]
        )
        return session.run(), events


def test_the_default_is_trial_0_and_the_best_plan_is_found_and_confirmed(tmp_path: Path) -> None:
    lab = FakeLab()
    outcome, _ = run(tmp_path, [task("a")], lab)
    assert lab.measured[0] == ("a", None, False)
    (state,) = outcome.states
    assert state.best is not None
    assert state.best.plan == {"rows": 4, "vectors": 3, "tail": "registers"}
    assert state.ratio == pytest.approx(20 / seconds(None) / 1e6)
    assert [each for each in lab.measured if each[2]] == [("a", Decision(RULE, state.best.plan), True)]
    assert state.finished == "nothing new to try"
    best = Database(tmp_path).records(SCOPE).best("a", {})
    assert best is not None
    assert best.plan == state.best.plan


def test_nothing_is_tried_twice(tmp_path: Path) -> None:
    lab = FakeLab()
    run(tmp_path, [task("a"), task("b")], lab)
    plans = [(key, repr(decision)) for key, decision, thorough in lab.measured if not thorough]
    assert len(plans) == len(set(plans))


def test_a_default_that_nothing_beats_stays(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, [task("a")], FakeLab(lambda plan: 30e-6 if plan is None else 33e-6))
    (state,) = outcome.states
    assert state.best is None
    assert state.ratio == 1.0
    assert outcome.best_seconds == outcome.default_seconds
    assert Database(tmp_path).records(SCOPE).best("a", {}) is None


def test_a_lucky_measurement_is_found_out(tmp_path: Path) -> None:
    lucky = {"rows": 2, "vectors": 1, "tail": "memory"}

    class Lucky(FakeLab):
        def measure(self, task: Task, decisions: Any, thorough: bool = False) -> Any:
            self._cost = (
                (lambda plan: 40e-6 if plan == lucky else 32e-6)
                if thorough
                else (lambda plan: 10e-6 if plan == lucky else 32e-6)
            )
            return super().measure(task, decisions, thorough)

    outcome, _ = run(tmp_path, [task("a")], Lucky())
    assert outcome.states[0].best is None
    assert Database(tmp_path).records(SCOPE).best("a", {}) is None


def test_trials_go_where_most_is_to_gain(tmp_path: Path) -> None:
    """b runs ten times as often as a; c is at its limit already."""
    tasks = [task("a"), task("b", launches=10), task("c", limit=seconds(None))]
    lab = FakeLab()
    run(tmp_path, tasks, lab, trials=3 + 16)
    assert [key for key, decision, _ in lab.measured if decision is not None] == ["b"] * 16 + ["b"]
    outcome, _ = run(tmp_path, tasks, FakeLab())
    by_key = {state.task.key: state for state in outcome.states}
    assert by_key["c"].trials == 1
    assert by_key["c"].finished == "at the limit"


def test_trials_are_as_many_as_asked_for_earlier_ones_included(tmp_path: Path) -> None:
    tasks = [task("a"), task("b")]
    first, _ = run(tmp_path, tasks, FakeLab(), trials=10)
    assert (first.new_trials, sum(state.trials for state in first.states)) == (10, 10)
    second, _ = run(tmp_path, tasks, FakeLab(), trials=15)
    assert (second.new_trials, sum(state.trials for state in second.states)) == (5, 15)
    third, _ = run(tmp_path, tasks, FakeLab(), trials=15)
    assert third.new_trials == 0
    assert third.stopped == "15 trials are done"


def test_a_session_that_is_cut_off_goes_on(tmp_path: Path) -> None:
    tasks = [task("a"), task("b")]
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path, tasks, FakeLab(stop_after=12, stop=RuntimeError("power")), trials=30)
    lab = FakeLab()
    outcome, events = run(tmp_path, tasks, lab, trials=30)
    assert events[0]["trials"] == 12
    assert outcome.new_trials == 18
    assert sum(state.trials for state in outcome.states) == 30


def test_an_interruption_ends_it_and_keeps_what_was_measured(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, [task("a")], FakeLab(stop_after=9))
    assert outcome.was_interrupted
    assert outcome.states[0].trials == 9
    assert len(Database(tmp_path).records(SCOPE).trials("a", {})) == 9


def test_failures_are_kept_and_not_tried_again(tmp_path: Path) -> None:
    def cost(plan: Any) -> float | str:
        return "crashed with SIGSEGV" if plan is not None and plan["tail"] == "memory" else seconds(plan)

    outcome, events = run(tmp_path, [task("a")], FakeLab(cost))
    (state,) = outcome.states
    assert state.failures > 0
    assert state.best is not None
    assert {event["trial"]["error"] for event in events if event["event"] == "trial"} == {None, "crashed with SIGSEGV"}
    lab = FakeLab(cost)
    run(tmp_path, [task("a")], lab)
    assert lab.measured == []


def test_a_kernel_whose_default_fails_is_left(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, [task("a"), task("b")], FakeLab(lambda plan: "no memory" if plan is None else 1e-6))
    assert [state.finished for state in outcome.states] == ["the default schedule fails: no memory"] * 2
    assert outcome.best_seconds == 0
    again, _ = run(tmp_path, [task("a")], FakeLab())
    assert again.states[0].best is not None


def test_time_ends_a_session(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, [task("a"), task("b")], FakeLab(), time_budget=20.0, meter=Clock(step=0.5))
    assert outcome.stopped == "the time is up"
    assert 0 < outcome.new_trials < 48


@pytest.mark.parametrize(("runs", "pays"), [(1, False), (10**12, True)])
def test_a_session_stops_when_it_does_not_pay_any_more(tmp_path: Path, runs: int, pays: bool) -> None:
    outcome, _ = run(tmp_path, [task("a"), task("b")], FakeLab(), runs=runs)
    assert ("don't pay" in outcome.stopped) == (not pays)


def test_a_kernel_begins_with_what_was_best_for_a_similar_one(tmp_path: Path) -> None:
    run(tmp_path, [task("a")], FakeLab())
    lab = FakeLab()
    run(tmp_path, [task("b")], lab, trials=2)
    assert lab.measured[1][1] == Decision(RULE, {"rows": 4, "vectors": 3, "tail": "registers"})


def test_kernels_that_the_database_answers_are_skipped(tmp_path: Path) -> None:
    shared, other = task("a"), task("b")
    first, _ = run(tmp_path, [shared], FakeLab())
    lab = FakeLab()
    second, _ = run(tmp_path, [shared, other], lab)
    assert {key for key, _, _ in lab.measured} == {"b"}
    assert second.new_trials == first.new_trials


def test_break_even() -> None:
    assert Payback(100.0, 0.02, "estimate").runs == 5000
    assert Payback(100.0, 0.0, "estimate").runs is None
    assert Payback(None, 1.0, "rapl").runs is None


def test_one_batch_without_luck_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Of eight kernels the one that is tried first can't be improved."""
    tasks = [task("stubborn", launches=50), *(task(name) for name in "abcdefg")]

    class Stubborn(FakeLab):
        def measure(self, task: Task, decisions: Any, thorough: bool = False) -> Any:
            self._cost = (lambda plan: 32e-6) if task.key == "stubborn" else seconds
            return super().measure(task, decisions, thorough)

    outcome, _ = run(tmp_path, tasks, Stubborn(), runs=10**15)
    assert all(state.best is not None for state in outcome.states if state.task.key != "stubborn")


def test_a_lost_default_is_measured_again(tmp_path: Path) -> None:
    run(tmp_path, [task("a")], FakeLab(), trials=6)
    (file,) = tmp_path.iterdir()
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"plan":null' not in line))
    outcome, _ = run(tmp_path, [task("a")], FakeLab())
    assert outcome.states[0].default is not None
    assert outcome.states[0].best is not None


def test_only_thorough_measurements_are_answers(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path, [task("a")], FakeLab(stop_after=20, stop=RuntimeError("power")))
    assert Database(tmp_path).records(SCOPE).best("a", {}) is None
    outcome, _ = run(tmp_path, [task("a")], FakeLab(), trials=20)
    best = Database(tmp_path).records(SCOPE).best("a", {})
    assert best is not None
    assert outcome.states[0].best == best


def test_an_error_ends_a_session_with_its_report(tmp_path: Path) -> None:
    outcome, events = run(tmp_path, [task("a")], FakeLab(stop_after=9, stop=DeviceLost("no device is left")))
    assert str(outcome.error) == "no device is left"
    assert outcome.states[0].trials == 9
    assert events[-1]["event"] == "end"


def test_what_earlier_sessions_found_is_not_this_one_s_gain(tmp_path: Path) -> None:
    first, _ = run(tmp_path, [task("a")], FakeLab())
    assert first.payback.saved is not None
    assert first.payback.saved == pytest.approx((seconds(None) - 20e-6) * 10)
    again, _ = run(tmp_path, [task("a")], FakeLab())
    assert again.payback.saved == 0
    assert again.payback.runs is None
