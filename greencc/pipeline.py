"""Source model -> compiled model: the one visible list of stages that `greencc compile` runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, tirx

from greencc.artifact.bundle import Compiled, TensorSpec
from greencc.calibration import Calibration
from greencc.compress.metrics import DEFAULT_METRIC
from greencc.errors import UserError
from greencc.extents import require_elements
from greencc.golden import golden_inputs
from greencc.importers import import_model
from greencc.ir import (
    INPUTS_ATTR,
    OUTPUTS_ATTR,
    PADDING_ATTR,
    bindings_of,
    constant_array,
    count_graph,
    dim_text,
    dtype_of,
    operands,
    relax_functions,
    shape_of,
    symbol_bounds,
)
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
from greencc.passes.registry import PASSES, default_pipeline, parse_pipeline, storing_passes
from greencc.passes.smooth_activations import SmoothActivations
from greencc.passes.sparsify import PATTERNS, Sparsify
from greencc.passes.store_levels import StoreLevels
from greencc.samples import Samples, open_samples
from greencc.targets.lower import lower
from greencc.trials import Trials

if TYPE_CHECKING:
    import tvm

    from greencc.compress.proof import Compression
    from greencc.targets.base import Target

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
class Compilation:
    """The result of compile_model.

    Attributes:
        compiled: what the artifact holds.
        golden_inputs: a small input that fits the model, for the artifact's golden pair.
        source: (file name, sha256) of the source model.
        report: what was done, timings included (the artifact holds the part that does not vary between runs).
        max_abs_error: largest deviation from the reference, with `verify`; else None.
    """

    compiled: Compiled
    golden_inputs: Mapping[str, np.ndarray]
    source: tuple[str, str]
    report: dict[str, Any]
    max_abs_error: float | None


def compile_model(
    model: Path,
    *,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    outputs: tuple[str, ...] | None = None,
    passes: str | None = None,
    elide_padding: str | None = None,
    keep_layers: int | None = None,
    prune: Mapping[str, float | str] | None = None,
    quantize: str = "none",
    epsilon: float | None = None,
    observer: str | None = None,
    cluster_weights: int | None = None,
    calibration: Path | Samples | None = None,
    max_drop: float | None = None,
    metric: str | None = None,
    cost: str | None = None,
    verify: bool = False,
    progress: Progress = lambda _: None,
) -> Compilation:
    """Import, optimise, lower and build `model` for `target`.

    Args:
        model: an .onnx file or a Hugging Face directory.
        target: what to compile for.
        shapes: fixed shapes by input name.
        dynamic: inclusive bounds by dimension name.
        outputs: names of the outputs to keep; None keeps all.
        passes: a pipeline as text; None runs the default pipeline.
        elide_padding: the mask input whose padding is not computed, though outputs become zeros there; None leaves
            it to the pipeline, which elides what no output depends on.
        keep_layers: how many of the repeated layers stay, the first ones; None for all.
        prune: shares of `heads`, `channels` and weights (`sparsity`) to remove; of weights also a pattern.
        quantize: a key of QUANTIZE: passes that follow the pipeline.
        epsilon: every weight is stored in the fewest bits that keep it closer than this; None stores none so.
        observer: a key of `greencc.observers.OBSERVERS`: activations in int8 get one range each, which it takes from
            `calibration`; None gives every row and image its own range when the model runs.
        cluster_weights: every large weight gets at most 2 to the power of this distinct values; None leaves them.
        calibration: inputs to learn from, for the passes of `quantize`: an .npz file, or inputs by name, a mapping for
            each run.
        max_drop: the largest loss of accuracy: the cheapest assignment of precisions within it is searched for.
        metric: what the loss is of, as `greencc.compress.metrics.make_metric` reads it; None is the default one.
        cost: what is to be as low as possible, a key of `greencc.compress.cost.COSTS`; None is latency.
        verify: compare with the reference after every pass that changed something.
        progress: told what stage begins.

    Raises:
        UserError: the request doesn't fit the model, or the model can't be read.
        BudgetError: nothing is within `max_drop`.
        GreenccError: a fault of greencc; with `verify`, it names the pass that changed the outputs.
    """
    from greencc.compress.proof import Compression, Request
    from greencc.verification import Verifier

    if max_drop is not None and (calibration is None or quantize != "none"):
        problem = "give the data to measure it on with --calib" if calibration is None else "leave out --quantize"
        raise UserError(f"--max-drop {max_drop:g}: {problem}")
    for option, value in {"--metric": metric, "--cost": cost}.items():
        if value is not None and max_drop is None:
            raise UserError(f"{option} {value}: it is for the search inside a budget: add --max-drop")
    if quantize not in QUANTIZE:
        raise UserError(f"--quantize {quantize}: unknown; known: {', '.join(QUANTIZE)}")
    if epsilon is not None and (max_drop is not None or quantize != "none"):
        raise UserError(f"--epsilon {epsilon:g}: it quantises by itself: leave out --quantize and --max-drop")
    if cluster_weights is not None and (max_drop is not None or epsilon is not None or quantize != "none"):
        others = "--quantize, --epsilon and --max-drop"
        raise UserError(f"--cluster-weights {cluster_weights}: weights are stored in one way: leave out {others}")
    chosen = default_pipeline() if passes is None else parse_pipeline(passes)
    pruning = _pruning(keep_layers, prune or {})
    clustering = () if cluster_weights is None else (ClusterWeights(cluster_weights),)
    quantizing = _observed_by(observer, quantize, calibration is not None)
    last = storing_passes() if passes is None else ()
    storing = (*clustering, *quantizing, *_within(epsilon), *last)
    pipeline = (*_with_elision(chosen, elide_padding), *pruning, *storing)
    if calibration is not None and max_drop is None and not any(item.learns for item in pipeline):
        raise UserError("--calib: nothing is calibrated without --quantize, --epsilon, --prune or --max-drop")
    progress("importing")
    imported = import_model(model, shapes=shapes or {}, dynamic=dynamic or {}, outputs=outputs)
    module = require_elements(imported.module, dynamic or {})
    _warn_unbounded(module)
    inputs = golden_inputs(module, elide_padding)
    compression, observed = None, None
    if calibration is not None and max_drop is not None:
        request = Request(max_drop, metric or DEFAULT_METRIC, calibration, cost or "latency")
        compression = Compression(request, model, module, target, progress)
        observed = compression.observed
    elif calibration is not None:
        observed = _calibration(calibration, module, target)
    verifier = Verifier(model, module, target, inputs, outputs) if verify else None
    progress("optimizing")
    context = PassContext(outputs=outputs, activations=observed, timer=_timer(module, target))
    after_pass = verifier.after_pass if verifier else None
    if compression is None:
        result = run_pipeline(module, pipeline, context, observer=after_pass)
    else:
        # What the user asked to be zeros is that in the reference, too.
        blank = _elided(run_pipeline(module, pipeline, context).module) if elide_padding else None
        result = _compressed(compression, module, pipeline, context, blank, after_pass)
    elided = _elided(result.module)
    progress("scheduling")
    lowered = lower(result.module, target)
    progress("generating code")
    code = target.build(lowered.module)
    nodes_after, edges_after = count_graph(result.module)
    facts: dict[str, Any] = {
        "nodes_before": imported.nodes,
        "nodes_after": nodes_after,
        "edges_before": imported.edges,
        "edges_after": edges_after,
        "kernels": len(lowered.calls),
        "bytes_before": constant_bytes(module),
        "bytes_after": sum(array.nbytes for array in lowered.weights.values()),
        "arena_bytes": lowered.arena_bytes,
        "rules": dict(sorted(lowered.rules.items())),
        "calibration_runs": 0 if observed is None else observed.runs,
        "elided_padding": None if elided is None else elided.as_json(),
        "approximated_by": _approximating(result),
        "compression": None,
    }
    main = result.module["main"]
    compiled = Compiled(
        library=code.library,
        kernels=code.kernels,
        weights=lowered.weights,
        inputs=_specs(main.params, _names(main, INPUTS_ATTR)),
        outputs=_output_specs(main),
        symbols=symbol_bounds(main),
        target=target.describe(),
        calls=lowered.calls,
        report={**facts, "passes": [report.as_json(timing=False) for report in result.reports]},
    )
    if compression is not None:
        facts["compression"] = compression.judge(compiled)
        compiled = replace(compiled, report={**compiled.report, "compression": facts["compression"]})
    report = {**facts, "passes": [report.as_json() for report in result.reports]}
    error = verifier.after_build(compiled) if verifier else None
    return Compilation(compiled, inputs, (imported.source_name, imported.source_sha256), report, error)


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


def _approximating(result: PipelineResult) -> list[str]:
    """Names of the passes that changed outputs by more than rounding, in order."""
    changed = (report.name for report in result.reports if report.rewrites)
    return list(dict.fromkeys(name for name in changed if PASSES[name].approximates))


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


def constant_bytes(module: tvm.IRModule) -> int:
    """Bytes of the distinct constants of a module."""
    sizes: dict[int, int] = {}
    for _, function in relax_functions(module):
        for binding in bindings_of(function):
            for use in operands(binding.value):
                array = constant_array(use)
                if array is not None:
                    sizes[array.__array_interface__["data"][0]] = array.nbytes
    return sum(sizes.values())


def _names(main: relax.Function, attribute: str) -> list[str]:
    return [str(name) for name in main.attrs[attribute]]


def _dims(ty: relax.TensorType) -> tuple[int | str, ...]:
    return tuple(int(dim) if isinstance(dim, tirx.IntImm) else dim_text(dim) for dim in shape_of(ty) or [])


def _specs(params: list[relax.Var], names: list[str]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, str(dtype_of(param.ty)), _dims(param.ty)) for param, name in zip(params, names, strict=True)
    )


def _output_specs(main: relax.Function) -> tuple[TensorSpec, ...]:
    fields = list(main.ret_ty.fields)
    return tuple(
        TensorSpec(name, str(dtype_of(ty)), _dims(ty))
        for name, ty in zip(_names(main, OUTPUTS_ATTR), fields, strict=True)
    )


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


__all__ = ["Compilation", "UnboundedWarning", "UserError", "compile_model", "symbol_bounds"]
