from __future__ import annotations

import numpy as np
import pytest
from builders import (
    assert_equal,
    assert_refused,
    assert_same_values,
    assert_unmatched,
    graph,
    ops,
    random,
    rewritten,
    run_by_tvm,
    the_call,
)
from tvm import relax
from tvm.relax import op

from greencc.ir import shape_of
from greencc.ops import rotary
from greencc.passes.fuse_rotary import FuseRotary
from greencc.targets.cpu.legalize import legalize

B, S, H, D = 2, 3, 4, 6
LAST = 2**63 - 1
Y = ("batch", "seq", H, D)


def halves(e, x):
    low = e(op.strided_slice(x, [3], [0], [D // 2], [1]))
    high = e(op.strided_slice(x, [3], [D // 2], [LAST], [1]))
    return e(op.concat([e(op.negative(high)), low], axis=-1))


def split_halves(e, x):
    parts = e(op.split(x, 2, axis=-1))
    low, high = (e(relax.TupleGetItem(parts, i)) for i in range(2))
    return e(op.concat([e(op.negative(high)), low], axis=3))


def pairs(e, x):
    even = e(op.strided_slice(x, [3], [0], [LAST], [2]))
    odd = e(op.strided_slice(x, [3], [1], [LAST], [2]))
    stacked = e(op.concat([e(op.expand_dims(e(op.negative(odd)), [-1])), e(op.expand_dims(even, [-1]))], axis=-1))
    return e(op.reshape(stacked, relax.ShapeExpr(shape_of(x.ty))))


def spelled(e, x, cos, sin, turn=halves):
    straight = e(op.multiply(x, cos))
    return e(op.add(straight, e(op.multiply(turn(e, x), sin))))


def heads_first(e, y, cos, sin, turn=halves):
    return spelled(e, e(op.permute_dims(y, [0, 2, 1, 3])), cos, sin, turn)


def arrays(*shapes):
    return [random(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("turn", [halves, split_halves, pairs])
def test_every_spelling_becomes_one_operator(turn):
    angles = {"cos": ("batch", 1, "seq", D), "sin": ("batch", 1, "seq", D)}
    before = graph(lambda e, y, cos, sin: heads_first(e, y, cos, sin, turn), y=Y, **angles)
    after = rewritten(FuseRotary(), before)
    assert ops(after) == ["reshape", "reshape", "greencc.rotary", "permute_dims"]
    assert bool(the_call(after, "greencc.rotary").attrs["interleaved"]) == (turn is pairs)
    assert_same_values(before, after, *arrays((B, S, H, D), *[(B, 1, S, D)] * 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("turn", [halves, pairs])
def test_values_of_the_lowered_operator(turn):
    before = graph(
        lambda e, y, cos, sin: heads_first(e, y, cos, sin, turn),
        y=(B, S, H, D), cos=(1, 1, S, D), sin=(B, 1, S, D),
    )  # fmt: skip
    inputs = arrays((B, S, H, D), (1, 1, S, D), (B, 1, S, D))
    expected = run_by_tvm(before, *inputs)
    got = run_by_tvm(legalize(rewritten(FuseRotary(), before)), *inputs)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6, atol=1e-6)


def test_expected_module():
    def body(e, y, cos, sin):
        c, s = (e(op.reshape(a, relax.ShapeExpr([1, *shape_of(a.ty)[2:]]))) for a in (cos, sin))
        return e(op.permute_dims(e(rotary(y, c, s, interleaved=False)), [0, 2, 1, 3]))

    shapes = {"y": Y, "cos": (1, 1, "seq", D), "sin": (1, 1, "seq", D)}
    assert_equal(rewritten(FuseRotary(), graph(heads_first, **shapes)), graph(body, **shapes))


def test_sequence_before_heads():
    before = graph(spelled, x=Y, cos=("seq", 1, D), sin=(1, "seq", 1, D))
    after = rewritten(FuseRotary(), before)
    assert ops(after) == ["reshape", "reshape", "greencc.rotary"]
    assert_same_values(before, after, *arrays((B, S, H, D), (S, 1, D), (1, S, 1, D)), rtol=1e-12, atol=1e-12)


def test_condition_1_float32():
    shapes = {name: (shape, "float16") for name, shape in (("x", Y), ("cos", ("seq", 1, D)), ("sin", ("seq", 1, D)))}
    assert_refused(FuseRotary(), graph(spelled, **shapes), 1, "x is not float32")


def swapped(e, x):
    low = e(op.strided_slice(x, [3], [0], [D // 2], [1]))
    high = e(op.strided_slice(x, [3], [D // 2], [LAST], [1]))
    return e(op.concat([e(op.negative(low)), high], axis=-1))


def unequal(e, x):
    low = e(op.strided_slice(x, [3], [0], [D // 3], [1]))
    high = e(op.strided_slice(x, [3], [D // 3], [LAST], [1]))
    return e(op.concat([e(op.negative(high)), low], axis=-1))


def strided(e, x):
    even = e(op.strided_slice(x, [3], [0], [LAST], [2]))
    odd = e(op.strided_slice(x, [3], [1], [LAST], [2]))
    return e(op.concat([e(op.negative(odd)), even], axis=-1))


@pytest.mark.parametrize("turn", [swapped, unequal, strided])
def test_condition_2_halves(turn):
    before = graph(lambda e, x, c, s: spelled(e, x, c, s, turn), x=Y, c=("seq", 1, D), s=("seq", 1, D))
    reason = "what is joined are not the halves or pairs of the last axis"
    assert_refused(FuseRotary(), before, 2, reason)


@pytest.mark.parametrize("shape", [("seq", H, D), ("seq", 1, 1), (1, D), ("batch", 1, "seq", D)])
def test_condition_3_angles(shape):
    before = graph(spelled, x=("batch", "seq", H, D), cos=("seq", 1, D), sin=shape)
    if shape == ("batch", 1, "seq", D):
        before = graph(spelled, x=("batch", "seq", "seq", D), cos=("seq", 1, D), sin=shape)
    assert_refused(FuseRotary(), before, 3, "cos or sin is not over positions and columns alone")


def test_condition_4_other_users():
    def body(e, x, cos, sin):
        turned = halves(e, x)
        return e(op.add(e(op.multiply(x, cos)), e(op.multiply(turned, sin)))), turned

    before = graph(body, x=Y, cos=("seq", 1, D), sin=("seq", 1, D))
    assert_refused(FuseRotary(), before, 4, "a value inside the form is used elsewhere")


def test_near_misses():
    def unsigned(e, x):
        low = e(op.strided_slice(x, [3], [0], [D // 2], [1]))
        high = e(op.strided_slice(x, [3], [D // 2], [LAST], [1]))
        return e(op.concat([high, low], axis=-1))

    def of_another(e, x, z, cos, sin):
        return e(op.add(e(op.multiply(x, cos)), e(op.multiply(halves(e, z), sin))))

    angles = {"cos": ("seq", 1, D), "sin": ("seq", 1, D)}
    assert_unmatched(FuseRotary(), graph(lambda e, x, cos, sin: spelled(e, x, cos, sin, unsigned), x=Y, **angles))
    assert_unmatched(FuseRotary(), graph(of_another, x=Y, z=Y, **angles))
