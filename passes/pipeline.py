"""Runs passes in order, verifies the IR after each, and reports what each one did."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tvm
from tvm import relax

from greencc.errors import GreenccError, UserError
from greencc.ir import count_graph
from greencc.passes.base import ActivationRange, Pass, PassContext, PassResult, Refusal

DUMP_VARIABLE = "GREENCC_DUMP_IR"
Observer = Callable[[str, tvm.IRModule], None]


@dataclass(frozen=True)
class PassReport:
    """What one pass of a pipeline did.

    Attributes:
        name: the pass's name on the command line.
        rewrites: how many rewrites it made; `counts` splits them by kind.
        refusals: matches that it left alone, with reasons.
        nodes_before, nodes_after, edges_before, edges_after: the graph's size by greencc.ir.count_graph.
        seconds: wall time of the pass alone, without verification.
        stored: by operator, (bits, largest |stored - original|) of weights that the pass stored in fewer bits.
        ranges: by operator, what the pass clips activations to.
        zeros: by operator, the share of zeros in weights that the pass set to zero in part.
    """

    name: str
    rewrites: int
    counts: Mapping[str, int]
    refusals: tuple[Refusal, ...]
    nodes_before: int
    nodes_after: int
    edges_before: int
    edges_after: int
    seconds: float
    stored: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    zeros: Mapping[str, float] = field(default_factory=dict)

    @property
    def refused_by_reason(self) -> dict[str, int]:
        """How often each reason was given, as "number. reason"."""
        reasons = Counter(f"{refusal.condition}. {refusal.reason}" for refusal in self.refusals)
        return dict(sorted(reasons.items()))

    def as_json(self, *, timing: bool = True) -> dict[str, object]:
        """The report as JSON values. Without `timing` it is the same for every run, as artifacts need it."""
        report: dict[str, object] = {
            "name": self.name,
            "rewrites": self.rewrites,
            "counts": dict(self.counts),
            "refused": len(self.refusals),
            "refused_by_reason": self.refused_by_reason,
            "refusals": [{"node": r.node, "condition": r.condition, "reason": r.reason} for r in self.refusals],
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "edges_before": self.edges_before,
            "edges_after": self.edges_after,
        }
        if self.stored:
            report["stored"] = [
                {"node": node, "bits": bits, "largest_deviation": deviation}
                for node, (bits, deviation) in sorted(self.stored.items())
            ]
        if self.ranges:
            report["ranges"] = [
                {"node": node, "observer": held.observer, "low": held.low, "high": held.high}
                for node, held in sorted(self.ranges.items())
            ]
        if self.zeros:
            report["zeros"] = [{"node": node, "share": share} for node, share in sorted(self.zeros.items())]
        return {**report, "seconds": round(self.seconds, 6)} if timing else report


@dataclass(frozen=True)
class PipelineResult:
    """The module after all passes, and one report per pass in order."""

    module: tvm.IRModule
    reports: tuple[PassReport, ...]


def run_pipeline(
    module: tvm.IRModule,
    passes: Sequence[Pass],
    context: PassContext | None = None,
    *,
    observer: Observer | None = None,
) -> PipelineResult:
    """Run `passes` in order.

    Args:
        module: left as it is.
        passes: e.g. registry.default_pipeline() or registry.parse_pipeline(text).
        context: what passes may know; none by default.
        observer: called with the pass's name and the module after every pass that changed the module. What it
            raises ends the run: `--verify` compares outputs with the reference here and names the wrong pass.

    Raises:
        GreenccError: a pass failed or left ill-formed IR (the message names it and those that ran before), or
            `module` is ill-formed already.
        UserError: a pass found the request wrong (an unknown output); passed on as it is.

    The environment variable GREENCC_DUMP_IR names a folder that gets the module's text before the first pass
    and after each.
    """
    context = context or PassContext()
    reports: list[PassReport] = []
    _dump(module, 0, "input")
    _verify(module, "the module is ill-formed as imported", "no pass has run")
    size = count_graph(module)
    for position, item in enumerate(passes, start=1):
        started = time.perf_counter()
        result = _run(item, module, context, reports)
        seconds = time.perf_counter() - started
        _verify(result.module, f"pass {item.name} left ill-formed IR", _history(reports))
        before, size = size, count_graph(result.module)
        reports.append(
            PassReport(
                item.name,
                result.rewrites,
                dict(result.counts),
                result.refusals,
                nodes_before=before[0],
                nodes_after=size[0],
                edges_before=before[1],
                edges_after=size[1],
                seconds=seconds,
                stored={node: (weight.bits, weight.deviation) for node, weight in result.stored.items()},
                ranges=result.ranges,
                zeros=dict(result.zeros),
            )
        )
        module = result.module
        _dump(module, position, item.name)
        if observer is not None and result.rewrites:
            observer(item.name, module)
    return PipelineResult(module, tuple(reports))


def _run(item: Pass, module: tvm.IRModule, context: PassContext, before: Sequence[PassReport]) -> PassResult:
    try:
        return item.run(module, context)
    except UserError:
        raise
    except Exception as error:
        raise GreenccError(f"pass {item.name} failed: {_line(error)}; {_history(before)}") from error


def _verify(module: tvm.IRModule, failure: str, history: str) -> None:
    try:
        relax.analysis.well_formed(module)
    except Exception as error:
        raise GreenccError(f"{failure}: {_line(error)}; {history}") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _history(before: Sequence[PassReport]) -> str:
    return f"passes run before it: {', '.join(report.name for report in before) or 'none'}"


def _dump(module: tvm.IRModule, position: int, name: str) -> None:
    folder = os.environ.get(DUMP_VARIABLE)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{position:02d}-{name}.txt").write_text(module.script(), encoding="utf-8")
