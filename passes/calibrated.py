"""The base of passes that decide by what calibration data show of activations."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import relax_functions
from greencc.passes.base import Activations, Condition, Pass, PassContext, PassResult, Refusal, node_name
from greencc.passes.graph import Builder, Graph, eliminate_dead, rebuild

MatchT = TypeVar("MatchT")


class CalibratedPass(Pass, Generic[MatchT]):
    """A pass that looks at every call of main once, and asks the data about all its matches at once.

    Unlike a RewritePass it makes one round: its own results are no matches.
    """

    conditions: ClassVar[tuple[Condition[Any], ...]] = ()
    # Whether the pass does nothing without data.
    needs_data: ClassVar[bool] = False

    @abstractmethod
    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> MatchT | None:
        """The candidate rooted at `call` (bound to `var`), or None when the form is another one."""

    @abstractmethod
    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[MatchT]) -> list[MatchT]:
        """The matches with what the data show."""

    @abstractmethod
    def rewrite(self, builder: Builder, match: MatchT) -> relax.Expr:
        """The value that replaces the root. It must have the root's type."""

    def inner(self, match: MatchT) -> Iterable[relax.Var]:
        """Values that `match` covers besides its root: no other match is rooted at one of them."""
        return ()

    def zeros(self, match: MatchT) -> float | None:
        """The share of zeros in the weight that the rewrite makes; None where it is not about zeros."""
        return None

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Rewrite main, in one round."""
        if context.activations is None and self.needs_data:
            return PassResult(module, 0)
        found = self._matches(module, context)
        matches = [match for _, _, match in found]
        if context.activations is not None and matches:
            matches = self.informed(context.activations, module, matches)
        refusals: list[Refusal] = []
        replacements, nodes = {}, []
        zeros: dict[str, float] = {}
        for (var, node, _), match in zip(found, matches, strict=True):
            failed = next((c for c in self.conditions if not c.holds(match)), None)
            if failed is None:
                replacements[var] = functools.partial(self._replacement, match)
                nodes.append(node)
                share = self.zeros(match)
                if share is not None:
                    zeros[node] = share
            else:
                refusals.append(Refusal(self.name, node, failed.number, failed.reason))
        if not replacements:
            return PassResult(module, 0, tuple(refusals))
        gv, main = next(iter(relax_functions(module)))
        result = module.clone()
        result.update_func(gv, eliminate_dead(rebuild(main, replacements, owner=self.name)))
        counts = {self.name: len(nodes)}
        return PassResult(result, len(nodes), tuple(refusals), counts, nodes=tuple(nodes), zeros=zeros)

    def _matches(self, module: tvm.IRModule, context: PassContext) -> list[tuple[relax.Var, str, MatchT]]:
        """(variable, node, match) of every candidate, in order; of two nested ones the larger."""
        graph = Graph(module, module["main"], context)
        found: list[tuple[relax.Var, str, MatchT]] = []
        covered: set[relax.Var] = set()
        for var, value in reversed(list(graph.definitions())):
            call = graph.call(value)
            if call is None or var in covered:
                continue
            node = node_name(var, call)
            if not context.chooses(self.name, node):
                continue
            match = self.match(graph, var, call)
            if match is not None:
                covered.update(self.inner(match))
                found.append((var, node, match))
        return found[::-1]

    def _replacement(self, match: MatchT, builder: Builder) -> relax.Expr:
        return self.rewrite(builder, match)


def all_finite(*arrays: np.ndarray | None) -> bool:
    """Whether no array, of those that there are, holds NaN or infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)


def column_squares(weight: np.ndarray) -> np.ndarray:
    """Sums of squares of the rows of a weight [K, N]: float64 [K], what a unit of each input is worth in the output."""
    return np.asarray((weight.astype(np.float64) ** 2).sum(axis=1))
