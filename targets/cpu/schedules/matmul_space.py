"""The plans of a matrix product: the one that it has by default, and those that a tuner may choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from greencc.targets.cpu.schedules.matmul_form import Form
from greencc.targets.cpu.schedules.matmul_plan import MatmulPlan, tile_heights
from greencc.targets.cpu.schedules.multiply import DotArithmetic, weight_bytes
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.space import Knob, Plan, Space, Value, nearby

# Rows of A per task: enough to use a panel of B many times while it is in the cache, few enough to share out.
TASK_ROWS = 128
# A task should take tens of microseconds: below this many multiply-adds threads cost more than they bring.
MIN_PARALLEL_WORK = 1 << 16
# By how much a kernel's work may differ from that for it to be a question.
_DOUBTFUL_WORK = 8
# Of a symbolic number of rows: up to so many, levels in groups are read anew for each.
FEW_ROWS = 4
# Longer than the second cache takes.
_STEPS_AHEAD = 8
# Of these, the first that divides the steps.
_BURSTS = (16, 8)
# Vectors of sums in the code of all heights of a tile: what takes about a second to build with a long tail.
_MOST_SUMS = 112


def default_plan(target: CpuTarget, form: Form) -> MatmulPlan | None:
    """What a product has without a tuner; None where the columns of B, which isn't packed, don't fill vectors."""
    tile = _default_tile(target, form)
    if tile is None:
        return None
    rows, vectors, lanes = tile
    product, count = form.product, form.rows
    fits = count is not None and count <= rows
    return MatmulPlan(
        rows=rows,
        vectors=vectors,
        lanes=lanes,
        rest="padded" if count is None else "exact",
        task_rows=TASK_ROWS,
        order="panels",
        parallel=int(_work(form, vectors * lanes) >= MIN_PARALLEL_WORK),
        ahead=_STEPS_AHEAD,
        burst=next((steps for steps in _BURSTS if product.steps % steps == 0), 0),
        share=TASK_ROWS // rows if count is None else 1,
        direct_rows=FEW_ROWS if count is None else count if fits else 0,
        stored=product.arithmetic.weight,
    )


def _default_tile(target: CpuTarget, form: Form) -> tuple[int, int, int] | None:
    """Rows, vectors and lanes: sums fill the registers but for what loads need; wide tiles when N allows."""
    product, packed = form.product, form.packed
    if isinstance(product.arithmetic, DotArithmetic):
        if not packed:
            return None
        lanes = product.arithmetic.dot.lanes
        # Without an instruction that multiplies and adds, a product needs a register before it is added.
        small: tuple[tuple[int, int], ...] = ((6, 2), (8, 1))
    else:
        lanes, small = target.lanes(), ((4, 3), (6, 2), (8, 1))
        while not packed and product.columns % lanes:
            lanes //= 2
            if lanes < 4:
                return None
    shapes = ((8, 3), (8, 2), (12, 1)) if target.vector_registers >= 32 else small
    limit = -(-product.columns // lanes)
    fitting = [(rows, vectors) for rows, vectors in shapes if vectors <= limit and (packed or limit % vectors == 0)]
    fitting = fitting or [shapes[-1]]
    # Columns that pad the last panel are wasted work; between equals the first shape is the fastest.
    rows, vectors = min(fitting, key=lambda s: (-(-limit // s[1]) * s[1], fitting.index(s)))
    return min(rows, form.rows or rows), vectors, lanes


def _work(form: Form, width: int) -> int:
    """Multiply-adds, an estimate: of a symbolic number of rows there are many."""
    tasks = None
    if form.rows is not None:
        blocks, panels = -(-form.rows // TASK_ROWS), -(-form.product.columns // width)
        lead = as_int(volume(form.lead))
        tasks = None if lead is None else lead * blocks * panels
    return (tasks or 2) * form.product.depth * width * (form.rows or TASK_ROWS)


def plan_space(target: CpuTarget, form: Form, default: MatmulPlan) -> Space:
    """The plans of a product."""
    knobs = tuple(Knob(name, values) for name, values in _choices(form, default).items() if len(values) > 1)
    chosen = {knob.name: getattr(default, knob.name) for knob in knobs}
    plans = _Plans(target, form, default)
    traits = {
        "depth": form.product.depth,
        "columns": form.product.columns,
        "rows": form.rows or 0,
        "weight_bytes": weight_bytes(form.product.arithmetic),
        "registers": target.vector_registers,
    }
    return Space(knobs, chosen, traits, plans.refuses, plans.features)


def chosen_plan(default: MatmulPlan, plan: Plan) -> MatmulPlan:
    """The default with what `plan` says, one of its space."""
    return replace(default, **plan)  # type: ignore[arg-type]


def planned_form(form: Form, plan: MatmulPlan) -> Form:
    """`form` with the arithmetic that `plan` asks for."""
    arithmetic = form.product.arithmetic
    if not isinstance(arithmetic, DotArithmetic):
        return form
    return replace(form, product=replace(form.product, arithmetic=replace(arithmetic, weight=plan.stored)))


def _choices(form: Form, default: MatmulPlan) -> dict[str, tuple[Value, ...]]:
    product, count = form.product, form.rows
    arithmetic = product.arithmetic
    most = -(-product.columns // default.lanes)
    # Of a symbolic number of rows there may be few, which leave a high tile almost empty.
    heights = [rows for rows in (4, 5, 6, 8, 10, 12, 16, 20, 24) if rows <= (count or 12)]
    found: dict[str, tuple[Value, ...]] = {
        "rows": nearby(tuple(heights), default.rows),
        "vectors": nearby(tuple(range(1, min(most, 4) + 1)), default.vectors),
        "lanes": _lanes(form, default),
        "rest": ("exact", "even") if count is not None else ("padded", "exact", "even"),
        "task_rows": _task_rows(count),
        "order": ("panels", "rows"),
    }
    # Of a symbolic size a few may be as fast on one thread, but many never are.
    work, fixed = _work(form, default.columns), count is not None and as_int(volume(form.lead)) is not None
    if fixed and MIN_PARALLEL_WORK // _DOUBTFUL_WORK <= work <= MIN_PARALLEL_WORK * _DOUBTFUL_WORK:
        found["parallel"] = (0, 1)
    if product.groups is not None:
        found["direct_rows"] = (0, count) if count is not None else (2, FEW_ROWS, 8)
    if form.packed:
        found["ahead"] = (_STEPS_AHEAD, 16, 32, 64)
    if form.packed and product.groups is None:
        dividing = tuple(steps for steps in (1, 4, 16) if product.steps % steps == 0)
        found["burst"] = (0, *nearby(dividing, default.burst))
        if count is None:
            found["share"] = nearby((1, 4, 16), default.share)
    if isinstance(arithmetic, DotArithmetic) and arithmetic.dot.factor != arithmetic.weight:
        found["stored"] = (arithmetic.weight, arithmetic.dot.factor)
    return found


def _lanes(form: Form, default: MatmulPlan) -> tuple[Value, ...]:
    """Those of the default, and half as many where a vector of B's last columns is then less empty."""
    half, columns = default.lanes // 2, form.product.columns
    empty, of_half = -columns % default.lanes, -columns % half
    fixed = not form.packed or isinstance(form.product.arithmetic, DotArithmetic)
    return (default.lanes,) if fixed or half < 4 or of_half == empty else (half, default.lanes)


def _task_rows(count: int | None) -> tuple[Value, ...]:
    """The default, even parts of static rows, and sizes that fit caches; the default is all rows that are fewer."""
    if count is None:
        return (32, 64, TASK_ROWS)
    parts = [-(-count // parts) for parts in (2, 3, 4, 8)]
    sizes = [rows for rows in (32, 64, TASK_ROWS, 256) if rows < count]
    apart = [rows for rows in (*parts, *sizes) if 4 <= rows < count]
    return nearby(tuple(apart), TASK_ROWS, max(count, TASK_ROWS))


@dataclass(frozen=True)
class _Plans:
    """What plans of one product have in them."""

    target: CpuTarget
    form: Form
    default: MatmulPlan

    def refuses(self, plan: Plan) -> str | None:
        """See Space."""
        chosen, form, columns = chosen_plan(self.default, plan), self.form, self.form.product.columns
        if chosen.rows * chosen.vectors + chosen.vectors + 1 > self.target.vector_registers:
            return "the sums don't fit the registers"
        if not form.packed and columns % chosen.columns:
            return "the columns aren't whole tiles"
        if chosen.rows > chosen.task_rows:
            return "a tile is higher than a task"
        return self._problem_of_open_rows(chosen) if form.rows is None else self._same(chosen, form.rows)

    def _problem_of_open_rows(self, chosen: MatmulPlan) -> str | None:
        few = FEW_ROWS if chosen.rest == "padded" else chosen.rows
        if self.form.product.groups is not None and chosen.direct_rows > few:
            return "levels would be read too often"
        high = chosen.rows * (chosen.rows + 1) // 2 * chosen.vectors
        return "there are tiles of too many heights" if chosen.rest != "padded" and high > _MOST_SUMS else None

    def _same(self, chosen: MatmulPlan, count: int) -> str | None:
        """Which other plan is the same for a static number of rows."""
        task = min(count, chosen.task_rows)
        if chosen.order == "rows" and count == task:
            return "there is one block of rows"
        even, exact = (tile_heights(task, chosen.rows, even=even) for even in (True, False))
        return "tiles are even as it is" if chosen.rest == "even" and even == exact and count % task == 0 else None

    def features(self, plan: Plan) -> Mapping[str, float]:
        """See Space."""
        chosen, product = chosen_plan(self.default, plan), self.form.product
        rows, depth, sums = self.form.rows or TASK_ROWS, product.depth, chosen.rows * chosen.vectors
        task = min(rows, chosen.task_rows)
        panels = -(-product.columns // chosen.columns)
        tasks = panels * -(-rows // task) * (as_int(volume(self.form.lead)) or 1)
        threads = self.target.threads if chosen.parallel else 1
        panel_bytes = depth * chosen.columns * np.dtype(chosen.stored).itemsize
        return {
            "padding": panels * chosen.columns / product.columns - 1,
            "idle_threads": -(-tasks // threads) * threads / tasks - 1,
            "tasks_per_thread": tasks / threads,
            "tiles_per_task": -(-task // chosen.rows),
            "panel_bytes": panel_bytes,
            "task_bytes": panel_bytes * (1 + task / chosen.columns),
            "registers": sums + chosen.vectors + 1,
            "loads_per_multiply_add": (chosen.rows + chosen.vectors) / sums,
        }
