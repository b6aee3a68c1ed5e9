"""What records mean: which plan is the answer, which kernels are alike, how scopes differ."""

from __future__ import annotations

import drawn_records
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import CPU, SCOPE, TIMES, measured, note, trial

from greencc.targets.registry import make_target
from greencc.tuning.database import Records
from greencc.tuning.lines import Line, header_line, line_of, parse_header, parse_line
from greencc.tuning.records import Failed, Measured, Scope, Trial, WorkloadNote, now

KEY = trial(0).workload


def records(*items: Line) -> Records:
    return Records({line_of(item): item for item in items})


def best_rows(found: Trial | None) -> object:
    return None if found is None else found.plan and found.plan["rows"]


# What a line holds


@given(drawn_records.trials())
def test_a_trial_is_read_back_as_it_was_written(item: Trial) -> None:
    assert parse_line(line_of(item)) == item


@given(
    st.builds(
        WorkloadNote,
        st.text(),
        st.text(),
        st.integers(0, 1000),
        st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        st.none() | st.floats(0, 1e12),
    )
)
def test_a_note_is_read_back_as_it_was_written(item: WorkloadNote) -> None:
    line = line_of(item)
    assert parse_line(line) == item
    assert line.isascii()
    assert line.count(b"\n") == 1


@pytest.mark.parametrize("target", ["cpu", "cuda:sm_90"])
def test_the_scope_of_a_target_is_read_back(target: str) -> None:
    scope = Scope.of(make_target(target))
    again = parse_header(header_line(scope), "a file")
    assert again == scope
    assert again is not None
    assert again.digest == scope.digest


def test_a_reason_is_one_line_of_bounded_length() -> None:
    item = parse_line(line_of(trial(1, Failed("a\n  traceback\nof " + "many lines " * 1000))))
    assert isinstance(item, Trial)
    assert isinstance(item.outcome, Failed)
    assert item.outcome.reason.startswith("a traceback of many lines many")
    assert len(item.outcome.reason) == 1000


@pytest.mark.parametrize(
    "values",
    [
        ((), (), ()),
        ((1.0,), (0.1,), ()),
        ((float("nan"),), (0.1,), (1.0,)),
        ((1.0,), (0.1,), (0.0,)),
        ((1.0,), (-0.1,), (1.0,)),
        ((float("inf"),), (0.1,), (1.0,)),
    ],
)
def test_what_is_no_measurement_is_refused(values: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"no time|no spread|go together"):
        Measured(*values)


def test_a_record_that_could_not_be_read_back_is_refused() -> None:
    with pytest.raises(ValueError, match="read back"):
        line_of(trial(1, measured(0.5), sizes={"s0": (16, 128)}))


def test_times_sort_as_texts() -> None:
    assert TIMES[0] < TIMES[1] < now() < TIMES[2]


# The answer


def test_the_lowest_ratio_is_the_best() -> None:
    found = records(trial(0), trial(1, 0.8), trial(2, 0.5), trial(3, 0.9))
    assert best_rows(found.best(KEY, {})) == 2
    assert found.answer(KEY) == found.best(KEY, {})
    assert found.best("another", {}) is None
    assert found.answer("another") is None


def test_seconds_count_by_the_default_that_they_were_measured_beside() -> None:
    busy = trial(1, measured(0.5, reference=4e-3))
    assert best_rows(records(busy, trial(2, measured(0.9, reference=1e-3))).best(KEY, {})) == 1


def test_what_is_not_faster_by_more_than_its_spread_is_no_answer() -> None:
    assert records(trial(0), trial(1, measured(0.97, 0.03))).best(KEY, {}) is None
    assert records(trial(0), trial(1, measured(0.96, 0.03))).best(KEY, {}) is not None
    uncertain, certain = trial(1, measured(0.5, 0.6)), trial(2, measured(0.9, 0.01))
    assert best_rows(records(uncertain, certain).best(KEY, {})) == 2


def test_the_default_is_no_answer() -> None:
    assert records(trial(0, 0.5)).best(KEY, {}) is None


def test_the_size_at_which_a_plan_is_slowest_decides() -> None:
    sizes = {"s0": (16, 128)}
    uneven = trial(1, Measured((0.1, 1.01), (0.0, 0.0), (1.0, 1.0)), sizes=sizes)
    even = trial(2, Measured((0.9, 0.9), (0.0, 0.0), (1.0, 1.0)), sizes=sizes)
    assert records(uneven).best(KEY, sizes) is None
    assert best_rows(records(uneven, even).best(KEY, sizes)) == 2


def test_a_plan_that_failed_anywhere_is_no_answer() -> None:
    wrong = trial(1, Failed("the result is wrong"), sizes={"s0": (7,)})
    assert best_rows(records(wrong, trial(1, 0.2), trial(2, 0.5)).best(KEY, {})) == 2
    other_kernel = trial(1, Failed("the result is wrong"), workload="a" * 16)
    assert best_rows(records(other_kernel, trial(1, 0.2)).best(KEY, {})) == 1


def test_the_newest_measurement_of_a_plan_counts() -> None:
    lucky, sure = trial(1, 0.2, at=TIMES[0]), trial(1, 0.95, at=TIMES[1])
    found = records(lucky, sure, trial(2, 0.8))
    assert best_rows(found.best(KEY, {})) == 2
    assert len(found.trials(KEY, {})) == 3


def test_who_knows_no_sizes_gets_the_plan_measured_at_most_of_them() -> None:
    few, many = {"s0": (16,)}, {"s0": (16, 128)}
    at_one = trial(1, 0.2, sizes=few)
    at_two = trial(2, Measured((0.5, 0.6), (0.0, 0.0), (1.0, 1.0)), sizes=many)
    found = records(at_one, at_two)
    assert best_rows(found.answer(KEY)) == 2
    assert best_rows(found.best(KEY, few)) == 1
    failed = trial(3, Failed("no"), sizes={"s0": (1, 2, 3)})
    assert best_rows(records(at_one, failed).answer(KEY)) == 1


def test_an_answer_does_not_depend_on_the_order_of_records() -> None:
    same = [trial(number, 0.5) for number in (3, 1, 2)]
    assert records(*same).best(KEY, {}) == records(*same[::-1]).best(KEY, {})


# Kernels that are alike


def test_the_nearest_kernels_come_first() -> None:
    def kernel(name: str, rows: float, rule_plan: int = 1) -> list[Line]:
        return [note(name, rows=rows, columns=384.0), trial(0, workload=name), trial(rule_plan, 0.5, workload=name)]

    items = [*kernel("far", 4096.0), *kernel("near", 100.0), *kernel("nearest", 130.0)]
    items += [note("untuned", rows=128.0, columns=384.0), trial(0, workload="untuned")]
    found = records(*items)
    traits = {"rows": 128.0, "columns": 384.0}
    assert [item.workload for item in found.nearest(traits, "cpu-matmul", 2)] == ["nearest", "near"]
    assert [item.workload for item in found.nearest(traits, "cpu-matmul", 9)] == ["nearest", "near", "far"]
    assert found.nearest(traits, "another rule", 9) == ()
    assert found.nearest({}, "cpu-matmul", 0) == ()


# Scopes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 4}, ["4 threads instead of 2"]),
        ({"threads": 1}, ["1 thread instead of 2"]),
        ({"mcpu": "znver3"}, ["mcpu znver3 instead of znver4"]),
        ({"features": ["avx2", "avx512f"]}, ["avx512f besides and no fma"]),
        ({"mcpu": "znver3", "threads": 8}, ["mcpu znver3 instead of znver4", "8 threads instead of 2"]),
    ],
)
def test_scopes_say_how_they_differ(change: dict[str, object], said: list[str]) -> None:
    other = Scope({**CPU, **change}, SCOPE.tvm, SCOPE.greencc)
    assert SCOPE.differences(other) == said
    assert other.digest != SCOPE.digest


def test_targets_of_different_kinds_are_named_whole() -> None:
    gpu = Scope({"kind": "cuda", "triple": "x86_64-linux-gnu", "threads": 1, "arch": "sm_90"}, "0.26.0", SCOPE.greencc)
    assert SCOPE.differences(gpu) == [
        "cuda sm_90 instead of cpu znver4 (avx2, fma, 2 threads)",
        f"TVM 0.26.0 instead of {SCOPE.tvm}",
    ]


def test_capabilities_of_a_gpu_are_compared_one_by_one() -> None:
    one = Scope({"kind": "vulkan", "threads": 1, "gpu": {"cores": 8, "max_threads": 256}}, "1", "1")
    other = Scope({"kind": "vulkan", "threads": 1, "gpu": {"cores": 16, "max_threads": 256}}, "1", "1")
    assert one.differences(other) == ["cores 16 instead of 8"]
    assert one.title == "vulkan"


def test_equal_scopes_do_not_differ() -> None:
    assert SCOPE.differences(Scope(dict(CPU), SCOPE.tvm, SCOPE.greencc)) == []
