"""The base of passes that decide by what calibration data show of activations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import numpy as np
import tvm
from tvm import relax

from greencc.passes.base import Activations, PassContext, PassResult, RewritePass
from greencc.passes.graph import Graph

MatchT = TypeVar("MatchT")


class CalibratedPass(RewritePass[MatchT]):
    """A pass that looks at every call of main once, and asks the data about all its matches at once.

    Unlike other rewrites it makes one round, and no match is rooted in another one, be that legal or not.
    """

    learns: ClassVar[bool] = True
    one_round: ClassVar[bool] = True
    # Whether the pass does nothing without data.
    needs_data: ClassVar[bool] = False

    @abstractmethod
    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[MatchT]) -> list[MatchT]:
        """The matches with what the data show."""

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Rewrite main, in one round."""
        if context.activations is None and self.needs_data:
            return PassResult(module, 0)
        return super().run(module, context)

    def _matches(self, graph: Graph, context: PassContext) -> list[tuple[relax.Var, str, MatchT]]:
        """Those of main; of two nested ones the larger."""
        if not graph.function.same_as(graph.module["main"]):
            return []
        found: list[tuple[relax.Var, str, MatchT]] = []
        covered: set[relax.Var] = set()
        for var, node, match in super()._matches(graph, context):
            if var not in covered:
                covered.update(self.inner(match))
                found.append((var, node, match))
        return found

    def _may_change(self, node: str, context: PassContext) -> bool:
        return context.chooses(self.name, node)


def all_finite(*arrays: np.ndarray | None) -> bool:
    """Whether no array, of those that there are, holds NaN or infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)


def column_squares(weight: np.ndarray) -> np.ndarray:
    """Sums of squares of the rows of a weight [K, N]: float64 [K], what a unit of each input is worth in the output."""
    return np.asarray((weight.astype(np.float64) ** 2).sum(axis=1))
