"""What a user may ask for that changes the graph of a model, the same for every command that compiles one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from greencc.artifact.bundle import Array


@dataclass(frozen=True)
class ModelOptions:
    """What is done with a model before it is scheduled.

    Attributes:
        shapes: fixed shapes by input name.
        dynamic: inclusive bounds by dimension name.
        outputs: names of the outputs to keep; None keeps all.
        passes: a pipeline as text; None runs the default pipeline.
        elide_padding: the mask input whose padding is not computed, though outputs become zeros there; None leaves
            it to the pipeline, which elides what no output depends on.
        keep_layers: how many of the repeated layers stay, the first ones; None for all.
        prune: shares of `heads`, `channels` and weights (`sparsity`) to remove; of weights also a pattern.
        quantize: a key of `greencc.optimize.QUANTIZE`: passes that follow the pipeline.
        epsilon: every weight is stored in the fewest bits that keep it closer than this; None stores none so.
        observer: a key of `greencc.observers.OBSERVERS`: activations in int8 get one range each, which it takes from
            `calib`; None gives every row and image its own range when the model runs.
        cluster_weights: every large weight gets at most 2 to the power of this distinct values; None leaves them.
        calib: inputs to learn from, for the passes of `quantize`: an .npz file, or inputs by name, a mapping for
            each run.
        max_drop: the largest loss of accuracy: the cheapest assignment of precisions within it is searched for.
        metric: what the loss is of, as `greencc.compress.metrics.make_metric` reads it; None is the default one.
        cost: what is to be as low as possible, a key of `greencc.compress.cost.COSTS`; None is latency.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dynamic: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    passes: str | None = None
    elide_padding: str | None = None
    keep_layers: int | None = None
    prune: Mapping[str, float | str] = field(default_factory=dict)
    quantize: str = "none"
    epsilon: float | None = None
    observer: str | None = None
    cluster_weights: int | None = None
    calib: Path | Iterable[Mapping[str, Array]] | None = None
    max_drop: float | None = None
    metric: str | None = None
    cost: str | None = None
