"""The memory plan: tensors that live at the same time never overlap, and parts are made in the place of their whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Runner, function, host, normal
from tvm import ir, relax, tirx
from tvm.relax import op

from greencc.ir import bindings_of
from greencc.targets.lower import lower

CHANNELS, SIZE = 16, 6


def weights(count: int, given_: int, seed: int = 0) -> np.ndarray:
    return normal(count, given_, 1, 1, seed=seed) * np.float32(0.2)


def layer(emit: Callable, x: relax.Expr, count: int, seed: int) -> relax.Expr:
    """A convolution by a 1 x 1 filter, which no concatenation fuses with."""
    w = weights(count, int(x.ty.shape.values[1]), seed)
    return emit(op.nn.conv2d(x, relax.const(w, "float32")))


def wanted(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    w = weights(count, x.shape[1], seed)[:, :, 0, 0].astype(np.float64)
    return np.einsum("kc,nchw->nkhw", w, x.astype(np.float64))


def module(body: Callable, batch: int = 1) -> tvm.IRModule:
    return function({"x": ((batch, CHANNELS, SIZE, SIZE), "float32")}, body)


def check(body: Callable, expected: Callable, copies: int, batch: int = 1) -> None:
    """The outputs are right, and this many concatenations are left as kernels."""
    runner = Runner(module(body, batch))
    left = [call.kernel for call in runner.lowered.calls if call.kernel.startswith("concatenate")]
    assert len(left) == copies, left
    x = normal(batch, CHANNELS, SIZE, SIZE)
    for _ in range(2):
        for got, want in zip(runner(x), expected(x), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_parts_are_made_in_place() -> None:
    def body(emit, x):
        whole = emit(op.concat([layer(emit, x, 16, 1), layer(emit, x, 32, 2)], axis=1))
        return layer(emit, whole, 8, 3)

    def expected(x):
        return [wanted(np.concatenate([wanted(x, 16, 1), wanted(x, 32, 2)], 1), 8, 3)]

    check(body, expected, copies=0)


def test_an_output_may_be_made_of_parts() -> None:
    def body(emit, x):
        return emit(op.concat([layer(emit, x, 16, 1), layer(emit, x, 32, 2)], axis=1))

    check(body, lambda x: [np.concatenate([wanted(x, 16, 1), wanted(x, 32, 2)], 1)], copies=0)


def test_a_part_may_be_used_elsewhere_and_a_whole_may_be_a_part() -> None:
    """As in dense blocks: each layer reads all before it."""

    def body(emit, x):
        first = layer(emit, x, 16, 1)
        second = layer(emit, first, 16, 2)
        both = emit(op.concat([first, second], axis=1))
        third = layer(emit, both, 16, 3)
        all_ = emit(op.concat([both, third], axis=1))
        return layer(emit, all_, 8, 4)

    def expected(x):
        first = wanted(x, 16, 1)
        both = np.concatenate([first, wanted(first, 16, 2)], 1)
        return [wanted(np.concatenate([both, wanted(both, 16, 3)], 1), 8, 4)]

    check(body, expected, copies=0)


def _an_input(emit, x):
    return [x, layer(emit, x, 16, 1)], lambda a: [a, wanted(a, 16, 1)]


def _twice(emit, x):
    y = layer(emit, x, 16, 1)
    return [y, y], lambda a: [wanted(a, 16, 1)] * 2


def _not_aligned(emit, x):
    return [layer(emit, x, 3, 1), layer(emit, x, 16, 2)], lambda a: [wanted(a, 3, 1), wanted(a, 16, 2)]


@pytest.mark.parametrize("parts", [_an_input, _twice, _not_aligned])
def test_what_can_not_be_made_in_place_is_copied(parts: Callable) -> None:
    values: list[Callable] = []

    def body(emit, x):
        found, value = parts(emit, x)
        values.append(value)
        return layer(emit, emit(op.concat(found, axis=1)), 8, 3)

    check(body, lambda x: [wanted(np.concatenate(values[0](x), 1), 8, 3)], copies=1)


def test_a_batch_of_several_is_copied() -> None:
    def body(emit, x):
        return layer(emit, emit(op.concat([layer(emit, x, 16, 1), layer(emit, x, 16, 2)], axis=1)), 8, 3)

    def expected(x):
        return [wanted(np.concatenate([wanted(x, 16, 1), wanted(x, 16, 2)], 1), 8, 3)]

    check(body, expected, copies=1, batch=2)


def test_a_part_of_two_wholes_is_copied_to_the_second() -> None:
    def body(emit, x):
        a, b = layer(emit, x, 16, 1), layer(emit, x, 16, 2)
        first, second = emit(op.concat([a, b], axis=1)), emit(op.concat([b, a], axis=1))
        return [layer(emit, first, 8, 3), layer(emit, second, 8, 4)]

    def expected(x):
        a, b = wanted(x, 16, 1), wanted(x, 16, 2)
        return [wanted(np.concatenate([a, b], 1), 8, 3), wanted(np.concatenate([b, a], 1), 8, 4)]

    check(body, expected, copies=1)


def places(lowered: tvm.IRModule) -> tuple[list[tuple[int, int, int, int]], int]:
    """(first binding, last binding, begin, end) of every tensor in main's arena, and the arena's size."""
    bindings = list(bindings_of(lowered["main"]))
    found: dict[relax.Var, list[int]] = {}
    same: dict[relax.Expr, relax.Var] = {}
    size = 0
    for number, binding in enumerate(bindings):
        value = binding.value
        if isinstance(value, relax.Var) and value in same:
            same[binding.var] = same[value]
        if not isinstance(value, relax.Call):
            continue
        name = value.op.name if isinstance(value.op, ir.Op) else ""
        if name == "relax.memory.alloc_storage":
            size = int(value.args[0].values[0])
        elif name == "relax.memory.alloc_tensor":
            begin = int(value.args[1])
            bytes_ = 4 * int(np.prod([int(dim) for dim in value.args[2].values]))
            found[binding.var] = [number, number, begin, begin + bytes_]
            same[binding.var] = binding.var
        else:
            for arg in value.args:
                if arg in same:
                    found[same[arg]][1] = number
    return [(a, b, c, d) for a, b, c, d in found.values()], size


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 7)), min_size=2, max_size=9))
def test_tensors_that_live_at_the_same_time_do_not_overlap(layers: list[tuple[int, int]]) -> None:
    def body(emit, x):
        values = [x]
        for seed, (count, source) in enumerate(layers):
            values.append(layer(emit, values[source % len(values)], 16 * count, seed))
        return values[-1]

    lowered = lower(module(body), host())
    tensors, size = places(lowered.module)
    assert size == lowered.arena_bytes
    for i, (first, last, begin, end) in enumerate(tensors):
        assert begin % host().alignment == 0
        assert end <= size
        for other_first, other_last, other_begin, other_end in tensors[:i]:
            apart = last < other_first or other_last < first
            assert apart or end <= other_begin or other_end <= begin


def test_the_arena_is_no_larger_than_what_is_alive_at_once() -> None:
    """A chain needs two of its tensors at a time."""

    def body(emit, x):
        for seed in range(6):
            x = layer(emit, x, 64, seed)
        return x

    tensor = 64 * SIZE * SIZE * 4
    assert lower(module(body), host()).arena_bytes == 2 * tensor


def test_bounded_sizes_get_room_for_the_largest_and_open_ones_none() -> None:
    rows = tirx.Var("n", "int64")

    def body(emit, x):
        y = emit(op.matmul(x, relax.const(normal(8, 16))))
        return emit(op.matmul(y, relax.const(normal(16, 8))))

    open_ended = function({"x": ((rows, 8), "float32")}, body)
    main = open_ended["main"].with_attr("tir_var_lower_bound", {"n": 1}).with_attr("tir_var_upper_bound", {"n": 10})
    bounded = open_ended.clone()
    bounded.update_func(open_ended.get_global_var("main"), main)
    assert lower(open_ended, host()).arena_bytes == 0
    assert lower(bounded, host()).arena_bytes == 10 * 16 * 4
    runner = Runner(bounded)
    for count in (1, 10, 3):
        x = normal(count, 8)
        np.testing.assert_allclose(runner(x)[0], x @ normal(8, 16) @ normal(16, 8), rtol=1e-4, atol=1e-4)


ROWS, WIDTH = 12, 64
ROW_BYTES = ROWS * WIDTH * 4


def product(emit: Callable, x: relax.Expr, seed: int) -> relax.Expr:
    return emit(op.matmul(x, relax.const(normal(WIDTH, WIDTH, seed=seed) * np.float32(0.1))))


def norm(emit: Callable, x: relax.Expr) -> relax.Expr:
    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    return emit(op.nn.layer_norm(x, relax.const(ones), relax.const(zeros), axes=[-1]))


def times(x: np.ndarray, seed: int) -> np.ndarray:
    return x @ (normal(WIDTH, WIDTH, seed=seed) * np.float32(0.1))


def normed(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def residual(emit, x):
    """The sum takes the place of `kept`, which nothing reads later."""
    kept = product(emit, x, 1)
    return product(emit, emit(op.add(product(emit, product(emit, kept, 2), 3), kept)), 4)


def residual_wanted(x):
    kept = times(x, 1)
    return times(times(times(kept, 2), 3) + kept, 4)


def normalised(emit, x):
    return product(emit, norm(emit, product(emit, x, 1)), 2)


def own_operand(emit, x):
    """Every row of `kept` is read again for other columns: the sum needs a place of its own."""
    kept = product(emit, x, 1)
    return product(emit, emit(op.add(product(emit, kept, 2), kept)), 3)


def read_later(emit, x):
    kept = product(emit, x, 1)
    total = emit(op.add(product(emit, product(emit, kept, 2), 3), kept))
    return product(emit, emit(op.add(product(emit, total, 4), kept)), 5)


def read_later_wanted(x):
    kept = times(x, 1)
    return times(times(times(times(kept, 2), 3) + kept, 4) + kept, 5)


@pytest.mark.parametrize(
    ("body", "expected", "tensors"),
    [
        (residual, residual_wanted, 2),
        (normalised, lambda x: times(normed(times(x, 1)), 2), 1),
        (own_operand, lambda x: times(times(times(x, 1), 2) + times(x, 1), 3), 2),
        (read_later, read_later_wanted, 3),
    ],
    ids=["residual", "normalised", "own operand", "read later"],
)
def test_results_take_the_place_of_operands(body: Callable, expected: Callable, tensors: int) -> None:
    runner = Runner(function({"x": ((ROWS, WIDTH), "float32")}, body))
    assert runner.lowered.arena_bytes == tensors * ROW_BYTES
    x = normal(ROWS, WIDTH)
    for _ in range(2):
        np.testing.assert_allclose(runner(x)[0], expected(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [6, 61], ids=["one band", "bands that overlap"])
def test_a_residual_behind_a_convolution(size: int) -> None:
    """Bands of rows that overlap compute rows twice, and must find the residual as it was."""

    def body(emit, x):
        kept = emit(op.nn.conv2d(x, relax.const(normal(16, 16, 1, 1) * np.float32(0.2))))
        inner = emit(op.nn.conv2d(kept, relax.const(normal(16, 16, 3, 3, seed=1) * np.float32(0.1)), padding=1))
        last = emit(op.nn.conv2d(inner, relax.const(normal(16, 16, 3, 3, seed=2) * np.float32(0.1)), padding=1))
        return emit(op.nn.max_pool2d(emit(op.add(last, kept)), (2, 2)))

    # The same with every value an output, and therefore with a place of its own.
    def apart(emit, x):
        kept = emit(op.nn.conv2d(x, relax.const(normal(16, 16, 1, 1) * np.float32(0.2))))
        inner = emit(op.nn.conv2d(kept, relax.const(normal(16, 16, 3, 3, seed=1) * np.float32(0.1)), padding=1))
        last = emit(op.nn.conv2d(inner, relax.const(normal(16, 16, 3, 3, seed=2) * np.float32(0.1)), padding=1))
        total = emit(op.add(last, kept))
        return [emit(op.nn.max_pool2d(total, (2, 2))), total, kept, inner]

    params = {"x": ((1, 16, size, size), "float32")}
    x = normal(1, 16, size, size)
    np.testing.assert_array_equal(Runner(function(params, body))(x)[0], Runner(function(params, apart))(x)[0])
