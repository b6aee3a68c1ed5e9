"""Dynamic quantisation of activations: every row of its own, to unsigned or signed bytes, in one pass over memory.

    scale = (high - low) / 255, zero = round(-low / scale), q = round(x / scale + zero)

`low` and `high` are the row's extremes and 0, so that 0 is represented exactly (the affine scheme of Jacob et al.,
arXiv:1712.05877, equation 1, with a range per row).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.intrinsics.dot import DotProduct
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS
from greencc.targets.cpu.schedules.registers import registers, stack_buffer
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.int8.levels import levels_of, padded_depth, store_scheme
from greencc.targets.int8.rows import QuantizedRows
from greencc.targets.tir import as_int, i64, ramp, splat, unravel, vector_type, volume, with_own_symbols

QUANTIZE_RULE, NORMALIZE_RULE = "cpu-quantize-rows", "cpu-normalize-rows"
# Rows of a task: some microseconds of work.
TASK_ROWS = 8


def quantize_rows_kernel(x: relax.TensorType, target: CpuTarget, dot: DotProduct, with_factors: bool) -> tirx.PrimFunc:
    """The kernel for x [..., K] float32, and factors [K] that x is multiplied by first, if there are any.

    It writes q [..., K filled up] in `dot.activation`, scale [..., 1] float32 and zero [..., 1] int32, such that
    x is about (q - zero) * scale. Where bytes are signed, q and zero are 128 less.
    """
    return planned_rows_kernel(list(x.shape.values), target, dot, with_factors, epsilon=None)


def normalize_rows_kernel(
    x: relax.TensorType, epsilon: float, target: CpuTarget, dot: DotProduct, with_factors: bool
) -> tirx.PrimFunc:
    """The kernel for x [..., K] float32, gamma [K], beta [K], and factors [K], if there are any.

    It writes y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, of x's type, the mean and the variance being a
    row's (layer normalisation), and behind it what quantize_rows_kernel makes of y.
    """
    return planned_rows_kernel(list(x.shape.values), target, dot, with_factors, epsilon)


def is_parallel(shape: list[tirx.Expr]) -> bool:
    """Whether threads share rows by default."""
    elements = as_int(volume(shape))
    return elements is None or elements >= MIN_PARALLEL_ELEMENTS


def planned_rows_kernel(
    shape: list[tirx.Expr],
    target: CpuTarget,
    dot: DotProduct,
    with_factors: bool,
    epsilon: float | None,
    parallel: bool | None = None,
) -> tirx.PrimFunc:
    """Quantised rows of x; with an epsilon, of normalised ones. `parallel` None is what `is_parallel` says."""
    ((*lead, last),) = with_own_symbols([shape])
    depth, rows = int(last), volume(lead)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = given = T.arg("x", T.buffer((*lead, depth), "float32"))
        names = ["gamma", "beta"] if epsilon is not None else []
        parameters = [T.arg(name, T.buffer((depth,), "float32")) for name in names]
        factors = T.arg("factors", T.buffer((depth,), "float32")) if with_factors else None
        if epsilon is not None:
            source = T.arg("y", T.buffer((*lead, depth), "float32"))
        quantized = T.arg("q", T.buffer((*lead, padded_depth(depth, dot)), dot.activation))
        scale = T.arg("scale", T.buffer((*lead, 1), "float32"))
        zero = T.arg("zero", T.buffer((*lead, 1), "int32"))
        rule = QUANTIZE_RULE if epsilon is None else NORMALIZE_RULE
        T.func_attr({"tirx.noalias": True, RULE_ATTR: rule})
        loop = T.parallel if (is_parallel(shape) if parallel is None else parallel) else T.serial
        emitter = _Row(source, factors, quantized, scale, zero, depth, target.lanes(), dot)
        # TVM looks for reshapes among kernels of one operand, and expects a block.
        with T.sblock("root"), loop(i64(0), tirx.ceildiv(rows, i64(TASK_ROWS))) as task:
            first = task * i64(TASK_ROWS)
            with T.serial(i64(0), tirx.min(i64(TASK_ROWS), rows - first)) as r:
                place = unravel(first + r, lead)
                if epsilon is None:
                    emitter.emit(place)
                else:
                    emitter.normalize([given, *parameters], place, epsilon)
    # Two comparisons, a product, a sum and a rounding for every element; to normalise it, a sum, a difference, its
    # square and that one's sum, two products and a sum.
    operations = 5 if epsilon is None else 12
    made = ib.get().with_attr(OPERATIONS_ATTR, rows * i64(operations * depth))
    return QuantizedRows(shape, with_factors, epsilon).noted_on(made)


class _Row:
    """Emits one row."""

    def __init__(
        self,
        source: tirx.Var,
        factors: tirx.Var | None,
        quantized: tirx.Var,
        scale: tirx.Var,
        zero: tirx.Var,
        depth: int,
        lanes: int,
        dot: DotProduct,
    ) -> None:
        self.source, self.factors, self.quantized = source, factors, quantized
        self.scale, self.zero, self.depth, self.lanes, self.dot = scale, zero, depth, lanes, dot

    def normalize(self, operands: list[tirx.Var], lead: list[tirx.Expr], epsilon: float) -> None:
        """Emit the normalisation of a row of operands[0] by gamma and beta, and its quantisation."""
        x, gamma, beta = operands
        lanes, whole = self.lanes, self.depth // self.lanes
        # The mean, then the inverse of the standard deviation.
        numbers = stack_buffer(2)

        def row(column: tirx.Expr, count: int) -> tirx.Expr:
            return tirx.BufferLoad(x, [*lead, ramp(column, count)])

        def deviation(column: tirx.Expr, count: int) -> tirx.Expr:
            return row(column, count) - splat(numbers[i64(0)], count)

        def square(column: tirx.Expr, count: int) -> tirx.Expr:
            return deviation(column, count) * deviation(column, count)

        def mean(term: Callable[[tirx.Expr, int], tirx.Expr]) -> tirx.Expr:
            # Several sums side by side: an addition takes longer than what is added.
            chains = next(count for count in (4, 2, 1) if whole % count == 0)
            totals = registers(chains, lanes)
            with T.serial(i64(0), i64(whole // chains)) as chunk:
                for i, total in enumerate(totals):
                    total.store(total.value + term((chunk * i64(chains) + i64(i)) * i64(lanes), lanes))
            with T.serial(i64(0), i64(self.depth - whole * lanes)) as rest:
                total = totals[0]
                total.store_part(0, total.lane(0) + term(i64(whole * lanes) + rest, 1), 1)
            for total in totals[1:]:
                totals[0].store(totals[0].value + total.value)
            totals[0].reduce(lambda a, b: a + b)
            return totals[0].lane(0) * tirx.const(1.0 / self.depth, "float32")

        T.buffer_store(numbers, mean(row), [i64(0)])
        one = tirx.const(1.0, "float32")
        T.buffer_store(numbers, one / tirx.sqrt(mean(square) + tirx.const(epsilon, "float32")), [i64(1)])

        def store(column: tirx.Expr, count: int) -> None:
            place = [ramp(column, count)]
            scaled = deviation(column, count) * splat(numbers[i64(1)], count) * tirx.BufferLoad(gamma, place)
            T.buffer_store(self.source, scaled + tirx.BufferLoad(beta, place), [*lead, *place])

        self.emit(lead, store)

    def emit(
        self, lead: list[tirx.Expr], prepare: Callable[[tirx.Expr, int], None] = lambda column, lanes: None
    ) -> None:
        """Emit the quantisation of a row; `prepare` makes its elements before they are read first."""
        lanes, whole = self.lanes, self.depth // self.lanes
        low, high = registers(2, lanes)
        with T.serial(i64(0), i64(whole)) as chunk:
            prepare(chunk * i64(lanes), lanes)
            value = self._value(lead, chunk * i64(lanes), lanes)
            low.store(tirx.min(low.value, value))
            high.store(tirx.max(high.value, value))
        with T.serial(i64(0), i64(self.depth - whole * lanes)) as rest:
            prepare(i64(whole * lanes) + rest, 1)
            value = self._value(lead, i64(whole * lanes) + rest, 1)
            low.store_part(0, tirx.min(low.lane(0), value), 1)
            high.store_part(0, tirx.max(high.lane(0), value), 1)
        low.reduce(tirx.min)
        high.reduce(tirx.max)
        self._store(lead, low.lane(0), high.lane(0) - low.lane(0))

    def _store(self, lead: list[tirx.Expr], low: tirx.Expr, span: tirx.Expr) -> None:
        # What a row needs, computed once: the scale's inverse, and the zero point as a float.
        numbers = stack_buffer(2)
        store_scheme(low, span, self.dot, (numbers, []), (self.scale, self.zero, [*lead, i64(0)]))
        lanes, whole = self.lanes, self.depth // self.lanes
        with T.serial(i64(0), i64(whole)) as chunk:
            self._quantize(lead, numbers, chunk * i64(lanes), lanes)
        with T.serial(i64(0), i64(self.depth - whole * lanes)) as rest:
            self._quantize(lead, numbers, i64(whole * lanes) + rest, 1)
        surplus = padded_depth(self.depth, self.dot) - self.depth
        with T.serial(i64(0), i64(surplus)) as rest:  # it meets weights that are 0
            T.buffer_store(self.quantized, tirx.const(0, self.dot.activation), [*lead, i64(self.depth) + rest])

    def _quantize(self, lead: list[tirx.Expr], numbers: tirx.Var, column: tirx.Expr, lanes: int) -> None:
        inverse, zero = (tirx.BufferLoad(numbers, [i64(i)]) for i in (0, 1))
        levels = levels_of(self._value(lead, column, lanes), (inverse, zero), self.dot, lanes)
        narrow = tirx.Cast(vector_type(self.dot.activation, lanes), levels)
        T.buffer_store(self.quantized, narrow, [*lead, ramp(column, lanes)])

    def _value(self, lead: list[tirx.Expr], column: tirx.Expr, lanes: int) -> tirx.Expr:
        value = tirx.BufferLoad(self.source, [*lead, ramp(column, lanes)])
        if self.factors is None:
            return value
        return value * tirx.BufferLoad(self.factors, [ramp(column, lanes)])
