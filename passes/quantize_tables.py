"""The pass that stores tables of weights in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant
from greencc.ops import quantized_take
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, is_only_reader
from greencc.passes.stored import StoredWeight, store


@dataclass(frozen=True)
class Lookup:
    """A look-up `call` of rows in a constant table."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    table: np.ndarray
    least: int
    epsilon: float

    @cached_property
    def stored(self) -> StoredWeight | None:
        """The table in bytes; None where bytes don't keep it within epsilon."""
        return store(self.table, 0, self.epsilon)

    @property
    def takes_rows(self) -> bool:
        """Whether the table is a matrix and whole rows of it are taken."""
        axis = self.call.attrs.axis
        return self.table.ndim == 2 and axis is not None and int(axis) in (0, -2)

    @property
    def finds_a_row(self) -> bool:
        """Whether every index means a row (mode "fast" leaves open what those outside of the table mean)."""
        return str(self.call.attrs.mode) in ("clip", "fast", "wrap")


@dataclass(frozen=True)
class QuantizeTables(RewritePass[Lookup]):
    """Store tables of constants in bytes, and give the rows that are looked up their scale when they are read.

        y = take(t, i)    becomes    y = quantized_take(q, scale, i)

    Every row gets the scale max |t| / 127 (symmetric). A quarter of the table's bytes remains; the result is close to
    the original, not equal: this pass is not in the default pipeline. Legal when
    1. the table and the result are float32;
    2. the table is a matrix and whole rows of it are looked up;
    3. all of its elements are finite;
    4. it has at least `min-weights` elements;
    5. nothing else reads it;
    6. every index means a row: those outside of the table are clipped or wrapped;
    7. with `epsilon`, some number of bits up to 8 keeps every element closer than this; the fewest are taken.

    Options:
        min_weights: see 4.
        epsilon: see 7; 0 takes 8 bits.
    """

    min_weights: int = 4096
    epsilon: float = 0.0

    name: ClassVar[str] = "quantize-tables"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Lookup], ...]] = (
        Condition(1, "the table or the result is not float32", lambda m: is_float32(m.call.args[0], m.root)),
        Condition(2, "the table is not a matrix whose rows are looked up", lambda m: m.takes_rows),
        Condition(3, "an element is not finite", lambda m: bool(np.isfinite(m.table).all())),
        Condition(4, "the table is too small for quantising to pay", lambda m: m.table.size >= m.least),
        Condition(5, "something else reads the table too", lambda m: is_only_reader(m.graph, m.table)),
        Condition(6, "an index outside of the table means no row", lambda m: m.finds_a_row),
        Condition(7, "8 bits don't keep every element within epsilon", lambda m: m.stored is not None),
    )

    def stored(self, match: Lookup) -> StoredWeight | None:
        """See RewritePass."""
        return match.stored

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Lookup | None:
        """See RewritePass."""
        if call.op.name != "relax.take":
            return None
        table, places = (graph.constant(arg) for arg in call.args)
        if table is None or places is not None or table.dtype.kind != "f" or table.ndim < 2:
            return None
        return Lookup(graph, var, call, table, self.min_weights, self.epsilon)

    def rewrite(self, builder: Builder, match: Lookup) -> relax.Expr:
        """See RewritePass."""
        if match.stored is None:
            raise ValueError("a match that condition 7 refuses")
        wrap = str(match.call.attrs.mode) == "wrap"
        table, scale = constant(match.stored.levels), constant(match.stored.scale)
        return quantized_take(table, scale, match.call.args[1], wrap=wrap)
