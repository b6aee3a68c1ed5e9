"""Rates and shares, on numbers that are easy to check by hand."""

import numpy as np
import pytest

from greencc.artifact.bundle import KernelCall, TensorSpec
from greencc.limits import Limits
from greencc.roofline import operations_of, rates, share_of_arithmetic, symbol_values
from greencc.runtime.profile import KernelTime

LIMITS = Limits(float32=100e9, int8=400e9, bandwidth=10e9)
PRODUCT = KernelCall("product", ("a",), "batch * 1000000", 2_000_000, "float32")
BYTES = KernelCall("bytes", ("b",), 4_000_000, "batch", "int8")
UNKNOWN = KernelCall("unknown", (), None, "m")


def test_rates_are_amounts_over_time() -> None:
    first, second, third = rates([KernelTime(c, 0.5) for c in (PRODUCT, BYTES, UNKNOWN)], {"batch": 8}, LIMITS)
    assert first.operations == 8_000_000
    assert first.operations_per_second == pytest.approx(16e9)
    assert first.share_of_arithmetic == pytest.approx(0.16)
    assert first.share_of_bandwidth == pytest.approx(0.4)
    assert second.share_of_arithmetic == pytest.approx(8e9 / 400e9)
    assert (third.operations, third.bytes_per_second, third.share_of_bandwidth) == (None, None, None)


def test_a_run_is_compared_with_the_limits_of_its_arithmetic() -> None:
    operations = operations_of([PRODUCT, BYTES, UNKNOWN], {"batch": 8})
    assert operations == {"float32": 8_000_000, "int8": 4_000_000}
    # 80 us of float32 and 10 us of int8 in a run of 180 us.
    assert share_of_arithmetic(operations, 0.18, LIMITS) == pytest.approx(0.5)


def test_symbols_are_read_off_the_inputs() -> None:
    specs = (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("y", "float32", (4, "n")))
    assert symbol_values(specs, {"x": np.zeros((3, 4)), "y": np.zeros((4, 5))}) == {"batch": 3, "n": 5}
