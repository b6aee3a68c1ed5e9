"""Source model -> compiled model: the one visible list of stages that `greencc compile` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, tirx

from greencc.artifact.bundle import Compiled, TensorSpec
from greencc.ir import (
    INPUTS_ATTR,
    OUTPUTS_ATTR,
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
from greencc.model_options import ModelOptions
from greencc.optimize import optimize_model
from greencc.passes.pipeline import PipelineResult
from greencc.passes.registry import PASSES
from greencc.targets.lower import lower
from greencc.targets.tuning.planned import PlannedTarget, Plans

if TYPE_CHECKING:
    import tvm

    from greencc.targets.base import Target

Progress = Callable[[str], None]


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
    options: ModelOptions | None = None,
    plans: Plans | None = None,
    verify: bool = False,
    progress: Progress = lambda _: None,
) -> Compilation:
    """Import, optimise, lower and build `model` for `target`.

    Args:
        model: an .onnx file or a Hugging Face directory.
        target: what to compile for.
        options: what is done with the model before it is scheduled; None for the default pipeline.
        plans: what tuning found of kernels; None for the target's own schedules.
        verify: compare with the reference after every pass that changed something.
        progress: told what stage begins.

    Raises:
        UserError: the request doesn't fit the model, or the model can't be read.
        BudgetError: nothing is within the budget that `options` state.
        GreenccError: a fault of greencc; with `verify`, it names the pass that changed the outputs.
    """
    optimized = optimize_model(model, options or ModelOptions(), target=target, verify=verify, progress=progress)
    imported, result, compression = optimized.imported, optimized.result, optimized.compression
    progress("scheduling")
    lowered = lower(result.module, target if plans is None else PlannedTarget(target, plans))
    progress("generating code")
    code = target.build(lowered.module)
    nodes_after, edges_after = count_graph(result.module)
    facts: dict[str, Any] = {
        "nodes_before": imported.nodes,
        "nodes_after": nodes_after,
        "edges_before": imported.edges,
        "edges_after": edges_after,
        "kernels": len(lowered.calls),
        "bytes_before": constant_bytes(optimized.original),
        "bytes_after": sum(array.nbytes for array in lowered.weights.values()),
        "arena_bytes": lowered.arena_bytes,
        "rules": dict(sorted(lowered.rules.items())),
        "tuning": None if plans is None else {"kernels": len(lowered.rules), "answered": sorted(lowered.tuned)},
        "calibration_runs": optimized.calibration_runs,
        "elided_padding": None if optimized.elided is None else optimized.elided.as_json(),
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
    error = optimized.verifier.after_build(compiled) if optimized.verifier else None
    return Compilation(compiled, optimized.inputs, (imported.source_name, imported.source_sha256), report, error)


def _approximating(result: PipelineResult) -> list[str]:
    """Names of the passes that changed outputs by more than rounding, in order."""
    changed = (report.name for report in result.reports if report.rewrites)
    return list(dict.fromkeys(name for name in changed if PASSES[name].approximates))


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
