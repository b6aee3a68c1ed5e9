"""Runs the ONNX node suite (1,884 cases) through greencc and prints what passes, by operator.

Usage: python -m benchmarks.node_suite [--target T] [--sample N] [--filter TEXT] [--json FILE] [--jobs N] [--no-peer]

Every case runs in a worker process, so that neither a crash nor a hang takes the others along. Classes:
  pass      outputs agree with the suite's: dtype, shape, integers exactly, floats within tolerance
  refused   the importer names the reason; nothing is compiled
  wrong     compiled and ran, but the outputs differ
  crash     an error after the import, or a dead worker
  timeout   no result within the limit
A case that passes only once its shape, axis and count inputs are made constants is marked `bound`;
`folded` when no run-time input is left then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.node_cases import Case, cache_folder, load_cases

CLASSES = ("pass", "refused", "wrong", "crash", "timeout")
TIMEOUT_S = 60.0


@dataclass
class Outcome:
    """What became of one case. `bound` lists inputs that were made constants; `folded`: no input was left."""

    name: str
    status: str
    reason: str = ""
    bound: list[str] = field(default_factory=list)
    folded: bool = False
    seconds: float = 0.0


def sample(cases: Sequence[Case], count: int) -> list[Case]:
    """`count` cases chosen by the hash of their names: stable, and spread over the operators."""
    ranked = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).hexdigest())
    return sorted(ranked[:count], key=lambda case: case.name)


def run_cases(cases: Iterable[Case], *, engine: str = "greencc", target: str = "cpu", jobs: int = 2) -> list[Outcome]:
    """Run cases in `jobs` worker processes; outcomes in the order of the names."""
    todo: queue.Queue[Case] = queue.Queue()
    total = 0
    for case in cases:
        todo.put(case)
        total += 1
    done: list[Outcome] = []

    def drive() -> None:
        worker: _Worker | None = None
        while True:
            try:
                case = todo.get_nowait()
            except queue.Empty:
                break
            worker = worker or _Worker(engine, target)
            outcome = worker.run(case.name)
            if not worker.alive:
                worker.close()
                worker = None
            done.append(outcome)
            if len(done) % 100 == 0:
                print(f"{engine}: {len(done)}/{total}", file=sys.stderr)
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=drive) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(done, key=lambda outcome: outcome.name)


class _Worker:
    """A child process that runs cases one by one: names in, JSON lines out."""

    def __init__(self, engine: str, target: str) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        command = [sys.executable, str(Path(__file__).with_name("node_worker.py")), engine, target]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "TVM_NUM_THREADS": "1"},
        )
        self.alive = True

    def run(self, name: str) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.perf_counter()
        timer = threading.Timer(TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        seconds = round(time.perf_counter() - started, 3)
        if not line:
            self.alive = False
            status = "timeout" if seconds >= TIMEOUT_S else "crash"
            return Outcome(name, status, self._last_words(), seconds=seconds)
        return Outcome(seconds=seconds, **json.loads(line))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return f"worker died with status {code}: {lines[-1] if lines else ''}"[:300]


def peer_passes(jobs: int) -> dict[str, bool]:
    """Which cases ONNX Runtime passes, by name; run once per version and cached."""
    import onnxruntime

    file = cache_folder() / f"onnxruntime-{onnxruntime.__version__}.json"
    if not file.exists():
        outcomes = run_cases(load_cases(), engine="onnxruntime", jobs=jobs)
        file.write_text(json.dumps({outcome.name: outcome.status for outcome in outcomes}, indent=0))
    return {name: status == "pass" for name, status in json.loads(file.read_text()).items()}


def table(cases: Sequence[Case], outcomes: Sequence[Outcome], peer: dict[str, bool]) -> str:
    """The measured table: one line per operator, then totals and the commonest refusals."""
    ops = {case.name: case.op for case in cases}
    rows: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        row = rows.setdefault(ops[outcome.name], Counter())
        row["cases"] += 1
        row[outcome.status] += 1
        row["bound"] += outcome.status == "pass" and bool(outcome.bound)
        row["folded"] += outcome.status == "pass" and outcome.folded
        row["peer"] += peer.get(outcome.name, False)
    columns = ("cases", *CLASSES, "bound", "folded", "peer")
    titles = [name if name != "peer" else "onnxruntime" for name in columns]
    lines = [f"{'operator':<34}" + "".join(f"{title:>12}" for title in titles)]
    for op in sorted(rows):
        lines.append(f"{op:<34}" + "".join(f"{rows[op][column] or '.':>12}" for column in columns))
    total: Counter[str] = sum(rows.values(), Counter())
    lines.append(f"{'total':<34}" + "".join(f"{total[column] or '.':>12}" for column in columns))
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.status == "refused")
    lines += ["", "commonest refusals:"]
    lines += [f"{count:>6}  {reason}" for reason, count in reasons.most_common(25)]
    bad = [outcome for outcome in outcomes if outcome.status not in ("pass", "refused")]
    if bad:
        lines += ["", "neither pass nor refused:"]
        lines += [f"  {outcome.status:<8} {outcome.name}: {outcome.reason}" for outcome in bad]
    return "\n".join(lines)


def beside_cpu(cases: Sequence[Case], outcomes: Sequence[Outcome], target: str, jobs: int) -> str:
    """Those that pass on the CPU and not on `target`, with reasons."""
    missed = {outcome.name: outcome for outcome in outcomes if outcome.status != "pass"}
    on_cpu = run_cases([case for case in cases if case.name in missed], jobs=jobs)
    lost = [missed[outcome.name] for outcome in on_cpu if outcome.status == "pass"]
    lines = ["", f"{len(lost)} pass on the CPU and not on {target}:"]
    return "\n".join([*lines, *(f"  {outcome.status:<8} {outcome.name}: {outcome.reason}" for outcome in lost)])


def main() -> int:
    """Run the suite; exit status 1 when a case is wrong, crashes or hangs."""
    parser = argparse.ArgumentParser(description="ONNX node suite through greencc")
    parser.add_argument("--target", default="cpu", help="cpu, vulkan, vulkan:1, ...")
    parser.add_argument("--sample", type=int, help="only N cases, chosen by hash")
    parser.add_argument("--filter", help="only cases whose name or operator contains one of these (comma-separated)")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--no-peer", action="store_true", help="leave ONNX Runtime out")
    options = parser.parse_args()
    cases = load_cases()
    if options.filter:
        parts = options.filter.split(",")
        cases = [case for case in cases if any(part in case.name or part == case.op for part in parts)]
    if options.sample:
        cases = sample(cases, options.sample)
    outcomes = run_cases(cases, target=options.target, jobs=options.jobs)
    peer = {} if options.no_peer else peer_passes(options.jobs)
    print(table(cases, outcomes, peer))
    if options.target != "cpu":
        print(beside_cpu(cases, outcomes, options.target, options.jobs))
    if options.json:
        record = {
            "cases": len(cases),
            "totals": Counter(outcome.status for outcome in outcomes),
            "onnxruntime_pass": sum(peer.get(case.name, False) for case in cases),
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        options.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return int(any(outcome.status not in ("pass", "refused") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
