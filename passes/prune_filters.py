"""The pass that removes the least important channels of convolutions from everything that is tied to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tvm

from greencc.passes.base import Activations, Condition, Pass, PassContext, PassResult, Refusal
from greencc.passes.calibrated import all_finite
from greencc.passes.channel_groups import trace_channels, without_channels
from greencc.passes.channel_trace import Bound, Filters, Group
from greencc.passes.graph import Graph
from greencc.passes.matching import is_float32
from greencc.passes.narrowing import count_to_keep, largest

# Widths are kept to multiples of this where they are larger: register tiles of convolutions hold several channels
# (vectors lie along positions), and int8 reads them in fours.
_MULTIPLE = 8


@dataclass(frozen=True)
class Tied:
    """A group of channels of which some are to go.

    Attributes:
        group: the channels, what makes and what reads them.
        squares: for each of the group's readers, the mean squares of what it reads, along its axis; None without data.
        fraction: how many of the channels are to go.
    """

    group: Group
    squares: tuple[np.ndarray, ...] | None
    fraction: float

    @property
    def scores(self) -> np.ndarray:
        """What each channel is worth to its readers: mean square times the squares of the weights that read it.

        Without data a channel counts as large as the weights that it comes out of.
        """
        readers, makers = self.group.readers, self.group.makers
        if self.squares is not None:
            return sum_by_channel(
                self.group, [(r, r.squares * seen) for r, seen in zip(readers, self.squares, strict=True)]
            )
        made, read = (sum_by_channel(self.group, [(f, f.squares) for f in filters]) for filters in (makers, readers))
        return np.asarray(made * read)

    @property
    def gone(self) -> np.ndarray:
        """Numbers of the channels that go."""
        channels = self.group.channels
        kept = largest(self.scores, count_to_keep(len(channels), self.fraction, _MULTIPLE))
        return np.delete(channels, kept)

    @property
    def is_float32(self) -> bool:
        """Whether what makes and reads the channels computes in float32."""
        filters = (*self.group.makers, *self.group.readers)
        return all(is_float32(found.var, *found.call.args) for found in filters)

    @property
    def is_finite(self) -> bool:
        """Whether all weights, and all activations that were seen, are finite."""
        weights = (found.weight for found in (*self.group.makers, *self.group.readers))
        return all_finite(*weights, *(self.squares or ()))


def sum_by_channel(group: Group, parts: Sequence[tuple[Filters, np.ndarray]]) -> np.ndarray:
    """Sums, for each channel of a group, of the figures that weights have at its indices."""
    total = np.zeros(len(group.channels))
    for filters, figures in parts:
        ours = np.isin(filters.along.numbers, group.channels)
        np.add.at(total, np.searchsorted(group.channels, filters.along.numbers[ours]), figures[ours])
    return total


@dataclass(frozen=True)
class PruneFilters(Pass):
    """Remove channels of convolutions: filters of one, inputs of the next, and all that is tied to them in between.

        y = conv(f(conv(x, v) + b), w)    becomes    y = conv(f(conv(x, v[k]) + b[k]), w[:, k])

    Which channels go together is found by following them: through operators on elements, norms, pools, depthwise
    convolutions, gates, sums (whose convolutions lose the same channels), concatenations, slices, and reshapes in front
    of a product. k are the channels that are worth most to what reads them: their mean square over calibration data
    times the squares of the weights that read them (Wanda's score, arXiv:2306.11695, by channel), summed over readers.
    Widths stay multiples of 8. A group goes by the name of the first convolution that makes its channels. Inputs and
    outputs of the model keep their shapes. The result is not equal: this pass is not in the default pipeline.
    Legal when
    1. all that makes or reads the channels computes in float32;
    2. they are no channels of an input or an output of the model;
    3. every operator on them is understood: convolutions have constant filters and one group, or one for each channel;
    4. all weights, and all activations that were seen, are finite;
    5. channels go, and some stay.

    Options:
        fraction: how many channels of each group go, 0 to 1.
    """

    fraction: float = 0.25

    name: ClassVar[str] = "prune-filters"
    approximates: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Tied], ...]] = (
        Condition(1, "a convolution or product of the channels is not in float32", lambda m: m.is_float32),
        Condition(2, "the channels reach an input or an output", lambda m: Bound.INTERFACE not in m.group.bounds),
        Condition(3, "an operator on the channels is not understood", lambda m: Bound.UNKNOWN not in m.group.bounds),
        Condition(4, "a weight or an activation is not finite", lambda m: m.is_finite),
        Condition(5, "no channel would go", lambda m: len(m.gone) > 0),
    )

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Rewrite main, in one round."""
        trace = trace_channels(Graph(module, module["main"], context))
        groups = [group for group in trace.groups() if context.chooses(self.name, group.node)]
        if not 0 < self.fraction < 1 or not groups:
            return PassResult(module, 0)
        found = self._informed(module, groups, context.activations)
        failures = [next((c for c in self.conditions if not c.holds(match)), None) for match in found]
        pairs = list(zip(found, failures, strict=True))
        refusals = tuple(Refusal(self.name, m.group.node, c.number, c.reason) for m, c in pairs if c is not None)
        legal = [match for match, failed in pairs if failed is None]
        if not legal:
            return PassResult(module, 0, refusals)
        function = without_channels(trace, np.concatenate([match.gone for match in legal]))
        result = module.clone()
        result.update_func(module.get_global_var("main"), function)
        nodes = tuple(dict.fromkeys(match.group.node for match in legal))
        return PassResult(result, len(legal), refusals, {self.name: len(legal)}, nodes=nodes)

    def _informed(self, module: tvm.IRModule, groups: Sequence[Group], activations: Activations | None) -> list[Tied]:
        """The groups with what the data show of their channels; nobody asks about those that can't go anyway."""
        readers = {
            (reader.value, reader.along.axis): None for group in groups if not group.bounds for reader in group.readers
        }
        if activations is None or not readers:
            return [Tied(group, None, self.fraction) for group in groups]
        values, axes = zip(*readers, strict=True)
        seen: Mapping[object, np.ndarray] = dict(
            zip(readers, activations.mean_squares(module, values, axes), strict=True)
        )

        def squares(group: Group) -> tuple[np.ndarray, ...] | None:
            if group.bounds:
                return None
            return tuple(seen[reader.value, reader.along.axis] for reader in group.readers)

        return [Tied(group, squares(group), self.fraction) for group in groups]
