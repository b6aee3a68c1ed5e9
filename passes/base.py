"""What a pass is: its result, its numbered legality conditions, and the base of operator rewrites."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import tvm
from tvm import ir, relax

from greencc.errors import GreenccError
from greencc.ir import relax_functions, span_of
from greencc.observers import RangeObserver
from greencc.passes.graph import Builder, Graph, eliminate_dead, rebuild
from greencc.passes.stored import FewBits

MatchT = TypeVar("MatchT")

# A rewrite can expose another one; more rounds than this means two rewrites undo each other.
MAX_ROUNDS = 64


@dataclass(frozen=True)
class Refusal:
    """Why a match was left alone: the pass, the node it was found at, and the condition that failed."""

    pass_name: str
    node: str
    condition: int
    reason: str


class Activations(Protocol):
    """What calibration data show of a module's values."""

    def largest(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """The largest |element| of each column (index of the last axis) of some values of main."""

    def mean_squares(
        self, module: tvm.IRModule, values: Sequence[relax.Expr], axes: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """The mean square of the elements at each index of an axis, one axis for each value; None: the last ones."""

    def mean_sizes(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """The mean |element| of each column of some values of main."""

    def grams(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """Products x^T x [K, K] of some values of main, x being all their rows: sums over all samples."""

    def means(self, module: tvm.IRModule, values: Sequence[relax.Expr], axes: Sequence[int]) -> list[np.ndarray]:
        """The mean of the elements at each index of an axis, one for each value, of some values of main."""

    def ranges(
        self, module: tvm.IRModule, values: Sequence[relax.Expr], observer: RangeObserver
    ) -> list[tuple[float, float]]:
        """The range (low, high), with 0 in it, that `observer` gives levels to, of some values of main."""

    def changes(self, module: tvm.IRModule, pairs: Sequence[tuple[relax.Expr, relax.Expr]]) -> list[float]:
        """For pairs (before, behind) of values of one shape: |behind - before| over |before| (Euclidean norms)."""


class Timer(Protocol):
    """Measures operators on the target."""

    def time_ratio(self, replacement: relax.Call, original: relax.Call) -> float:
        """How many times as long as `original` the call `replacement` takes."""


@dataclass(frozen=True)
class PassContext:
    """What a pass may know besides the module.

    Attributes:
        outputs: names of the outputs to keep, or None for all of them.
        activations: what calibration data show, or None without such data.
        timer: what measures operators, or None where the target's code can't run.
        choices: by pass name the operators that a pass which approximates may change; None for all that are legal.
            Operators go by the names that `node_name` gives.
    """

    outputs: tuple[str, ...] | None = None
    activations: Activations | None = None
    timer: Timer | None = None
    choices: Mapping[str, frozenset[str]] | None = None

    def chooses(self, pass_name: str, node: str) -> bool:
        """Whether the pass may change the operator called `node`."""
        return self.choices is None or node in self.choices.get(pass_name, ())


@dataclass(frozen=True)
class ActivationRange:
    """What an operator's activations are clipped to, and what chose it, a key of `greencc.observers.OBSERVERS`."""

    low: float
    high: float
    observer: str


@dataclass(frozen=True)
class PassResult:
    """The module after a pass, how many rewrites it made, and what it declined to do.

    `counts` splits `rewrites` by kind for reports, e.g. {"common-subexpression": 3}. `stored` has, for passes that
    store weights in fewer bits, what each changed operator's weight is stored as, by the operator's name; `ranges`
    likewise the ranges that activations are clipped to, and `zeros` the share of zeros in weights that were set to zero
    in part. `nodes` names the operators that a pass which approximates has changed.
    """

    module: tvm.IRModule
    rewrites: int
    refusals: tuple[Refusal, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    stored: Mapping[str, FewBits] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    zeros: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition(Generic[MatchT]):
    """One numbered legality condition: where `holds(match)` is false, the rewrite is refused for `reason`."""

    number: int
    reason: str
    holds: Callable[[MatchT], bool]


def node_name(var: relax.Var, value: relax.Expr) -> str:
    """What an operator is called in reports and choices: the source node that it comes from, else its variable."""
    return span_of(value) or str(var.name)


class Pass(ABC):
    """A pure rewrite of a module. Subclasses are frozen dataclasses whose fields are the pass's options."""

    name: ClassVar[str]
    # Whether outputs may change by more than rounding, as they do in lower precision.
    approximates: ClassVar[bool] = False
    # Whether the pass asks calibration data, where there are some.
    learns: ClassVar[bool] = False

    @abstractmethod
    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Return the rewritten module; `module` itself is left as it is."""


@dataclass
class _Record:
    """What the rounds of a pass did: rewrites by kind, and what is said of them by the operator's name."""

    counts: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, None] = field(default_factory=dict)
    stored: dict[str, FewBits] = field(default_factory=dict)
    ranges: dict[str, ActivationRange] = field(default_factory=dict)
    zeros: dict[str, float] = field(default_factory=dict)

    def result(self, module: tvm.IRModule, refusals: Sequence[Refusal], *, with_nodes: bool) -> PassResult:
        """The result of a pass that did this, from the last operator to the first."""
        return PassResult(
            module,
            sum(self.counts.values()),
            tuple(refusals),
            self.counts,
            self.stored,
            tuple(reversed(self.nodes)) if with_nodes else (),
            self.ranges,
            self.zeros,
        )


class RewritePass(Pass, Generic[MatchT]):
    """A pass that looks at every binding, matches, checks its numbered conditions, and replaces the value.

    The match's root binding gets the new value; inner values of the match die when nothing else uses them.
    """

    conditions: ClassVar[tuple[Condition[Any], ...]] = ()
    # Kinds of value that a match can be rooted at; only the kinds named here reach `match`.
    roots: ClassVar[tuple[type, ...]] = (relax.Call,)
    # Whether no rewrite makes another match, or one legal, so that one round finds them all.
    one_round: ClassVar[bool] = False

    @abstractmethod
    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> MatchT | None:
        """The candidate rooted at `call` (bound to `var`), or None when the form is another one."""

    @abstractmethod
    def rewrite(self, builder: Builder, match: MatchT) -> relax.Expr:
        """The value that replaces the root. It must have the root's type. Calls are emitted by `builder`."""

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[MatchT]) -> list[MatchT]:
        """The matches of main with what calibration data show, asked for all at once before conditions are checked."""
        return list(matches)

    def kind_of(self, match: MatchT) -> str:
        """Name under which `match` is counted in reports."""
        return self.name

    def stored(self, match: MatchT) -> FewBits | None:
        """What the rewrite stores a weight as, in fewer bits; None where it does not."""
        return None

    def range_of(self, match: MatchT) -> ActivationRange | None:
        """What the rewrite clips activations to; None where it does not."""
        return None

    def zeros(self, match: MatchT) -> float | None:
        """The share of zeros in the weight that the rewrite makes; None where it is not about zeros."""
        return None

    def inner(self, match: MatchT) -> Iterable[relax.Var]:
        """Values that `match` covers besides its root: no smaller match is rooted at one of them."""
        return ()

    def refusal(self, match: MatchT) -> Condition[MatchT] | None:
        """The first condition that `match` does not satisfy, or None when it is legal."""
        return next((c for c in self.conditions if not c.holds(match)), None)

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Rewrite to a fixpoint; the refusals are those of the last round."""
        record = _Record()
        for _ in range(MAX_ROUNDS):
            before = sum(record.counts.values())
            module, refusals = self._round(module, context, record)
            rewrites = sum(record.counts.values())
            if rewrites == before or self.one_round:
                return record.result(module, refusals, with_nodes=self.approximates)
        raise GreenccError(f"pass {self.name}: no fixpoint after {MAX_ROUNDS} rounds; its rewrites undo each other")

    def _replacement(self, match: MatchT, builder: Builder) -> relax.Expr:
        return self.rewrite(builder, match)

    def _round(self, module: tvm.IRModule, context: PassContext, record: _Record) -> tuple[tvm.IRModule, list[Refusal]]:
        refusals: list[Refusal] = []
        for gv, function in relax_functions(module):
            found = self._matches(Graph(module, function, context), context)
            if context.activations is not None and found and gv.name_hint == "main":
                informed = self.informed(context.activations, module, [match for _, _, match in found])
                found = [(var, node, match) for (var, node, _), match in zip(found, informed, strict=True)]
            matches: dict[relax.Var, MatchT] = {}
            covered: set[relax.Var] = set()
            refused: list[Refusal] = []
            for var, node, match in found:
                if var in covered:
                    continue
                failed = self.refusal(match)
                if failed is not None:
                    refused.append(Refusal(self.name, node, failed.number, failed.reason))
                    continue
                matches[var] = match
                covered.update(self.inner(match))
                self._note(record, node, match)
            refusals.extend(reversed(refused))
            if matches:
                rewritten = rebuild(
                    function,
                    {var: functools.partial(self._replacement, m) for var, m in matches.items()},
                    owner=self.name,
                )
                module = module.clone()
                module.update_func(gv, eliminate_dead(rewritten))
        return module, refusals

    def _matches(self, graph: Graph, context: PassContext) -> list[tuple[relax.Var, str, MatchT]]:
        """(variable, node, match) of every candidate, last to first: of two nested ones the larger is seen first."""
        found: list[tuple[relax.Var, str, MatchT]] = []
        for var, value in reversed(list(graph.definitions())):
            if not isinstance(value, self.roots):
                continue
            if isinstance(value, relax.Call) and not isinstance(value.op, ir.Op):
                continue  # a call of a nested graph is no operator
            made = graph.value(value.tuple_value) if isinstance(value, relax.TupleGetItem) else value
            node = node_name(var, made)
            if not self._may_change(node, context):
                continue
            match = self.match(graph, var, value)
            if match is not None:
                found.append((var, node, match))
        return found

    def _may_change(self, node: str, context: PassContext) -> bool:
        return not self.approximates or context.chooses(self.name, node)

    def _note(self, record: _Record, node: str, match: MatchT) -> None:
        kind, weight, held, share = self.kind_of(match), self.stored(match), self.range_of(match), self.zeros(match)
        record.counts[kind] = record.counts.get(kind, 0) + 1
        record.nodes[node] = None
        if weight is not None:
            record.stored[node] = weight
        if held is not None:
            record.ranges[node] = held
        if share is not None:
            record.zeros[node] = share
