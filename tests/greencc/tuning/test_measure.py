from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from tvm.script import tirx as T

from greencc.runtime.devices import Device
from greencc.targets.base import Scheduled
from greencc.targets.tuning.alone import Kernel, build_alone
from greencc.tuning.measure import QUICK, THOROUGH, Effort, Loaded, WrongResult, check_outputs, compare
from greencc.tuning.program import Contents, Operand, Program
from tests.greencc.tuning import small_programs

NAN, INF = float("nan"), float("inf")


def outputs(*values: float, dtype: str = "float32") -> list[np.ndarray]:
    return [np.array(values, dtype)]


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (outputs(1, 1000.09), outputs(1, 1000)),
        (outputs(NAN, INF, -INF, 0), outputs(NAN, INF, -INF, 0)),
        (outputs(), outputs()),
        (outputs(3, 4, dtype="int8"), outputs(3, 4, dtype="int8")),
        (outputs(1.005, dtype="float16"), outputs(1, dtype="float16")),
    ],
)
def test_rounding_is_no_error(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    check_outputs(got, wanted)


@pytest.mark.parametrize(
    ("got", "wanted", "reason"),
    [
        (outputs(1, 1000.2), outputs(1, 1000), r"output 0 is off by 0.2, its largest value is 1e\+03"),
        (outputs(0, NAN), outputs(0, 1), "output 0 is off by nan"),
        (outputs(INF), outputs(-INF), "output 0 is off by inf"),
        (outputs(1), outputs(0), "output 0 is off by 1, its largest value is 0"),
        (outputs(3, 5, dtype="int8"), outputs(3, 4, dtype="int8"), "1 elements of output 0 differ"),
        (outputs(1), outputs(1, 2), r"output 0 is float32\[1\] instead of float32\[2\]"),
        (outputs(1), outputs(1, dtype="float64"), r"float32\[1\] instead of float64\[1\]"),
        ([], outputs(1), "0 outputs instead of 1"),
    ],
)
def test_anything_else_is(got: list[np.ndarray], wanted: list[np.ndarray], reason: str) -> None:
    with pytest.raises(WrongResult, match=rf"^wrong result \(.*{reason}"):
        check_outputs(got, wanted)


@dataclass
class Clock:
    """Stands for a loaded program of which every run takes so long; `slow` runs take ten times that."""

    each: float
    copies: int = 1
    slow: tuple[int, ...] = ()
    runs: int = 0
    results: list[list[np.ndarray]] = field(default_factory=lambda: [outputs(1)])

    @property
    def contents(self) -> SimpleNamespace:
        return SimpleNamespace(copies=self.copies, sizes=len(self.results), operands=())

    def seconds(self, size: int) -> float:
        self.runs += 1
        return self.each * (10 if self.runs - 1 in self.slow else 1)


def test_times_are_those_of_one_launch() -> None:
    found = compare(Clock(4e-4, copies=4), Clock(2e-4, copies=2), QUICK)  # type: ignore[arg-type]
    assert found.seconds == pytest.approx((1e-4,))
    assert found.reference == pytest.approx((1e-4,))
    assert found.spread == pytest.approx((0.0,), abs=1e-9)


def test_a_clearly_slower_one_gets_two_turns() -> None:
    slow, reference = Clock(0.04), Clock(0.02)
    compare(slow, reference, QUICK)  # type: ignore[arg-type]
    assert (slow.runs, reference.runs) == (3, 3)
    slow, reference = Clock(0.04), Clock(0.02)
    compare(slow, reference, THOROUGH)  # type: ignore[arg-type]
    assert slow.runs == reference.runs == 1 + THOROUGH.most


def test_one_disturbed_turn_condemns_nobody() -> None:
    candidate = Clock(0.01, slow=(1,))
    found = compare(candidate, Clock(0.01), QUICK)  # type: ignore[arg-type]
    assert candidate.runs == 1 + QUICK.most
    assert found.seconds == pytest.approx((0.01,))


def test_runs_that_wait_for_others_do_not_count() -> None:
    # In blocks of six runs, after one that is left out, four are slow.
    candidate = Clock(5e-4, slow=tuple(i for i in range(99) if i % 3))
    assert compare(candidate, Clock(5e-4), QUICK).seconds == pytest.approx((5e-4,))  # type: ignore[arg-type]


def test_time_ends_turns_after_the_least() -> None:
    candidate = Clock(1.0)
    compare(candidate, Clock(1.0), Effort(least=4, most=9, seconds=0.0, block=0.1, gives_up=False))  # type: ignore[arg-type]
    assert candidate.runs == 1 + 4


def test_sizes_are_checked_and_timed_one_by_one() -> None:
    two = [outputs(1), outputs(1, 2)]
    found = compare(Clock(1e-3, results=two), Clock(1e-3, results=two), QUICK)  # type: ignore[arg-type]
    assert len(found.seconds) == len(found.spread) == len(found.reference) == 2
    with pytest.raises(WrongResult):
        compare(Clock(1e-3, results=two), Clock(1e-3, results=[outputs(1), outputs(1, 3)]), QUICK)  # type: ignore[arg-type]


@T.prim_func(s_tir=True)
def _rows(x: T.handle, w: T.Buffer((8,), "float32"), i: T.handle, y: T.handle):
    n = T.int64()
    x_ = T.match_buffer(x, (n, 8), "float32")
    i_ = T.match_buffer(i, (n,), "int64")
    y_ = T.match_buffer(y, (n, 8), "float32")
    for a in range(n):
        for b in range(8):
            y_[a, b] = x_[i_[a], b] + w[b]


def test_a_program_runs_at_all_its_sizes_with_the_same_operands_for_all() -> None:
    weight = np.arange(8, dtype=np.float32)
    kernel = Kernel(_rows, frozenset({1}), 1)
    alone = build_alone(kernel, Scheduled(_rows, "test"), small_programs.target(), {1: weight}, 3)
    operands = (Operand("float32", ((5, 8), (2, 8))), Operand("int64", ((5,), (2,))))
    contents = Contents(alone.code.library, alone.weights, alone.copies, operands, 2)
    loaded = Loaded(Program.pack(contents), Device())
    for size, rows in enumerate((5, 2)):
        x = contents.inputs(size)[0]
        np.testing.assert_array_equal(loaded.results[size][0], np.repeat(x[:1] + weight, rows, axis=0))
    found = compare(loaded, loaded, QUICK)
    assert all(0 < seconds < 1 for seconds in (*found.seconds, *found.reference))


def test_other_operands_are_a_fault_of_the_caller() -> None:
    one, other = Clock(1.0), Clock(1.0, results=[outputs(1), outputs(1)])
    with pytest.raises(ValueError, match="different operands"):
        compare(one, other, QUICK)  # type: ignore[arg-type]
