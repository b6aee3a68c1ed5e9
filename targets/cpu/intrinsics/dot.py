"""Integer dot products: int32 accumulators plus sums of products of bytes, exact in every instruction set.

Of x86's instructions `pmaddubsw` is left out: it saturates its 16-bit sums, so that a bit of one operand would have to
be given up. `vpdpbusd` (VNNI) sums in 32 bits, and so does `pmaddwd` over operands that were widened to 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm import tirx

from greencc.targets.int8.levels import Levels

if TYPE_CHECKING:
    from greencc.targets.cpu.target import CpuTarget

# An instruction -> the same on vectors half as wide, and the feature that it needs.
_HALVES = {
    "llvm.x86.avx512.vpdpbusd.512": ("llvm.x86.avx512.vpdpbusd.256", "avx512vl"),
    "llvm.x86.avx512.pmaddw.d.512": ("llvm.x86.avx2.pmadd.wd", "avx2"),
}


@dataclass(frozen=True)
class DotProduct(Levels):
    """How a CPU multiplies a row of activations with columns of signed bytes.

    One step adds `depth` products to each of `lanes` int32 sums: `depth` neighbouring activations of one row, the same
    for every lane, times `depth` neighbouring weights of each lane's column.

    Attributes:
        lanes: int32 sums per vector.
        depth: products per lane and step.
        activation: element type that the activations are stored in; together `depth` of them are a 32-bit word.
        intrinsic: name of the LLVM intrinsic, None for plain multiplication and addition.
    """

    lanes: int
    depth: int
    activation: str
    intrinsic: str | None

    @property
    def factor(self) -> str:
        """Element type that weights are multiplied in."""
        return "int16" if self.activation == "int16" else "int8"

    def spread(self, values: tirx.Expr, dtype: str) -> tirx.Expr:
        """`depth` values of `dtype`, which fill a 32-bit word, again for every lane; a single one where depth is 1."""
        if self.depth == 1:
            return tirx.Broadcast(values, self.lanes)
        word = tirx.Broadcast(tirx.reinterpret("int32", values), self.lanes)
        return tirx.reinterpret(f"{dtype}x{self.lanes * self.depth}", word)

    def multiply(self, total: tirx.Expr, activations: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        """`total` with one step's products added.

        Args:
            total: int32 x lanes.
            activations: `activation` x (lanes * depth), each lane's side by side.
            weights: int8 or `factor` x (lanes * depth).
        """
        kind = f"int32x{self.lanes}"
        if self.intrinsic is None:
            return total + tirx.Cast(kind, activations) * tirx.Cast(kind, weights)
        if self.activation == "int16":
            if str(weights.ty.dtype).startswith("int8"):
                weights = tirx.Cast(f"int16x{self.lanes * self.depth}", weights)
            return total + tirx.call_llvm_pure_intrin(kind, self.intrinsic, activations, weights)
        return tirx.call_llvm_pure_intrin(kind, self.intrinsic, total, activations, weights)


def dot_product(target: CpuTarget) -> DotProduct:
    """The widest that `target` has."""
    features = set(target.features)
    if {"avx512vnni", "avx512f"} <= features:
        return DotProduct(16, 4, "uint8", "llvm.x86.avx512.vpdpbusd.512")
    if "avxvnni" in features:
        return DotProduct(8, 4, "uint8", "llvm.x86.avx512.vpdpbusd.256")
    if "avx512bw" in features:
        return DotProduct(16, 2, "int16", "llvm.x86.avx512.pmaddw.d.512")
    if "avx2" in features:
        return DotProduct(8, 2, "int16", "llvm.x86.avx2.pmadd.wd")
    if target.is_x86:
        return DotProduct(4, 2, "int16", "llvm.x86.sse2.pmadd.wd")
    if "i8mm" in features:
        return DotProduct(4, 4, "uint8", "llvm.aarch64.neon.usdot.v4i32.v16i8")
    if "dotprod" in features:
        return DotProduct(4, 4, "int8", "llvm.aarch64.neon.sdot.v4i32.v16i8")
    return DotProduct(4, 1, "uint8", None)


def dot_products(target: CpuTarget) -> tuple[DotProduct, ...]:
    """Those that `target` has for operands of the same types, the widest first."""
    widest = dot_product(target)
    intrinsic, needed = _HALVES.get(widest.intrinsic or "", ("", ""))
    if needed not in target.features:
        return (widest,)
    return widest, replace(widest, lanes=widest.lanes // 2, intrinsic=intrinsic)
