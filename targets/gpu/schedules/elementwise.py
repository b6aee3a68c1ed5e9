"""Everything without a reduction: one launch, each thread for an element or for four neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, sym, tirx
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.launch import below, ceildiv, group_threads, launch, when
from greencc.targets.gpu.schedules.stages import Stage, inlined, read_stages, updates_in_place
from greencc.targets.tir import as_int, children, i64, split_index, substitute, uses_var, volume

LANES = 4
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
        """Name in reports."""
        return "gpu-elementwise"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a kernel whose blocks are all maps that go into one pass, or decline."""
        stages = read_stages(func)
        if not stages:
            return Declined("it has no root block with plain blocks under it")
        if any(stage.is_opaque for stage in stages):
            return Declined("a block is no plain store")
        if any(stage.is_reduction for stage in stages):
            return Declined("it reduces")
        in_place = updates_in_place(func, stages)
        left = stages if in_place else inlined(stages, func.params)
        if not are_one_map(left):
            return Declined("its outputs have different shapes")
        overwrites = () if in_place else _overwrites(func, left)
        return Scheduled(func.with_body(map_launch(left, self.target)), self.name, overwrites=overwrites)


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


def map_launch(stages: Sequence[Stage], target: GpuTarget) -> tirx.Stmt:
    """One launch for maps over the same space; see `are_one_map`."""
    extents = list(stages[0].extents)
    total = volume(extents)
    if as_int(total) == 0:
        return tirx.Evaluate(tirx.const(0, "int32"))
    lanes = LANES if all(_is_vector(stage) for stage in stages) else 1
    work = sym.Analyzer().simplify(tirx.floordiv(total, i64(lanes)))
    threads = group_threads(work, min(256, target.gpu.max_threads))
    groups = ceildiv(work, threads)

    def store(index: tirx.Expr) -> None:
        coordinates = split_index(index, extents)
        for stage in stages:
            place = dict(zip(stage.axes, coordinates, strict=True))
            for item in stage.stores:
                indices = [substitute(i, place) for i in item.indices]
                T.buffer_store(item.buffer, substitute(item.value, place), indices)

    def body(group: tirx.Expr, thread: tirx.Expr) -> None:
        index = group * i64(threads) + thread
        with when(below(index, work, groups * i64(threads))):
            if lanes == 1:
                store(index)
            else:
                with T.vectorized(i64(0), i64(lanes)) as lane:
                    store(index * i64(lanes) + lane)

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
