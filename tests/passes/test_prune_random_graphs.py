from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import bits, const, graph, prune, run_numpy, tensor
from tvm import relax

from greencc.ir import count_graph, static_shape
from greencc.passes.base import PassContext
from greencc.passes.fold_constants import FoldConstants

op = relax.op
SHAPE = (2, 2, 6)
SPECIAL = np.array([-0.0, 0.0, np.nan, np.inf, -np.inf, 1.5, -3.0, 1e-40], np.float32)
# Each takes (emit, a, b, n), two values of SHAPE's size and a variant's number, and returns such a value.
Step = Callable[..., relax.Expr]


def _shape(value: relax.Expr) -> list[int]:
    return list(static_shape(value.ty) or ())


def _permute(e, a, b, n):
    rank = len(_shape(a))
    axes = [(axis + n) % rank for axis in range(rank)]
    return e(op.permute_dims(a, axes if n % 2 or rank < 3 else [axes[1], axes[0], axes[2]]))


def _reverse(e, a, b, n):
    return e(op.strided_slice(a, [0], [-1], [-_shape(a)[0] - 1], [-1]))


def _slices(e, a, b, n):
    size = _shape(a)[0]
    cut = n % (size + 1)
    parts = [e(op.strided_slice(a, [0], [0], [cut])), e(op.strided_slice(a, [0], [cut], [size]))]
    return e(op.concat(parts[::-1] if n % 3 == 0 else parts, 0))


def _nested_slices(e, a, b, n):
    stack = e(op.concat([a, a, a], 0))
    size = _shape(a)[0]
    first = e(op.strided_slice(stack, [0], [n % size], [3 * size], [1 + n % 2]))
    return e(op.strided_slice(first, [0], [-size if n % 5 == 0 else 0], [size if n % 5 else 10**6]))


def _split(e, a, b, n):
    parts = e(op.split(a, _shape(a)[0], 0))
    if _shape(a)[0] == 1:
        return parts
    order = range(_shape(a)[0]) if n % 2 else reversed(range(_shape(a)[0]))
    return e(op.concat([e(relax.TupleGetItem(parts, i)) for i in order], 0))


def _cast(e, a, b, n):
    return e(op.astype(e(op.astype(a, ["float64", "float16", "float32"][n % 3])), "float32"))


def _neutral(e, a, b, n):
    kind, value = [
        (op.add, -0.0), (op.add, 0.0), (op.subtract, 0.0), (op.subtract, -0.0),
        (op.multiply, 1.0), (op.divide, 1.0), (op.power, 1.0), (op.multiply, 2.0),
    ][n % 8]  # fmt: skip
    return e(kind(a, const(value)))


def _binary(e, a, b, n):
    a, b = e(op.reshape(a, [24])), e(op.reshape(b, [24]))
    return e([op.add, op.multiply, op.subtract][n % 3](a, b))


STEPS: list[Step] = [
    lambda e, a, b, n: e(op.reshape(a, [[24], [2, 12], [4, 6], list(SHAPE)][n % 4])),
    lambda e, a, b, n: e(op.squeeze(e(op.expand_dims(a, [n % 2])), [n % 2])),
    lambda e, a, b, n: e(op.broadcast_to(a, _shape(a))),
    lambda e, a, b, n: e(op.nn.pad(a, [n % 2, -(n % 2), *[0] * (2 * len(_shape(a)) - 2)])),
    lambda e, a, b, n: e(op.negative(a)),
    lambda e, a, b, n: e(op.where(const(n % 2 == 0, "bool"), a, const(n % 3 - 0.0))),
    lambda e, a, b, n: e(op.add(a, const(np.full(_shape(a), n % 3 - 1.0)))),
    _permute, _reverse, _slices, _nested_slices, _split, _cast, _neutral, _binary,
]  # fmt: skip

programs = st.lists(
    st.tuples(st.sampled_from(range(len(STEPS))), st.integers(0, 9), st.integers(0, 9), st.integers(0, 11)),
    min_size=1,
    max_size=14,
)


def build(program, outputs):
    def body(e, x, y):
        pool = [x, y, const(SPECIAL.repeat(3).reshape(SHAPE))]
        for step, a, b, n in program:
            pool.append(STEPS[step](e, pool[-1 - a % len(pool)], pool[-1 - b % len(pool)], n))
        return [pool[-1 - i % len(pool)] for i in outputs]

    return graph([tensor("x", *SHAPE), tensor("y", *SHAPE)], body)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(programs, st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_pruned_graph_computes_the_same_bits(program, outputs):
    before = build(program, outputs)
    result = prune(before)
    folded = FoldConstants().run(result.module, PassContext())
    x = np.resize(SPECIAL, SHAPE).astype(np.float32)
    y = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    expected = bits(run_numpy(before, x, y))
    assert bits(run_numpy(result.module, x, y)) == expected
    assert bits(run_numpy(folded.module, x, y)) == expected
    sizes = [count_graph(module) for module in (before, result.module, folded.module)]
    assert sizes[0] >= sizes[1] >= sizes[2]
