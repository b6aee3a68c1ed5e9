"""Which kernels are matrix products, and what a schedule of one needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.multiply import Arithmetic, DotArithmetic, FloatArithmetic
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.factors import GroupScheme, grouped_factors, plain_factors
from greencc.targets.kernel import Tail, indexed_by, is_const_zero, is_reduction, widened
from greencc.targets.tir import as_int, volume


@dataclass(frozen=True)
class Product:
    """A recognised product of A [..., i, k] and B [k, j].

    Attributes:
        a, b: the operands' buffers.
        depth, columns: sizes of k and j.
        batched: whether B has the axes before k too.
        arithmetic: how products are added up.
        groups: where B holds levels in groups, what they are worth.
    """

    a: tirx.Var
    b: tirx.Var
    depth: int
    columns: int
    batched: bool
    arithmetic: Arithmetic
    groups: GroupScheme | None = None

    @property
    def steps(self) -> int:
        """Steps along k."""
        return -(-self.depth // self.arithmetic.depth)


@dataclass(frozen=True)
class Form:
    """A product that can be scheduled: with its tail, and whether B is packed, because it is a constant."""

    tail: Tail
    product: Product
    packed: bool

    @property
    def lead(self) -> list[tirx.Expr]:
        """The axes of the result that B has too."""
        return self._shape[:-2] if self.product.batched else []

    @property
    def row_dims(self) -> list[tirx.Expr]:
        """The axes that the rows of one product run over."""
        return self._shape[len(self.lead) : -1]

    @property
    def rows(self) -> int | None:
        """How many rows a product has; None where that is known at run time only."""
        return as_int(volume(self.row_dims))

    @property
    def _shape(self) -> list[tirx.Expr]:
        return list(self.tail.output.ty.shape)


def match_product(tail: Tail, target: CpuTarget) -> Product | str:
    """The product that the producer block computes, or why it is none."""
    block = tail.producer
    if not is_reduction(block):
        return "no reduction"
    spatial = [axis.var for axis in block.iter_vars if int(axis.iter_type) == 0]
    reduced = [axis for axis in block.iter_vars if int(axis.iter_type) != 0]
    store = block.body
    if len(reduced) != 1 or len(spatial) < 2 or not isinstance(store, tirx.BufferStore):
        return "not a product over one axis"
    if not all(index.same_as(var) for index, var in zip(store.indices, spatial, strict=True)):
        return "the product isn't written in the order of its axes"
    groups = grouped_factors(block, store)
    factors = plain_factors(store, widened) if groups is None else groups[:2]
    if factors is None or not is_const_zero(block.init.value):
        return "not a sum of products"
    k, (i, j), lead = reduced[0].var, spatial[-2:], spatial[:-2]
    a, b = factors
    if not (b.indices[-1].same_as(j) and len(b.indices) >= 2 and b.indices[-2].same_as(k)):
        return "the second factor isn't [k, j]"
    if not indexed_by(a, [*lead, i, k]):
        return "the first factor isn't [..., i, k]"
    batched = len(b.indices) > 2
    if batched and not indexed_by(b, [*lead, k, j]):
        return "the batch axes of the factors differ"
    depth, columns = as_int(reduced[0].dom.extent), as_int(tail.output.ty.shape[-1])
    if depth is None or columns is None:
        return "depth or columns are symbolic"
    kinds = [str(value.ty.dtype) for value in (a, b, tail.intermediate)]
    dot = dot_product(target)
    if groups is not None:
        return Product(a.source, b.source, depth, columns, batched, FloatArithmetic(), groups[2])
    if kinds == ["float32"] * 3:
        return Product(a.source, b.source, depth, columns, batched, FloatArithmetic())
    if kinds == [dot.activation, "int8", "int32"]:
        return Product(a.source, b.source, depth, columns, batched, DotArithmetic(dot))
    return f"not float32, nor {dot.activation} times int8 in int32"
