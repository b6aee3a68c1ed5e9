"""The pass that removes the least important channels between two products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import constant
from greencc.passes.base import Activations, Condition
from greencc.passes.calibrated import CalibratedPass, all_finite, column_squares
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32
from greencc.passes.narrowing import Columns, columns_of, count_to_keep, largest, narrowed

# Widths are kept to multiples of this where they are larger: kernels compute whole vectors.
_MULTIPLE = 32


@dataclass(frozen=True)
class Inside:
    """The channels between a product `call` by a constant and the products that they come out of.

    Attributes:
        columns: where they come from; None where that is not from products alone.
        squares: mean square of each channel over calibration data; None without data.
        fraction: how many of them are to go.
    """

    graph: Graph
    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    columns: Columns | None
    squares: np.ndarray | None
    fraction: float

    @property
    def kept(self) -> list[int]:
        """The channels that stay: those worth most in the output, mean square times the squares of their weights.

        Without data a channel counts as large as the weights that it comes out of.
        """
        squares = self.squares
        if squares is None and self.columns is not None:
            squares = np.prod([column_squares(product.T) for product in self.columns.products], axis=0)
        width = len(self.weight)
        if squares is None:
            return list(range(width))
        return largest(squares * column_squares(self.weight), count_to_keep(width, self.fraction, _MULTIPLE))

    @property
    def is_closed(self) -> bool:
        """Whether nothing else uses what is computed in between."""
        return self.columns is not None and self.graph.is_closed(self.root, self.columns.inner)

    @property
    def is_finite(self) -> bool:
        """Whether all weights, and all activations that were seen, are finite."""
        return all_finite(self.weight, self.squares, *(() if self.columns is None else self.columns.products))


@dataclass(frozen=True)
class PruneChannels(CalibratedPass[Inside]):
    """Remove channels of the feed-forward layers: columns of one weight, rows of the next.

        y = matmul(f(matmul(x, v) + b), w)    becomes    y = matmul(f(matmul(x, v[:, k]) + b[k]), w[k])

    f is any chain of elementwise operators, of several products too (as in gated layers); k are the channels that are
    worth most in y: their mean square over calibration data times the squares of their weights in w (Wanda's score,
    arXiv:2306.11695, by channel). Widths stay multiples of 32. The input and the result keep their shapes, so what is
    around, residual connections included, stays as it is. The result is not equal: this pass is not in the default
    pipeline. Legal when
    1. operands and result are float32;
    2. the weight is a matrix, and the channels come out of products by constant matrices through elementwise operators;
    3. nothing else uses what is computed in between;
    4. all weights, and all activations that were seen, are finite;
    5. channels go, and some stay.

    Options:
        fraction: how many channels go, 0 to 1.
    """

    fraction: float = 0.25

    name: ClassVar[str] = "prune-channels"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Inside], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(
            2,
            "the channels don't come out of products by constants, elementwise",
            lambda m: m.weight.ndim == 2 and m.columns is not None,
        ),
        Condition(3, "a value in between is used elsewhere", lambda m: m.is_closed),
        Condition(4, "a weight or an activation is not finite", lambda m: m.is_finite),
        Condition(5, "no channel would go", lambda m: len(m.kept) < len(m.weight)),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Inside | None:
        """See CalibratedPass."""
        if call.op.name != "relax.matmul" or not 0 < self.fraction < 1:
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Inside(graph, var, call, weight, columns_of(graph, call.args[0]), None, self.fraction)

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Inside]) -> list[Inside]:
        """See CalibratedPass."""
        asked = [match for match in matches if match.columns is not None]
        seen = activations.mean_squares(module, [match.call.args[0] for match in asked]) if asked else []
        squares = {match.root: array for match, array in zip(asked, seen, strict=True)}
        return [replace(match, squares=squares.get(match.root)) for match in matches]

    def inner(self, match: Inside) -> Iterable[relax.Var]:
        """See CalibratedPass."""
        return () if match.columns is None else match.columns.inner

    def rewrite(self, builder: Builder, match: Inside) -> relax.Expr:
        """See CalibratedPass."""
        kept, columns = match.kept, match.columns
        if columns is None:
            raise ValueError("a match that condition 2 refuses")
        return relax.op.matmul(narrowed(match.graph, builder, columns, kept), constant(match.weight[kept]))
