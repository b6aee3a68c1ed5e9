"""Convolutions by plans from all over their space compute the same; see test_convolution.py for the reference."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tvm
from running import Runner, function, host, normal, targets
from test_convolution import CASES, Case, output
from test_int8 import RUNNABLE, X86
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import quantized_conv2d
from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.convolution.form import match_convolution
from greencc.targets.cpu.schedules.convolution.rule import ConvolutionRule
from greencc.targets.cpu.schedules.convolution.tails import is_flat
from greencc.targets.lower import constant_parameters, fuse, kernel_calls
from greencc.targets.tuning.planned import Decision, PlannedTarget
from greencc.targets.tuning.space import Plan, Space
from tests.targets.cpu.int8_reference import CONVOLUTIONS

FLAT = [Case((1, 24, 14, 14), 20), Case((1, 140, 7, 7), 34, groups=2), Case((1, 16, 6, 32), 24)]
DEEP = Case((1, 130, 7, 7), 260)  # by default from panels


class Drawn:
    """Plans for every convolution: of some that are drawn, the one whose choices have been made least often."""

    def __init__(self, target, seed: int) -> None:
        self.rule, self.random = ConvolutionRule(target), random.Random(seed)
        self.made: Counter[tuple[str, int | str]] = Counter()

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        space = self.rule.space(func, constants)
        if isinstance(space, Declined):
            return None
        plan = min(self.draw(space), key=lambda plan: sum(self.made[item] for item in plan.items()))
        self.made.update(plan.items())
        return Decision(self.rule.name, plan)

    def draw(self, space: Space) -> list[Plan]:
        found: list[Plan] = []
        for _ in range(400):
            plan = {knob.name: self.random.choice(knob.values) for knob in space.knobs}
            if space.problem(plan) is None:
                assert all(np.isfinite(list(space.features(plan).values())))
                found.append(plan)
            if len(found) == 4:
                break
        return found or [space.default]


def images(cases: list[Case]) -> tvm.IRModule:
    """All cases, each with a bias, a residual and a rectifier behind it."""
    shapes = {}
    for i, case in enumerate(cases):
        shapes[f"x{i}"] = (case.shape, "float32")
        shapes[f"r{i}"] = (output(case, normal(*case.shape)).shape, "float32")

    def body(emit, *inputs):
        results = []
        for case, x, residual in zip(cases, inputs[::2], inputs[1::2], strict=True):
            top, left, bottom, right = case.pads
            attrs = (case.stride, (top, left, bottom, right), case.dilation, case.groups)
            y = emit(relax.op.nn.conv2d(x, relax.const(case.weight), *attrs))
            y = emit(relax.op.add(y, relax.const(normal(1, case.filters, 1, 1, seed=2))))
            results.append(emit(relax.op.nn.relu(emit(relax.op.add(y, emit(relax.op.negative(residual)))))))
        return results

    return function(shapes, body)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_any_plan_equals_onnx_runtime(target) -> None:
    cases = [*CASES, *FLAT, DEEP]
    module, inputs, wanted = images(cases), [], []
    for case in cases:
        x, bare = normal(*case.shape), output(case, normal(*case.shape))
        residual = normal(*bare.shape, seed=3)
        inputs += [x, residual]
        wanted.append(np.maximum(bare + normal(1, case.filters, 1, 1, seed=2) - residual, 0))
    plans = Drawn(target, seed=1)
    for _ in range(2):
        runner = Runner(module, PlannedTarget(target, plans))
        for case, got, want in zip(cases, runner(*inputs), wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=3e-4, rtol=2e-5, err_msg=f"{case}")
    drawn = {name: {value for knob, value in plans.made if knob == name} for name, _ in plans.made}
    assert drawn["over"] == {"channels", "positions"}
    assert drawn["finish"] == {"end", "flat", "registers", "rows"}
    assert drawn["source"] == {"band", "copy", "input"}
    assert not [name for name, values in drawn.items() if len(values) == 1 and name != "lanes"]


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name in ("avx2", "avx512vnni")])
def test_any_plan_is_exact_in_int8(name: str) -> None:
    params = {f"x{i}": (case.shape, "float32") for i, case in enumerate(CONVOLUTIONS)}

    def body(emit, *xs):
        made = []
        for x, case in zip(xs, CONVOLUTIONS, strict=True):
            made.append(emit(relax.op.nn.relu(emit(quantized_conv2d(x, *map(constant, case.weight), case.attrs)))))
        return made

    module, plans = function(params, body), Drawn(X86[name], seed=2)
    xs = [normal(*case.shape, seed=i) * 2 + 0.7 for i, case in enumerate(CONVOLUTIONS)]
    for _ in range(1):
        runner = Runner(module, PlannedTarget(X86[name], plans))
        assert runner.rules == {"cpu-convolution", "cpu-quantize-images"}
        for x, case, got in zip(xs, CONVOLUTIONS, runner(*xs), strict=True):
            np.testing.assert_array_equal(got, np.maximum(case.expected(x), 0))


def test_a_symbolic_batch() -> None:
    cases = [Case((1, 5, 9, 20), 16, (3, 3), pads=(1, 1, 1, 1)), Case((1, 16, 7, 7), 24)]
    batch = tirx.Var("n", "int64")
    shapes = {f"x{i}": ((batch, *case.shape[1:]), "float32") for i, case in enumerate(cases)}

    def body(emit, *xs):
        pairs = zip(xs, cases, strict=True)
        return [emit(relax.op.nn.conv2d(x, relax.const(case.weight), padding=case.pads[0])) for x, case in pairs]

    plans = Drawn(host(), seed=3)
    for _ in range(3):
        runner = Runner(function(shapes, body), PlannedTarget(host(), plans))
        for count in (1, 3):
            xs = [normal(count, *case.shape[1:]) for case in cases]
            for case, x, got in zip(cases, xs, runner(*xs), strict=True):
                np.testing.assert_allclose(got, output(case, x), atol=1e-4, rtol=1e-5)


def kernel(case: Case, residual: tuple[int, ...] | None = None) -> tuple[tirx.PrimFunc, frozenset[int]]:
    """A convolution to which something of the shape `residual` is added."""
    shapes = {"x": (case.shape, "float32")}
    if residual is not None:
        shapes["r"] = (residual, "float32")

    def body(emit, x, *rest):
        y = emit(relax.op.nn.conv2d(x, relax.const(case.weight), case.stride, padding=case.pads[0]))
        return [emit(relax.op.add(y, other)) for other in rest] or [y]

    module = host().legalize(relax.transform.DeadCodeElimination(["main"])(function(shapes, body)))
    module, _ = fuse(module)
    (name,) = {call.args[0].name_hint for call in kernel_calls(module)}
    return module[name], constant_parameters(module)[name]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_default_plan_is_the_schedule_without_a_plan(case: Case) -> None:
    target = host()
    func, constants = kernel(replace(case, dilation=(1, 1), pads=(3,) * 4, groups=1))
    rule = ConvolutionRule(target)
    space = rule.space(func, constants)
    assert isinstance(space, Space)
    plain, planned = rule.apply(func, constants), rule.apply(func, constants, space.default)
    assert isinstance(plain, Scheduled)
    assert isinstance(planned, Scheduled)
    tvm.ir.assert_structural_equal(plain.func, planned.func)
    assert plain.layouts == planned.layouts


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"rows": 14, "vectors": 4}, "the sums don't fit the registers"),
        ({"blocks": 8}, "there are fewer blocks"),
        ({"height": 7, "finish": "flat", "source": "copy"}, "rows of sums have gaps"),
        ({"over": "channels", "finish": "rows"}, "vectors over channels have no panels, and are transposed"),
        ({"lanes": 3}, "lanes is 3"),
    ],
)
def test_choices_that_do_not_go_together_are_declined(choices: dict[str, int | str], reason: str) -> None:
    func, constants = kernel(Case((1, 16, 14, 14), 32, (3, 3), pads=(1, 1, 1, 1)))
    rule = ConvolutionRule(host())
    plan = {**rule.space(func, constants).default, **choices}
    assert rule.apply(func, constants, plan) == Declined(reason)


@pytest.mark.parametrize(
    ("other", "flat"),
    [(None, True), ((1, 8, 9, 10), True), ((1, 8, 1, 1), True), ((1, 1, 9, 10), True), ((1, 1, 1, 10), False)],
)
def test_a_tail_that_takes_no_notice_of_rows_is_flat(other: tuple[int, ...] | None, flat: bool) -> None:
    func, _ = kernel(Case((1, 4, 9, 10), 8), other)
    found = match_convolution(func, host())
    assert not isinstance(found, str)
    assert is_flat(found[0]) == flat


@pytest.mark.skipif(host().lanes() < 8, reason="a row of 10 is shorter than a tile")
def test_what_is_computed_twice_takes_no_operands_memory() -> None:
    shape = (1, 8, 9, 10)  # 90 positions aren't whole vectors
    func, constants = kernel(Case((1, 4, 9, 10), 8), shape)
    rule = ConvolutionRule(host())
    space = rule.space(func, constants)
    assert isinstance(space, Space)
    plan = {**space.default, "over": "positions", "height": 9, "source": "input", "panel": 0, "vectors": 1}
    for finish, taken in (("end", True), ("registers", False)):
        scheduled = rule.apply(func, constants, {**plan, "finish": finish})
        assert isinstance(scheduled, Scheduled)
        assert bool(scheduled.overwrites) == taken
