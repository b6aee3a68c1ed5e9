"""The kernels of a model that are worth tuning: each distinct one once, with what is known before it is measured."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import tvm
from tvm import relax, s_tir, tirx

from greencc.errors import UserError
from greencc.ir import dim_text, shape_of, symbol_bounds
from greencc.limits import Limits
from greencc.targets.base import RULE_ATTR, Target
from greencc.targets.cost import Cost, call_cost
from greencc.targets.lower import constant_parameters, fuse, kernel_calls
from greencc.targets.origins import label_values, restore_labels
from greencc.targets.tir import as_int, i64, substitute, walk
from greencc.targets.tuning.alone import Kernel
from greencc.targets.tuning.space import Space, SpaceError, TunableRule
from greencc.targets.tuning.workload import workload_key

Sizes = Mapping[str, tuple[int, ...]]
"""Values of symbolic dimensions at the points where a kernel is timed, as many for each symbol."""

# Sizes that a dimension is tuned at where the user names none: one short sequence and one of usual length.
USUAL_SIZES = (16, 128)
# Up to this upper bound a dimension is taken for a batch, and so is an input's first one that has none: it is tuned at
# its lower bound.
MOST_BATCH = 16


@dataclass(frozen=True)
class Task:
    """A kernel to tune.

    Attributes:
        key: of the workload, see `workload_key`.
        sizes: values of the kernel's own symbols (s0, s1, .. in the order of its parameters) at each timed point.
        kernel: what is computed.
        name: the kernel's name in the module.
        nodes: the source model's nodes that its first launch computes.
        launches: how often a run of the model launches it.
        spaces: what can be chosen, by rule; never empty.
        limits: seconds that one launch takes at least at each point, by the machine's limits: its arithmetic, or its
            constants, which come from memory (the rest may lie in a cache); None where that is unknown.
        guards: further values of the kernel's symbols, in their order, at which a plan must not be slower than the
            default schedule.
    """

    key: str
    sizes: Sizes
    kernel: Kernel
    name: str
    nodes: tuple[str, ...]
    launches: int
    spaces: Mapping[str, Space]
    limits: tuple[float, ...] | None
    guards: tuple[tuple[int, ...], ...] = ()

    @property
    def points(self) -> int:
        """Number of sizes that it is timed at."""
        return len(next(iter(self.sizes.values()))) if self.sizes else 1

    def point(self, index: int) -> dict[str, int]:
        """The value of each of the kernel's symbols, by the name that it has in the kernel, at a timed point."""
        return {name: self.sizes[f"s{i}"][index] for i, name in enumerate(self.kernel.symbols)}

    def guard(self, index: int) -> dict[str, int]:
        """The same of a guarded point."""
        return dict(zip(self.kernel.symbols, self.guards[index], strict=True))

    @property
    def traits(self) -> dict[str, float]:
        """Numbers that say which kernel it is, of all rules."""
        return {name: value for space in self.spaces.values() for name, value in space.traits.items()}

    @property
    def text(self) -> str:
        """What it computes, as people read it: its first operator, how many are fused with it, the first operands."""
        first, *rest = re.sub(r"\d+(?=_|$)", "", self.name.removeprefix("fused_")).replace("tir_", "").split("_")
        params = self.kernel.func.params
        operands = params[: len(params) - self.kernel.results] or params
        shapes = " * ".join(_shape_text(param) for param in operands[:2])
        dtype = str(operands[0].ty.dtype)
        return f"{first}{f'+{len(rest)}' if rest else ''} {shapes}" + ("" if dtype == "float32" else f" {dtype}")


@dataclass(frozen=True)
class Untuned:
    """A kernel that isn't tuned, and why."""

    name: str
    launches: int
    reason: str


def extract_tasks(
    module: tvm.IRModule, target: Target, tune_at: Mapping[str, Sequence[int]], limits: Limits | None
) -> tuple[list[Task], list[Untuned]]:
    """The distinct kernels of an optimised module, those first that have the most to do.

    Args:
        module: Relax operators.
        target: what to tune for.
        tune_at: sizes by the model's dimensions; of dimensions that aren't named, usual ones are taken.
        limits: the machine's; None where they aren't known.

    Raises:
        UserError: `tune_at` names a dimension that the model doesn't have, or a size out of its bounds.
    """
    points, guards = tuning_points(module, tune_at), guard_points(module, tune_at)
    module, labels = label_values(relax.transform.DeadCodeElimination(["main"])(module))
    module, origins = fuse(restore_labels(target.legalize(module), labels))
    constants = constant_parameters(module)
    calls: dict[str, list[tuple[relax.Call, tuple[str, ...]]]] = {}
    for call, nodes in zip(kernel_calls(module), origins, strict=True):
        calls.setdefault(call.args[0].name_hint, []).append((call, nodes))
    tasks: dict[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]], Task] = {}
    untuned = []
    for name, launched in calls.items():
        (call, nodes), fixed = launched[0], constants.get(name, frozenset())
        func = module[call.args[0]]
        arguments = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
        kernel = Kernel(func, fixed, len(func.params) - len(arguments))
        reason = "it is a number's" if len(call.args) > 2 else kernel.problem()
        calls_ = [call for call, _ in launched]
        own = {} if reason else _points_of_all(kernel, calls_, points)
        spaces = _spaces(func, fixed, target) if own else {}
        if not spaces:
            reason = reason or ("nothing can be chosen" if own else "its sizes are known at run time only")
            untuned.append(Untuned(name, len(launched), reason))
            continue
        sizes = {f"s{i}": tuple(column) for i, column in enumerate(zip(*own, strict=True))}
        least = _least_seconds(call_cost(module, call), kernel, list(own.values()), limits)
        guarded = tuple(values for values in _points_of_all(kernel, calls_, guards) if values not in own)
        key = workload_key(func, fixed)
        task = Task(key, sizes, kernel, name, nodes, len(launched), spaces, least, guarded)
        same = (task.key, tuple(sizes.items()))
        known = tasks.get(same)
        tasks[same] = task if known is None else replace(known, launches=known.launches + task.launches)
    ordered = sorted(tasks.values(), key=lambda task: -task.launches * sum(task.limits or (0.0,)))
    return ordered, untuned


def tuning_points(module: tvm.IRModule, tune_at: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """The sizes of the model's symbolic dimensions at which kernels are timed: every combination.

    Raises: see `extract_tasks`.
    """
    bounds = symbol_bounds(module["main"])
    for name, sizes in tune_at.items():
        if name not in bounds:
            known = ", ".join(bounds) or "none: all of its sizes are fixed"
            raise UserError(f"--tune-at {name}: the model has no such open dimension; it has {known}")
        low, high = bounds[name]
        for size in sizes:
            if size < low or (high is not None and size > high):
                raise UserError(f"--tune-at {name}={size}: the dimension goes from {low} to {high or 'any size'}")
    shapes = [shape_of(param.ty) or [] for param in module["main"].params]
    first = {shape[0].name for shape in shapes if shape and isinstance(shape[0], tirx.Var)}
    choices = {name: tuple(tune_at.get(name) or _usual(*bound, name in first)) for name, bound in bounds.items()}
    return [dict(zip(choices, sizes, strict=True)) for sizes in itertools.product(*choices.values())]


def guard_points(module: tvm.IRModule, tune_at: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Sizes between those that kernels are tuned at, and beyond: of one dimension at a time, others as they are first.

    A plan that is found at a few sizes serves all of them.
    """
    bounds, points = symbol_bounds(module["main"]), tuning_points(module, tune_at)
    found = []
    for name, (low, high) in bounds.items():
        sizes = sorted({point[name] for point in points})
        between = [round(math.sqrt(a * b)) for a, b in itertools.pairwise(sizes)]
        beyond = [low, max(low, sizes[0] // 2), min(high or 2 * sizes[-1], sizes[-1] * 3 // 2)]
        guarded = dict.fromkeys(size for size in (*between, *beyond) if size not in sizes)
        found += [{**points[0], name: size} for size in guarded]
    return found


def _usual(low: int, high: int | None, is_first: bool) -> tuple[int, ...]:
    if (high is None and is_first) or (high is not None and high <= MOST_BATCH):
        return (low,)
    return tuple(sorted({min(max(size, low), high or size) for size in USUAL_SIZES}))


def _points_of_all(
    kernel: Kernel, calls: Sequence[relax.Call], points: Sequence[Mapping[str, int]]
) -> dict[tuple[int, ...], Mapping[str, int]]:
    """The points of all launches of a kernel; empty where those of one stay open."""
    found = [_kernel_points(kernel, call, points) for call in calls]
    return {values: point for own in found for values, point in own.items()} if all(found) else {}


def _kernel_points(
    kernel: Kernel, call: relax.Call, points: Sequence[Mapping[str, int]]
) -> dict[tuple[int, ...], Mapping[str, int]]:
    """The model's points by the values that they give to the kernel's symbols; empty where those stay open."""
    arguments = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
    at_call: dict[str, tirx.Expr] = {}
    for param, argument in zip(kernel.func.params, arguments, strict=False):
        for dim, size in zip(param.ty.shape, shape_of(argument.ty) or (), strict=False):
            if isinstance(dim, tirx.Var):
                at_call.setdefault(dim.name, size)
    found: dict[tuple[int, ...], Mapping[str, int]] = {}
    for point in points:
        values = [_at(at_call[symbol], point) if symbol in at_call else None for symbol in kernel.symbols]
        known = tuple(value for value in values if value is not None)
        if len(known) < len(values):
            return {}
        found.setdefault(known, point)
    return found


def _at(amount: tirx.Expr, point: Mapping[str, int]) -> int | None:
    """An expression in the model's dimensions at a point, None where it has others in it."""
    values = {var: i64(point[var.name]) for var in walk(amount) if isinstance(var, tirx.Var) and var.name in point}
    return as_int(tvm.sym.Analyzer().simplify(substitute(amount, values)))


def _spaces(func: tirx.PrimFunc, constants: frozenset[int], target: Target) -> dict[str, Space]:
    own = str(func.attrs[RULE_ATTR]) if func.attrs and RULE_ATTR in func.attrs else None
    found = {}
    for rule in target.rules():
        if not isinstance(rule, TunableRule) or own not in (None, rule.name):
            continue
        try:
            space = rule.space(func, constants)
        except (s_tir.ScheduleError, SpaceError):  # an imperative kernel has no blocks to take apart
            continue
        if isinstance(space, Space) and space.size > 1:
            found[rule.name] = space
    return found


def _least_seconds(
    cost: Cost, kernel: Kernel, points: Sequence[Mapping[str, int]], limits: Limits | None
) -> tuple[float, ...] | None:
    """See Task.limits."""
    if limits is None or cost.operations is None:
        return None
    constants = sum(_bytes_of(kernel.func.params[i]) for i in kernel.constants)
    found = []
    for point in points:
        operations, moved = _at(cost.operations, point), _at(cost.bytes, point)
        if operations is None or moved is None:
            return None
        # Of a table, and of levels that fill parts of bytes, fewer bytes are read than the parameter has.
        from_memory = min(constants, moved)
        found.append(max(operations / limits.operations(cost.arithmetic), from_memory / limits.bandwidth))
    return tuple(found)


def _bytes_of(param: tirx.Var) -> int:
    """Bytes of a parameter of known size."""
    dims = [as_int(dim) or 0 for dim in param.ty.shape]
    return math.prod(dims) * ((int(tvm.DataType(str(param.ty.dtype)).bits) + 7) // 8)


def _shape_text(param: tirx.Var) -> str:
    """A shape without the leading dimensions of 1."""
    sizes = [as_int(dim) or dim_text(dim) for dim in param.ty.shape]
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return "x".join(map(str, sizes)) or "1"
