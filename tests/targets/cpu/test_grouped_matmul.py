"""Products with levels in groups against float64, for all instruction sets, tile remainders and numbers of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import Runner, function, host, normal, targets
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import GroupAttrs, grouped_matmul
from greencc.passes.grouped import BITS, GroupedWeight, round_to_nearest
from greencc.targets.packing import NibblePanels

# float32 sums of up to 192 products of standard normals, scaled to unit variance.
ATOL = 2e-5
X86_WITHOUT_HALVES = replace(host(), cpu="x86-64", features=("sse4.2",))


def product(x: relax.Expr, weight: GroupedWeight) -> relax.Call:
    offset = None if weight.offset is None else constant(weight.offset)
    attrs = GroupAttrs(weight.bits, weight.group)
    return grouped_matmul(x, constant(weight.levels), constant(weight.scale), offset, attrs)


def weights(rows: int, columns: int, group: int, bits: int) -> GroupedWeight:
    return round_to_nearest(normal(rows, columns, seed=columns) / np.float32(np.sqrt(rows)), group, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "target",
    [*targets(), *([X86_WITHOUT_HALVES] if host().is_x86 else [])],
    ids=lambda target: target.cpu,
)
def test_bias_and_relu_behind_levels_for_all_remainders(target, bits: int) -> None:
    # One module: compiling is the slow part. Groups are of all sizes, columns leave remainders of tile and vector.
    shapes = [(64, 1, 32), (96, 16, 96), (128, 70, 64), (192, 130, 2)]
    parts = [weights(*shape, bits) for shape in shapes]

    def body(emit, *xs):
        biased = [emit(relax.op.add(emit(product(x, w)), relax.const(bias(w)))) for x, w in zip(xs, parts, strict=True)]
        return [emit(relax.op.nn.relu(y)) for y in biased]

    for rows in (3, 21):
        params = {f"x{i}": ((rows, depth), "float32") for i, (depth, *_) in enumerate(shapes)}
        runner = Runner(function(params, body), target)
        assert runner.rules == {"cpu-matmul"}
        xs = [normal(rows, depth, seed=depth) for depth, *_ in shapes]
        for x, w, got in zip(xs, parts, runner(*xs), strict=True):
            want = np.maximum(x.astype(np.float64) @ w.values + bias(w), 0)
            np.testing.assert_allclose(got, want, atol=ATOL, rtol=0)


def bias(weight: GroupedWeight) -> np.ndarray:
    return normal(weight.levels.shape[1], seed=5)


@pytest.mark.parametrize("bits", BITS)
def test_symbolic_rows(bits: int) -> None:
    rows, w = tirx.Var("s", "int64"), weights(64, 80, 32, bits)
    runner = Runner(function({"x": ((2, rows, 64), "float32")}, lambda emit, x: emit(product(x, w))))
    for count in (1, 2, 3, 64, 65, 100):
        x = normal(2, count, 64)
        np.testing.assert_allclose(runner(x)[0], x.astype(np.float64) @ w.values, atol=ATOL, rtol=0)


@pytest.mark.parametrize(("bits", "bytes_"), [(8, 64 * 96), (4, 32 * 96)])
def test_levels_are_stored_in_as_many_bits_and_count_as_that(bits: int, bytes_: int) -> None:
    w = weights(64, 96, 32, bits)
    lowered = Runner(function({"x": ((1, 64), "float32")}, lambda emit, x: emit(product(x, w)))).lowered
    levels, *schemes = lowered.weights.values()
    assert (levels.dtype, levels.nbytes) == (np.int8, bytes_)
    assert [array.dtype for array in schemes] == [np.float16] * (1 if bits == 8 else 2)
    (call,) = lowered.calls
    assert call.operations == 2 * 64 * 96
    assert call.bytes == bytes_ + 4 * (64 + 96) + sum(array.nbytes for array in schemes)


def test_two_levels_lie_in_a_byte() -> None:
    levels = np.array([[-8, 7, 3], [-1, 0, 5]], np.int8)
    packed = NibblePanels(2).pack(levels)
    assert packed.shape == (2, 1, 2)
    np.testing.assert_array_equal(packed.view(np.uint8).ravel(), [0xF8, 0x07, 0x53, 0])


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((8,), (2, 3)), "takes x"),
        (((8, 3), (3, 3)), "8 rows are not groups of 4 levels"),
        (((8, 3), (2, 4)), "8 rows are not groups of 4 levels"),
    ],
)
def test_operands_that_do_not_fit_are_refused(shapes, words: str) -> None:
    levels, scale = (np.zeros(shape, dtype) for shape, dtype in zip(shapes, (np.int8, np.float16), strict=True))
    x = relax.Var("x", relax.TensorType((1, 8), "float32"))
    with pytest.raises(RuntimeError, match=words):
        relax.BlockBuilder().normalize(grouped_matmul(x, constant(levels), constant(scale), None, GroupAttrs(8, 4)))
