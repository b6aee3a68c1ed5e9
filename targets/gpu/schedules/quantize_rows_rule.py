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
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.emitted import EmittedRule
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

_THREADS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class _Form:
    """Such a kernel: the shape of what it quantises, and its recipe."""

    shape: list[tirx.Expr]
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class QuantizeRowsRule(EmittedRule[_Form]):
    """Chooses how many threads a row has. The name is QUANTIZE_RULE or NORMALIZE_RULE."""

    target: GpuTarget
    name: str

    def form(self, func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> _Form:
        """See EmittedRule."""
        return _Form(list(func.params[0].ty.shape), recipe)

    def space_of(self, form: _Form) -> Space:
        """See EmittedRule."""
        *lead, last = form.shape
        default = default_threads(padded_depth(int(last), SignedWords()), self.target.gpu)
        threads = tuple(n for n in _THREADS if n <= min(self.target.gpu.max_threads, 2 * max(default, 64)))
        norm = int(form.recipe["epsilon"] is not None)
        traits = {"rows": as_int(volume(lead)) or 0, "length": int(last), "norm": norm}
        return Space((Knob("threads", nearby(threads, default)),), {"threads": default}, traits)

    def emit(self, form: _Form, plan: Plan) -> tirx.PrimFunc:
        """See EmittedRule."""
        return planned_rows_kernel(
            form.shape,
            self.target.gpu,
            SignedWords(),
            bool(form.recipe["with_factors"]),
            form.recipe["epsilon"],
            int(plan["threads"]),
        )
