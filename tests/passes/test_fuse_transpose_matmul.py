from __future__ import annotations

import pytest
from builders import (
    assert_equal,
    assert_refused,
    assert_same_values,
    assert_unmatched,
    const,
    graph,
    ops,
    random,
    rewritten,
    run,
)
from tvm.relax import op

from greencc.passes.fuse_transpose_matmul import FuseTransposeMatmul

W = random(5, 4)


def swap(e, x):
    rank = x.ty.ndim
    return e(op.permute_dims(x, [*range(rank - 2), rank - 1, rank - 2]))


def test_constant_on_the_right():
    before = graph(lambda e, x: e(op.matmul(x, e(op.permute_dims(const(W), [1, 0])))), x=("batch", 4))
    expected = graph(lambda e, x: e(op.matmul(x, const(W.T.copy()))), x=("batch", 4))
    assert_equal(rewritten(FuseTransposeMatmul(), before), expected)
    assert run(FuseTransposeMatmul(), before).counts == {"transpose-of-constant": 1}


def test_constant_on_the_left_and_any_permutation():
    weight = random(3, 5, 4)
    before = graph(lambda e, x: e(op.matmul(e(op.permute_dims(const(weight), [1, 2, 0])), x)), x=(3, 2))
    after = rewritten(FuseTransposeMatmul(), before)
    assert ops(after) == ["matmul"]
    assert_same_values(before, after, random(3, 2), rtol=1e-5, atol=1e-5, by_tvm=True)


def test_constant_beside_a_transposed_value():
    before = graph(lambda e, x: e(op.matmul(swap(e, x), e(op.permute_dims(const(W))))), x=(4, 3))
    after = rewritten(FuseTransposeMatmul(), before)
    assert ops(after) == ["permute_dims", "matmul"]
    assert_same_values(before, after, random(4, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [((4, 3), (5, 4)), ((2, 4, 3), (5, 4)), ((4, 3), (2, 5, 4))])
def test_two_transposes_become_one(a, b):
    before = graph(lambda e, x, y: e(op.matmul(swap(e, x), swap(e, y))), x=a, y=b)
    after = rewritten(FuseTransposeMatmul(), before)
    assert ops(after) == ["matmul", "permute_dims"]
    assert run(FuseTransposeMatmul(), before).counts == {"transpose-of-both": 1}
    assert_same_values(before, after, random(*a), random(*b, seed=1), rtol=1e-5, atol=1e-5, by_tvm=True)


def test_accumulation_type_stays():
    before = graph(
        lambda e, x, y: e(op.matmul(swap(e, x), swap(e, y), out_dtype="float32")),
        x=((4, 3), "float16"), y=((5, 4), "float16"),
    )  # fmt: skip
    after = rewritten(FuseTransposeMatmul(), before)
    assert ops(after) == ["matmul", "permute_dims"]


def test_condition_1_last_two_axes():
    def body(e, x, y):
        return e(op.matmul(e(op.permute_dims(x, [1, 0, 2])), swap(e, y)))

    reason = "a transpose does not swap just the last two axes"
    assert_refused(FuseTransposeMatmul(), graph(body, x=(2, 2, 2), y=(2, 2, 2)), 1, reason)


def of_constant(e, x):
    w = e(op.permute_dims(const(W), [1, 0]))
    return e(op.matmul(x, w)), w


def of_both(e, x, y):
    a = swap(e, x)
    return e(op.matmul(a, swap(e, y))), a


def test_condition_2_other_users():
    reason = "a transpose is used elsewhere"
    assert_refused(FuseTransposeMatmul(), graph(of_constant, x=(3, 4)), 2, reason)
    assert_refused(FuseTransposeMatmul(), graph(of_both, x=(4, 3), y=(5, 4)), 2, reason)


def test_near_misses():
    assert_unmatched(FuseTransposeMatmul(), graph(lambda e, x, y: e(op.matmul(x, swap(e, y))), x=(3, 4), y=(5, 4)))
    assert_unmatched(FuseTransposeMatmul(), graph(lambda e, x: e(op.add(x, swap(e, x))), x=(4, 4)))
