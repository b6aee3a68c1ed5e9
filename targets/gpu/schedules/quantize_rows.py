"""Dynamic quantisation of activations on GPUs: every row of its own, to signed bytes, by one workgroup.

A layer normalisation in front of it is done in the same kernel.

The scheme is that of targets/int8/levels.py. A workgroup finds its row's extremes, its threads together; then each
writes words of four levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.launch import barrier, power_of_two, when
from greencc.targets.gpu.schedules.sources import BYTES
from greencc.targets.gpu.schedules.threads import at, launch, local, put, shared
from greencc.targets.int8.levels import Levels, levels_of, padded_depth, store_scheme
from greencc.targets.int8.rows import QuantizedRows
from greencc.targets.tir import i64, ramp, volume, with_own_symbols

QUANTIZE_RULE, NORMALIZE_RULE = "gpu-quantize-rows", "gpu-normalize-rows"
_BITS = 8
Value = Callable[[tirx.Expr], tirx.Expr]
"""The float32 value at a place of what is searched."""
Combine = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]


def quantize_rows_kernel(x: relax.TensorType, gpu: Capabilities, levels: Levels, with_factors: bool) -> tirx.PrimFunc:
    """The kernel for x [..., K] float32, and factors [K] that x is multiplied by first, if there are any.

    It writes q [..., K filled up] int8, scale [..., 1] float32 and zero [..., 1] int32, such that x is about
    (q - zero) * scale.
    """
    return planned_rows_kernel(list(x.shape.values), gpu, levels, with_factors, None, None)


def normalize_rows_kernel(
    x: relax.TensorType, epsilon: float, gpu: Capabilities, levels: Levels, with_factors: bool
) -> tirx.PrimFunc:
    """The kernel for x [..., K] float32, gamma [K], beta [K], and factors [K], if there are any; see NormKernel."""
    return planned_rows_kernel(list(x.shape.values), gpu, levels, with_factors, epsilon, None)


def default_threads(padded: int, gpu: Capabilities) -> int:
    """Threads for a row of so many levels: a word for each, if there are as many."""
    return min(gpu.max_threads, 256, max(32, power_of_two(padded // BYTES)))


def planned_rows_kernel(
    shape: list[tirx.Expr],
    gpu: Capabilities,
    levels: Levels,
    with_factors: bool,
    epsilon: float | None,
    threads: int | None,
) -> tirx.PrimFunc:
    """Quantised rows of x; with an epsilon, of normalised ones. A row has so many threads, or as many as by default."""
    ((*lead, last),) = with_own_symbols([shape])
    depth, rows = int(last), volume(lead)
    padded = padded_depth(depth, levels)
    threads = threads or default_threads(padded, gpu)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = given = T.arg("x", T.buffer((*lead, depth), "float32"))
        names = ["gamma", "beta"] if epsilon is not None else []
        parameters = [T.arg(name, T.buffer((depth,), "float32")) for name in names]
        factors = T.arg("factors", T.buffer((depth,), "float32")) if with_factors else None
        if epsilon is not None:
            source = T.arg("y", T.buffer((*lead, depth), "float32"))
        quantized = T.arg("q", T.buffer((*lead, padded), "int8"))
        scale = T.arg("scale", T.buffer((*lead, 1), "float32"))
        zero = T.arg("zero", T.buffer((*lead, 1), "int32"))
        rule = QUANTIZE_RULE if epsilon is None else NORMALIZE_RULE
        T.func_attr({"tirx.noalias": True, RULE_ATTR: rule})
        # TVM looks for reshapes among kernels of one operand, and expects a block.
        with T.sblock("root"), launch([rows], threads) as ((row,), thread):
            line = _Line(row, depth, padded, threads, thread)
            if epsilon is not None:
                line.normalize(given, parameters, source, epsilon)
            line.quantize(source, factors, quantized, (scale, zero), levels)
    # Two comparisons, a product, a sum and a rounding for every element; to normalise it, a sum, a difference, its
    # square and that one's sum, two products and a sum.
    operations = 5 if epsilon is None else 12
    made = ib.get().with_attr(OPERATIONS_ATTR, rows * i64(operations * depth))
    return QuantizedRows(shape, with_factors, epsilon).noted_on(made)


@dataclass(frozen=True)
class _Line:
    """A row that a workgroup works on: a thread has every `threads`-th four of its columns, in all that is done.

    So a thread reads again only what it wrote itself.
    """

    row: tirx.Expr
    depth: int
    padded: int
    threads: int
    thread: tirx.Expr

    def normalize(self, x: tirx.Var, parameters: list[tirx.Var], y: tirx.Var, epsilon: float) -> None:
        """Emit the layer normalisation of a row of x, by gamma and beta, to y."""
        gamma, beta = parameters
        share = tirx.const(1.0 / self.depth, "float32")

        def mean(term: Value) -> tirx.Expr:
            (total,) = self._reduced(term, [lambda a, b: a + b])
            return _kept(total * share)

        middle = mean(lambda column: self._at(x, column))

        def deviation(column: tirx.Expr) -> tirx.Expr:
            return self._at(x, column) - middle

        variance = mean(lambda column: deviation(column) * deviation(column))
        inverse = _kept(tirx.const(1.0, "float32") / tirx.sqrt(variance + tirx.const(epsilon, "float32")))

        def store(column: tirx.Expr) -> None:
            value = deviation(column) * inverse * at(gamma, column) + at(beta, column)
            put(y, value, self.row * i64(self.depth) + column)

        self._columns(store)

    def quantize(
        self,
        source: tirx.Var,
        factors: tirx.Var | None,
        quantized: tirx.Var,
        scheme: tuple[tirx.Var, tirx.Var],
        levels: Levels,
    ) -> None:
        """Emit the quantisation of a row of the source, times factors if there are any."""

        def value(column: tirx.Expr) -> tirx.Expr:
            read = self._at(source, column)
            return read if factors is None else read * at(factors, column)

        low, high = self._reduced(value, [tirx.min, tirx.max])
        numbers = local(2, "float32")
        # Every thread computes the scheme and writes the same: it is shorter than a barrier.
        store_scheme(low, high - low, levels, (numbers, []), (*scheme, row_place(self.row, scheme[0])))
        known = (tirx.BufferLoad(numbers, [i64(0)]), tirx.BufferLoad(numbers, [i64(1)]))

        def word(number: tirx.Expr) -> None:
            def level(lane: int) -> tirx.Expr:
                column = number * i64(BYTES) + i64(lane)
                found = levels_of(value(column), known, levels, 1)
                if self.padded == self.depth:
                    return found
                # What fills the last word up meets weights that are 0.
                return tirx.if_then_else(column < i64(self.depth), found, tirx.IntImm("int32", 0))

            store_word(quantized, self.row * i64(self.padded) + number * i64(BYTES), level)

        self._words(word)

    def _reduced(self, value: Value, combine: Sequence[Combine]) -> list[tirx.Expr]:
        """Emit the combination of all of the row's values, and of 0, in several ways."""
        found = local(len(combine), "float32")
        for i in range(len(combine)):
            T.buffer_store(found, tirx.const(0.0, "float32"), [i64(i)])
        read = local(1, "float32")

        def take(column: tirx.Expr) -> None:
            T.buffer_store(read, value(column), [i64(0)])
            for i, join in enumerate(combine):
                joined = join(tirx.BufferLoad(found, [i64(i)]), tirx.BufferLoad(read, [i64(0)]))
                T.buffer_store(found, joined, [i64(i)])

        self._columns(take)
        own = [tirx.BufferLoad(found, [i64(i)]) for i in range(len(combine))]
        return combined(own, combine, self.threads, self.thread)

    def _columns(self, body: Callable[[tirx.Expr], None]) -> None:
        """Emit something for each of the thread's columns."""

        def word(number: tirx.Expr) -> None:
            for lane in range(BYTES):
                column = number * i64(BYTES) + i64(lane)
                with when(None if self.padded == self.depth else column < i64(self.depth)):
                    body(column)

        self._words(word)

    def _words(self, body: Callable[[tirx.Expr], None]) -> None:
        words = self.padded // BYTES
        with T.serial(i64(0), i64(-(-words // self.threads))) as step:
            number = step * i64(self.threads) + self.thread
            with when(None if words % self.threads == 0 else number < i64(words)):
                body(number)

    def _at(self, buffer: tirx.Var, column: tirx.Expr) -> tirx.Expr:
        return at(buffer, self.row * i64(self.depth) + column)


def _kept(value: tirx.Expr) -> tirx.Expr:
    """Emit a number that is computed once."""
    kept = local(1, "float32")
    T.buffer_store(kept, value, [i64(0)])
    return tirx.BufferLoad(kept, [i64(0)])


def combined(own: list[tirx.Expr], combine: Sequence[Combine], threads: int, thread: tirx.Expr) -> list[tirx.Expr]:
    """Emit the combination of numbers that each of a workgroup's threads has; all threads get to know them.

    The number of threads is a power of 2.
    """
    memory = [shared(threads, "float32") for _ in own]
    barrier()
    for buffer, value in zip(memory, own, strict=True):
        T.buffer_store(buffer, value, [thread])
    half = threads // 2
    while half:
        barrier()
        for buffer, join in zip(memory, combine, strict=True):
            with T.If(thread < i64(half)), T.Then():
                pair = (tirx.BufferLoad(buffer, [thread]), tirx.BufferLoad(buffer, [thread + i64(half)]))
                T.buffer_store(buffer, join(*pair), [thread])
        half //= 2
    barrier()
    return [_kept(tirx.BufferLoad(buffer, [i64(0)])) for buffer in memory]


def store_word(buffer: tirx.Var, offset: tirx.Expr, level: Callable[[int], tirx.Expr]) -> None:
    """Emit four levels, int32 of -128..127, as the bytes of a word."""
    word: tirx.Expr | None = None
    for lane in range(BYTES):
        part = level(lane) & tirx.IntImm("int32", (1 << _BITS) - 1)
        part = part if lane == 0 else tirx.shift_left(part, tirx.IntImm("int32", _BITS * lane))
        word = part if word is None else word | part
    place = [*(i64(0) for _ in list(buffer.ty.shape)[:-1]), ramp(offset, BYTES)]
    T.buffer_store(buffer, tirx.reinterpret(f"int8x{BYTES}", word), place)


def row_place(row: tirx.Expr, scheme: tirx.Var) -> list[tirx.Expr]:
    """Where a row's number is in a tensor [..., 1]."""
    return [*(i64(0) for _ in list(scheme.ty.shape)[:-1]), row]
