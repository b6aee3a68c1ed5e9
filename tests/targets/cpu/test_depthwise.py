"""Depthwise convolutions by drawn plans, with a bias, a residual and a clip behind them, against ONNX Runtime."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from running import Runner, function, normal, targets
from sampled_plans import SampledPlans, rule_of
from test_convolution import Case, output
from tvm import relax, tirx

from greencc.targets.base import Declined
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import fuse, kernel_calls
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.tuning.space import Space

CASES = (
    Case((1, 6, 12, 80), 6, (5, 5), pads=(2, 2, 2, 2), groups=6),
    Case((2, 5, 7, 7), 5, (3, 3), pads=(1, 1, 1, 1), groups=5),
    Case((2, 3, 15, 13), 3, (3, 3), (2, 2), pads=(1, 1, 1, 1), groups=3),
    Case((1, 6, 12, 40), 6, (5, 5), (2, 1), pads=(2, 2, 2, 2), groups=6),
    Case((1, 3, 20, 20), 3, (3, 3), dilation=(2, 3), pads=(2, 3, 2, 3), groups=3),
    Case((1, 4, 9, 9), 12, (3, 3), pads=(1, 1, 1, 1), groups=4),
    Case((1, 3, 12, 20), 3, (3, 3), groups=3),
    Case((1, 3, 5, 50), 3, (1, 5), (1, 2), pads=(0, 2, 0, 2), groups=3),
    Case((1, 3, 12, 41), 3, (5, 3), (1, 2), pads=(0, 1, 2, 3), groups=3),
    Case((1, 2, 7, 9), 2, (3, 3), (3, 3), pads=(2, 0, 0, 2), groups=2),
    Case((1, 2, 9, 1), 2, (3, 1), pads=(1, 0, 1, 0), groups=2),
    Case((1, 2, 9, 11), 2, (1, 1), (2, 2), groups=2),
)


@cache
def wanted() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Operand, residual and result of each case."""
    found = []
    for i, case in enumerate(CASES):
        x = normal(*case.shape, seed=i)
        bare = output(case, x)
        residual = normal(*bare.shape, seed=i + 50)
        found.append((x, residual, np.clip(bare + normal(1, case.filters, 1, 1, seed=2) + residual, 0, 6)))
    return found


def layer(emit, case: Case, x: relax.Expr) -> relax.Expr:
    top, left, bottom, right = case.pads
    weight = relax.const(case.weight)
    pads = (top, left, bottom, right)
    y = emit(relax.op.nn.conv2d(x, weight, case.stride, pads, case.dilation, case.groups))
    return emit(relax.op.add(y, relax.const(normal(1, case.filters, 1, 1, seed=2))))


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("seed", range(2))
def test_strides_paddings_dilations_and_odd_sizes(target: CpuTarget, seed: int) -> None:
    def body(emit, *values):
        pairs = zip(CASES, values[::2], values[1::2], strict=True)
        return [
            emit(relax.op.clip(emit(relax.op.add(layer(emit, case, x), residual)), 0, 6)) for case, x, residual in pairs
        ]

    arrays = [array for x, residual, _ in wanted() for array in (x, residual)]
    plans = SampledPlans(rule_of(target, "cpu-depthwise"), seed)
    module = function({f"x{i}": (array.shape, "float32") for i, array in enumerate(arrays)}, body)
    runner = Runner(module, PlannedTarget(target, plans))
    assert runner.rules == {"cpu-depthwise"}
    for (_, _, want), got in zip(wanted(), runner(*arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("seed", range(2))
def test_a_symbolic_number_of_images(seed: int) -> None:
    case, n = Case((3, 5, 10, 37), 5, (3, 3), pads=(1, 1, 1, 1), groups=5), tirx.Var("n", "int64")
    module = function({"x": ((n, *case.shape[1:]), "float32")}, lambda emit, x: layer(emit, case, x))
    runner = Runner(module, PlannedTarget(targets()[0], SampledPlans(rule_of(targets()[0], "cpu-depthwise"), seed)))
    assert runner.rules == {"cpu-depthwise"}
    for images in (1, 3):
        x = normal(images, *case.shape[1:])
        bare = output(case, x)
        np.testing.assert_allclose(runner(x)[0], bare + normal(1, 5, 1, 1, seed=2), atol=2e-5, rtol=2e-5)


def space_of(case: Case, target: CpuTarget) -> Space | Declined:
    module = function({"x": (case.shape, "float32")}, lambda emit, x: layer(emit, case, x))
    lowered, _ = fuse(target.legalize(module))
    (call,) = kernel_calls(lowered)
    func, rule = lowered[call.args[0]], rule_of(target, "cpu-depthwise")
    assert isinstance(rule.apply(func, frozenset({1})), Declined)
    return rule.space(func, frozenset({1}))


def test_tiles_fit_the_registers_and_code_stays_short() -> None:
    space = space_of(CASES[0], targets()[-1])
    assert isinstance(space, Space)
    plan = {**space.default, "band": 12, "rows": 8, "vectors": 5, "lanes": 8}
    assert space.problem(plan) in ("the sums don't fit the registers", "the code of a tile is too long")
    assert space.problem({**plan, "band": 3}) == "a band has fewer rows"


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("case", [*CASES, Case((1, 2, 40, 40), 2, (15, 15), groups=2)])
def test_a_search_begins_within_the_space(case: Case, target: CpuTarget) -> None:
    space = space_of(case, target)
    assert isinstance(space, Space)
    assert space.problem(space.default) is None


def test_other_convolutions_are_declined() -> None:
    two = Case((1, 8, 9, 9), 8, (3, 3), groups=4)
    assert space_of(two, targets()[0]) == Declined("no depthwise convolution of float32")
    large = Case((1, 2, 40, 40), 2, (23, 23), groups=2)
    assert space_of(large, targets()[0]) == Declined("the filters are too large to be written out")
