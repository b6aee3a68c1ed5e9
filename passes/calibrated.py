"""The base of passes that decide by what calibration data show of activations."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import relax_functions
from greencc.passes.base import Activations, PassContext, PassResult, Record, Refusal, RewritePass
from greencc.passes.graph import Graph, eliminate_dead, rebuild

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
        found = self._outermost(module, context)
        matches = [match for _, _, match in found]
        if context.activations is not None and matches:
            matches = self.informed(context.activations, module, matches)
        refusals: list[Refusal] = []
        replacements, nodes, record = {}, [], Record()
        for (var, node, _), match in zip(found, matches, strict=True):
            failed = self.refusal(match)
            if failed is None:
                replacements[var] = functools.partial(self._replacement, match)
                nodes.append(node)
                self._note(record, node, match)
            else:
                refusals.append(Refusal(self.name, node, failed.number, failed.reason))
        if not replacements:
            return PassResult(module, 0, tuple(refusals))
        gv, main = next(iter(relax_functions(module)))
        result = module.clone()
        result.update_func(gv, eliminate_dead(rebuild(main, replacements, owner=self.name)))
        return record.result(result, refusals, nodes)

    def _outermost(self, module: tvm.IRModule, context: PassContext) -> list[tuple[relax.Var, str, MatchT]]:
        """(variable, node, match) of every candidate, in order; of two nested ones the larger."""
        found: list[tuple[relax.Var, str, MatchT]] = []
        covered: set[relax.Var] = set()
        for var, node, match in self._matches(Graph(module, module["main"], context), context):
            if var not in covered:
                covered.update(self.inner(match))
                found.append((var, node, match))
        return found[::-1]

    def _may_change(self, node: str, context: PassContext) -> bool:
        return context.chooses(self.name, node)


def all_finite(*arrays: np.ndarray | None) -> bool:
    """Whether no array, of those that there are, holds NaN or infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)


def column_squares(weight: np.ndarray) -> np.ndarray:
    """Sums of squares of the rows of a weight [K, N]: float64 [K], what a unit of each input is worth in the output."""
    return np.asarray((weight.astype(np.float64) ** 2).sum(axis=1))
