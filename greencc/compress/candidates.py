"""What a search may choose: an operator and what is done to it, with what that brings and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm

from greencc.compress.stages import Choices
from greencc.passes.base import Pass, PassContext
from greencc.passes.prune_channels import PruneChannels
from greencc.passes.prune_heads import PruneHeads
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_tables import QuantizeTables
from greencc.passes.smooth_activations import SmoothActivations


@dataclass(frozen=True)
class Kind:
    """A way to make an operator cheaper.

    Attributes:
        label: what reports call it.
        finder: the pass that does it; its rewrites of the whole module are the candidates.
        helpers: passes that act on the same operators, before it.
    """

    label: str
    finder: Pass
    helpers: tuple[Pass, ...] = ()


# Heads of attention, and channels of feed-forward layers, that go at once.
_FRACTION = 0.25
# What is faster is measured by the search: on whole stages, not on single operators.
KINDS = (
    Kind("heads", PruneHeads(_FRACTION)),
    Kind("channels", PruneChannels(_FRACTION)),
    Kind("int8 table", QuantizeTables()),
    # Means are not corrected: each variant of each stage would run the data once more to ask for them.
    Kind("int8", QuantizeInt8(measure=False, correct_bias=False), (SmoothActivations(),)),
)
PASSES: tuple[Pass, ...] = tuple(item for kind in KINDS for item in (*kind.helpers, kind.finder))
"""What a search puts behind the pipeline, restricted by its choices."""


@dataclass(frozen=True)
class Candidate:
    """One operator made cheaper in one way.

    Attributes:
        node: the operator's name.
        label: see Kind.
        passes: names of the passes that may change it then.
        deviation: the largest |stored - original| of its weight; None where none is stored in fewer bits.
    """

    node: str
    label: str
    passes: tuple[str, ...]
    deviation: float | None


@dataclass(frozen=True)
class Assessed:
    """A candidate, and what was measured of it alone.

    Attributes:
        candidate: which one.
        stage: number of its stage.
        cost_ratio: cost of the stage with it, over the cost without it.
        cost_share: share of the model's cost that it saves.
        bytes_saved: of weights.
        bytes_share: the share of the model's weights that those are.
        sensitivity: the relative L2 distance of the outputs that it causes alone.
    """

    candidate: Candidate
    stage: int
    cost_ratio: float
    cost_share: float
    bytes_saved: int
    bytes_share: float
    sensitivity: float

    @property
    def gain(self) -> float:
        """What it is worth: the share of cost, plus the share of bytes, that it saves."""
        return max(self.cost_share, 0.0) + self.bytes_share


def find_candidates(module: tvm.IRModule) -> list[Candidate]:
    """Every operator of an optimised module that one of `KINDS` can change, in the order of the module."""
    found = []
    for kind in KINDS:
        result = kind.finder.run(module, PassContext())
        passes = tuple(item.name for item in (*kind.helpers, kind.finder))
        for node in result.nodes:
            deviation = result.stored[node].deviation if node in result.stored else None
            found.append(Candidate(node, kind.label, passes, deviation))
    return found


def choices_of(candidates: Sequence[Candidate]) -> Choices:
    """What the passes may change, for some candidates."""
    choices: dict[str, frozenset[str]] = {item.name: frozenset() for item in PASSES}
    for candidate in candidates:
        for name in candidate.passes:
            choices[name] |= {candidate.node}
    return choices
