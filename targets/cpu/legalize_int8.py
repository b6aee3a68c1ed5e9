"""Products and convolutions in int8 on a CPU: the kernels that make levels."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from greencc.affine import Scheme
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.channel_words import channel_words_kernel
from greencc.targets.cpu.schedules.quantize_images import quantize_images_kernel
from greencc.targets.cpu.schedules.quantize_rows import normalize_rows_kernel, quantize_rows_kernel
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.emitted import EmittedKernels
from greencc.targets.int8.levels import quantized_rows_types
from greencc.targets.int8.lowering import Int8Lowering
from greencc.targets.int8.norms import quantize_in_norms

_ONES = (1, 1, 1)


class CpuInt8Lowering(Int8Lowering):
    """Lowers the `greencc.quantized_*` and `greencc.integer_*` operators of one module for a CPU."""

    def __init__(self, target: CpuTarget, kernels: EmittedKernels) -> None:
        super().__init__(dot_product(target))
        self._target, self._kernels = target, kernels

    def quantize_rows(self, builder: relax.BlockBuilder, x: relax.Expr, factors: list[relax.Expr]) -> relax.Expr:
        """See Int8Lowering."""
        types = quantized_rows_types(x.ty, self._dot)
        name, emit = "quantize_rows", quantize_rows_kernel
        gv = self._kernels.add(builder, name, emit, x.ty, self._target, self._dot, bool(factors))
        return relax.call_tir(gv, [x, *factors], types)

    def quantize_images(
        self, builder: relax.BlockBuilder, x: relax.Expr, groups: int, scheme: Scheme | None
    ) -> relax.Expr:
        """See Int8Lowering."""
        batch, words = x.ty.shape.values[0], self.words_type(x.ty, groups)
        found = [relax.TensorType([batch, *_ONES], kind) for kind in ("float32", "int32")]
        name, emit = "quantize_images", quantize_images_kernel
        gv = self._kernels.add(builder, name, emit, x.ty, groups, self._target, self._dot, scheme)
        return relax.call_tir(gv, [x], [words, *found] if scheme is None else words)

    def channel_words(self, builder: relax.BlockBuilder, a: relax.Expr, groups: int) -> relax.Expr:
        """See Int8Lowering."""
        name, emit = "channel_words", channel_words_kernel
        gv = self._kernels.add(builder, name, emit, a.ty, groups, self._target, self._dot)
        return relax.call_tir(gv, [a], self.words_type(a.ty, groups))


def with_quantizing_norms(module: tvm.IRModule, target: CpuTarget) -> tvm.IRModule:
    """`module` with layer normalisations that quantise their rows for the products behind them."""
    dot = dot_product(target)

    def emit(x: relax.TensorType, epsilon: float, *, with_factors: bool) -> tirx.PrimFunc:
        return normalize_rows_kernel(x, epsilon, target, dot, with_factors)

    return quantize_in_norms(module, dot, emit)
