"""Products and convolutions in int8 on GPUs: the kernels that make levels, signed bytes in words of four."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax, te, tirx

from greencc.affine import Scheme
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.levels import SignedWords
from greencc.targets.gpu.schedules.quantize_images import parts_of, range_kernel, scheme_kernel
from greencc.targets.gpu.schedules.quantize_rows import normalize_rows_kernel, quantize_rows_kernel
from greencc.targets.int8.levels import levels_of, quantized_rows_types, static_numbers
from greencc.targets.int8.lowering import Int8Lowering
from greencc.targets.int8.norms import quantize_in_norms

_ONES = (1, 1, 1)


class GpuInt8Lowering(Int8Lowering):
    """Lowers the `greencc.quantized_*` and `greencc.integer_*` operators of one module for a GPU."""

    def __init__(self, target: GpuTarget, kernels: EmittedKernels) -> None:
        super().__init__(SignedWords())
        self._gpu, self._kernels = target.gpu, kernels

    def quantize_rows(self, builder: relax.BlockBuilder, x: relax.Expr, factors: list[relax.Expr]) -> relax.Expr:
        """See Int8Lowering."""
        types = quantized_rows_types(x.ty, self._dot)
        name, emit = "quantize_rows", quantize_rows_kernel
        gv = self._kernels.add(builder, name, emit, x.ty, self._gpu, self._dot, bool(factors))
        return relax.call_tir(gv, [x, *factors], types)

    def quantize_images(
        self, builder: relax.BlockBuilder, x: relax.Expr, groups: int, scheme: Scheme | None
    ) -> relax.Expr:
        """See Int8Lowering."""
        if scheme is not None:
            known = static_numbers(scheme, self._dot)

            def static(x: te.Tensor) -> te.Tensor:
                return self._words(x, groups, lambda value, _: levels_of(value, known, self._dot, 1))

            return builder.call_te(static, x, primfunc_name_hint="quantize_images")
        batch, parts = x.ty.shape.values[0], parts_of(x.ty)
        search = self._kernels.add(builder, "image_ranges", range_kernel, x.ty, self._gpu)
        ranges = builder.emit(relax.call_tir(search, [x], relax.TensorType([batch, parts, 2], "float32")))
        scheme_of = self._kernels.add(builder, "image_schemes", scheme_kernel, batch, parts, self._gpu, self._dot)
        shapes = [((batch, 2), "float32"), ((batch, *_ONES), "float32"), ((batch, *_ONES), "int32")]
        found = builder.emit(relax.call_tir(scheme_of, [ranges], [relax.TensorType(*item) for item in shapes]))
        numbers, scale, zero = (builder.emit(relax.TupleGetItem(found, i)) for i in range(3))

        def dynamic(x: te.Tensor, numbers: te.Tensor) -> te.Tensor:
            def level(value: tirx.Expr, image: tirx.Var) -> tirx.Expr:
                return levels_of(value, (numbers(image, 0), numbers(image, 1)), self._dot, 1)

            return self._words(x, groups, level)

        words = builder.emit(builder.call_te(dynamic, x, numbers, primfunc_name_hint="quantize_images"))
        return relax.Tuple([words, scale, zero])

    def channel_words(self, builder: relax.BlockBuilder, a: relax.Expr, groups: int) -> relax.Expr:
        """See Int8Lowering."""
        shift = self._dot.shift(str(a.ty.dtype))

        def pack(a: te.Tensor) -> te.Tensor:
            return self._words(a, groups, lambda value, _: value.astype("int32") + shift)

        return builder.call_te(pack, a, primfunc_name_hint="channel_words")

    def _words(self, x: te.Tensor, groups: int, level: Callable[[tirx.Expr, tirx.Var], tirx.Expr]) -> te.Tensor:
        """Images x [N, C, H, W] in words; level(value, image) is a value's level, int32."""
        batch, channels, height, width = x.shape
        depth, each = self._dot.depth, int(channels) // groups
        own = -(-each // depth)

        def at(n: tirx.Var, word: tirx.Var, row: tirx.Var, column: tirx.Var, lane: tirx.Var) -> tirx.Expr:
            inside = word % own * depth + lane
            found = level(x(n, word // own * each + inside, row, column), n).astype(self._dot.activation)
            if each % depth == 0:
                return found
            # What fills a group's last word up meets weights that are 0.
            return tirx.if_then_else(inside < each, found, tirx.const(0, self._dot.activation))

        return te.compute((batch, groups * own, height, width, depth), at, name="words")


def with_quantizing_norms(module: tvm.IRModule, target: GpuTarget) -> tvm.IRModule:
    """`module` with layer normalisations that quantise their rows for the products behind them."""
    levels = SignedWords()

    def emit(x: relax.TensorType, epsilon: float, *, with_factors: bool) -> tirx.PrimFunc:
        return normalize_rows_kernel(x, epsilon, target.gpu, levels, with_factors)

    return quantize_in_norms(module, levels, emit)
