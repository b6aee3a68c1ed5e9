"""Sessions that are killed: run as a program, it prints what each had reported, and what the database then holds.

    python killed_sessions.py FOLDER KILLS TRIALS SEED

Each session is a child of this process, so that what takes seconds to import is imported once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fake_lab import FakeLab, seconds, task

from greencc.tuning.database import Database
from greencc.tuning.records import Scope
from greencc.tuning.session import Budget, Session

SCOPE = Scope({"kind": "cpu", "mcpu": "tested", "threads": 2}, "0.27.0", "0.1.0")
TASKS = [task(name, launches) for name, launches in (("a", 3), ("b", 2), ("c", 1))]


def session(folder: Path, trials: int, report: int) -> None:
    """One session, which writes a line to the descriptor `report` for each trial that it is told of."""

    def slow(plan: Any) -> float:
        time.sleep(0.002)
        return seconds(plan)

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "trial":
            known = [event["task"]["workload"], event["trial"]["rule"], event["trial"]["plan"]]
            os.write(report, (json.dumps(known, sort_keys=True) + "\n").encode())

    database = Database(folder)
    with database.writer(SCOPE) as writer:
        records = database.records(SCOPE)
        Session(TASKS, FakeLab(slow), records, writer, budget=Budget(trials), threads=2, listen=listen).run()


def main(folder: Path, kills: int, trials: int, seed: int) -> None:
    """Kill so many sessions at random moments, then let one end by itself."""
    chance = random.Random(seed)
    reported: list[str] = []
    killed = 0
    for _ in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            session(folder, trials, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as lines:
            # From before the first record on, and at any moment of what comes then.
            heard = [lines.readline() for _ in range(chance.randrange(5))]
            time.sleep(chance.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed += os.WIFSIGNALED(status)
            reported += [line.strip() for line in (*heard, *lines) if line.endswith("]\n")]
    session(folder, trials, os.open(os.devnull, os.O_WRONLY))
    records = Database(folder).records(SCOPE)
    held = [
        json.dumps([trial.workload, trial.rule, trial.plan], sort_keys=True)
        for each in TASKS
        for trial in records.trials(each.key, {})
    ]
    print(json.dumps({"killed": killed, "reported": reported, "held": held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
