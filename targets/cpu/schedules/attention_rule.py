"""Attention kernels by plan. They are emitted while a module is legalised, and again where a plan is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from greencc.ops import AttentionAttrs
from greencc.targets.cpu.schedules.attention import RULE, operations_per_pair, planned_kernel
from greencc.targets.cpu.schedules.attention_plan import AttentionPlan, default_plan, whole_tiles
from greencc.targets.cpu.schedules.attention_task import masks_rows
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int
from greencc.targets.tuning.emitted import EmittedRule
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# Bytes of the scores of a panel of queries: more leave the second-level cache.
MAX_SCORES = 1 << 19
# Operations that one thread may be done with before several have started: some twenty microseconds.
MAX_SERIAL = 1 << 21


@dataclass(frozen=True)
class _Form:
    """An attention kernel: what its operator says, shapes of operands and result, and its plan by default."""

    attrs: AttentionAttrs
    shapes: list[list[tirx.Expr]]
    default: AttentionPlan

    @property
    def rows(self) -> int | None:
        return as_int(self.shapes[0][1])

    @property
    def keys(self) -> int | None:
        return as_int(self.shapes[1][1])

    @property
    def operations(self) -> int | None:
        """None where a size is open."""
        batch = as_int(self.shapes[0][0])
        if batch is None or self.rows is None or self.keys is None:
            return None
        return batch * self.attrs.heads * self.rows * self.keys * operations_per_pair(self.attrs)


@dataclass(frozen=True)
class AttentionRule(EmittedRule[_Form]):
    """Emits attention kernels again. Those over sequences of several lengths have one plan only."""

    target: CpuTarget
    name: str = RULE

    def form(self, func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> _Form:
        """See EmittedRule."""
        attrs = AttentionAttrs(**recipe)
        shapes = [list(param.ty.shape) for param in func.params]
        default = default_plan(attrs, self.target, shapes[0][0], shapes[0][1], shapes[1][1])
        return _Form(attrs, shapes, default)

    def space_of(self, form: _Form) -> Space:
        """See EmittedRule."""
        return attention_space(self.target, form)

    def emit(self, form: _Form, plan: Plan) -> tirx.PrimFunc:
        """See EmittedRule."""
        return planned_kernel(form.attrs, form.shapes, self.target, _chosen(form, plan))


def attention_space(target: CpuTarget, form: _Form) -> Space:
    """What lanes are, and the sizes of tiles, blocks and tasks. Knobs of a single value are left out."""
    default = form.default
    known = [value for value in (64, 128, 256, 512) if form.keys is None or value < form.keys]
    tasks = [whole_tiles(value, form.shapes[0][1], default.rows) for value in (128, 512)]
    half = (target.vector_bits // 2,) if target.vector_bits > 256 else ()
    knobs = (
        Knob("across", ("keys", "queries")),
        Knob("vector_bits", nearby(half, target.vector_bits)),
        Knob("vectors", nearby((1, 2, 3, 4, 5), default.vectors)),
        Knob("rows", nearby((1, 2, 3, 4, 5, 6, 8, 10, 12), default.rows)),
        Knob("block", nearby(tuple(known), default.block)),
        Knob("task_rows", nearby(tuple(tasks), default.task_rows)),
        Knob("threads", ("all", "one") if (form.operations or MAX_SERIAL) < MAX_SERIAL else ("all",)),
    )
    values: dict[str, int | str] = {
        "across": default.across,
        "vector_bits": target.vector_bits,
        "vectors": default.vectors,
        "rows": default.rows,
        "block": default.block,
        "task_rows": default.task_rows,
        "threads": "all",
    }
    kept = tuple(knob for knob in knobs if len(knob.values) > 1)
    return Space(
        kept,
        {knob.name: values[knob.name] for knob in kept},
        _traits(form),
        lambda plan: _problem(target, form, _chosen(form, plan)),
        lambda plan: _features(target, form, _chosen(form, plan)),
    )


def _chosen(form: _Form, plan: Plan) -> AttentionPlan:
    default = form.default
    chosen = AttentionPlan(
        across="queries" if plan["across"] == "queries" else "keys",
        lanes=int(plan.get("vector_bits", 32 * default.lanes)) // 32,
        vectors=int(plan["vectors"]),
        rows=int(plan["rows"]),
        block=int(plan.get("block", default.block)),
        task_rows=int(plan.get("task_rows", default.task_rows)),
        parallel=plan.get("threads", "all") == "all",
    )
    if chosen.across == "queries":
        return chosen
    return replace(chosen, task_rows=-(-chosen.task_rows // chosen.rows) * chosen.rows)


def _problem(target: CpuTarget, form: _Form, plan: AttentionPlan) -> str | None:
    # One more than there are registers: LLVM keeps a value that all lanes share in memory.
    if plan.rows * plan.vectors + plan.vectors + 1 > target.vector_registers + 1:
        return "the sums don't fit the registers"
    if plan.across == "keys":
        if plan.rows & (plan.rows - 1):
            return "rows share a vector"
        return "vectors are of no keys" if _idle(plan, form.keys) else None
    if plan.task_rows != form.default.task_rows:
        return "a task is a panel of queries"
    if 4 * plan.vectors * plan.lanes * min(plan.block, form.keys or plan.block) > MAX_SCORES:
        return "the scores leave the cache"
    return "vectors are of no queries" if _idle(plan, form.rows) else None


def _idle(plan: AttentionPlan, count: int | None) -> bool:
    """Whether the last vector of the only panel holds nothing of `count` keys or queries."""
    return count is not None and (plan.vectors - 1) * plan.lanes >= count


def _traits(form: _Form) -> Mapping[str, float]:
    attrs = form.attrs
    return {
        "heads": attrs.heads,
        "head_dim": attrs.head_dim,
        "value_dim": attrs.value_dim,
        "queries": form.rows or 0,
        "keys": form.keys or 0,
        "causal": int(attrs.causal),
        "mask_rows": int(len(form.shapes) > 4 and masks_rows(form.shapes[3])),
    }


def _features(target: CpuTarget, form: _Form, plan: AttentionPlan) -> Mapping[str, float]:
    """Registers of sums, bytes of scores; for known sizes what tiles have too much, and tasks of the busiest thread."""
    width, queries = plan.vectors * plan.lanes, plan.across == "queries"
    panel = width if queries else plan.rows
    found: dict[str, float] = {
        "sums": plan.rows * plan.vectors,
        "score_bytes": 4 * panel * min(plan.block, form.keys or plan.block),
    }
    if form.rows and form.keys:
        found["padding"] = _share(form.rows, panel) * (1.0 if queries else _share(form.keys, width))
        blocks = -(-form.rows // (width if queries else plan.task_rows))
        threads = target.threads if plan.parallel else 1
        found["rounds"] = -(-form.attrs.heads * blocks * (as_int(form.shapes[0][0]) or 1) // threads)
    return found


def _share(count: int, step: int) -> float:
    """How much more than `count` whole steps are."""
    return -(-count // step) * step / count
