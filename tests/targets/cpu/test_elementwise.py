"""Kernels without a reduction: what moves elements about, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from running import Runner, function, host, normal
from sampled_plans import SampledPlans, rule_of
from tvm import relax

from greencc.ir import constant
from greencc.ops import quantized_take
from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import fuse, kernel_calls
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.tuning.space import Space

HALF = 4


def turned_halves(emit, x, angles):
    """Rotates the halves of groups of eight columns: reads at positions modulo eight."""
    groups = emit(relax.op.reshape(x, (2, 3, 4, 2 * HALF)))
    first, second = (emit(relax.op.strided_slice(groups, [3], [i * HALF], [(i + 1) * HALF])) for i in (0, 1))
    spread = emit(relax.op.reshape(angles, (2, 3, 1, HALF)))
    turned = emit(relax.op.concat([emit(relax.op.multiply(second, spread)), emit(relax.op.add(first, spread))], axis=3))
    return [emit(relax.op.reshape(turned, (2, 3, 32)))]


@pytest.mark.parametrize("cpu", ["", "znver4", "haswell"])
def test_positions_modulo_a_power_of_two(cpu: str) -> None:
    """LLVM 22 turns `y[i % 4]` in a loop over 16 columns into 16 neighbours of y[0], for AVX-512 with fast masks."""
    target = host()
    if cpu:
        known = {"znver4": ("avx", "avx2", "avx512bw", "avx512f", "avx512vl", "fma"), "haswell": ("avx", "avx2", "fma")}
        if not set(known[cpu]) <= set(target.features):
            pytest.skip(f"this machine can't run code for {cpu}")
        target = CpuTarget(target.triple, cpu, known[cpu], target.threads)
    module = function({"x": ((2, 3, 32), "float32"), "angles": ((2, 3, HALF), "float32")}, turned_halves)
    x, angles = normal(2, 3, 32), normal(2, 3, HALF, seed=1)
    groups, spread = x.reshape(2, 3, 4, 2, HALF), angles[:, :, None]
    wanted = np.stack([groups[..., 1, :] * spread, groups[..., 0, :] + spread], axis=3).reshape(2, 3, 32)
    (got,) = Runner(module, target)(x, angles)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("width", [32, 37])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_rows_of_bytes_are_scaled_and_every_index_means_a_row(width: int, kind: str, wrap: bool) -> None:
    rng = np.random.default_rng(0)
    table, scale = rng.integers(-127, 128, (50, width)).astype(np.int8), rng.random(50).astype(np.float32)
    module = function(
        {"places": ((3, 70), kind)},
        lambda emit, places: [emit(quantized_take(constant(table), constant(scale), places, wrap=wrap))],
    )
    places = rng.integers(-5, 56, (3, 70)).astype(kind)
    rows = places % 50 if wrap else np.clip(places, 0, 49)
    (got,) = Runner(module, host())(places)
    np.testing.assert_array_equal(got, table[rows].astype(np.float32) * scale[rows][..., None])


def waves(emit, x):
    """Eight maps, each of which reads the one before three times: written out, 3^8 of them."""
    for _ in range(8):
        x = emit(relax.op.multiply(emit(relax.op.multiply(x, emit(relax.op.sin(x)))), emit(relax.op.sigmoid(x))))
    return [x]


def test_a_chain_that_would_grow_exponentially_is_not_written_out() -> None:
    runner = Runner(function({"x": ((3, 40), "float32")}, waves))
    assert runner.rules == {"cpu-fallback"}
    x = normal(3, 40)
    wanted = x.astype(np.float64)
    for _ in range(8):
        wanted = wanted * np.sin(wanted) / (1 + np.exp(-wanted))
    np.testing.assert_allclose(runner(x)[0], wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("rows", "shared"), [(4, "one"), (4000, "all")])
def test_threads_share_a_map_or_not_by_plan(rows: int, shared: str) -> None:
    module = function({"x": ((rows, 48), "float32")}, lambda emit, x: emit(relax.op.nn.relu(x)))
    lowered, _ = fuse(host().legalize(module))
    (call,) = kernel_calls(lowered)
    func, rule = lowered[call.args[0]], rule_of(host(), "cpu-elementwise")
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    assert space.default == {"threads": shared}
    plain = rule.apply(func, frozenset())
    for threads in ("all", "one"):
        planned = rule.apply(func, frozenset(), {"threads": threads})
        assert isinstance(plain, Scheduled)
        assert isinstance(planned, Scheduled)
        assert ("T.parallel" in planned.func.script()) == (threads == "all")
        if threads == shared:
            tvm.ir.assert_structural_equal(plain.func, planned.func)
    assert rule.apply(func, frozenset(), {"threads": 2}) == Declined("threads is 2")


@pytest.mark.parametrize("seed", range(3))
def test_rows_by_index_and_a_long_chain_by_drawn_passes(seed: int) -> None:
    """The chain's maps stay in registers: here it needn't be written out."""
    rng = np.random.default_rng(0)
    table, scale = rng.integers(-127, 128, (50, 37)).astype(np.int8), rng.random(50).astype(np.float32)

    def body(emit, places, x):
        taken = emit(quantized_take(constant(table), constant(scale), places, wrap=False))
        return [taken, *waves(emit, x)]

    plans = SampledPlans(rule_of(host(), "cpu-rows"), seed)
    module = function({"places": ((3, 70), "int64"), "x": ((3, 40), "float32")}, body)
    runner = Runner(module, PlannedTarget(host(), plans))
    assert runner.rules == {"cpu-rows"}
    places, x = rng.integers(0, 50, (3, 70)), normal(3, 40)
    taken, chained = runner(places, x)
    np.testing.assert_array_equal(taken, table[places].astype(np.float32) * scale[places][..., None])
    chain = x.astype(np.float64)
    for _ in range(8):
        chain = chain * np.sin(chain) / (1 + np.exp(-chain))
    np.testing.assert_allclose(chained, chain, rtol=1e-3, atol=1e-6)
