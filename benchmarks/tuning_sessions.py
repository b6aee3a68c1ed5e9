"""What tuning sessions survive and what they share, with real kernels.

Usage: python -m benchmarks.tuning_sessions killed [--kills 20] [--trials 450] [--seed 0]
       python -m benchmarks.tuning_sessions shared

`killed`: sessions of one model are killed at random moments, the last one ends by itself; nothing that they reported
may be missing, nothing damaged, and no process left. `shared`: a model that has half its kernels from another one is
tuned after that one, and from scratch. Exits with 1 where that isn't as it should be.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from benchmarks import bert_onnx
from benchmarks.perceptrons import perceptron
from greencc import api
from greencc.tuning.files import load
from greencc.tuning.records import Trial

ENCODER = bert_onnx.BertSize(layers=2, hidden=312, heads=12, feed_forward=1200)
TOKENS = 37
MOMENTS = 12.0
"""Seconds after its first event within which a session is killed; in the first third it tries no plan."""
PATIENCE = 20.0
"""Seconds that the processes of a killed session have to end."""
SHARED_WIDTHS = (96, 200, 136, 264, 104, 168, 232)
OWN_WIDTHS = ((312, 88, 216, 120, 280, 152), (184, 296, 112, 248, 80, 328))
ROWS = 37
HALF, TOLERANCE = 0.5, 0.1

Plan: TypeAlias = str
"""A kernel, a rule and a plan, as text."""


def killed(kills: int, trials: int, seed: int) -> bool:
    """Kill sessions at random moments, let one end, and print what is on record."""
    model = bert_onnx.random_onnx(ENCODER)
    chance = random.Random(seed)
    reported: set[Plan] = set()
    left, busy = 0, 0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        command = [sys.executable, "-m", "greencc", "tune", str(model), "--db", str(folder), "--json"]
        command += ["--trials", str(trials), *(f"--shape={name}=1,{TOKENS}" for name in bert_onnx.INPUTS)]
        for number in range(1, kills + 1):
            told, remaining = _kill_within(command, chance.uniform(0.0, MOMENTS))
            reported |= told
            busy += bool(told)
            left += remaining
            print(f"kill {number:2}: it had reported {len(told):3} plans, on record are {len(_held(folder)):3}, "
                  f"damaged {_damaged(folder)}, processes left {remaining}", flush=True)  # fmt: skip
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        events = [json.loads(line) for line in ended.stdout.splitlines()]
        reported.update(_told(events))
        held, damaged, total = _held(folder), _damaged(folder), events[-1]["trials"]
    lost = reported - held
    print(f"{kills} sessions killed, {busy} after they had told of plans; of {len(reported)} plans {len(lost)} lost, "
          f"{damaged} damaged; {total} plans of {trials} at the end; processes left: {left}")  # fmt: skip
    return not lost and not damaged and not left and total == trials == len(held)


def _kill_within(command: Sequence[str], seconds: float) -> tuple[set[Plan], int]:
    """Kill a session so long after it has begun: the plans that it had reported, and how many processes it left."""
    lines: list[str] = []
    begun = threading.Event()

    def listen(stream: Iterable[str]) -> None:
        for line in stream:
            lines.append(line)
            begun.set()
        begun.set()

    session = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert session.stdout is not None
    listener = threading.Thread(target=listen, args=[session.stdout])
    listener.start()
    begun.wait()
    time.sleep(seconds)
    if session.poll() is not None:
        raise SystemExit(f"{' '.join(command)}: ended by itself, with exit code {session.returncode}")
    children = psutil.Process(session.pid).children(recursive=True)
    session.kill()
    session.wait()
    listener.join()
    _, remaining = psutil.wait_procs(children, timeout=PATIENCE)
    # A line that was cut off was not reported.
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return set(_told(whole)), len(remaining)


def _told(events: Iterable[dict[str, Any]]) -> Iterator[Plan]:
    for event in events:
        if event["event"] == "trial":
            yield _plan(event["task"]["workload"], event["trial"]["rule"], event["trial"]["plan"])


def _held(folder: Path) -> set[Plan]:
    records = (line for scope in load([folder]).scopes for line in scope.lines.values())
    return {_plan(line.workload, line.rule, line.plan) for line in records if isinstance(line, Trial)}


def _damaged(folder: Path) -> int:
    return sum(api.db_ls([folder])["damaged"].values()) if any(folder.iterdir()) else 0


def _plan(workload: str, rule: str, plan: Any) -> Plan:
    return json.dumps([workload, rule, plan], sort_keys=True)


def shared() -> bool:
    """Tune two models of which each has half its kernels from the other, and the second one from scratch."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        first, second = (
            perceptron(folder / f"{i}.onnx", [*SHARED_WIDTHS, *own], ROWS) for i, own in enumerate(OWN_WIDTHS)
        )
        both = folder / "both"
        sessions = {
            "the first model": api.tune(first, both),
            "the second after it": api.tune(second, both),
            "the second from scratch": api.tune(second, folder / "scratch"),
        }
    for name, result in sessions.items():
        print(f"{name:24} {result['new_trials']:4} trials for {len(result['tasks'])} kernels in "
              f"{result['seconds']:4.0f} s; kernels take {result['model_ms'] / result['default_ms']:.3f} of their time "
              f"({result['stopped']})")  # fmt: skip
    after, scratch = (sessions[name] for name in ("the second after it", "the second from scratch"))
    share = after["new_trials"] / scratch["new_trials"]
    speed = after["model_ms"] / after["default_ms"] / (scratch["model_ms"] / scratch["default_ms"])
    print(f"the second model took {share:.2f} of the trials, and its kernels take {speed:.3f} of the time")
    return share <= HALF + TOLERANCE and speed <= 1 + TOLERANCE


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("killed")
    command.add_argument("--kills", type=int, default=20)
    command.add_argument("--trials", type=int, default=450)
    command.add_argument("--seed", type=int, default=0)
    commands.add_parser("shared")
    arguments = parser.parse_args()
    if arguments.what == "killed":
        return 0 if killed(arguments.kills, arguments.trials, arguments.seed) else 1
    return 0 if shared() else 1


if __name__ == "__main__":
    sys.exit(main())
