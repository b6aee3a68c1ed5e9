"""A compilation takes the recorded plan of each kernel, and the default where none is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_records import measured
from tvm import relax, tirx

from greencc.errors import UserError
from greencc.targets.base import Scheduled
from greencc.targets.cpu.target import host_target
from greencc.targets.lower import constant_parameters, fuse, kernel_calls, schedule_kernel
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.tuning.space import Plan, Space, TunableRule
from greencc.targets.tuning.workload import workload_key
from greencc.tuning.database import Database
from greencc.tuning.plans import recorded_plans
from greencc.tuning.records import Measured, Scope, Trial, now

TARGET = host_target(threads=1)
Kernel = tuple[tirx.PrimFunc, frozenset[int]]


@pytest.fixture(scope="module")
def products() -> list[Kernel]:
    """Two different products, ready to be scheduled."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((32, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            wide = builder.emit(relax.op.matmul(x, relax.const(np.ones((64, 128), np.float32))))
            out = builder.emit_output(relax.op.matmul(wide, relax.const(np.ones((128, 96), np.float32))))
        builder.emit_func_output(out)
    module, _ = fuse(TARGET.legalize(builder.get()))
    constants = constant_parameters(module)
    return [(module[call.args[0]], constants[call.args[0].name_hint]) for call in kernel_calls(module)]


def another_plan(kernel: Kernel) -> tuple[str, Plan]:
    """A rule's name and a plan of it that isn't its default."""
    rule = next(rule for rule in TARGET.rules() if isinstance(rule, TunableRule) and rule.name == "cpu-matmul")
    space = rule.space(*kernel)
    assert isinstance(space, Space)
    changes = ({knob.name: value} for knob in space.knobs for value in knob.values)
    plans = ({**space.default, **change} for change in changes)
    return rule.name, next(plan for plan in plans if plan != space.default and space.problem(plan) is None)


def record(folder: Path, kernel: Kernel, rule: str, plan: Plan | None, outcome: Measured) -> None:
    with Database(folder).writer(Scope.of(TARGET)) as writer:
        writer.append(Trial(workload_key(*kernel), {}, rule, plan, outcome, "a processor", now(), thorough=True))


def scheduled(folder: Path, kernels: list[Kernel]) -> tuple[list[Scheduled], int, int]:
    """Schedules by a database, how many kernels were asked for, and how many plans it had."""
    plans = recorded_plans(folder, TARGET)
    rules = PlannedTarget(TARGET, plans).rules()
    found = [schedule_kernel(*kernel, rules) for kernel in kernels]
    return [item for item in found if isinstance(item, Scheduled)], plans.kernels, plans.answered


def test_the_recorded_plan_is_followed(tmp_path: Path, products: list[Kernel]) -> None:
    rule, plan = another_plan(products[0])
    record(tmp_path, products[0], rule, plan, measured(0.5))
    (first, second, again), asked, answered = scheduled(tmp_path, [*products, products[0]])
    assert (first.rule, first.plan, second.plan, again.plan) == (rule, plan, None, plan)
    assert (asked, answered) == (2, 1)


def test_a_slower_plan_is_left(tmp_path: Path, products: list[Kernel]) -> None:
    rule, plan = another_plan(products[0])
    record(tmp_path, products[0], rule, plan, measured(1.5))
    (first, _), asked, answered = scheduled(tmp_path, products)
    assert first.plan is None
    assert (asked, answered) == (2, 0)


def test_a_plan_that_no_rule_takes_any_more_is_left(tmp_path: Path, products: list[Kernel]) -> None:
    rule, _ = another_plan(products[0])
    record(tmp_path, products[0], rule, {"rows": 12345}, measured(0.5))
    record(tmp_path, products[1], "a rule of the past", {"rows": 1}, measured(0.5))
    found, _, answered = scheduled(tmp_path, products)
    assert [item.plan for item in found] == [None, None]
    assert answered == 2


def test_a_database_for_another_machine_is_refused(tmp_path: Path, products: list[Kernel]) -> None:
    record(tmp_path, products[0], "", None, measured(1.0))
    with pytest.raises(UserError, match=rf"^{tmp_path}: tuned for cpu .*1 thread\).* for 3 threads instead of 1: tune"):
        recorded_plans(tmp_path, host_target(threads=3))
    with pytest.raises(UserError, match="there is no such tuning database"):
        recorded_plans(tmp_path / "missing", TARGET)
