"""The generated graph of elide-activations: activations that must go, and near-misses that must stay.

Every case hangs on sources that they all share, so no case changes what another one proves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import small_graphs
import tvm
from small_graphs import const, tensor
from tvm import relax
from tvm.relax import op as R

SHAPE = (4, 16)


@dataclass(frozen=True)
class Sources:
    """Values that cases start from.

    Attributes:
        e: emits a value without a name.
        x: float32 input: NaN, infinities, -0.0, subnormals.
        b: x within [-3, 3], no NaN; may be -0.0.
        p: relu(x): [0, inf], no NaN, no -0.0.
        w: whole numbers within [-3, 3].
        z: within [-0.0, 1].
        i: int8 input.
        row: relu of a float32 input of shape [1, 16].
        c: bool input.
    """

    e: Callable[[relax.Expr], relax.Var]
    x: relax.Var
    b: relax.Var
    p: relax.Var
    w: relax.Var
    z: relax.Var
    i: relax.Var
    row: relax.Var
    c: relax.Var


Tag = Callable[[relax.Expr], relax.Var]
Build = Callable[[Sources, Tag], relax.Expr]


@dataclass(frozen=True)
class Case:
    """One activation: `build(sources, tag)` marks it by `tag`; `condition` refuses it, None if it must go."""

    name: str
    condition: int | None
    build: Build


def module_of(cases: list[Case]) -> tvm.IRModule:
    """One graph of all cases, each an output; the marked calls carry their case's name."""

    def body(emit: small_graphs.Emit, x: relax.Var, i: relax.Var, y: relax.Var, c: relax.Var) -> list[relax.Expr]:
        b = emit(R.clip(x, -3, 3))
        sources = Sources(
            emit,
            x,
            b,
            emit(R.nn.relu(x)),
            emit(R.round(b)),
            emit(R.clip(x, -0.0, 1)),
            i,
            emit(R.nn.relu(y)),
            c,
        )
        kept = [sources.b, sources.p, sources.w, sources.z, sources.row]
        return kept + [case.build(sources, lambda v, n=case.name: emit(v, n)) for case in cases]

    params = [
        tensor("x", *SHAPE),
        tensor("i", *SHAPE, dtype="int8"),
        tensor("y", 1, SHAPE[1]),
        tensor("c", *SHAPE, dtype="bool"),
    ]
    return small_graphs.graph(params, body)


def inputs(seed: int) -> list[np.ndarray]:
    """Inputs with every special value; the last row of x is ordinary, the first holds no infinity or NaN."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(SHAPE) * 4).astype("float32")
    special = [
        np.nan,
        -np.nan,
        np.inf,
        -np.inf,
        -0.0,
        0.0,
        1e-45,
        -1e-45,
        3.4e38,
        -3.4e38,
        0.5,
        -0.5,
        6,
        1,
        -1,
        2,
    ]
    x[1] = rng.permutation(np.array(special, "float32"))
    x[2] = rng.choice(np.array(special, "float32"), SHAPE[1])
    x[0, :6] = [-0.0, 0.0, -0.0, 1e-9, 2e-9, -1e-9]
    i = rng.integers(-128, 128, SHAPE).astype("int8")
    i[0, :3] = [-128, 127, 0]
    y = rng.choice(np.array([np.nan, -0.0, -2, 3], "float32"), (1, SHAPE[1]))
    return [x, i, y, rng.random(SHAPE) < 0.5]


def _mask(s: Sources, x: relax.Expr) -> relax.Var:
    return s.e(R.astype(s.e(R.greater(x, const(0))), "float32"))


def _quantize(x: relax.Expr, zero_point: int = -128, scale: object = 0.05, dtype: str = "int8") -> relax.Expr:
    return R.quantize(x, const(scale), const(zero_point, dtype), axis=1, out_dtype=dtype)


def _true(value: bool = True) -> relax.Expr:
    return relax.const(np.full(SHAPE, value))


# Values proven +0 or more, never NaN: relu, leaky relu, and abs do nothing to them.
NON_NEGATIVE: dict[str, Callable[[Sources], relax.Expr]] = {
    "relu": lambda s: s.p,
    "abs": lambda s: s.e(R.abs(s.b)),
    "square": lambda s: s.e(R.square(s.b)),
    "product": lambda s: s.e(R.multiply(s.b, s.b)),
    "power": lambda s: s.e(R.power(s.b, const(2))),
    "sigmoid": lambda s: s.e(R.sigmoid(s.b)),
    "exp": lambda s: s.e(R.exp(s.b)),
    "softmax": lambda s: s.e(R.nn.softmax(s.b)),
    "softplus": lambda s: s.e(R.nn.softplus(s.b)),
    "sqrt": lambda s: s.e(R.sqrt(s.p)),
    "clip": lambda s: s.e(R.clip(s.x, 0, 6)),
    "clip above": lambda s: s.e(R.clip(s.x, 1, 2)),
    "reshape": lambda s: s.e(R.reshape(s.p, (16, 4))),
    "transpose": lambda s: s.e(R.permute_dims(s.p)),
    "concat": lambda s: s.e(R.concat([s.p, s.p], 1)),
    "split": lambda s: s.e(s.e(R.split(s.p, 2, 1))[0]),
    "slice": lambda s: s.e(R.strided_slice(s.p, [1], [2], [9])),
    "take": lambda s: s.e(R.take(s.p, const([0, 2], "int64"), 1, mode="clip")),
    "maximum over axis": lambda s: s.e(R.max(s.e(R.clip(s.x, 0, 6)), 1)),
    "sum": lambda s: s.e(R.sum(s.e(R.clip(s.x, 0, 6)), 1)),
    "mean": lambda s: s.e(R.mean(s.e(R.clip(s.x, 0, 6)), 1)),
    "sum of two": lambda s: s.e(R.add(s.p, s.p)),
    "scaled": lambda s: s.e(R.divide(s.p, const(6))),
    "hard sigmoid": lambda s: s.e(R.divide(s.e(R.clip(s.e(R.add(s.x, const(3))), 0, 6)), const(6))),
    "hard swish gate": lambda s: s.e(R.clip(s.e(R.add(s.e(R.multiply(s.x, const(0.2))), const(0.5))), 0, 1)),
    "where": lambda s: s.e(R.where(s.c, s.p, const(1))),
    "pad": lambda s: s.e(R.nn.pad(s.p, (0, 0, 1, 1))),
    "max pool": lambda s: s.e(R.nn.max_pool1d(s.e(R.reshape(s.e(R.clip(s.x, 0, 6)), (1, 4, 16))), 3, padding=1)),
    "dequantised uint8": lambda s: s.e(
        R.dequantize(s.e(_quantize(s.b, 0, dtype="uint8")), const(0.1), const(0, "uint8"), axis=1)
    ),
    "cast": lambda s: s.e(R.astype(s.c, "float32")),
    "leaky": lambda s: s.e(R.nn.leakyrelu(s.p, 0.1)),
    "minimum": lambda s: s.e(R.minimum(s.e(R.exp(s.b)), const(2))),
}

# Values that may be negative, but never NaN: almost the same as above.
MAYBE_NEGATIVE: dict[str, Callable[[Sources], relax.Expr]] = {
    "sum": lambda s: s.e(R.add(s.b, s.b)),
    "tanh": lambda s: s.e(R.tanh(s.b)),
    "erf": lambda s: s.e(R.erf(s.b)),
    "silu": lambda s: s.e(R.nn.silu(s.b)),
    "gelu": lambda s: s.e(R.nn.gelu(s.b)),
    "exp minus 1": lambda s: s.e(R.subtract(s.e(R.exp(s.b)), const(1))),
    "round": lambda s: s.w,
    "mean": lambda s: s.e(R.mean(s.b, 1)),
    "maximum over axis": lambda s: s.e(R.max(s.b, 1)),
    "concat": lambda s: s.e(R.concat([s.p, s.b], 1)),
    "where": lambda s: s.e(R.where(s.c, s.p, s.b)),
    "product": lambda s: s.e(R.multiply(s.b, s.w)),
    "hard sigmoid off by a bit": lambda s: s.e(
        R.divide(s.e(R.subtract(s.e(R.clip(s.x, 0, 6)), const(1e-3))), const(6))
    ),
    "pad with -1": lambda s: s.e(R.nn.pad(s.p, (0, 0, 1, 1), pad_value=-1)),
    "dequantised int8": lambda s: s.e(R.dequantize(s.e(_quantize(s.b, 0)), const(0.1), const(0, "int8"), axis=1)),
    "cubed": lambda s: s.e(R.multiply(s.e(R.square(s.b)), s.b)),
}

# Values that may be NaN because x may: relu turns NaN into 0, so it is not a no-op.
MAYBE_NAN: dict[str, Callable[[Sources], relax.Expr]] = {
    "sigmoid": lambda s: s.e(R.sigmoid(s.x)),
    "exp": lambda s: s.e(R.exp(s.x)),
    "abs": lambda s: s.e(R.abs(s.x)),
    "square": lambda s: s.e(R.square(s.x)),
    "softmax": lambda s: s.e(R.nn.softmax(s.x)),
    "softmax of an infinity": lambda s: s.e(R.nn.softmax(s.p)),
    "softplus": lambda s: s.e(R.nn.softplus(s.x)),
    "infinity by zero": lambda s: s.e(R.multiply(s.p, s.e(R.clip(s.x, 0, 1)))),
    "infinity by infinity": lambda s: s.e(R.divide(s.p, s.e(R.add(s.p, const(1))))),
    "where": lambda s: s.e(R.where(s.c, s.p, s.e(R.exp(s.x)))),
}

REMOVED: dict[str, Build] = {
    # Nothing to clip.
    "clip of clip": lambda s, t: t(R.clip(s.e(R.clip(s.x, -1, 1)), -1, 1)),
    "clip of a narrower clip": lambda s, t: t(R.clip(s.e(R.clip(s.x, -1, 1)), -2, 1.5)),
    "clip of sigmoid": lambda s, t: t(R.clip(s.e(R.sigmoid(s.b)), 0, 1)),
    "clip of tanh": lambda s, t: t(R.clip(s.e(R.tanh(s.b)), -2, 2)),
    "clip of round": lambda s, t: t(R.clip(s.w, -3, 3)),
    "clip of gelu": lambda s, t: t(R.clip(s.e(R.nn.gelu(s.b)), -0.2, 4)),
    "minimum of sigmoid": lambda s, t: t(R.minimum(s.e(R.sigmoid(s.b)), const(1))),
    "maximum of exp": lambda s, t: t(R.maximum(s.e(R.exp(s.b)), const(0))),
    "minimum that keeps NaN": lambda s, t: t(R.minimum(const(1), s.e(R.sigmoid(s.x)))),
    "maximum that keeps NaN": lambda s, t: t(R.maximum(const(-1), s.e(R.abs(s.x)))),
    "relu of what is never positive": lambda s, t: t(R.nn.relu(s.e(R.negative(s.e(R.clip(s.x, 0, 6)))))),
    "abs of relu": lambda s, t: t(R.abs(s.p)),
    "abs of exp": lambda s, t: t(R.abs(s.e(R.exp(s.b)))),
    "abs of softmax": lambda s, t: t(R.abs(s.e(R.nn.softmax(s.b)))),
    "leaky relu of exp, NaN and all": lambda s, t: t(R.nn.leakyrelu(s.e(R.exp(s.x)), 0.2)),
    "leaky relu of -0": lambda s, t: t(R.nn.leakyrelu(s.z, 0.2)),
    "prelu of relu": lambda s, t: t(R.nn.prelu(s.p, const(np.full(16, 0.3)), 1)),
    "leaky relu spelled as where": lambda s, t: t(
        R.where(s.e(R.greater(s.p, const(0))), s.p, s.e(R.multiply(s.p, const(0.1))))
    ),
    "abs spelled as where": lambda s, t: t(R.where(s.e(R.less(s.p, const(0))), s.e(R.negative(s.p)), s.p)),
    "mask of relu": lambda s, t: t(R.multiply(s.p, _mask(s, s.p))),
    # Integers.
    "integer relu": lambda s, t: t(R.nn.relu(s.e(R.nn.relu(s.i)))),
    "integer clip": lambda s, t: t(R.clip(s.i, -128, 127)),
    "relu of uint8": lambda s, t: t(R.nn.relu(s.e(_quantize(s.b, 3, dtype="uint8")))),
    "integer abs": lambda s, t: t(R.abs(s.e(R.clip(s.i, 0, 9)))),
    # Two into one: the inner one is marked.
    "overlapping clips": lambda s, t: s.e(R.clip(t(R.clip(s.x, 0, 4)), 2, 6)),
    "nested clips": lambda s, t: s.e(R.clip(t(R.clip(s.x, -4, 4)), -2, 2)),
    "disjoint clips below": lambda s, t: s.e(R.clip(t(R.clip(s.x, 0, 1)), 2, 3)),
    "disjoint clips above": lambda s, t: s.e(R.clip(t(R.clip(s.x, 2, 3)), 0, 1)),
    "touching clips": lambda s, t: s.e(R.clip(t(R.clip(s.x, 0, 2)), 2, 4)),
    "relu of a clip around 0": lambda s, t: s.e(R.nn.relu(t(R.clip(s.x, -1, 6)))),
    "relu of a negative clip": lambda s, t: s.e(R.nn.relu(t(R.clip(s.x, -6, -1)))),
    "clip of relu": lambda s, t: s.e(R.clip(t(R.nn.relu(s.b)), 0, 2)),
    "clip of relu, lower bound above": lambda s, t: s.e(R.clip(t(R.nn.relu(s.b)), 1, 2)),
    "minima": lambda s, t: s.e(R.minimum(t(R.minimum(s.b, const(1))), const(0.5))),
    "maxima": lambda s, t: s.e(R.maximum(t(R.maximum(s.x, const(1))), const(2))),
    "relu of maximum": lambda s, t: s.e(R.nn.relu(t(R.maximum(s.x, const(-1))))),
    "relu of leaky relu": lambda s, t: s.e(R.nn.relu(t(R.nn.leakyrelu(s.x, 0.1)))),
    "relu of mask": lambda s, t: s.e(R.nn.relu(t(R.multiply(s.x, _mask(s, s.x))))),
    "integer clip of relu": lambda s, t: s.e(R.clip(t(R.nn.relu(s.i)), -5, 6)),
    # Relu in another spelling.
    "maximum": lambda s, t: t(R.maximum(s.x, const(0))),
    "where greater": lambda s, t: t(R.where(s.e(R.greater(s.x, const(0))), s.x, const(0))),
    "where greater, zeros_like": lambda s, t: t(R.where(s.e(R.greater(s.x, const(0))), s.x, s.e(R.zeros_like(s.x)))),
    "where, zero first": lambda s, t: t(R.where(s.e(R.less(const(0), s.x)), s.x, const(0))),
    "where less or equal": lambda s, t: t(R.where(s.e(R.less_equal(s.b, const(0))), const(0), s.b)),
    "integer maximum, zero first": lambda s, t: t(R.maximum(const(0, "int8"), s.i)),
    # Absorbed by what follows.
    "compared relu": lambda s, t: s.e(R.greater(t(R.nn.relu(s.x)), const(1))),
    "compared relu at 0": lambda s, t: s.e(R.greater(t(R.nn.relu(s.x)), const(0))),
    "compared clip": lambda s, t: s.e(R.less(t(R.clip(s.b, -1, 1)), const(0.25))),
    "quantised relu": lambda s, t: s.e(_quantize(t(R.nn.relu(s.b)))),
    "quantised relu, uint8": lambda s, t: s.e(_quantize(t(R.nn.relu(s.b)), 0, dtype="uint8")),
    "quantised relu, per channel": lambda s, t: s.e(
        R.quantize(t(R.nn.relu(s.b)), const(np.linspace(0.01, 1, 16)), const(np.full(16, -128), "int8"), 1)
    ),
    "quantised clip": lambda s, t: s.e(_quantize(t(R.clip(s.x, 0, 20)))),
    # Decided by ranges.
    "compared sigmoid beyond its range": lambda s, t: t(R.greater(s.e(R.sigmoid(s.x)), const(1.5))),
    "compared relu beyond its range": lambda s, t: t(R.greater_equal(s.p, const(0))),
    "where true": lambda s, t: t(R.where(_true(), s.x, const(0))),
    "where false": lambda s, t: t(R.where(_true(False), const(0), s.x)),
    "where decided": lambda s, t: t(R.where(s.e(R.greater(s.p, const(-1))), s.x, const(0))),
    # What feeds only what does not see it.
    "argmax of softmax": lambda s, t: s.e(R.argmax(t(R.nn.softmax(s.w)), -1)),
    "argmax of softmax of integers": lambda s, t: s.e(
        R.argmax(t(R.nn.softmax(s.e(R.astype(s.i, "float32")), 0)), 0, keepdims=True)
    ),
    "compared sigmoid": lambda s, t: s.e(R.greater(t(R.sigmoid(s.w)), const(0.3))),
    "compared sigmoid, constant first": lambda s, t: s.e(R.greater_equal(const(0.9), t(R.sigmoid(s.w)))),
    "dropout": lambda s, t: s.e(t(R.nn.dropout(s.x, 0.5))[0]),
    "dropout's mask": lambda s, t: s.e(t(R.nn.dropout(s.x, 0.5))[1]),
}

REFUSED: dict[str, tuple[int, Build]] = {
    # 1: it does something.
    "clip below sigmoid's top": (1, lambda s, t: t(R.clip(s.e(R.sigmoid(s.b)), 0, 0.9))),
    "clip at softmax's top": (1, lambda s, t: t(R.clip(s.e(R.nn.softmax(s.b)), 0, 1))),
    "clip at tanh's top": (1, lambda s, t: t(R.clip(s.e(R.tanh(s.e(R.multiply(s.b, const(9))))), -1, 1))),
    "clip of round, off by a bit": (1, lambda s, t: t(R.clip(s.w, -3, 2.9999998))),
    "minimum of exp": (1, lambda s, t: t(R.minimum(s.e(R.exp(s.b)), const(20)))),
    "maximum of exp": (1, lambda s, t: t(R.maximum(s.e(R.exp(s.b)), const(1)))),
    "abs": (1, lambda s, t: t(R.abs(s.b))),
    "leaky relu": (1, lambda s, t: t(R.nn.leakyrelu(s.b, 0.99))),
    "integer relu": (1, lambda s, t: t(R.nn.relu(s.i))),
    "relu of integer abs, which overflows": (1, lambda s, t: t(R.nn.relu(s.e(R.abs(s.i))))),
    "integer clip": (1, lambda s, t: t(R.clip(s.i, -127, 127))),
    "relu of an integer sum that overflows": (
        1,
        lambda s, t: t(R.nn.relu(s.e(R.add(s.e(R.nn.relu(s.i)), const(1, "int8"))))),
    ),
    "undecided where": (1, lambda s, t: t(R.where(s.e(R.greater(s.p, const(0))), s.p, const(1)))),
    "where with another constant": (1, lambda s, t: t(R.where(s.e(R.greater(s.b, const(1))), s.b, const(0)))),
    "quantised relu, zero point above": (1, lambda s, t: t(_quantize(s.e(R.nn.relu(s.b)), -127))),
    "quantised clip that saturates too early": (1, lambda s, t: t(_quantize(s.e(R.clip(s.b, -3, 1))))),
    # 2: NaN.
    "maximum, zero first": (2, lambda s, t: t(R.maximum(const(0), s.x))),
    "clip of sigmoid": (2, lambda s, t: t(R.clip(s.e(R.sigmoid(s.x)), 0, 1))),
    "minimum of sigmoid": (2, lambda s, t: t(R.minimum(s.e(R.sigmoid(s.x)), const(1)))),
    "abs of exp": (2, lambda s, t: t(R.abs(s.e(R.exp(s.x))))),
    "clip of relu": (2, lambda s, t: t(R.clip(s.e(R.nn.relu(s.x)), 0, 6))),
    "mask": (2, lambda s, t: t(R.multiply(s.x, _mask(s, s.x)))),
    "where less or equal": (2, lambda s, t: t(R.where(s.e(R.less_equal(s.x, const(0))), const(0), s.x))),
    "quantised relu": (2, lambda s, t: t(_quantize(s.e(R.nn.relu(s.x))))),
    "compared relu": (2, lambda s, t: t(R.less(s.e(R.nn.relu(s.x)), const(1)))),
    # 3: -0.0.
    "abs of clip at -0": (3, lambda s, t: t(R.abs(s.z))),
    "relu of sqrt of -0": (3, lambda s, t: t(R.nn.relu(s.e(R.sqrt(s.z))))),
    "relu of ceil": (3, lambda s, t: t(R.nn.relu(s.e(R.ceil(s.e(R.clip(s.x, -0.5, 3))))))),
    "relu of reshape": (3, lambda s, t: t(R.nn.relu(s.e(R.reshape(s.z, (8, 8)))))),
    "relu of a product with -0": (3, lambda s, t: t(R.nn.relu(s.e(R.multiply(s.z, const(2)))))),
    "where greater or equal": (
        3,
        lambda s, t: t(R.where(s.e(R.greater_equal(s.x, const(0))), s.x, const(0))),
    ),
    "where less": (3, lambda s, t: t(R.where(s.e(R.less(s.b, const(0))), const(0), s.b))),
    "maximum, zero first, no NaN": (3, lambda s, t: t(R.maximum(const(0), s.b))),
    "mask, no NaN": (3, lambda s, t: t(R.multiply(s.b, _mask(s, s.b)))),
    # 4: the inner one is needed anyway.
    "clip of a shared clip": (
        4,
        lambda s, t: s.e(R.add((c := s.e(R.clip(s.x, 0, 4))), t(R.clip(c, 2, 6)))),
    ),
    "relu of a shared clip": (
        4,
        lambda s, t: s.e(R.add((c := s.e(R.clip(s.x, -1, 6))), t(R.nn.relu(c)))),
    ),
    "comparison of a shared relu": (4, lambda s, t: t(R.greater(s.p, const(1)))),
    "quantisation of a shared relu": (
        4,
        lambda s, t: s.e(R.concat([t(_quantize(r := s.e(R.nn.relu(s.b)))), s.e(R.astype(r, "int8"))], 0)),
    ),
    "argmax of a shared softmax": (
        4,
        lambda s, t: s.e(
            R.add(s.e(R.max(m := s.e(R.nn.softmax(s.w)), 1)), s.e(R.astype(t(R.argmax(m, 1)), "float32")))
        ),
    ),
    "comparison of a shared sigmoid": (
        4,
        lambda s, t: s.e(R.where(t(R.greater(g := s.e(R.sigmoid(s.w)), const(0.3))), g, s.x)),
    ),
    # 5: broadcasting.
    "maximum that broadcasts": (5, lambda s, t: t(R.maximum(s.row, const(np.zeros(SHAPE))))),
    "where that broadcasts": (5, lambda s, t: t(R.where(_true(), s.row, s.x))),
    # 6: another axis.
    "argmax along another axis": (6, lambda s, t: t(R.argmax(s.e(R.nn.softmax(s.w, 1)), 0))),
    "argmax over everything": (6, lambda s, t: t(R.argmax(s.e(R.nn.softmax(s.w, 1))))),
    # 7: near ties.
    "argmax of softmax": (7, lambda s, t: t(R.argmax(s.e(R.nn.softmax(s.b)), 1))),
    "argmax of softmax of huge whole numbers": (
        7,
        lambda s, t: t(R.argmax(s.e(R.nn.softmax(s.e(R.multiply(s.w, const(2.0**25))))), 1)),
    ),
    "compared sigmoid": (7, lambda s, t: t(R.greater(s.e(R.sigmoid(s.b)), const(0.3)))),
    "compared sigmoid of anything": (7, lambda s, t: t(R.less(s.e(R.sigmoid(s.x)), const(0.3)))),
    # 8: the constant is a value of sigmoid.
    "compared sigmoid at its centre": (8, lambda s, t: t(R.greater(s.e(R.sigmoid(s.w)), const(0.5)))),
    "compared sigmoid at sigmoid(1)": (8, lambda s, t: t(R.less(s.e(R.sigmoid(s.w)), const(0.731059)))),
    "compared sigmoid near 1": (
        8,
        lambda s, t: t(R.less(s.e(R.sigmoid(s.e(R.round(s.x)))), const(0.9999999))),
    ),
}


def removed() -> Iterator[Case]:
    """Cases whose marked call must disappear."""
    for name, make in NON_NEGATIVE.items():
        yield Case(f"relu of {name}", None, lambda s, t, make=make: t(R.nn.relu(make(s))))
    for name, build in REMOVED.items():
        yield Case(name, None, build)


def refused() -> Iterator[Case]:
    """Cases whose marked call must stay."""
    for name, make in MAYBE_NEGATIVE.items():
        yield Case(f"relu of {name}, maybe negative", 1, lambda s, t, make=make: t(R.nn.relu(make(s))))
    for name, make in MAYBE_NAN.items():
        yield Case(f"relu of {name}, maybe NaN", 2, lambda s, t, make=make: t(R.nn.relu(make(s))))
    for name, (condition, build) in REFUSED.items():
        yield Case(f"{name}, refused", condition, build)
