"""Matrix products with everything elementwise behind them in one kernel.

    C[..., i, j] = f(sum_k A[..., i, k] * B[k, j], ...)

A and B are float32, or bytes whose products are summed in int32; or B holds levels in groups (greencc.grouped_matmul).

A register tile of `rows` x `columns` accumulators stays in vector registers over the whole k loop. Constant B is
packed into column panels as wide as the tile, so that the inner loop reads it with unit stride; other B is read
in place. Tasks are blocks of rows times column panels. By default, rows left over at the end of A get a tile of their
own (static sizes) or a full tile whose surplus rows repeat the last row and are not stored (symbolic sizes), so that
there is no slow path for tails. What else can be chosen is in matmul_plan.py.

Levels in groups are given their values where they are read when A has few rows, so that no more than levels comes from
memory; for more rows a task writes the values of its panel down once, and the tiles read those.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.matmul_form import Form, match_product
from greencc.targets.cpu.schedules.matmul_plan import MatmulPlan
from greencc.targets.cpu.schedules.matmul_space import chosen_plan, default_plan, plan_space, planned_form
from greencc.targets.cpu.schedules.matmul_tasks import emit, pack_operands
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import check_tail, inline_tail, overwritable, parameter_index
from greencc.targets.tuning.space import Plan, Space


@dataclass(frozen=True)
class MatmulRule:
    """Schedules products; see the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-matmul"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        found = self._form(func, constants)
        return found if isinstance(found, Declined) else plan_space(self.target, *found)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a product with its tail, or decline."""
        found = self._form(func, constants)
        if isinstance(found, Declined):
            return found
        form, chosen = found
        if plan is not None:
            problem = plan_space(self.target, form, chosen).problem(plan)
            if problem is not None:
                return Declined(problem)
            chosen = chosen_plan(chosen, plan)
            form = planned_form(form, chosen)
        operands = pack_operands(func, form, chosen.columns)
        emitted = emit(func, form, chosen, operands)
        # A row is read again for every panel of columns, but a tail reads each element once.
        taken = [parameter_index(func, operand) for operand in (form.product.a, form.product.b)]
        tail = form.tail
        overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in taken]
        layouts = {index: operand.layout for index, operand in operands.items()}
        return Scheduled(emitted, self.name, layouts, tuple(overwrites))

    def _form(self, func: tirx.PrimFunc, constants: frozenset[int]) -> tuple[Form, MatmulPlan] | Declined:
        """The product that `func` is, and its default plan."""
        tail = inline_tail(func)
        if isinstance(tail, str):
            return Declined(tail)
        product = match_product(tail, self.target)
        if isinstance(product, str):
            return Declined(product)
        reason = check_tail(tail)
        if reason is not None:
            return Declined(reason)
        index = parameter_index(func, product.b)
        packed = index is not None and index in constants and not product.batched
        if product.groups is not None and not packed:
            return Declined("levels in groups are no constants")
        form = Form(tail, product, packed)
        default = default_plan(self.target, form)
        if default is None:
            return Declined(f"{product.columns} columns that are not packed don't fill vectors")
        return form, default
