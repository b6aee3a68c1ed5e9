"""Everything without a reduction: one launch, each thread for an element or for four neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, sym, tirx
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import Capabilities, GpuTarget
from greencc.targets.gpu.schedules.launch import below, ceildiv, group_threads, launch, when
from greencc.targets.gpu.schedules.stages import Stage, inlined, read_stages, updates_in_place
from greencc.targets.tir import as_int, children, i64, split_index, substitute, uses_var, volume, walk
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

LANES = 4
# What a symbolic number of elements is taken for when features of a plan are computed.
_USUAL_ELEMENTS = 1 << 16
_VECTOR_TYPES = ("float32", "float16", "int32", "int8", "uint8")
_VECTOR_NODES = (
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max, tirx.Cast, tirx.FloatImm, tirx.IntImm, ir.TensorLoad,
)  # fmt: skip
_VECTOR_CALLS = ("exp", "sqrt", "rsqrt", "tanh", "erf", "sigmoid", "log", "floor", "ceil", "nearbyint", "round", "fabs")


@dataclass(frozen=True)
class ElementwiseRule:
    """See the module's docstring. A kernel with several outputs of one shape is one launch too."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-elementwise"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        found = _read(func)
        return found if isinstance(found, Declined) else map_space(found[0], self.target.gpu)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a kernel whose blocks are all maps that go into one pass, or decline."""
        found = _read(func)
        if isinstance(found, Declined):
            return found
        stages, in_place = found
        shares = None
        if plan is not None:
            problem = map_space(stages, self.target.gpu).problem(plan)
            if problem is not None:
                return Declined(problem)
            shares = _read_shares(plan, _shares(stages, volume(list(stages[0].extents)), self.target.gpu))
        overwrites = () if in_place else _overwrites(func, stages)
        body = map_launch(stages, self.target, shares)
        return Scheduled(func.with_body(body), self.name, overwrites=overwrites)


def _read(func: tirx.PrimFunc) -> tuple[list[Stage], bool] | Declined:
    """The stages of a kernel, and whether it updates a parameter in place; or why it is no map."""
    stages = read_stages(func)
    if not stages:
        return Declined("it has no root block with plain blocks under it")
    if any(stage.is_opaque for stage in stages):
        return Declined("a block is no plain store")
    if any(stage.is_reduction for stage in stages):
        return Declined("it reduces")
    in_place = updates_in_place(func, stages)
    left = stages if in_place else inlined(stages, func.params)
    return (left, in_place) if are_one_map(left) else Declined("its outputs have different shapes")


@dataclass(frozen=True)
class Shares:
    """How threads share elements out.

    Attributes:
        threads: of a workgroup.
        lanes: neighbouring elements that a thread computes at once.
        turns: how often it does so.
    """

    threads: int
    lanes: int
    turns: int = 1


def map_space(stages: Sequence[Stage], gpu: Capabilities) -> Space:
    """What can be chosen for maps over the same space."""
    total = volume(list(stages[0].extents))
    default = _shares(stages, total, gpu)
    threads = tuple(n for n in (32, 64, 128, 256, 512, 1024) if n <= gpu.max_threads)
    knobs = (
        Knob("threads", nearby(threads, default.threads)),
        Knob("turns", (1, 2, 4)),
    )
    elements = as_int(total) or _USUAL_ELEMENTS

    def refuses(plan: Plan) -> str | None:
        made = _read_shares(plan, default)
        group = made.threads * made.lanes * made.turns
        return "most threads have nothing to do" if made.turns > 1 and group > elements else None

    def features(plan: Plan) -> dict[str, float]:
        made = _read_shares(plan, default)
        return {"groups": -(-elements // (made.threads * made.lanes * made.turns)), "each": made.lanes * made.turns}

    nodes = sum(1 for stage in stages for store in stage.stores for _ in walk(store.value))
    traits = {"elements": as_int(total) or 0, "stores": sum(len(stage.stores) for stage in stages), "nodes": nodes}
    return Space(knobs, {"threads": default.threads, "turns": default.turns}, traits, refuses, features)


def _read_shares(plan: Plan, default: Shares) -> Shares:
    return Shares(int(plan["threads"]), default.lanes, int(plan["turns"]))


def _shares(stages: Sequence[Stage], total: tirx.Expr, gpu: Capabilities) -> Shares:
    """What is taken without a tuning record."""
    lanes = LANES if all(_is_vector(stage) for stage in stages) else 1
    return Shares(group_threads(_parts(total, lanes), min(256, gpu.max_threads)), lanes)


def _parts(total: tirx.Expr, lanes: int) -> tirx.Expr:
    return sym.Analyzer().simplify(tirx.floordiv(total, i64(lanes)))


def are_one_map(stages: Sequence[Stage]) -> bool:
    """Whether stages are maps over the same space, none of which reads what another one writes."""
    first = stages[0]
    analyzer = sym.Analyzer()
    for stage in stages:
        if stage.is_opaque or stage.is_reduction or len(stage.extents) != len(first.extents):
            return False
        if not all(map(analyzer.can_prove_equal, stage.extents, first.extents)):
            return False
    written = [buffer for stage in stages for buffer in stage.writes]
    read = [load.source for stage in stages for load in stage.reads()]
    return len(stages) == 1 or not any(source.same_as(buffer) for source in read for buffer in written)


def map_launch(stages: Sequence[Stage], target: GpuTarget, chosen: Shares | None = None) -> tirx.Stmt:
    """One launch for maps over the same space; see `are_one_map`."""
    extents = list(stages[0].extents)
    total = volume(extents)
    if as_int(total) == 0:
        return tirx.Evaluate(tirx.const(0, "int32"))
    shares = chosen or _shares(stages, total, target.gpu)
    threads, lanes = shares.threads, shares.lanes
    work = _parts(total, lanes)
    groups = ceildiv(work, threads * shares.turns)

    def store(index: tirx.Expr) -> None:
        coordinates = split_index(index, extents)
        for stage in stages:
            place = dict(zip(stage.axes, coordinates, strict=True))
            for item in stage.stores:
                indices = [substitute(i, place) for i in item.indices]
                T.buffer_store(item.buffer, substitute(item.value, place), indices)

    def part(index: tirx.Expr) -> None:
        with when(below(index, work, groups * i64(threads * shares.turns))):
            if lanes == 1:
                store(index)
            else:
                with T.vectorized(i64(0), i64(lanes)) as lane:
                    store(index * i64(lanes) + lane)

    def body(group: tirx.Expr, thread: tirx.Expr) -> None:
        if shares.turns == 1:
            part(group * i64(threads) + thread)
            return
        with T.unroll(i64(0), i64(shares.turns)) as turn:
            part((group * i64(shares.turns) + turn) * i64(threads) + thread)

    return launch(groups, threads, body)


def _is_vector(stage: Stage) -> bool:
    """Whether four neighbours along the last axis can be one vector: whole groups, and all loads are of neighbours."""
    extent = as_int(stage.extents[-1]) if stage.extents else None
    if extent is None or extent % LANES or not stage.is_in_order:
        return False
    nodes = [node for store in stage.stores for node in _values(store.value)]
    types = [str(store.buffer.ty.dtype) for store in stage.stores]
    return set(types) <= set(_VECTOR_TYPES) and all(_is_vector_node(node, stage.axes[-1]) for node in nodes)


def _values(value: tirx.Expr) -> list[tirx.Expr]:
    """The nodes of an expression but those of indices."""
    if isinstance(value, ir.TensorLoad):
        return [value]
    return [value, *(node for child in children(value) for node in _values(child))]


def _is_vector_node(node: tirx.Expr, along: tirx.Var) -> bool:
    if str(node.ty.dtype) not in _VECTOR_TYPES:
        return False
    if isinstance(node, ir.TensorLoad):
        *outer, last = list(node.indices) or [i64(0)]
        if any(uses_var(index, along) for index in outer):
            return False
        return last.same_as(along) or not uses_var(last, along)
    if isinstance(node, ir.Call):
        return node.op.name in [f"tirx.{name}" for name in _VECTOR_CALLS]
    return isinstance(node, _VECTOR_NODES)


def _overwrites(func: tirx.PrimFunc, stages: Sequence[Stage]) -> tuple[int, ...]:
    """Parameters that the result of a single stage may overwrite: each is read only at the element that is written."""
    if len(stages) != 1 or len(stages[0].stores) != 1 or not stages[0].is_in_order:
        return ()
    return overwritable(func, stages[0])


def overwritable(func: tirx.PrimFunc, stage: Stage) -> tuple[int, ...]:
    """Parameters of the shape and type of a map's result that it reads nowhere but at the element that it stores."""
    (store,) = stage.stores
    analyzer = sym.Analyzer()
    found = []
    for number, param in enumerate(func.params):
        reads = [load for load in stage.reads() if load.source.same_as(param)]
        if not reads or param.same_as(store.buffer) or str(param.ty.dtype) != str(store.buffer.ty.dtype):
            continue
        mine, wanted = list(param.ty.shape), list(store.buffer.ty.shape)
        if len(mine) != len(wanted) or not all(map(analyzer.can_prove_equal, mine, wanted)):
            continue
        pairs = itertools.chain.from_iterable(zip(load.indices, stage.axes, strict=True) for load in reads)
        if all(index.same_as(axis) for index, axis in pairs):
            found.append(number)
    return tuple(found)
