"""Products by plans from all over their space compute the same; see test_matmul.py for what is computed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from running import Runner, function, host, normal, targets
from sampled_plans import SampledPlans, draw
from test_int8 import RUNNABLE, X86
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import GroupAttrs, grouped_matmul, quantized_matmul
from greencc.passes.grouped import GroupedWeight, round_to_nearest
from greencc.passes.stored import quantize_channels
from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.matmul import MatmulRule
from greencc.targets.cpu.schedules.matmul_plan import tile_heights
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import constant_parameters, fuse, kernel_calls
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.tuning.space import Space
from tests.targets.cpu.int8_reference import expected

# float32 sums of up to 192 products of standard normals, scaled to unit variance.
ATOL = 2e-5
# Rows, depth, columns: one panel and several, columns that leave remainders of panels and vectors, blocks of rows.
SHAPES = [(1, 64, 48), (5, 33, 7), (37, 48, 24), (40, 96, 130), (261, 32, 72)]
SEEDS = range(2)

Check = Callable[[list[np.ndarray]], None]


def by_plans(module: tvm.IRModule, target: CpuTarget, seed: int) -> Runner:
    """`module`, every product by another plan."""
    plans = SampledPlans(MatmulRule(target), seed)
    runner = Runner(module, PlannedTarget(target, plans))
    assert plans.taken
    assert len(runner.lowered.tuned) == len(plans.taken)
    return runner


@cache
def weight(depth: int, columns: int) -> np.ndarray:
    return normal(depth, columns, seed=columns) / np.float32(math.sqrt(depth))


def biased(emit, y: relax.Expr, columns: int) -> relax.Expr:
    return emit(relax.op.nn.relu(emit(relax.op.add(y, relax.const(normal(columns, seed=5))))))


def rectified(product: np.ndarray) -> np.ndarray:
    return np.maximum(product + normal(product.shape[-1], seed=5), 0)


def floats(rows: tirx.Var | None) -> tvm.IRModule:
    params = {f"x{i}": ((1, r if rows is None else rows, k), "float32") for i, (r, k, _) in enumerate(SHAPES)}

    def body(emit, *xs):
        products = [emit(relax.op.matmul(x, relax.const(weight(*s[1:])))) for x, s in zip(xs, SHAPES, strict=True)]
        return [biased(emit, y, s[2]) for y, s in zip(products, SHAPES, strict=True)]

    return function(params, body)


def check_floats(runner: Runner, counts: list[int]) -> None:
    xs = [normal(1, rows, shape[1], seed=rows) for rows, shape in zip(counts, SHAPES, strict=True)]
    for x, shape, got in zip(xs, SHAPES, runner(*xs), strict=True):
        want = rectified(x.astype(np.float64) @ weight(*shape[1:]))
        np.testing.assert_allclose(got, want, atol=ATOL, rtol=0)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("seed", SEEDS)
def test_float32(target: CpuTarget, seed: int) -> None:
    check_floats(by_plans(floats(None), target, seed), [rows for rows, *_ in SHAPES])


@pytest.mark.parametrize("seed", SEEDS)
def test_symbolic_rows(seed: int) -> None:
    runner = by_plans(floats(tirx.Var("s", "int64")), host(), seed)
    for count in (1, 2, 7, 37, 129, 260):
        check_floats(runner, [count] * len(SHAPES))


@pytest.mark.parametrize("seed", SEEDS)
def test_products_in_place(seed: int) -> None:
    shapes = [((2, 3), 9, 20, 32), ((2, 2), 37, 16, 96), ((1, 3), 140, 12, 24)]
    params = {}
    for i, (lead, rows, depth, columns) in enumerate(shapes):
        params |= {f"a{i}": ((*lead, rows, depth), "float32"), f"b{i}": ((*lead, depth, columns), "float32")}

    def body(emit, *arrays):
        return [emit(relax.op.matmul(a, b)) for a, b in zip(arrays[::2], arrays[1::2], strict=True)]

    arrays = [normal(*shape, seed=i) / np.float32(4) for i, (shape, _) in enumerate(params.values())]
    results = by_plans(function(params, body), host(), seed)(*arrays)
    for a, b, got in zip(arrays[::2], arrays[1::2], results, strict=True):
        np.testing.assert_allclose(got, a.astype(np.float64) @ b, atol=ATOL, rtol=0)


def levels(rows: tirx.Var | None) -> tvm.IRModule:
    params = {f"x{i}": ((1, r if rows is None else rows, k), "float32") for i, (r, k, _) in enumerate(SHAPES)}

    def body(emit, *xs):
        made = []
        for x, (_, depth, columns) in zip(xs, SHAPES, strict=True):
            w, scale = map(constant, quantize_channels(weight(depth, columns), 1))
            made.append(emit(relax.op.nn.relu(emit(quantized_matmul(x, w, scale)))))
        return made

    return function(params, body)


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize(
    ("name", "rows"),
    [*((name, None) for name in RUNNABLE), *((name, tirx.Var("s", "int64")) for name in RUNNABLE[-1:])],
    ids=lambda value: "symbolic" if isinstance(value, tirx.Var) else value or "static",
)
def test_int8_is_exact(name: str, rows: tirx.Var | None) -> None:
    runner = by_plans(levels(rows), X86[name], len(name))
    counts = [r for r, *_ in SHAPES] if rows is None else [37] * len(SHAPES)
    xs = [normal(1, count, shape[1], seed=count) for count, shape in zip(counts, SHAPES, strict=True)]
    for x, (_, depth, columns), got in zip(xs, SHAPES, runner(*xs), strict=True):
        product = expected(x, *quantize_channels(weight(depth, columns), 1))
        np.testing.assert_array_equal(got, np.maximum(product, 0))


def grouped(rows: tirx.Var | None, parts: dict[int, GroupedWeight]) -> tvm.IRModule:
    def body(emit, *xs):
        made = []
        for x, w in zip(xs, parts.values(), strict=True):
            offset = None if w.offset is None else constant(w.offset)
            attrs = GroupAttrs(w.bits, w.group)
            made.append(emit(grouped_matmul(x, constant(w.levels), constant(w.scale), offset, attrs)))
        return made

    shapes = {r: (1, r if rows is None else rows, w.levels.shape[0]) for r, w in parts.items()}
    return function({f"x{r}": (shape, "float32") for r, shape in shapes.items()}, body)


@pytest.mark.parametrize("rows", [None, tirx.Var("s", "int64")], ids=["static", "symbolic"])
def test_levels_in_groups(rows: tirx.Var | None) -> None:
    sizes = {1: (64, 40, 32, 4), 5: (96, 130, 16, 8), 37: (192, 24, 2, 4), 140: (32, 72, 32, 8)}
    parts = {r: round_to_nearest(weight(k, n), group, bits) for r, (k, n, group, bits) in sizes.items()}
    runner = by_plans(grouped(rows, parts), host(), 1)
    for count in [None] if rows is None else [1, 6, 37, 140]:
        xs = [normal(1, count or r, w.levels.shape[0], seed=r) for r, w in parts.items()]
        for x, w, got in zip(xs, parts.values(), runner(*xs), strict=True):
            np.testing.assert_allclose(got, x.astype(np.float64) @ w.values, atol=ATOL, rtol=0)


def products(target: CpuTarget) -> list[tuple[tirx.PrimFunc, frozenset[int]]]:
    """Kernels of products of all forms for a target."""
    found = []
    rows = tirx.Var("s", "int64")
    for module in (floats(None), floats(rows), levels(None), levels(rows)):
        fused, _ = fuse(target.legalize(relax.transform.DeadCodeElimination(["main"])(module)))
        constants = constant_parameters(fused)
        names = {call.args[0].name_hint for call in kernel_calls(fused)}
        found += [(fused[name], constants[name]) for name in sorted(names) if "matmul" in name]
    return found


ARM = CpuTarget("aarch64-linux-gnu", "neoverse-n1", ("dotprod", "neon"), 2)


@pytest.mark.parametrize("target", [*X86.values(), ARM], ids=[*X86, "arm"])
def test_the_default_is_a_plan_and_all_plans_have_features(target: CpuTarget) -> None:
    rule, generator = MatmulRule(target), random.Random(3)
    for func, constants in products(target):
        space = rule.space(func, constants)
        assert isinstance(space, Space)
        assert space.problem(space.default) is None
        same = rule.apply(func, constants, space.default)
        default = rule.apply(func, constants)
        assert isinstance(same, Scheduled)
        assert isinstance(default, Scheduled)
        tvm.ir.assert_structural_equal(same.func, default.func)
        assert same.layouts == default.layouts
        for plan in (space.default, *(draw(space, generator) for _ in range(20))):
            assert all(math.isfinite(value) for value in space.features(plan).values())


def test_plans_that_do_not_fit_are_declined() -> None:
    rule = MatmulRule(host())
    func, constants = products(host())[3]
    space = rule.space(func, constants)
    assert isinstance(space, Space)
    for change, reason in (
        ({"rows": 7777}, "rows is 7777"),
        ({"unroll": 4}, "other knobs"),
        ({"rows": max(space.knobs[0].values), "vectors": 4}, "registers"),
    ):
        outcome = rule.apply(func, constants, {**space.default, **change})
        assert isinstance(outcome, Declined)
        assert reason in outcome.reason


def test_vectors_are_halved_where_they_would_be_half_empty() -> None:
    target = replace(host(), cpu="skylake-avx512", features=("avx", "avx2", "avx512f", "avx512vl", "fma"))
    rule, offered = MatmulRule(target), {}
    for func, constants in products(target)[: len(SHAPES)]:
        space = rule.space(func, constants)
        assert isinstance(space, Space)
        columns = int(space.traits["columns"])
        offered[columns] = next((knob.values for knob in space.knobs if knob.name == "lanes"), None)
    assert offered == {48: None, 7: (8, 16), 24: (8, 16), 130: (8, 16), 72: (8, 16)}


@given(st.integers(1, 400), st.integers(1, 24), st.booleans())
def test_heights_cover_all_rows(count: int, most: int, even: bool) -> None:
    heights = [height for times, height in tile_heights(count, most, even=even) for _ in range(times)]
    assert sum(heights) == count
    assert len(heights) == -(-count // most)
    assert 0 < min(heights) <= max(heights) <= most
    assert not even or max(heights) - min(heights) <= 1
