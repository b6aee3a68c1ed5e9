"""What the device timed is told by launch."""

from __future__ import annotations

from greencc.runtime.profile import assign_times


def times(*kernels: tuple[str, float]) -> list[dict[str, object]]:
    return [{"kernel": kernel, "milliseconds": milliseconds} for kernel, milliseconds in kernels]


def test_a_function_of_several_kernels_takes_their_time_together() -> None:
    ran = times(("f_kernel", 1), ("f_kernel_1", 2), ("g_kernel", 4), ("f_kernel", 8), ("f_kernel_1", 16))
    assert assign_times(["f", "g", "f"], ran) == [("f", 3), ("g", 4), ("f", 24)]


def test_launches_of_one_kernel_behind_each_other_are_apart() -> None:
    assert assign_times(["f", "f"], times(("f_kernel_2", 1), ("f_kernel_2", 2))) == [("f", 1), ("f", 2)]


def test_a_function_that_had_nothing_to_launch_takes_no_time() -> None:
    assert assign_times(["f", "f1", "g"], times(("f1_kernel", 2), ("g_kernel", 1))) == [("f", 0), ("f1", 2), ("g", 1)]
