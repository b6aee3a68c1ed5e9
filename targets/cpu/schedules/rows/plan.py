"""What can be chosen for passes over rows."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.targets.cpu.schedules.rows.form import Rows
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.space import Knob, Plan, Space

# Bytes that the first cache has at least: a row that is kept in one of its own has to share it.
FIRST_CACHE = 1 << 15
# Elements that are passed over, below which a search begins without threads.
LEAST_SHARED = 1 << 15


@dataclass(frozen=True)
class Passing:
    """How rows are gone through.

    Attributes:
        lanes: elements of a vector.
        chains: vectors side by side.
        chunk: rows that a task goes through one after the other.
        kept: where what later passes read is: in a row of its `own`, or the `output`'s.
    """

    lanes: int
    chains: int
    chunk: int
    kept: str

    @staticmethod
    def of(plan: Plan) -> Passing:
        """What a plan of `passing_space` stands for."""
        return Passing(int(plan["lanes"]), int(plan["chains"]), int(plan["chunk"]), str(plan["kept"]))


def passing_space(target: CpuTarget, form: Rows, keepable: bool) -> Space:
    """The ways through rows; `keepable` says whether the output's row can hold what later passes read."""
    rows, width = as_int(volume(list(form.extents))), max(as_int(volume(list(s.extents))) or 0 for s in form.stages)
    lanes = target.lanes()
    # The largest makes one task of all: it runs on the calling thread.
    chunks = {*(chunk for chunk in (1, 2, 4, 8, 16, 32) if chunk < (rows or 64)), *([] if rows is None else [rows])}
    knobs = (
        Knob("lanes", (lanes // 2, lanes)),
        Knob("chains", (1, 2, 4, 8)),
        Knob("chunk", tuple(sorted(chunks))),
        Knob("kept", ("own", "output") if keepable else ("own",)),
    )

    def features(plan: Plan) -> dict[str, float]:
        passing = Passing.of(plan)
        tasks = -(-(rows or 64) // passing.chunk)
        return {
            "vectors": width // passing.lanes,
            "rest": width % (passing.lanes * passing.chains),
            "tasks": tasks,
            "task_elements": passing.chunk * width,
            "idle": -(-tasks // target.threads) * target.threads / tasks,
            "row_share": width * 4 / FIRST_CACHE,
        }

    passes = len(form.passes())
    small = rows is not None and rows * width * passes < LEAST_SHARED
    start: Plan = {
        "lanes": lanes,
        "chains": 4,
        "chunk": max(chunks) if small else min(chunks),
        "kept": "output" if keepable else "own",
    }
    traits = {"rows": rows or 0, "width": width, "passes": passes, "stages": len(form.stages)}
    return Space(knobs, start, traits, features=features)
