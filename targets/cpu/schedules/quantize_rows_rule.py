"""Kernels that quantise rows, by plan. They are emitted while a module is legalised, and again by another plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from greencc.targets.base import Declined
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.quantize_rows import is_parallel, planned_rows_kernel
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.int8.rows import QuantizedRows
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.emitted import EmittedRule
from greencc.targets.tuning.space import Knob, Plan, Space

# More elements than one thread is done with before several have started.
MAX_SERIAL = 1 << 17


@dataclass(frozen=True)
class QuantizeRowsRule(EmittedRule[QuantizedRows]):
    """Chooses whether threads share rows: of a few thousand elements it depends on the machine.

    The name is QUANTIZE_RULE or NORMALIZE_RULE.
    """

    target: CpuTarget
    name: str

    def form(self, func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> QuantizedRows:
        """See EmittedRule."""
        return QuantizedRows.of(func, recipe)

    def space_of(self, form: QuantizedRows) -> Space | Declined:
        """See EmittedRule."""
        elements = as_int(volume(form.shape))
        if elements is None or elements > MAX_SERIAL:
            return Declined("rows are many, or may be: threads share them")
        default: Plan = {"threads": "all" if is_parallel(form.shape) else "one"}
        return Space((Knob("threads", ("all", "one")),), default, {"elements": elements})

    def emit(self, form: QuantizedRows, plan: Plan) -> tirx.PrimFunc:
        """See EmittedRule."""
        return planned_rows_kernel(
            form.shape,
            self.target,
            dot_product(self.target),
            form.with_factors,
            form.epsilon,
            plan["threads"] == "all",
        )
