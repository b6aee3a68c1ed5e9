"""The value-range analysis: what it proves exactly, and that no value ever leaves its range."""

from __future__ import annotations

import math
from collections.abc import Callable

import builders
import numpy as np
import pytest
import tvm
from builders import const
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op as R

from greencc.passes import ranges
from greencc.passes.graph import Graph
from greencc.passes.ranges import Range
from greencc.passes.value_range import ValueRanges

INF = math.inf
SHAPE = (4, 8)
Emit = Callable[[relax.Expr], relax.Var]
SPECIAL = [
    np.nan,
    -np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-38,
    3.4e38,
    -3.4e38,
    1,
    -1,
    0.5,
    88.8,
]


def contains(known: Range, values: np.ndarray) -> bool:
    """Whether every element is one that the range allows."""
    if values.dtype.kind == "f":
        nan = np.isnan(values)
        zero = (values == 0) & np.signbit(values)
        if (nan.any() and not known.nan) or (zero.any() and not known.negative_zero):
            return False
        values = values[~nan]
        finite = values[np.isfinite(values)]
        if known.integral and (finite != np.rint(finite)).any():
            return False
    return bool(((values >= known.lo) & (values <= known.hi)).all())


def range_of(body: Callable[..., object], **inputs: object) -> Range:
    """The range of the one output of a graph."""
    module = builders.graph(body, **(inputs or {"x": SHAPE}))
    graph = Graph(module, module["main"])
    return graph.analysis(ValueRanges).of(list(graph.definitions())[-1][0])


EXACT: dict[str, tuple[Callable[..., object], Range]] = {
    "input": (lambda e, x: x, ranges.ANY_FLOAT),
    "constant": (lambda e, x: const([[-0.0, 2]]), Range(0, 2, negative_zero=True)),
    "relu": (lambda e, x: e(R.nn.relu(x)), Range(0, INF)),
    "clip takes NaN to its upper bound": (lambda e, x: e(R.clip(x, -1, 6)), Range(-1, 6, negative_zero=True)),
    "clip at 0 has no -0": (lambda e, x: e(R.clip(x, 0, 6)), Range(0, 6)),
    "clip at -0 has": (lambda e, x: e(R.clip(x, -0.0, 6)), Range(0, 6, negative_zero=True)),
    "clip upside down": (lambda e, x: e(R.clip(x, 2, 1)), Range(2, 2)),
    "hard sigmoid": (
        lambda e, x: e(R.divide(e(R.clip(e(R.add(x, const(3))), 0, 6)), const(6))),
        Range(0, 1),
    ),
    "exp": (lambda e, x: e(R.exp(x)), Range(0, INF, nan=True)),
    "sigmoid": (lambda e, x: e(R.sigmoid(x)), Range(0, 1, nan=True)),
    "abs": (lambda e, x: e(R.abs(e(R.clip(x, -4, 2)))), Range(0, 4)),
    "square is one value twice": (lambda e, x: e(R.multiply(x, x)), Range(0, INF, nan=True)),
    "0 by infinity is NaN": (
        lambda e, x: e(R.multiply(e(R.nn.relu(x)), e(R.clip(x, 0, 1)))),
        Range(0, INF, nan=True),
    ),
    "overflow reaches infinity": (
        lambda e, x: e(R.multiply(e(R.clip(x, 1, 3e38)), const(2))),
        Range(2, INF),
    ),
    "int8 overflow wraps": (
        lambda e, i: e(R.add(e(R.nn.relu(i)), const(1, "int8"))),
        Range(-128, 127, integral=True),
    ),
    "int8 abs overflows": (lambda e, i: e(R.abs(i)), Range(-128, 127, integral=True)),
    "comparison is decided": (
        lambda e, x: e(R.greater(e(R.nn.relu(x)), const(-1))),
        Range(1, 1, integral=True),
    ),
    "comparison with NaN is not": (
        lambda e, x: e(R.greater(e(R.exp(x)), const(-1))),
        Range(0, 1, integral=True),
    ),
    "comparison with NaN is false": (
        lambda e, x: e(R.less(e(R.exp(x)), const(-1))),
        Range(0, 0, integral=True),
    ),
    "round": (lambda e, x: e(R.round(x)), Range(-INF, INF, True, True, integral=True)),
    "unknown operator": (lambda e, x: e(R.matmul(x, const(np.ones((8, 8))))), ranges.ANY_FLOAT),
    "maximum over symbolic axes starts low": (
        lambda e, s: e(R.max(e(R.nn.relu(s)), 0)),
        Range(-float(np.finfo("float32").max), INF),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str) -> None:
    body, expected = EXACT[name]
    spec = {"i": {"i": (SHAPE, "int8")}, "s": {"s": ("n", 8)}, "x": {"x": SHAPE}}
    assert range_of(body, **spec[body.__code__.co_varnames[1]]) == expected


def test_split_and_if_and_aliases() -> None:
    assert range_of(lambda e, x: e(e(R.split(e(R.nn.relu(x)), 2, 1))[1])).non_negative
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        y = builder.emit(R.nn.relu(x))
        alias = builder.emit(y)
        builder.emit_func_output(alias)
    module = builder.get()
    assert ValueRanges(Graph(module, module["main"])).of(alias).non_negative


def test_a_graph_of_ten_thousand_values_needs_no_recursion() -> None:
    def body(e: Emit, x: relax.Var) -> relax.Var:
        x = e(R.nn.relu(x))
        for _ in range(3000):
            x = e(R.negative(x))
        return x

    assert range_of(body) == Range(0, INF, False, True)


# Operators as (emit, values seen so far, numbers drawn) -> value; all keep the shape and float32.
Make = Callable[[Emit, relax.Var, relax.Var, float, float], relax.Expr]
OPERATORS: dict[str, Make] = {
    "add": lambda e, a, b, u, v: R.add(a, b),
    "add constant": lambda e, a, b, u, v: R.add(a, const(u)),
    "subtract": lambda e, a, b, u, v: R.subtract(a, b),
    "subtract from constant": lambda e, a, b, u, v: R.subtract(const(u), a),
    "multiply": lambda e, a, b, u, v: R.multiply(a, b),
    "multiply constant": lambda e, a, b, u, v: R.multiply(const(u), a),
    "square": lambda e, a, b, u, v: R.multiply(a, a),
    "square operator": lambda e, a, b, u, v: R.square(a),
    "divide": lambda e, a, b, u, v: R.divide(a, b),
    "divide by constant": lambda e, a, b, u, v: R.divide(a, const(u or 0.7)),
    "divide constant": lambda e, a, b, u, v: R.divide(const(u), a),
    "maximum": lambda e, a, b, u, v: R.maximum(a, b),
    "maximum of constant": lambda e, a, b, u, v: R.maximum(const(u), a),
    "minimum": lambda e, a, b, u, v: R.minimum(a, b),
    "minimum with constant": lambda e, a, b, u, v: R.minimum(a, const(u)),
    "negative": lambda e, a, b, u, v: R.negative(a),
    "abs": lambda e, a, b, u, v: R.abs(a),
    "sign": lambda e, a, b, u, v: R.sign(a),
    "power 2": lambda e, a, b, u, v: R.power(a, const(2)),
    "power": lambda e, a, b, u, v: R.power(a, const(u)),
    "sqrt": lambda e, a, b, u, v: R.sqrt(a),
    "rsqrt": lambda e, a, b, u, v: R.rsqrt(a),
    "exp": lambda e, a, b, u, v: R.exp(a),
    "sigmoid": lambda e, a, b, u, v: R.sigmoid(a),
    "tanh": lambda e, a, b, u, v: R.tanh(a),
    "erf": lambda e, a, b, u, v: R.erf(a),
    "softplus": lambda e, a, b, u, v: R.nn.softplus(a),
    "floor": lambda e, a, b, u, v: R.floor(a),
    "ceil": lambda e, a, b, u, v: R.ceil(a),
    "round": lambda e, a, b, u, v: R.round(a),
    "trunc": lambda e, a, b, u, v: R.trunc(a),
    "relu": lambda e, a, b, u, v: R.nn.relu(a),
    "leaky relu": lambda e, a, b, u, v: R.nn.leakyrelu(a, u),
    "prelu": lambda e, a, b, u, v: R.nn.prelu(a, const(np.linspace(u, v, 8)), 1),
    "softmax": lambda e, a, b, u, v: R.nn.softmax(a),
    "silu": lambda e, a, b, u, v: R.nn.silu(a),
    "gelu": lambda e, a, b, u, v: R.nn.gelu(a),
    "gelu tanh": lambda e, a, b, u, v: R.nn.gelu_tanh(a),
    "clip": lambda e, a, b, u, v: R.clip(a, u, v),
    "where": lambda e, a, b, u, v: R.where(e(R.less_equal(a, const(u))), a, b),
    "where not equal": lambda e, a, b, u, v: R.where(e(R.not_equal(a, b)), a, const(v)),
    "mask": lambda e, a, b, u, v: R.multiply(a, e(R.astype(e(R.greater(a, b)), "float32"))),
    "through float16": lambda e, a, b, u, v: R.astype(e(R.astype(a, "float16")), "float32"),
    "through float64": lambda e, a, b, u, v: R.astype(e(R.astype(a, "float64")), "float32"),
    "through int8": lambda e, a, b, u, v: R.astype(e(R.astype(e(R.clip(a, -9, 99)), "int8")), "float32"),
    "quantised": lambda e, a, b, u, v: R.dequantize(
        e(R.quantize(a, const(0.5), const(3, "int8"), 1, "int8")), const(0.25), const(-4, "int8"), 1
    ),
    "sum": lambda e, a, b, u, v: R.broadcast_to(e(R.sum(a, 1, keepdims=True)), SHAPE),
    "mean": lambda e, a, b, u, v: R.broadcast_to(e(R.mean(a, 1, keepdims=True)), SHAPE),
    "max": lambda e, a, b, u, v: R.broadcast_to(e(R.max(a, 1, keepdims=True)), SHAPE),
    "min": lambda e, a, b, u, v: R.broadcast_to(e(R.min(a, 0, keepdims=True)), SHAPE),
    "variance": lambda e, a, b, u, v: R.broadcast_to(e(R.variance(a, 1, keepdims=True)), SHAPE),
    "argmax": lambda e, a, b, u, v: R.broadcast_to(e(R.astype(e(R.argmax(a, 1, keepdims=True)), "float32")), SHAPE),
    "concat of halves": lambda e, a, b, u, v: R.concat([e(e(R.split(a, 2, 1))[0]), e(e(R.split(b, 2, 1))[1])], 1),
    "reshape": lambda e, a, b, u, v: R.reshape(e(R.permute_dims(a)), SHAPE),
    "pad": lambda e, a, b, u, v: R.strided_slice(e(R.nn.pad(a, (0, 0, 1, 0), pad_value=u)), [1], [0], [8]),
    "max pool": lambda e, a, b, u, v: R.reshape(e(R.nn.max_pool1d(e(R.reshape(a, (1, 4, 8))), 3, padding=1)), SHAPE),
    "average pool": lambda e, a, b, u, v: R.reshape(
        e(R.nn.avg_pool1d(e(R.reshape(a, (1, 4, 8))), 3, padding=1)), SHAPE
    ),
    "logic": lambda e, a, b, u, v: R.astype(
        e(R.logical_or(e(R.isnan(a)), e(R.logical_and(e(R.greater(a, b)), e(R.less(a, const(u))))))),
        "float32",
    ),
    "finite": lambda e, a, b, u, v: R.astype(
        e(R.logical_not(e(R.logical_xor(e(R.isfinite(a)), e(R.isinf(b)))))), "float32"
    ),
    "lower triangle": lambda e, a, b, u, v: R.tril(a),
}


def inputs(seed: int) -> np.ndarray:
    """Float32 values of every kind; the first row is tame."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(SHAPE) * 10.0 ** rng.integers(-3, 3, SHAPE)).astype("float32")
    x[1] = rng.choice(np.array(SPECIAL, "float32"), 8)
    x[2, :3] = rng.choice(np.array(SPECIAL, "float32"), 3)
    return x


def check_contained(module: tvm.IRModule, seeds: range) -> None:
    """Run a module whose outputs are all its float values, and hold every output against its range."""
    graph = Graph(module, module["main"])
    analysis = ValueRanges(graph)
    outputs = list(module["main"].body.blocks[-1].bindings[-1].value.fields)
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    for seed in seeds:
        arrays = [tvm.runtime.tensor(inputs(seed + 100 * i)) for i in range(len(module["main"].params))]
        for expr, got in zip(outputs, machine["main"](*arrays), strict=True):
            call = graph.call(expr)
            assert contains(analysis.of(expr), got.numpy()), (call, analysis.of(expr), got.numpy())


def test_every_operator_stays_within_its_range() -> None:
    def body(e: Emit, x: relax.Var, y: relax.Var) -> list[relax.Expr]:
        tame, positive = e(R.clip(x, -3, 2.5)), e(R.nn.relu(y))
        pairs = [(x, y), (tame, positive), (positive, tame)]
        return [e(make(e, a, b, 0.3, 7.0)) for make in OPERATORS.values() for a, b in pairs]

    check_contained(builders.graph(body, x=SHAPE, y=SHAPE), range(6))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(OPERATORS)),
        st.integers(0, 40),
        st.integers(0, 40),
        st.sampled_from([-3.5, -1.0, -0.0, 0.0, 1e-3, 0.3, 1.0, 6.0, 3e38]),
        st.sampled_from([-1.0, 0.0, 0.5, 2.0, 6.0, 1e30]),
    ),
    min_size=12,
    max_size=24,
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(STEPS)
def test_random_graphs_stay_within_their_ranges(steps: list[tuple[str, int, int, float, float]]) -> None:
    def body(e: Emit, x: relax.Var, y: relax.Var) -> list[relax.Expr]:
        values: list[relax.Var] = [x, y, e(R.nn.relu(x))]
        for name, first, second, u, v in steps:
            # The last value is always used, so that graphs are deep, not only wide.
            a, b = values[-1 - first % min(3, len(values))], values[second % len(values)]
            values.append(e(OPERATORS[name](e, a, b, u, v)))
        return list(values[2:])

    check_contained(builders.graph(body, x=SHAPE, y=SHAPE), range(4))


POINT = {
    kind: st.one_of(
        st.floats(width=width, allow_nan=False),
        st.sampled_from([0.0, -0.0, INF, -INF, float(np.finfo(kind).max), float(np.finfo(kind).smallest_subnormal)]),
    )
    for kind, width in (("float16", 16), ("float32", 32))
}
ARITHMETIC = {
    "add": (ranges.add, np.add),
    "subtract": (ranges.subtract, np.subtract),
    "multiply": (ranges.multiply, np.multiply),
    "divide": (ranges.divide, np.divide),
}


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("dtype", POINT)
def test_arithmetic_is_rounded_outwards(name: str, dtype: str) -> None:
    rule, operator = ARITHMETIC[name]

    # Three points a side: two bounds and something between them.
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.tuples(*[POINT[dtype]] * 3), st.tuples(*[POINT[dtype]] * 3))
    def check(first: tuple[float, ...], second: tuple[float, ...]) -> None:
        a, b = (np.array(points, dtype) for points in (first, second))
        known = rule(ranges.of_array(a), ranges.of_array(b), dtype)
        with np.errstate(all="ignore"):
            results = operator(a[:, None], b[None, :])
        assert results.dtype == dtype
        assert contains(known, results.reshape(-1))

    check()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [0.1, -0.1, 1e-50, -1e-50, 1e39, -1e39, 65519.0, INF, 1.0])
def test_rounding_encloses(value: float, dtype: str) -> None:
    lo, hi = ranges.round_down(value, dtype), ranges.round_up(value, dtype)
    kind = np.dtype(dtype).type
    assert lo <= value <= hi
    with np.errstate(over="ignore"):
        assert lo <= float(kind(value)) <= hi
        assert float(kind(lo)) == lo
        assert float(kind(hi)) == hi
        assert hi in (lo, float(np.nextafter(kind(lo), kind(INF))))
