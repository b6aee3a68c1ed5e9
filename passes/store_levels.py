"""The pass that keeps weights in bytes which were made from bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant
from greencc.ops import GroupAttrs, grouped_matmul, quantized_take
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, is_only_reader
from greencc.passes.quantize_tables import Lookup
from greencc.passes.stored import StoredWeight, exact_levels


@dataclass(frozen=True)
class Reader:
    """A product or a look-up `call`, and the constant that it reads.

    Attributes:
        lookup: the call as a look-up; None for a product.
    """

    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    lookup: Lookup | None
    least: int

    @property
    def has_plain_form(self) -> bool:
        """Whether the weight is a matrix, and of a look-up whole rows are taken, which every index means."""
        rows = self.lookup is None or (self.lookup.takes_rows and self.lookup.finds_a_row)
        return self.weight.ndim == 2 and rows

    @property
    def reads_alone(self) -> bool:
        """Whether nothing but the look-up reads a table."""
        return self.lookup is None or is_only_reader(self.lookup.graph, self.weight)

    @cached_property
    def levels(self) -> StoredWeight | None:
        """The bytes that it was made from; None where there are none."""
        if not np.isfinite(self.weight).all():
            return None
        return exact_levels(self.weight, 1 if self.lookup is None else 0)


@dataclass(frozen=True)
class StoreLevels(RewritePass[Reader]):
    """Keep in bytes what a model stores in bytes and multiplies with scales before it is used.

        y = matmul(x, w)    becomes    y = grouped_matmul(x, q, scale)      where w = q * scale[column]
        y = take(t, i)      becomes    y = quantized_take(q, scale, i)      where t = q * scale[row]

    Models with weights in bytes reach this pass with the products folded, in whatever form they were written down, and
    merged with others or not: levels and scales are found in the numbers, and taken only if they give every number back
    exactly. A quarter of the bytes remains, and nothing changes but the order of sums. Legal when
    1. operands and result are float32;
    2. the weight is a matrix; of a look-up whole rows are taken, and every index means a row;
    3. there are at least `min-weights` elements;
    4. nothing else reads the table that rows are looked up in: it would be stored twice;
    5. every element is exactly a level of 8 bits times the scale of its column or row.

    Options:
        min_weights: see 3.
    """

    min_weights: int = 4096

    name: ClassVar[str] = "store-levels"
    conditions: ClassVar[tuple[Condition[Reader], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*_floats(m), m.root)),
        Condition(2, "the weight is not a matrix, or not whole rows are looked up", lambda m: m.has_plain_form),
        Condition(3, "the weight is too small for bytes to pay", lambda m: m.weight.size >= m.least),
        Condition(4, "something else reads the table too", lambda m: m.reads_alone),
        Condition(5, "an element is no level times a scale", lambda m: m.levels is not None),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Reader | None:
        """See RewritePass."""
        if call.op.name not in ("relax.matmul", "relax.take"):
            return None
        arrays = [graph.constant(arg) for arg in call.args[:2]]
        of_product = call.op.name == "relax.matmul"
        other, weight = arrays if of_product else arrays[::-1]
        if other is not None or weight is None or weight.dtype.kind != "f" or weight.ndim < 2:
            return None
        lookup = None if of_product else Lookup(graph, var, call, weight, self.min_weights, 0.0)
        return Reader(var, call, weight, lookup, self.min_weights)

    def stored(self, match: Reader) -> StoredWeight | None:
        """See RewritePass."""
        return match.levels

    def rewrite(self, builder: Builder, match: Reader) -> relax.Expr:
        """See RewritePass."""
        if match.levels is None:
            raise ValueError("a match that condition 5 refuses")
        levels, scale = constant(match.levels.levels), match.levels.scale
        if match.lookup is not None:
            wrap = str(match.call.attrs.mode) == "wrap"
            return quantized_take(levels, constant(scale), match.call.args[1], wrap=wrap)
        attrs = GroupAttrs(match.levels.bits, len(match.weight))
        return grouped_matmul(match.call.args[0], levels, constant(scale[None]), None, attrs)


def _floats(match: Reader) -> list[relax.Expr]:
    """The operands that hold numbers, not indices."""
    return list(match.call.args) if match.lookup is None else [match.call.args[0]]
