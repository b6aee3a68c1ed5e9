"""Kernels that quantise rows, by every plan, against the float64 rule of the affine scheme."""

import numpy as np
import pytest
from running import host, normal
from tvm import relax, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.quantize_rows import (
    NORMALIZE_RULE,
    QUANTIZE_RULE,
    normalize_rows_kernel,
    quantize_rows_kernel,
)
from greencc.targets.cpu.schedules.quantize_rows_rule import QuantizeRowsRule
from greencc.targets.tuning.alone import Kernel, build_alone
from greencc.targets.tuning.space import Space
from greencc.verification import Library


@pytest.mark.parametrize("threads", ["all", "one"])
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_plans(norm: bool, factors: bool, threads: str) -> None:
    target, x = host(), normal(3, 7, 50)
    dot, ty = dot_product(target), relax.TensorType(x.shape, "float32")
    if norm:
        func = normalize_rows_kernel(ty, 1e-5, target, dot, factors)
    else:
        func = quantize_rows_kernel(ty, target, dot, factors)
    rule = QuantizeRowsRule(target, NORMALIZE_RULE if norm else QUANTIZE_RULE)
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    same = rule.apply(func, frozenset(), space.default)
    assert isinstance(same, Scheduled)
    assert str(same.func) == str(rule.apply(func, frozenset()).func.without_attr("global_symbol"))
    scheduled = rule.apply(func, frozenset(), {"threads": threads})
    assert isinstance(scheduled, Scheduled)
    assert ("T.parallel" in scheduled.func.script()) == (threads == "all")
    gamma, beta, ratio = normal(50, seed=1), normal(50, seed=2), np.abs(normal(50, seed=3)) + 1
    operands = [x, *([gamma, beta] if norm else []), *([ratio] if factors else [])]
    alone = build_alone(Kernel(func, frozenset(), 4 if norm else 3), scheduled, target, {}, 1)
    *made, levels, scale, zero = Library(alone.code, {})(operands)
    want = x.astype(np.float64)
    if norm:
        centred = want - want.mean(-1, keepdims=True)
        want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta
        np.testing.assert_allclose(made[0], want, atol=1e-5, rtol=0)
    want = want * ratio if factors else want
    span = np.maximum(want.max(-1), 0) - np.minimum(want.min(-1), 0)
    np.testing.assert_allclose(scale[..., 0], span / 255, rtol=1e-5)
    values = (levels[..., :50].astype(np.float64) - zero) * scale
    assert (np.abs(values - want) <= 0.51 * scale + 1e-5).all()


def test_open_sizes_are_not_tuned() -> None:
    target = host()
    ty = relax.TensorType((tirx.Var("n", "int64"), 64), "float32")
    func = quantize_rows_kernel(ty, target, dot_product(target), False)
    rule = QuantizeRowsRule(target, QUANTIZE_RULE)
    reason = Declined("rows are many, or may be: threads share them")
    assert rule.space(func, frozenset()) == reason
    assert rule.apply(func, frozenset(), {"threads": "one"}) == reason
    assert rule.apply(func, frozenset()).func.same_as(func)
