"""The machine's limits, measured in a process of their own."""

from __future__ import annotations

import pytest

from greencc import GreenccError
from greencc.targets.cpu.target import CpuTarget, host_target
from greencc.tuning.machine import limits_of


def test_limits_are_this_machine_s() -> None:
    limits = limits_of(host_target(1))
    # No processor that this runs on does less than one operation in a nanosecond, or more than a million.
    assert 1e9 < limits.float32 < 1e15
    assert limits.float32 / 8 < limits.int8 < 1e16
    assert 1e8 < limits.bandwidth < 1e14


def test_instructions_that_the_machine_lacks_are_a_failure_in_one_line() -> None:
    foreign = CpuTarget("aarch64-linux-gnu", "generic", ("neon",), 1)
    with pytest.raises(GreenccError, match="limits can't be measured"):
        limits_of(foreign)
