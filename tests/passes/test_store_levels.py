"""store-levels: weights that were bytes are bytes again, exactly; others are left."""

from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.relax import op

from greencc.ir import constant_array
from greencc.passes.store_levels import StoreLevels
from greencc.passes.stored import exact_levels

PASS = StoreLevels(min_weights=1)
PLAIN = "the weight is not a matrix, or not whole rows are looked up"


def made(rows: int = 64, columns: int = 64, axis: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels, scales, and the float32 products of both."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    places = rng.integers(0, levels.shape[1 - axis], (1, columns) if axis else (rows, 1))
    np.put_along_axis(levels, places, 127, 1 - axis)
    scale = np.exp(rng.standard_normal(levels.shape[axis])).astype(np.float32)
    return levels, scale, levels * (scale if axis else scale[:, None])


def product(w, shape=("batch", 64), kind="float32"):
    return graph(lambda e, x: e(op.matmul(x, const(w, kind))), x=(shape, kind))


def look_up(w, mode="clip", axis=0, kind="float32", also=None):
    def body(e, i):
        table = const(w, kind)
        rows = e(op.take(table, i, axis=axis, mode=mode))
        return [rows, e(also(table))] if also else rows

    return graph(body, i=((2, 3), "int64"))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1), st.integers(0, 1 << 20), st.booleans())
@settings(deadline=None)
def test_levels_and_scales_give_every_number_back(rows, columns, axis, seed, of_whole):
    levels, scale, weight = made(rows, columns, axis, seed)
    if of_whole:  # one scale, and channels that don't reach its largest level
        levels, scale, _ = made(90, 80, axis, seed)
        levels = levels // 3
        weight = levels * scale[0]
    found = exact_levels(weight, axis)
    assert found is not None
    again = found.levels * (found.scale if axis else found.scale[:, None])
    np.testing.assert_array_equal(again.view(np.uint32), (weight + np.float32(0)).view(np.uint32))


def test_a_product_reads_the_bytes_that_its_weight_was_made_from():
    levels, scale, weight = made()
    after = rewritten(PASS, product(weight))
    assert ops(after) == ["greencc.grouped_matmul"]
    stored, scales = (constant_array(arg) for arg in the_call(after, "greencc.grouped_matmul").args[1:])
    np.testing.assert_array_equal(stored, levels)
    np.testing.assert_array_equal(stored * scales, levels * scale)


@pytest.mark.parametrize("mode", ["clip", "wrap"])
def test_rows_are_looked_up_in_bytes(mode):
    levels, scale, weight = made(axis=0)
    after = rewritten(PASS, look_up(weight, mode))
    call = the_call(after, "greencc.quantized_take")
    assert bool(call.attrs["wrap"]) == (mode == "wrap")
    stored, scales = (constant_array(arg) for arg in call.args[:2])
    np.testing.assert_array_equal(stored * scales[:, None], levels * scale[:, None])


def test_a_column_of_zeros_has_a_scale_all_the_same():
    _, _, weight = made()
    weight[:, 5] = 0
    assert run(PASS, product(weight)).rewrites == 1


def test_products_of_variables_and_indices_that_are_constant_are_left():
    assert_unmatched(PASS, graph(lambda e, x, y: e(op.matmul(x, y)), x=(4, 64), y=(64, 6)))
    rows = const(np.array([1, 2]), "int64")
    assert_unmatched(PASS, graph(lambda e, x: e(op.take(x, rows, axis=0, mode="clip")), x=(4, 64)))


def test_condition_1_float32():
    levels, scale, _ = made()
    wide = product(levels * scale.astype(np.float64), kind="float64")
    assert_refused(StoreLevels(), wide, 1, "an operand or the result is not float32")


def test_condition_2_a_matrix():
    levels, scale, _ = made(axis=0)
    cube = np.stack([levels, -levels]) * scale[:, None]  # a scale for each index of the axis that columns lie along
    assert_refused(StoreLevels(), product(cube, (2, 4, 64)), 2, PLAIN)


@pytest.mark.parametrize("options", [{"axis": 1}, {"mode": "nan"}])
def test_condition_2_whole_rows(options):
    assert_refused(StoreLevels(), look_up(made(axis=0)[2], **options), 2, PLAIN)


def test_condition_3_worth_it():
    module = product(made(64, 6)[2])
    assert run(StoreLevels(min_weights=385), module).refusals[0].reason == "the weight is too small for bytes to pay"
    assert run(StoreLevels(min_weights=384), module).rewrites == 1


def test_condition_4_the_only_reader():
    twice = look_up(made(axis=0)[2], also=lambda table: op.exp(table))
    assert_refused(StoreLevels(), twice, 4, "something else reads the table too")


@pytest.mark.parametrize("what", ["random", "off by a place", "minus zero", "off the grid in the last column", "nan"])
def test_condition_5_exact(what):
    weight = random(64, 64) if what == "random" else made()[2]
    if what == "off by a place":
        weight[3, 3] = np.nextafter(weight[3, 3], np.float32(9))
    elif what == "off the grid in the last column":
        weight[4, 63] *= np.float32(1.003)
    elif what == "minus zero":
        weight[3, 3] = -0.0
    elif what == "nan":
        weight[4, 3] = np.nan
    result = run(StoreLevels(), product(weight))
    assert [(r.condition, r.reason) for r in result.refusals] == [(5, "an element is no level times a scale")]
