"""A laboratory without machines: kernels' times by formula, so that sessions can be tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.tir import i64
from greencc.targets.tuning.alone import Kernel
from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.space import Knob, Plan, Space
from greencc.tuning.records import Failed, Measured
from greencc.tuning.tasks import Task

RULE = "tested-rule"
DEFAULT = {"rows": 8, "vectors": 2, "tail": "registers"}


def space(size: int = 128) -> Space:
    """24 plans that go together, of 30; the default is in the middle."""
    knobs = (Knob("rows", (1, 2, 4, 8, 12)), Knob("vectors", (1, 2, 3)), Knob("tail", ("registers", "memory")))
    return Space(knobs, DEFAULT, {"size": size}, _too_large)


def _too_large(plan: Plan) -> str | None:
    return "too large" if int(plan["rows"]) * int(plan["vectors"]) > 16 else None


def task(key: str, launches: int = 1, limit: float | None = 10e-6, spaces: Mapping[str, Space] | None = None) -> Task:
    """A task whose kernel does nothing in particular."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        out = T.arg("out", T.buffer((4,), "float32"))
        with T.serial(i64(0), i64(4)) as i:
            T.buffer_store(out, tirx.const(0.0, "float32"), [i])
    kernel = Kernel(ib.get(), frozenset(), 1)
    limits = None if limit is None else (limit,)
    return Task(key, {}, kernel, f"kernel_{key}", (f"/{key}",), launches, spaces or {RULE: space()}, limits)


def seconds(plan: Plan | None) -> float:
    """What a plan takes: 20 us at best, the default 32 us."""
    chosen = DEFAULT if plan is None else plan
    slow = abs(int(chosen["rows"]) - 4) + 4 * abs(int(chosen["vectors"]) - 3) + (4 if chosen["tail"] == "memory" else 0)
    return (20 + 1.5 * slow) * 1e-6


class FakeLab:
    """Measures by a formula.

    Args:
        cost: seconds of a plan, None being the default; a text is why it fails.
        stop_after: raises `stop` instead of the measurement of that number.
    """

    def __init__(
        self,
        cost: Callable[[Plan | None], float | str] = seconds,
        stop_after: int | None = None,
        stop: BaseException | None = None,
    ) -> None:
        self.measured: list[tuple[str, Decision | None, bool]] = []
        self._cost, self._stop_after, self._stop = cost, stop_after, stop or KeyboardInterrupt()

    def measure(
        self, task: Task, decisions: Sequence[Decision | None], thorough: bool = False
    ) -> Iterator[tuple[Decision | None, Measured | Failed, str]]:
        """See Lab."""
        for decision in decisions:
            if len(self.measured) == self._stop_after:
                raise self._stop
            self.measured.append((task.key, decision, thorough))
            cost = self._cost(None if decision is None else decision.plan)
            reference = self._cost(None)
            if isinstance(cost, str) or isinstance(reference, str):
                yield decision, Failed(str(cost)), "tested"
            else:
                yield decision, Measured((cost,), (0.01,), (reference,)), "tested"
