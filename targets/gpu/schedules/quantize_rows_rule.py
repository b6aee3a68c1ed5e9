"""Kernels that quantise rows, by plan. They are emitted while a module is legalised, and again by another plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.levels import SignedWords
from greencc.targets.gpu.schedules.quantize_rows import default_threads, planned_rows_kernel
from greencc.targets.int8.levels import padded_depth
from greencc.targets.int8.rows import QuantizedRows
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.emitted import EmittedRule
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

_THREADS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class QuantizeRowsRule(EmittedRule[QuantizedRows]):
    """Chooses how many threads a row has. The name is QUANTIZE_RULE or NORMALIZE_RULE."""

    target: GpuTarget
    name: str

    def form(self, func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> QuantizedRows:
        """See EmittedRule."""
        return QuantizedRows.of(func, recipe)

    def space_of(self, form: QuantizedRows) -> Space:
        """See EmittedRule."""
        *lead, last = form.shape
        default = default_threads(padded_depth(int(last), SignedWords()), self.target.gpu)
        threads = tuple(n for n in _THREADS if n <= min(self.target.gpu.max_threads, 2 * max(default, 64)))
        norm = int(form.epsilon is not None)
        traits = {"rows": as_int(volume(lead)) or 0, "length": int(last), "norm": norm}
        return Space((Knob("threads", nearby(threads, default)),), {"threads": default}, traits)

    def emit(self, form: QuantizedRows, plan: Plan) -> tirx.PrimFunc:
        """See EmittedRule."""
        return planned_rows_kernel(
            form.shape,
            self.target.gpu,
            SignedWords(),
            form.with_factors,
            form.epsilon,
            int(plan["threads"]),
        )
