"""Dynamic quantisation of activations on GPUs: every row of its own, to signed bytes, by one workgroup.

A layer normalisation in front of it is done in the same kernel.

The scheme is that of targets/int8/levels.py. A workgroup finds its row's extremes, its threads together; then each
writes words of four levels. For images the two halves are two kernels, so that many workgroups share an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.launch import barrier, power_of_two, when
from greencc.targets.gpu.schedules.sources import BYTES
from greencc.targets.gpu.schedules.threads import at, launch, local, put, shared
from greencc.targets.int8.levels import Levels, levels_of, padded_depth, store_scheme
from greencc.targets.tir import as_int, i64, ramp, volume, with_own_symbols

_BITS = 8
# Elements of an image that a workgroup finds the range of.
PART = 1 << 14
Value = Callable[[tirx.Expr], tirx.Expr]
"""The float32 value at a place of what is searched."""
Combine = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]


def quantize_rows_kernel(x: relax.TensorType, gpu: Capabilities, levels: Levels, with_factors: bool) -> tirx.PrimFunc:
    """The kernel for x [..., K] float32, and factors [K] that x is multiplied by first, if there are any.

    It writes q [..., K filled up] int8, scale [..., 1] float32 and zero [..., 1] int32, such that x is about
    (q - zero) * scale.
    """
    return _rows_kernel(x, gpu, levels, with_factors, epsilon=None)


def normalize_rows_kernel(
    x: relax.TensorType, epsilon: float, gpu: Capabilities, levels: Levels, with_factors: bool
) -> tirx.PrimFunc:
    """The kernel for x [..., K] float32, gamma [K], beta [K], and factors [K], if there are any; see NormKernel."""
    return _rows_kernel(x, gpu, levels, with_factors, epsilon)


def _rows_kernel(
    x: relax.TensorType, gpu: Capabilities, levels: Levels, with_factors: bool, epsilon: float | None
) -> tirx.PrimFunc:
    """Quantised rows; with an epsilon, of normalised ones."""
    ((*lead, last),) = with_own_symbols([list(x.shape.values)])
    depth, rows = int(last), volume(lead)
    padded = padded_depth(depth, levels)
    threads = min(gpu.max_threads, 256, max(32, power_of_two(padded // BYTES)))
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
        rule = "gpu-quantize-rows" if epsilon is None else "gpu-normalize-rows"
        T.func_attr({"tirx.noalias": True, "greencc.rule": rule})
        # TVM looks for reshapes among kernels of one operand, and expects a block.
        with T.sblock("root"), launch([rows], threads) as ((row,), thread):
            line = _Line(row, depth, padded, threads, thread)
            if epsilon is not None:
                line.normalize(given, parameters, source, epsilon)
            line.quantize(source, factors, quantized, (scale, zero), levels)
    # Two comparisons, a product, a sum and a rounding for every element; to normalise it, a sum, a difference, its
    # square and that one's sum, two products and a sum.
    operations = 5 if epsilon is None else 12
    return ib.get().with_attr(OPERATIONS_ATTR, rows * i64(operations * depth))


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


def range_kernel(x: relax.TensorType, gpu: Capabilities) -> tirx.PrimFunc:
    """The kernel for x [N, ...] float32, of known sizes but for N: the extremes of parts of each image, and 0.

    It writes ranges [N, parts, 2] float32, see `parts_of`.
    """
    ((batch,),) = with_own_symbols([list(x.shape.values)[:1]])
    inner = [int(size) for size in list(x.shape.values)[1:]]
    size, parts = _size(inner), parts_of(x)
    threads = min(gpu.max_threads, 256)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = T.arg("x", T.buffer((batch, *inner), "float32"))
        ranges = T.arg("ranges", T.buffer((batch, parts, 2), "float32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "gpu-quantize-images"})
        with T.sblock("root"), launch([batch, i64(parts)], threads) as ((image, part), thread):
            first = part * i64(PART)
            count = i64(size) if parts == 1 else tirx.min(i64(PART), i64(size) - first)

            def value(place: tirx.Expr) -> tirx.Expr:
                return at(source, image * i64(size) + first + place)

            low, high = extremes(value, count, threads, thread)
            with T.If(thread < i64(1)), T.Then():
                for i, found in enumerate((low, high)):
                    put(ranges, found, (image * i64(parts) + part) * i64(2) + i64(i))
    return ib.get().with_attr(OPERATIONS_ATTR, batch * i64(2 * size))


def scheme_kernel(batch: tirx.Expr, parts: int, gpu: Capabilities, levels: Levels) -> tirx.PrimFunc:
    """The kernel for ranges [N, parts, 2] float32: what every image's levels are computed with and are worth.

    It writes numbers [N, 2] float32, see `levels_of`, scale [N, 1, 1, 1] float32 and zero [N, 1, 1, 1] int32.
    """
    ((own,),) = with_own_symbols([[batch]])
    threads = min(gpu.max_threads, max(32, power_of_two(min(parts, 256))))
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        ranges = T.arg("ranges", T.buffer((own, parts, 2), "float32"))
        numbers = T.arg("numbers", T.buffer((own, 2), "float32"))
        scale = T.arg("scale", T.buffer((own, 1, 1, 1), "float32"))
        zero = T.arg("zero", T.buffer((own, 1, 1, 1), "int32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "gpu-quantize-images"})
        with T.sblock("root"), launch([own], threads) as ((image,), thread):

            def value(place: tirx.Expr) -> tirx.Expr:
                return at(ranges, image * i64(2 * parts) + place)

            low, high = extremes(value, i64(2 * parts), threads, thread)
            with T.If(thread < i64(1)), T.Then():
                place = [image, i64(0), i64(0), i64(0)]
                store_scheme(low, high - low, levels, (numbers, [image]), (scale, zero, place))
    return ib.get().with_attr(OPERATIONS_ATTR, own * i64(4 * parts))


def parts_of(x: relax.TensorType) -> int:
    """Parts that an image of x [N, ...] is searched in."""
    return -(-_size([int(size) for size in list(x.shape.values)[1:]]) // PART)


def extremes(value: Value, count: tirx.Expr, threads: int, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """Emit the search for the least and the largest of `count` values and 0, by all threads of a workgroup.

    The number of threads is a power of 2. All threads get to know the result.
    """
    found = local(2, "float32")
    combine = (tirx.min, tirx.max)
    for i in range(2):
        T.buffer_store(found, tirx.const(0.0, "float32"), [i64(i)])
    steps = tirx.floordiv(count - thread + i64(threads - 1), i64(threads))
    known = as_int(count)
    if known is not None and known % threads == 0:
        steps = i64(known // threads)
    with T.serial(i64(0), steps) as step:
        read = local(1, "float32")
        T.buffer_store(read, value(step * i64(threads) + thread), [i64(0)])
        for i in range(2):
            one = tirx.BufferLoad(read, [i64(0)])
            T.buffer_store(found, combine[i](tirx.BufferLoad(found, [i64(i)]), one), [i64(i)])
    own = [tirx.BufferLoad(found, [i64(i)]) for i in range(2)]
    low, high = combined(own, combine, threads, thread)
    return low, high


def combined(
    own: list[tirx.Expr], combine: Sequence[Combine], threads: int, thread: tirx.Expr
) -> list[tirx.Expr]:
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


def _size(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
