"""prune-filters on random networks: they compute what they did when nothing read the channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
from builders import const, graph, random
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_channels import masked
from tvm import relax
from tvm.relax import op

from greencc.ir import static_shape
from greencc.passes.base import PassContext
from greencc.passes.prune_filters import PruneFilters

SIZE = 4
# Each takes (emit, a, b, n), two values [1, channels, SIZE, SIZE] and a number, and returns such a value.
Step = Callable[..., relax.Expr]


def width(value):
    return static_shape(value.ty)[1]


def convolved(e, a, channels, seed, groups=1, kernel=3):
    filters = random(channels, width(a) // groups, kernel, kernel, seed=seed) / 4
    return e(op.nn.conv2d(a, const(filters), padding=(kernel // 2, kernel // 2), groups=groups))


def _convolution(e, a, b, n):
    return e(op.nn.relu(convolved(e, a, (4, 8, 12)[n % 3], n)))


def _depthwise(e, a, b, n):
    return convolved(e, a, width(a) * (1 + n % 2), n, groups=width(a)) if width(a) <= 12 else a


def _grouped(e, a, b, n):
    return convolved(e, a, width(a), n, groups=2) if n % 3 == 0 and width(a) % 2 == 0 else e(op.tanh(a))


def _sum(e, a, b, n):
    return e(op.add(a, b if width(b) == width(a) else convolved(e, b, width(a), n, kernel=1)))


def _gate(e, a, b, n):
    mean = e(op.mean(b, axis=[2, 3], keepdims=n % 2 == 0))
    if n % 2 == 0:
        gate = convolved(e, mean, width(a), n, kernel=1)
    else:
        gate = e(op.reshape(e(op.matmul(mean, const(random(width(b), width(a), seed=n)))), (1, width(a), 1, 1)))
    return e(op.multiply(a, e(op.sigmoid(gate))))


def _concat(e, a, b, n):
    return e(op.concat([a, b, a][: 2 + n % 2], axis=1)) if width(a) + width(b) <= 24 else a


def _half(e, a, b, n):
    middle = width(a) // 2
    if not middle:
        return a
    if n % 2:
        start = n % 3 % (width(a) - middle + 1)
        return e(op.strided_slice(a, [1], [start], [start + middle]))
    parts = e(op.split(a, [middle], axis=1))
    return e(relax.TupleGetItem(parts, n // 2 % 2))


def _shuffle(e, a, b, n):
    if not width(a) or width(a) % 2:
        return a
    split = e(op.reshape(a, (1, 2, width(a) // 2, SIZE, SIZE)))
    return e(op.reshape(e(op.permute_dims(split, [0, 2, 1, 3, 4])), (1, width(a), SIZE, SIZE)))


def _scale(e, a, b, n):
    return e(op.multiply(e(op.add(a, const(random(width(a), 1, 1, seed=n)))), const(random(1, seed=n))))


def _transposed(e, a, b, n):
    return e(op.permute_dims(a, [0, 1, 3, 2]))


STEPS: tuple[Step, ...] = (
    _convolution, _convolution, _depthwise, _grouped, _sum, _sum, _gate, _concat, _half, _shuffle, _scale, _transposed,
)  # fmt: skip


def check(module):
    result = PruneFilters(0.25).run(module, PassContext())
    assert relax.analysis.check_well_formed(result.module)
    x = random(1, 3, SIZE, SIZE, seed=7)
    wanted, found = (reference.evaluate(m, x)[0] for m in (masked(module, 0.25), result.module))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("flat", [False, True])
def test_channels_that_are_none(flat):
    def body(e, x):
        last = convolved(e, x, 8, 0)
        none = e(op.strided_slice(last, [1], [8], [8]))
        last = e(op.concat([last, none], axis=1))
        if not flat:
            return convolved(e, last, 2, 1, kernel=1)
        rows = e(op.reshape(last, (1, 8 * SIZE * SIZE)))
        rows = e(op.concat([rows, e(op.reshape(none, (1, 0)))], axis=1))
        return e(op.matmul(rows, const(random(8 * SIZE * SIZE, 3))))

    check(graph(body, x=(1, 3, SIZE, SIZE)))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), *(st.integers(0, 40) for _ in range(3))), min_size=3, max_size=12),
    flat=st.booleans(),
)
def test_random_networks(steps, flat):
    def body(e, x):
        values = [convolved(e, x, 8, 0)]
        for step, first, second, n in steps:
            # Mostly the last value, so that networks are deep.
            a, b = values[-1 - first % 3 % len(values)], values[second % len(values)]
            values.append(step(e, a, b, n))
        last = values[-1]
        if flat:
            rows = width(last) * SIZE * SIZE
            return e(op.matmul(e(op.reshape(last, (1, rows))), const(random(rows, 3))))
        return convolved(e, last, 2, 1, kernel=1)

    check(graph(body, x=(1, 3, SIZE, SIZE)))
