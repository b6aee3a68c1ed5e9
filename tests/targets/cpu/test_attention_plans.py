"""Attention by sampled plans against float64: heads that fill no vector, masks, causal, grouped heads, open sizes."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from running import Runner, function, normal, targets
from test_attention import ATOL, fused, reference
from tvm import relax, tirx

from greencc.ops import AttentionAttrs, attention
from greencc.targets.base import RULE_ATTR, Declined, Scheduled
from greencc.targets.cpu.schedules.attention import attention_kernel, packed_attention_kernel
from greencc.targets.cpu.schedules.attention_rule import AttentionRule
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tuning.alone import Kernel, build_alone
from greencc.targets.tuning.planned import Decision, PlannedTarget
from greencc.targets.tuning.space import Plan, Space
from greencc.verification import Library

Dim = tirx.Expr | int

CASES = {
    "15": (fused(2, 2, 15, 15), None),
    "26": (fused(3, 3, 26, 26), None),
    "32, masked keys": (fused(2, 2, 32, 32), ("b", 1, 1, "s")),
    "64, causal, grouped": (fused(4, 2, 64, 64, causal=True), None),
    "value heads of their own size": (fused(2, 1, 24, 40), None),
    "a mask of its own for each query": (fused(2, 2, 16, 26, nan_to_zero=True), ("b", 2, "s", "s")),
    "a mask by query": (fused(2, 2, 8, 8), (1, 1, "s", 1)),
    "one element": (fused(1, 1, 1, 1), None),
}


def kernel(attrs: AttentionAttrs, mask: tuple[Dim | str, ...] | None, sizes: dict[str, Dim], target: CpuTarget):
    width = attrs.v_offset + attrs.kv_heads * attrs.value_dim
    shapes = [(sizes["b"], sizes["s"], width)] * 3
    if mask is not None:
        shapes.append(tuple(sizes.get(dim, dim) for dim in mask))
    out = (sizes["b"], sizes["s"], attrs.heads * attrs.value_dim)
    types = [relax.TensorType(shape, "float32") for shape in (*shapes, out)]
    return attention_kernel(attrs, types[:-1], types[-1], target)


def sampled(space: Space, seed: int) -> Iterator[Plan]:
    """A plan for each of what lanes can be."""
    rng = random.Random(seed)
    for across in ("keys", "queries"):
        plan: dict[str, int | str] = {}
        while not plan or space.problem(plan) is not None:
            plan = {**{knob.name: rng.choice(knob.values) for knob in space.knobs}, "across": across}
        yield plan


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("name", CASES)
def test_plans(name: str, target: CpuTarget) -> None:
    attrs, mask = CASES[name]
    rule = AttentionRule(target)
    symbols: dict[str, Dim] = {"b": tirx.Var("b", "int64"), "s": tirx.Var("s", "int64")}
    static = {"b": 2, "s": 37}
    for sizes, wanted in ((static, [static]), (symbols, [{"b": 1, "s": 1}, {"b": 2, "s": 70}])):
        func = kernel(attrs, mask, sizes, target)
        space = rule.space(func, frozenset())
        assert isinstance(space, Space)
        alone = Kernel(func, frozenset(), 1)
        for plan in sampled(space, len(name) + target.vector_bits):
            scheduled = rule.apply(func, frozenset(), plan)
            assert isinstance(scheduled, Scheduled)
            library = Library(build_alone(alone, scheduled, target, {}, 1).code, {})
            for actual in wanted:
                y = normal(actual["b"], actual["s"], int(func.params[0].ty.shape[2]), seed=actual["s"])
                operands = [y, y, y]
                if mask is not None:
                    operands.append(normal(*(actual.get(dim, dim) for dim in mask), seed=1))
                    if "s" in mask[2:3]:
                        operands[3][:, :, -1] = -np.inf
                want = reference(y, attrs, operands[3] if mask is not None else None)
                np.testing.assert_allclose(library(operands)[0], want, atol=ATOL, rtol=0, err_msg=f"{plan} {actual}")


def test_many_keys_in_blocks_of_every_plan() -> None:
    """Scores grow with the keys, so that later blocks rescale what earlier ones left."""
    attrs, target = fused(2, 2, 16, 24), targets()[0]
    y = normal(1, 300, 112)
    y[..., 32:64] *= np.linspace(0.5, 8, 300, dtype=np.float32)[:, None]
    func = kernel(attrs, None, {"b": 1, "s": 300}, target)
    rule = AttentionRule(target)
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    for across, rows, vectors, block in (("keys", 4, 2, 64), ("queries", 5, 3, 64), ("queries", 12, 1, 256)):
        plan = {**space.default, "across": across, "rows": rows, "vectors": vectors, "block": block}
        scheduled = rule.apply(func, frozenset(), plan)
        assert isinstance(scheduled, Scheduled)
        library = Library(build_alone(Kernel(func, frozenset(), 1), scheduled, target, {}, 1).code, {})
        np.testing.assert_allclose(library([y, y, y])[0], reference(y, attrs, None), atol=1e-5, rtol=0)


def test_the_default_plan_is_the_kernel_as_it_is() -> None:
    target = targets()[0]
    for attrs, mask in CASES.values():
        func = kernel(attrs, mask, {"b": 2, "s": 37}, target)
        rule = AttentionRule(target)
        space = rule.space(func, frozenset())
        assert isinstance(space, Space)
        assert space.problem(space.default) is None
        by_plan, as_it_is = (rule.apply(func, frozenset(), plan) for plan in (space.default, None))
        assert isinstance(by_plan, Scheduled)
        assert isinstance(as_it_is, Scheduled)
        assert as_it_is.func.same_as(func)
        assert str(by_plan.func) == str(func.without_attr("global_symbol"))


def test_plans_that_do_not_fit_are_declined() -> None:
    target = targets()[0]
    rule = AttentionRule(target)
    func = kernel(*CASES["26"], {"b": 1, "s": 37}, target)
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    for change, reason in (
        ({"rows": 12, "vectors": 5}, "the sums don't fit the registers"),
        ({"rows": 7}, "rows is 7"),
        ({"across": "keys", "rows": 5}, "rows share a vector"),
    ):
        assert rule.apply(func, frozenset(), {**space.default, **change}) == Declined(reason)


def test_packed_attention_is_not_tuned() -> None:
    target = targets()[0]
    tokens, batch, longest = (tirx.Var(name, "int64") for name in ("n", "b", "s"))
    types = [relax.TensorType((1, tokens, 96), "float32")] * 3 + [relax.TensorType((batch, longest), "int64")]
    func = packed_attention_kernel(fused(2, 2, 16, 16), types, relax.TensorType((1, tokens, 32), "float32"), target)
    rule = AttentionRule(target)
    assert rule.space(func, frozenset()) == Declined("it can be emitted by one plan only")
    assert isinstance(rule.apply(func, frozenset()), Scheduled)


def test_kernels_of_other_rules_are_declined() -> None:
    target = targets()[0]
    rule = AttentionRule(target)
    func = kernel(*CASES["26"], {"b": 1, "s": 37}, target)
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    for foreign in (func.without_attr(RULE_ATTR), func.with_attr(RULE_ATTR, "cpu-rows")):
        for plan in (None, space.default):
            assert rule.apply(foreign, frozenset(), plan) == Declined("no kernel of this rule")


class _ByQueries:
    """Plans that say of every attention kernel that lanes are queries."""

    def __init__(self, rule: AttentionRule) -> None:
        self._rule = rule

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        space = self._rule.space(func, constants)
        return Decision(self._rule.name, {**space.default, "across": "queries"}) if isinstance(space, Space) else None


def test_a_model_follows_a_recorded_plan() -> None:
    attrs, target = fused(3, 3, 26, 26), targets()[0]
    y = normal(2, 9, 234)
    sizes = tuple(tirx.Var(name, "int64") for name in "bs")
    module = function({"y": ((*sizes, 234), "float32")}, lambda emit, v: emit(attention(v, v, v, None, attrs)))
    runner = Runner(module, PlannedTarget(target, _ByQueries(AttentionRule(target))))  # type: ignore[arg-type]
    assert runner.rules == {"cpu-attention"}
    assert len(runner.lowered.tuned) == 1
    np.testing.assert_allclose(runner(y)[0], reference(y, attrs, None), atol=ATOL, rtol=0)
