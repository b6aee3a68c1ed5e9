"""What a search may choose: an operator and what is done to it, with what that brings and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm

from greencc.passes.base import Activations, Pass, PassContext
from greencc.passes.drop_layers import DropLayers
from greencc.passes.pipeline import Observer, PassReport, PipelineResult, run_pipeline
from greencc.passes.prune_channels import PruneChannels
from greencc.passes.prune_filters import PruneFilters
from greencc.passes.prune_heads import PruneHeads
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_tables import QuantizeTables
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.smooth_activations import SmoothActivations

Choices = Mapping[str, frozenset[str]]
"""By the label of a kind, the operators that it is done to."""


@dataclass(frozen=True)
class Kind:
    """A way to make an operator cheaper.

    Attributes:
        label: what reports call it; no two kinds of a search share one.
        finder: the pass that does it; its rewrites of the whole module are the candidates.
        helpers: passes that act on the same operators, before it.
        is_precision: whether it sets the precision of the operator, which has one of those that are offered.
    """

    label: str
    finder: Pass
    helpers: tuple[Pass, ...] = ()
    is_precision: bool = False

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What does it."""
        return (*self.helpers, self.finder)


# What a share of the bytes is worth beside one of the cost, which the search is for: where both count the same, half
# of an encoder's budget goes into weights alone, and with it a third of the time that int8 saves (docs/decisions/0012).
_WORTH_OF_BYTES = 0.25
# Heads of attention, and channels of feed-forward layers, that go at once.
_FRACTION = 0.25
LAYER = Kind("layer", DropLayers())
"""A layer that is dropped goes by the operator that it ends with. Candidates of it are found by `Stages`."""
# What is faster is measured by the search: on whole stages, not on single operators.
KINDS = (
    LAYER,
    Kind("heads", PruneHeads(_FRACTION)),
    Kind("channels", PruneChannels(_FRACTION)),
    Kind("filters", PruneFilters(_FRACTION)),
    Kind("int8 table", QuantizeTables(), is_precision=True),
    # Means are not corrected: each variant of each stage would run the data once more to ask for them.
    Kind("int8", QuantizeInt8(measure=False, correct_bias=False), (SmoothActivations(),), is_precision=True),
    Kind("int8 weights", QuantizeWeights(), is_precision=True),
    Kind("int4 weights", QuantizeWeights(bits=4, group=32), is_precision=True),
)
"""What a search offers, in the order that it is done in."""


@dataclass(frozen=True)
class Candidate:
    """One operator made cheaper in one way.

    Attributes:
        node: the operator's name.
        label: see Kind.
        deviation: the largest |stored - original| of its weight; None where none is stored in fewer bits.
        is_precision: see Kind.
        inside: names of the operators that are gone with it.
    """

    node: str
    label: str
    deviation: float | None = None
    is_precision: bool = False
    inside: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Assessed:
    """A candidate, and what was measured of it alone.

    Attributes:
        candidate: which one.
        cost_ratio: cost of its stages with it, over the cost without it.
        cost_share: share of the model's cost that it saves.
        bytes_saved: of weights.
        bytes_share: the share of the model's weights that those are.
        sensitivity: the relative L2 distance of the outputs that it causes alone.
    """

    candidate: Candidate
    cost_ratio: float
    cost_share: float
    bytes_saved: int
    bytes_share: float
    sensitivity: float

    @property
    def gain(self) -> float:
        """What it is worth: the share of cost that it saves, and in part the share of bytes."""
        return max(self.cost_share, 0.0) + _WORTH_OF_BYTES * self.bytes_share


def find_candidates(module: tvm.IRModule, kinds: Sequence[Kind]) -> list[Candidate]:
    """Every operator of an optimised module that one of `kinds` can change, by kind in the order of the module."""
    found = []
    for kind in kinds:
        result = kind.finder.run(module, PassContext())
        for node in result.nodes:
            deviation = result.stored[node].deviation if node in result.stored else None
            found.append(Candidate(node, kind.label, deviation, kind.is_precision))
    return found


def choices_of(candidates: Sequence[Candidate]) -> Choices:
    """What is done to which operators, for some candidates."""
    choices: dict[str, frozenset[str]] = {}
    for candidate in candidates:
        choices[candidate.label] = choices.get(candidate.label, frozenset()) | {candidate.node}
    return choices


def apply_choices(
    module: tvm.IRModule,
    kinds: Sequence[Kind],
    choices: Choices,
    activations: Activations | None = None,
    observer: Observer | None = None,
) -> PipelineResult:
    """`module` with what was chosen done to it, kind by kind: two kinds may use one pass with other options.

    Args:
        module: the whole one, or a stage of it.
        kinds: in the order that they are done in.
        choices: what is chosen.
        activations: what passes may know of its values.
        observer: see `run_pipeline`.
    """
    reports: list[PassReport] = []
    for kind in kinds:
        nodes = choices.get(kind.label)
        if nodes:
            context = PassContext(activations=activations, choices={item.name: nodes for item in kind.passes})
            result = run_pipeline(module, kind.passes, context, observer=observer)
            module = result.module
            reports += result.reports
    return PipelineResult(module, tuple(reports))
