"""Shows that the tests hold every numbered legality condition of every pass.

For each pass and each of its conditions, the pass's own test file runs with that one condition taken away,
and at least one of its tests must fail. The file must pass as it is, or its failures would prove nothing.

Each run is a process forked from this one, in which TVM is already imported.

Usage: python tests/disable_conditions.py [PASS...]
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300


@dataclass(frozen=True)
class Outcome:
    """What one run showed: the tests that failed (None: it did not end) and how many passed."""

    failed: tuple[str, ...] | None
    passed: int
    detail: str = ""


class _Recorder:
    """A pytest plugin that notes which tests failed in their own body, not in a fixture or at import."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.failed:
            self.failed.append(report.nodeid.partition("::")[2])
        elif report.failed:
            self.broken.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(report.nodeid)


@dataclass(frozen=True)
class Job:
    """One run: `condition` is what GREENCC_TEST_DISABLE gets, or None for the file as it is."""

    pass_name: str
    number: int | None
    reason: str = ""

    @property
    def test_file(self) -> Path:
        return ROOT / "tests/passes" / f"test_{self.pass_name.replace('-', '_')}.py"


def jobs_for(names: list[str]) -> list[Job]:
    """Every pass's file as it is, then once for each condition."""
    from greencc.passes.registry import PASSES

    unknown = set(names) - set(PASSES)
    if unknown:
        raise SystemExit(f"unknown pass: {', '.join(sorted(unknown))}; known: {', '.join(PASSES)}")
    jobs = []
    for name in names or PASSES:
        conditions = getattr(PASSES[name], "conditions", ())
        jobs.append(Job(name, None))
        jobs.extend(Job(name, condition.number, condition.reason) for condition in conditions)
    return jobs


def run_all(jobs: list[Job], processes: int) -> dict[Job, Outcome]:
    """Run every job in a forked process, `processes` at a time."""
    waiting, running, outcomes = list(jobs), {}, {}
    while waiting or running:
        while waiting and len(running) < processes:
            job = waiting.pop(0)
            if not job.test_file.is_file():
                outcomes[job] = Outcome(None, 0, f"no {job.test_file.relative_to(ROOT)}")
                continue
            pid, channel = _start(job)
            running[channel] = (job, pid, time.monotonic())
        for channel in select.select(list(running), [], [], 1.0)[0]:
            job, pid, _ = running.pop(channel)
            outcomes[job] = _finish(channel, pid)
        for channel, (job, pid, started) in list(running.items()):
            if time.monotonic() - started > TIMEOUT_S:
                os.kill(pid, signal.SIGKILL)
                del running[channel]
                _finish(channel, pid)
                outcomes[job] = Outcome(None, 0, f"no end after {TIMEOUT_S} s")
    return outcomes


def _start(job: Job) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    recorder = _Recorder()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(job.test_file)]
    if job.number is not None:
        os.environ["GREENCC_TEST_DISABLE"] = f"{job.pass_name}:{job.number}"
        options.append("-x")
    log = io.StringIO()
    status = 3
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = int(pytest.main(options, plugins=[recorder]))
    finally:
        detail = "; ".join(recorder.broken) if status in (0, 1) else (log.getvalue().strip().splitlines() or [""])[-1]
        text = json.dumps({"failed": recorder.failed, "passed": recorder.passed, "detail": detail})
        os.write(writer, text.encode()[:60_000])
        os._exit(0)


def _finish(channel: int, pid: int) -> Outcome:
    chunks = []
    while chunk := os.read(channel, 65536):
        chunks.append(chunk)
    os.close(channel)
    os.waitpid(pid, 0)
    if not chunks:
        return Outcome(None, 0, "the process died")
    fields = json.loads(b"".join(chunks))
    return Outcome(tuple(fields["failed"]), fields["passed"], fields["detail"])


def verdict(job: Job, outcome: Outcome) -> tuple[bool, str]:
    """(whether the run shows what it must, what it showed)."""
    if outcome.failed is None or outcome.detail:
        return False, outcome.detail
    if job.number is None:
        good = not outcome.failed and outcome.passed > 0
        return (
            good,
            f"{outcome.passed} passed" if good else f"fails as it is: {', '.join(outcome.failed) or 'no tests'}",
        )
    return bool(outcome.failed), ", ".join(outcome.failed) or "no test noticed"


def main(names: list[str]) -> int:
    """Print a table of every condition and the test that fails without it; 1 when some has none."""
    sys.path.insert(0, str(ROOT))
    import tvm  # noqa: F401  imported once, here, for all the forks

    jobs = jobs_for(names)
    if not jobs:
        print("the registry holds no passes", file=sys.stderr)
        return 1
    outcomes = run_all(jobs, processes=os.cpu_count() or 1)
    print("| pass | condition | test that fails without it | |")
    print("|---|---|---|---|")
    uncovered = 0
    for job in jobs:
        good, text = verdict(job, outcomes[job])
        uncovered += not good
        what = "all conditions" if job.number is None else f"({job.number}) {job.reason}"
        print(f"| {job.pass_name} | {what} | {text} | {'ok' if good else 'NOT COVERED'} |")
    conditions = sum(job.number is not None for job in jobs)
    print(f"\n{conditions} conditions of {len(jobs) - conditions} passes, {uncovered} lines not covered")
    return 1 if uncovered else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
