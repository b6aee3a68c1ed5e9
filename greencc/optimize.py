"""Source model -> the module that is scheduled: what the user asks for becomes a pipeline of passes, which runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from greencc.calibration import Calibration
from greencc.compress.metrics import DEFAULT_METRIC
from greencc.errors import UserError
from greencc.extents import require_elements
from greencc.golden import golden_inputs
from greencc.importers import import_model
from greencc.importers.base import Imported
from greencc.ir import PADDING_ATTR, symbol_bounds
from greencc.model_options import ModelOptions
from greencc.observers import make_observer
from greencc.padding import ElidedPadding
from greencc.passes.base import Pass, PassContext
from greencc.passes.cluster_weights import ClusterWeights
from greencc.passes.drop_layers import DropLayers
from greencc.passes.elide_padding import ElidePadding
from greencc.passes.fold_constants import FoldConstants
from greencc.passes.pipeline import Observer, PipelineResult, run_pipeline
from greencc.passes.prune_channels import PruneChannels
from greencc.passes.prune_dead_nodes import PruneDeadNodes
from greencc.passes.prune_filters import PruneFilters
from greencc.passes.prune_heads import PruneHeads
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_tables import QuantizeTables
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.registry import default_pipeline, parse_pipeline, storing_passes
from greencc.passes.smooth_activations import SmoothActivations
from greencc.passes.sparsify import PATTERNS, Sparsify
from greencc.passes.store_levels import StoreLevels
from greencc.samples import Samples, open_samples
from greencc.trials import Trials

if TYPE_CHECKING:
    import tvm

    from greencc.compress.proof import Compression
    from greencc.targets.base import Target
    from greencc.verification import Verifier

Progress = Callable[[str], None]
# What --quantize adds to the pipeline. It comes last: other passes look for products of float32.
QUANTIZE: dict[str, tuple[Pass, ...]] = {
    "none": (),
    "int8": (SmoothActivations(), QuantizeInt8()),
    "int8-all": (SmoothActivations(), QuantizeInt8(measure=False)),
    "int8-weights": (QuantizeTables(), QuantizeWeights()),
    "int4": (QuantizeTables(), QuantizeWeights(bits=4, group=32)),
}
# What --prune can remove, in the order in which it is removed: weights of what is left are compared with each other.
PRUNE: dict[str, tuple[Callable[[float], Pass], ...]] = {
    "heads": (PruneHeads,),
    "channels": (PruneChannels, PruneFilters),
    "sparsity": (Sparsify,),
}


@dataclass(frozen=True)
class Optimized:
    """A model after its passes.

    Attributes:
        imported: what was read.
        original: the module as imported.
        result: the module now, and what passes did.
        inputs: a small input that fits the model, for the artifact's golden pair.
        calibration_runs: how many runs of data were learned from.
        compression: the search inside a budget, which has yet to be judged; None where there was none.
        verifier: compares with the reference; None where nothing is verified.
    """

    imported: Imported
    original: tvm.IRModule
    result: PipelineResult
    inputs: Mapping[str, np.ndarray]
    calibration_runs: int
    compression: Compression | None
    verifier: Verifier | None

    @property
    def elided(self) -> ElidedPadding | None:
        """The padding that is not computed."""
        return _elided(self.result.module)


def optimize_model(
    model: Path, options: ModelOptions, *, target: Target, verify: bool = False, progress: Progress = lambda _: None
) -> Optimized:
    """Import `model` and run the passes that `options` ask for.

    Args:
        model: an .onnx file or a Hugging Face directory.
        options: what is asked for.
        target: what will be compiled for: some passes measure on it.
        verify: compare with the reference after every pass that changed something.
        progress: told what stage begins.

    Raises:
        UserError: the request doesn't fit the model, or the model can't be read.
        BudgetError: nothing is within `options.max_drop`.
        GreenccError: a fault of greencc; with `verify`, it names the pass that changed the outputs.
    """
    from greencc.compress.proof import Compression, Request
    from greencc.verification import Verifier

    pipeline = _pipeline(options)
    progress("importing")
    imported = import_model(model, shapes=options.shapes, dynamic=options.dynamic, outputs=options.outputs)
    module = require_elements(imported.module, options.dynamic)
    _warn_unbounded(module)
    inputs = golden_inputs(module, options.elide_padding)
    compression, observed = None, None
    if options.calib is not None and options.max_drop is not None:
        metric, cost = options.metric or DEFAULT_METRIC, options.cost or "latency"
        request = Request(options.max_drop, metric, options.calib, cost)
        compression = Compression(request, model, module, target, progress)
        observed = compression.observed
    elif options.calib is not None:
        observed = _calibration(options.calib, module, target)
    verifier = Verifier(model, module, target, inputs, options.outputs) if verify else None
    progress("optimizing")
    context = PassContext(outputs=options.outputs, activations=observed, timer=_timer(module, target))
    after_pass = verifier.after_pass if verifier else None
    if compression is None:
        result = run_pipeline(module, pipeline, context, observer=after_pass)
    else:
        # What the user asked to be zeros is that in the reference, too.
        blank = _elided(run_pipeline(module, pipeline, context).module) if options.elide_padding else None
        result = _compressed(compression, module, pipeline, context, blank, after_pass)
    runs = 0 if observed is None else observed.runs
    return Optimized(imported, module, result, inputs, runs, compression, verifier)


def _pipeline(options: ModelOptions) -> tuple[Pass, ...]:
    """The passes that are asked for, in order. Raises UserError where requests exclude each other."""
    if options.max_drop is not None and (options.calib is None or options.quantize != "none"):
        problem = "leave out --quantize" if options.calib else "give the data to measure it on with --calib"
        raise UserError(f"--max-drop {options.max_drop:g}: {problem}")
    for option, value in {"--metric": options.metric, "--cost": options.cost}.items():
        if value is not None and options.max_drop is None:
            raise UserError(f"{option} {value}: it is for the search inside a budget: add --max-drop")
    if options.quantize not in QUANTIZE:
        raise UserError(f"--quantize {options.quantize}: unknown; known: {', '.join(QUANTIZE)}")
    if options.epsilon is not None and (options.max_drop is not None or options.quantize != "none"):
        raise UserError(f"--epsilon {options.epsilon:g}: it quantises by itself: leave out --quantize and --max-drop")
    stored = options.max_drop is not None or options.epsilon is not None or options.quantize != "none"
    if options.cluster_weights is not None and stored:
        bits, others = options.cluster_weights, "--quantize, --epsilon and --max-drop"
        raise UserError(f"--cluster-weights {bits}: weights are stored in one way: leave out {others}")
    chosen = default_pipeline() if options.passes is None else parse_pipeline(options.passes)
    pruning = _pruning(options.keep_layers, options.prune)
    clustering = () if options.cluster_weights is None else (ClusterWeights(options.cluster_weights),)
    quantizing = _observed_by(options.observer, options.quantize, options.calib is not None)
    last = storing_passes() if options.passes is None else ()
    storing = (*clustering, *quantizing, *_within(options.epsilon), *last)
    pipeline = (*_with_elision(chosen, options.elide_padding), *pruning, *storing)
    if options.calib is not None and options.max_drop is None and not any(item.learns for item in pipeline):
        raise UserError("--calib: nothing is calibrated without --quantize, --epsilon, --prune or --max-drop")
    return pipeline


def _pruning(keep_layers: int | None, prune: Mapping[str, float | str]) -> tuple[Pass, ...]:
    """The passes that `--keep-layers` and `--prune` ask for."""
    passes: list[Pass] = []
    if keep_layers is not None:
        if keep_layers < 1:
            raise UserError(f"--keep-layers {keep_layers}: at least one must stay")
        passes.append(DropLayers(keep_layers))
    for name in prune:
        if name not in PRUNE:
            raise UserError(f"--prune {name}: unknown; known: {', '.join(PRUNE)}")
    return (*passes, *(item for name in PRUNE if name in prune for item in _removing(name, prune[name])))


def _removing(name: str, share: float | str) -> tuple[Pass, ...]:
    """The passes that remove a share of something, or what a pattern says of weights."""
    if isinstance(share, str):
        if name == "sparsity" and share in PATTERNS:
            return (Sparsify(pattern=share),)
    elif 0 < share < 1:
        return tuple(make(share) for make in PRUNE[name])
    or_pattern = f", or {', '.join(PATTERNS)}" if name == "sparsity" else ""
    text = share if isinstance(share, str) else f"{share:g}"
    raise UserError(f"--prune {name}={text}: write a share between 0 and 1, of what is to go{or_pattern}")


def _observed_by(observer: str | None, quantize: str, has_data: bool) -> tuple[Pass, ...]:
    """The passes that `--quantize` asks for, with ranges of activations as `--observer` takes them."""
    passes = QUANTIZE[quantize]
    if observer is None:
        return passes
    if not any(isinstance(item, QuantizeInt8) for item in passes):
        raise UserError(f"--observer {observer}: it finds the ranges of --quantize int8: add that or int8-all")
    if not has_data:
        raise UserError(f"--observer {observer}: give inputs to find ranges on with --calib")
    make_observer(observer, "--observer")
    return tuple(replace(item, ranges=observer) if isinstance(item, QuantizeInt8) else item for item in passes)


def _within(epsilon: float | None) -> tuple[Pass, ...]:
    """The passes that `--epsilon` asks for."""
    if epsilon is None:
        return ()
    if not 0 < epsilon < math.inf:
        raise UserError(f"--epsilon {epsilon:g}: no bits keep weights so close; give a finite number above 0")
    return QuantizeTables(epsilon=epsilon), QuantizeInt8(measure=False, epsilon=epsilon)


def _calibration(data: Path | Samples, module: tvm.IRModule, target: Target) -> Calibration:
    """What answers questions about the data. It runs here, whatever is compiled for."""
    from greencc.targets.cpu.target import host_target

    return Calibration(host_target(target.threads), open_samples(data, module["main"]))


def _timer(module: tvm.IRModule, target: Target) -> Trials | None:
    """What measures operators, where the target's code runs here. Open dimensions are tried at their upper bounds."""
    if not target.runs_here:
        return None
    bounds = symbol_bounds(module["main"])
    return Trials(target, {name: high for name, (_, high) in bounds.items() if high is not None})


def _compressed(
    compression: Compression,
    module: tvm.IRModule,
    pipeline: Sequence[Pass],
    context: PassContext,
    blank: ElidedPadding | None,
    observer: Observer | None,
) -> PipelineResult:
    """The pipeline with a search in it.

    Padding is elided last: its operators are others than those searched among. So are those of weights that are stored.
    """
    elision = [item for item in pipeline if isinstance(item, ElidePadding)]
    storing = [item for item in pipeline if isinstance(item, StoreLevels)]
    before = [item for item in pipeline if item not in (*elision, *storing)]
    first = run_pipeline(module, before, context, observer=observer)
    searched = compression.compress(first.module, blank, observer)
    last = [*elision, FoldConstants(), PruneDeadNodes(), *storing]
    compression.uncompressed = run_pipeline(first.module, last, context).module
    swept = run_pipeline(searched.module, last, context, observer=observer)
    return PipelineResult(swept.module, (*first.reports, *searched.reports, *swept.reports))


def _elided(module: tvm.IRModule) -> ElidedPadding | None:
    return ElidedPadding.of(module["main"].attrs.get(PADDING_ATTR))


def _with_elision(passes: tuple[Pass, ...], mask: str | None) -> tuple[Pass, ...]:
    """`passes` told which input masks padding: the pass in its place, or behind the others where it is missing."""
    if mask is None:
        return passes
    chosen = ElidePadding(mask)
    if not any(isinstance(item, ElidePadding) for item in passes):
        return (*passes, chosen)
    return tuple(chosen if isinstance(item, ElidePadding) else item for item in passes)


def _warn_unbounded(module: tvm.IRModule) -> None:
    open_ended = [name for name, (_, high) in symbol_bounds(module["main"]).items() if high is None]
    if open_ended:
        warnings.warn(
            f"dimension(s) {', '.join(open_ended)} stay symbolic and unbounded: memory is allocated anew for every "
            "size and kernels carry checks for any size; fix them with --shape or bound them with --dynamic",
            UnboundedWarning,
            stacklevel=3,
        )


class UnboundedWarning(UserWarning):
    """A dimension is neither fixed nor bounded."""
