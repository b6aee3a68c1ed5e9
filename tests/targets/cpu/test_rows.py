"""Passes over rows by drawn plans: softmax, norms, means and maps, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from references import PASS_ATOL, RowPasses, softmax
from running import Runner, function, normal, targets
from sampled_plans import SampledPlans, rule_of
from tvm import relax, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import fuse, kernel_calls
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.tuning.space import Space

WIDTHS = (1, 5, 16, 48, 100, 333)


def planned(module, target: CpuTarget, seed: int) -> tuple[Runner, SampledPlans]:
    plans = SampledPlans(rule_of(target, "cpu-rows"), seed)
    runner = Runner(module, PlannedTarget(target, plans))
    assert "cpu-rows" in runner.rules
    return runner, plans


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("seed", range(3))
def test_softmax_norms_and_means_for_all_widths(target: CpuTarget, seed: int) -> None:
    passes = RowPasses(WIDTHS)
    runner, _ = planned(passes.module, target, seed)
    assert runner.rules == {"cpu-rows"}
    passes.check(runner)


@pytest.mark.parametrize("seed", range(3))
def test_symbolic_rows_and_widths(seed: int) -> None:
    rows, width = tirx.Var("r", "int64"), tirx.Var("w", "int64")

    def body(emit, x, y):
        return [emit(relax.op.nn.softmax(x)), emit(relax.op.mean(y, axis=[-1]))]

    module = function({"x": ((rows, width), "float32"), "y": ((2, rows, 40), "float32")}, body)
    runner, plans = planned(module, targets()[0], seed)
    assert len(plans.taken) == 2
    for shape in ((1, 1), (3, 17), (40, 128), (33, 203)):
        x, y = normal(*shape), normal(2, shape[0], 40)
        first, second = runner(x, y)
        np.testing.assert_allclose(first, softmax(x.astype(np.float64)), atol=PASS_ATOL, rtol=0)
        np.testing.assert_allclose(second, y.astype(np.float64).mean(-1), atol=PASS_ATOL, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_sums_over_several_axes(seed: int) -> None:
    def body(emit, x):
        return [
            emit(relax.op.mean(x, axis=[2, 3], keepdims=True)),
            emit(relax.op.sum(x, axis=[1, 2, 3])),
            emit(relax.op.variance(x, axis=[2, 3])),
        ]

    runner, plans = planned(function({"x": ((2, 9, 5, 11), "float32")}, body), targets()[0], seed)
    assert len(plans.taken) == 3
    x = normal(2, 9, 5, 11) + 1
    wide = x.astype(np.float64)
    wanted = [wide.mean((2, 3), keepdims=True), wide.sum((1, 2, 3)), wide.var((2, 3))]
    for got, want in zip(runner(x), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=PASS_ATOL, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_is_overwritten(seed: int) -> None:
    """The sum in front of a softmax is of no use afterwards, and so lies where the result will."""

    def body(emit, x):
        y = emit(relax.op.nn.softmax(emit(relax.op.add(x, x))))
        z = emit(relax.op.nn.softmax(emit(relax.op.multiply(y, y))))
        return [emit(relax.op.multiply(z, emit(relax.op.nn.softmax(z))))]

    runner, _ = planned(function({"x": ((6, 77), "float32")}, body), targets()[0], seed)
    x = normal(6, 77)
    z = softmax(softmax(2 * x.astype(np.float64)) ** 2)
    np.testing.assert_allclose(runner(x)[0], z * softmax(z), atol=PASS_ATOL, rtol=0)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("seed", range(2))
def test_maps_of_odd_and_symbolic_sizes(target: CpuTarget, seed: int) -> None:
    n = tirx.Var("n", "int64")
    factor, bias = normal(1, 6, 1, 1, seed=3), normal(11, seed=4)

    def body(emit, image, tokens, columns):
        scaled = emit(relax.op.nn.relu(emit(relax.op.multiply(image, relax.const(factor)))))
        return [
            scaled,
            emit(relax.op.add(image, relax.const(bias))),
            emit(relax.op.exp(emit(relax.op.add(tokens, tokens)))),
            emit(relax.op.sigmoid(columns)),
        ]

    shapes = {"image": (2, 6, 5, 11), "tokens": (n, 37), "columns": (3, n)}
    runner, plans = planned(function({k: (s, "float32") for k, s in shapes.items()}, body), target, seed)
    assert len(plans.taken) == 4
    for size in (1, 35):
        image, tokens, columns = normal(2, 6, 5, 11), normal(size, 37), normal(3, size)
        wanted = [np.maximum(image * factor, 0), image + bias, np.exp(2 * tokens), 1 / (1 + np.exp(-columns))]
        for got, want in zip(runner(image, tokens, columns), wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=PASS_ATOL, rtol=1e-6)


def test_a_softmax_of_large_values_does_not_overflow() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4] + [0.0] * 18], np.float32)
    runner, _ = planned(
        function({"x": (x.shape, "float32")}, lambda emit, v: emit(relax.op.nn.softmax(v))), targets()[0], 0
    )
    np.testing.assert_allclose(runner(x)[0], softmax(x.astype(np.float64)), atol=PASS_ATOL, rtol=0)


def kernel(body, *shape: int) -> tirx.PrimFunc:
    module, _ = fuse(targets()[0].legalize(function({"x": (shape, "float32")}, body)))
    (call,) = kernel_calls(module)
    return module[call.args[0]]


def test_what_the_result_may_overwrite() -> None:
    func = kernel(lambda emit, x: emit(relax.op.nn.softmax(x)), 4, 50)
    rule = rule_of(targets()[0], "cpu-rows")
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    for kept in ("own", "output"):
        scheduled = rule.apply(func, frozenset(), {**space.default, "kept": kept})
        assert isinstance(scheduled, Scheduled)
        assert scheduled.overwrites == (0,)


def test_what_is_read_after_the_result_was_begun_is_not_overwritten() -> None:
    func = kernel(lambda emit, x: emit(relax.op.multiply(x, emit(relax.op.nn.softmax(x)))), 4, 50)
    rule = rule_of(targets()[0], "cpu-rows")
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    for kept, wanted in (("own", (0,)), ("output", ())):
        scheduled = rule.apply(func, frozenset(), {**space.default, "kept": kept})
        assert isinstance(scheduled, Scheduled)
        assert scheduled.overwrites == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (lambda emit, x: emit(relax.op.nn.rms_norm(x, relax.const(np.ones(50, np.float32)), axes=[-1])), (0,)),
        (lambda emit, x: emit(relax.op.flip(emit(relax.op.strided_slice(x, [0], [0], [4])), 1)), ()),
    ],
    ids=["a norm", "turned rows"],
)
def test_copies_of_what_the_result_may_overwrite(body, wanted: tuple[int, ...]) -> None:
    """Copies are left out: what reads them reads the parameter."""
    func = kernel(body, 4, 50)
    rule = rule_of(targets()[0], "cpu-rows")
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    scheduled = rule.apply(func, frozenset(), space.default)
    assert isinstance(scheduled, Scheduled)
    assert scheduled.overwrites == wanted


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_what_was_computed(seed: int) -> None:
    gain = normal(50, seed=3)

    def body(emit, x):
        y = emit(relax.op.nn.softmax(x))
        turned = emit(relax.op.flip(emit(relax.op.strided_slice(y, [0], [0], [4])), 1))
        z = emit(relax.op.nn.softmax(turned))
        return [emit(relax.op.nn.rms_norm(emit(relax.op.nn.softmax(z)), relax.const(gain), axes=[-1]))]

    runner, _ = planned(function({"x": ((4, 50), "float32")}, body), targets()[0], seed)
    x = normal(4, 50)
    y = softmax(softmax(softmax(x.astype(np.float64))[:, ::-1]))
    want = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * gain
    np.testing.assert_allclose(runner(x)[0], want, atol=PASS_ATOL, rtol=0)


def test_without_a_plan_or_by_one_that_it_does_not_know_it_declines() -> None:
    func = kernel(lambda emit, x: emit(relax.op.nn.softmax(x)), 4, 50)
    rule = rule_of(targets()[0], "cpu-rows")
    assert rule.apply(func, frozenset()) == Declined("nothing is recorded")
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    assert rule.apply(func, frozenset(), {**space.default, "lanes": 3}) == Declined("lanes is 3")
    assert rule.apply(func, frozenset(), {"lanes": 8}) == Declined("it has other knobs")


def test_a_reduction_across_rows_is_declined() -> None:
    rule = rule_of(targets()[0], "cpu-rows")
    across = kernel(lambda emit, x: emit(relax.op.sum(x, axis=[1])), 4, 6, 8)
    assert rule.space(across, frozenset()) == Declined("a block reads across rows")
    turned = kernel(lambda emit, x: emit(relax.op.permute_dims(x)), 4, 6)
    assert rule.space(turned, frozenset()) == Declined("a block reads across rows")
