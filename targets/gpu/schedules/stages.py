"""Reading a kernel: its blocks as loops over stores, with what can be computed in place put in its place.

A block becomes a `Stage`. A stage that only maps elements to elements, and whose result nothing but other stages read,
is no stage of its own: the stages that read it compute it. So a softmax is read as

    peak[i]   = max over k of x[i, k]
    total[i]  = sum over k of exp(x[i, k] - peak[i])
    out[i, j] = exp(x[i, j] - peak[i]) / total[i]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import tvm
from tvm import ir, s_tir, sym, tirx

from greencc.targets.tir import as_int, i64, loads, rewrite, substitute, volume, walk

_DATA_PARALLEL, _REDUCE = 0, 2
# An expression with more nodes than this is stored rather than computed wherever it is read.
_LARGE = 400
# What has more nodes than this is stored where it would be computed several times over for each of its elements.
_CHEAP = 40
_TIMES = 8


@dataclass(frozen=True)
class Store:
    """`buffer[indices] = value`; for a reduction, `value` reads the elements that it updates, first `init`."""

    buffer: tirx.Var
    indices: tuple[tirx.Expr, ...]
    value: tirx.Expr
    init: tirx.Expr | None = None


@dataclass(frozen=True)
class Stage:
    """A block of a kernel.

    Attributes:
        axes, extents: the axes that the result has, in the block's order, and their sizes (int64, perhaps symbolic).
        reduced, reduced_extents: the axes that are reduced over; none for a map.
        stores: what is stored at each point; none for a block of statements that only its author can read.
        block: the block itself.
    """

    axes: tuple[tirx.Var, ...]
    extents: tuple[tirx.Expr, ...]
    reduced: tuple[tirx.Var, ...]
    reduced_extents: tuple[tirx.Expr, ...]
    stores: tuple[Store, ...]
    block: s_tir.SBlock

    @property
    def is_opaque(self) -> bool:
        """Whether the block has statements other than stores."""
        return not self.stores

    @property
    def is_reduction(self) -> bool:
        """Whether it reduces over some axis."""
        return bool(self.reduced)

    @property
    def writes(self) -> list[tirx.Var]:
        """The buffers that are stored to."""
        return [store.buffer for store in self.stores]

    @property
    def is_in_order(self) -> bool:
        """Whether every store is at the stage's own axes, in order."""
        return all(
            len(store.indices) == len(self.axes)
            and all(index.same_as(axis) for index, axis in zip(store.indices, self.axes, strict=True))
            for store in self.stores
        )

    def reads(self) -> Iterator[ir.TensorLoad]:
        """Every element that is read, those that a reduction updates included."""
        for store in self.stores:
            yield from loads(store.value)
            for index in store.indices:
                yield from loads(index)


def read_stages(func: tirx.PrimFunc) -> list[Stage] | None:
    """The blocks of a kernel in order, or None where it isn't made of blocks."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        found = schedule.get_child_blocks(schedule.get_sblock("root"))
    except s_tir.ScheduleError:
        return None
    return [_stage(schedule.get(block), len(schedule.get_loops(block))) for block in found]


def inlined(stages: Sequence[Stage], outputs: Sequence[tirx.Var]) -> list[Stage]:
    """The stages that are left when maps are computed by those that read them; `outputs` are the parameters.

    A map stays where it is read by statements that can't be rewritten, where it would become a large expression, and
    where a costly one would be computed many times for each of its elements.
    """
    pending, kept = list(stages), list[Stage]()
    while pending:
        stage, *pending = pending
        if _can_move(stage, pending, outputs):
            readers = [other for other in pending if reads(other, stage.stores[0].buffer)]
            if readers and all(_is_worthwhile(stage, other) for other in readers):
                pending = [_with_definition(other, stage) if other in readers else other for other in pending]
                if not any(stage.stores[0].buffer.same_as(param) for param in outputs):
                    continue
        kept.append(stage)
    return kept


def updates_in_place(func: tirx.PrimFunc, stages: Sequence[Stage]) -> bool:
    """Whether a parameter is read before it is written: then the order of what is read and written matters."""
    written: list[tirx.Var] = []
    for stage in stages:
        if stage.is_opaque:
            continue
        for load in stage.reads():
            later = [buffer for other in stages for buffer in other.writes if buffer.same_as(load.source)]
            own = stage.is_reduction and any(load.source.same_as(buffer) for buffer in stage.writes)
            if later and not own and not any(load.source.same_as(buffer) for buffer in written):
                return True
        written += stage.writes
    return False


def allocated(func: tirx.PrimFunc) -> list[tirx.Var]:
    """The buffers between the blocks of a kernel."""
    body = func.body
    if isinstance(body, s_tir.SBlockRealize):
        return list(body.block.alloc_buffers)
    return []


def _stage(block: s_tir.SBlock, loops: int) -> Stage:
    kinds = [int(axis.iter_type) for axis in block.iter_vars]
    # The block of a result of rank 0 has an axis without a loop.
    absent = {} if loops else {axis.var: i64(0) for axis in block.iter_vars if as_int(axis.dom.extent) == 1}
    is_plain = loops == len(kinds) - len(absent) and set(kinds) <= {_DATA_PARALLEL, _REDUCE}
    stores = _stores(block, absent) if is_plain else None
    axes = [(axis, kind) for axis, kind in zip(block.iter_vars, kinds, strict=True) if axis.var not in absent]
    kept = [axis for axis, kind in axes if kind == _DATA_PARALLEL]
    reduced = [axis for axis, kind in axes if kind == _REDUCE]
    stage = Stage(
        tuple(axis.var for axis in kept),
        tuple(axis.dom.extent for axis in kept),
        tuple(axis.var for axis in reduced),
        tuple(axis.dom.extent for axis in reduced),
        tuple(stores or ()),
        block,
    )
    if stage.is_reduction and any(store.init is None for store in stage.stores):
        return replace(stage, stores=())
    return _simplified(stage)


def _stores(block: s_tir.SBlock, known: dict[tirx.Var, tirx.Expr]) -> list[Store] | None:
    body = _statements(block.body)
    init = [] if block.init is None else _statements(block.init)
    names = dict(known)
    found = []
    for stmt in body:
        if isinstance(stmt, tirx.Bind):
            names[stmt.var] = substitute(stmt.value, names)
        elif isinstance(stmt, tirx.BufferStore) and getattr(stmt, "predicate", None) is None:
            indices = tuple(substitute(index, names) for index in stmt.indices)
            found.append(Store(stmt.buffer, indices, substitute(stmt.value, names)))
        else:
            return None
    if not init:
        return found
    if not all(isinstance(stmt, tirx.BufferStore) for stmt in init) or len(init) != len(found):
        return None
    first = {stmt.buffer: stmt.value for stmt in init}
    if any(store.buffer not in first for store in found):
        return None
    return [replace(store, init=first[store.buffer]) for store in found]


def _statements(stmt: tirx.Stmt) -> list[tirx.Stmt]:
    return list(stmt.seq) if isinstance(stmt, tirx.SeqStmt) else [stmt]


def _simplified(stage: Stage) -> Stage:
    """The indices of what is read, simplified: `i % 4` is `i` where i has four values."""
    analyzer = sym.Analyzer()
    both = zip((*stage.axes, *stage.reduced), (*stage.extents, *stage.reduced_extents), strict=True)
    for axis, extent in both:
        analyzer.bind(axis, ir.Range.from_min_extent(i64(0), extent))

    def shorter(node: tirx.Expr) -> tirx.Expr | None:
        if not isinstance(node, ir.TensorLoad) or not node.indices:
            return None
        if any(next(loads(index), None) is not None for index in node.indices):
            return None
        indices = [analyzer.simplify(index) for index in node.indices]
        return tirx.BufferLoad(node.source, indices)

    stores = tuple(replace(store, value=rewrite(store.value, shorter)) for store in stage.stores)
    return replace(stage, stores=stores)


def _can_move(stage: Stage, later: Sequence[Stage], outputs: Sequence[tirx.Var]) -> bool:
    """Whether a stage is a map of one buffer that nothing else writes and that only readable stages read."""
    if stage.is_opaque or stage.is_reduction or len(stage.stores) != 1 or not stage.is_in_order:
        return False
    own = stage.stores[0].buffer
    sources = [load.source for load in stage.reads()]
    for other in later:
        if other.is_opaque and _mentions(other.block, own):
            return False
        # What it is made from must not change between here and where it is read.
        if any(buffer.same_as(changed) for buffer in (own, *sources) for changed in other.writes):
            return False
        if other.is_opaque and any(_mentions(other.block, source) for source in sources):
            return False
    return True


def _is_worthwhile(stage: Stage, reader: Stage) -> bool:
    nodes = size_of(stage.stores[0].value)
    uses = sum(load.source.same_as(stage.stores[0].buffer) for load in reader.reads())
    if size_of(*(store.value for store in reader.stores)) + uses * nodes > _LARGE:
        return False
    if nodes <= _CHEAP:
        return True
    mine = as_int(volume(list(stage.extents)))
    theirs = as_int(volume([*reader.extents, *reader.reduced_extents]))
    if mine is None or theirs is None:
        return len(reader.extents) + len(reader.reduced_extents) <= len(stage.extents)
    return bool(theirs * uses <= mine * _TIMES)


def _with_definition(reader: Stage, stage: Stage) -> Stage:
    definition = stage.stores[0]

    def expand(node: tirx.Expr) -> tirx.Expr | None:
        if not isinstance(node, ir.TensorLoad) or not node.source.same_as(definition.buffer):
            return None
        indices = [rewrite(index, expand) for index in node.indices]
        return substitute(definition.value, dict(zip(stage.axes, indices, strict=True)))

    stores = tuple(
        replace(
            store,
            value=rewrite(store.value, expand),
            indices=tuple(rewrite(index, expand) for index in store.indices),
        )
        for store in reader.stores
    )
    return _simplified(replace(reader, stores=stores))


def _mentions(block: s_tir.SBlock, buffer: tirx.Var) -> bool:
    """Whether statements of a block read or write a buffer."""
    return bool(any(buffer.same_as(var) for var in tirx.analysis.undefined_vars(block.body)))


def reads_or_writes(stage: Stage, buffer: tirx.Var) -> bool:
    """Whether a stage reads or writes a buffer."""
    if stage.is_opaque:
        return _mentions(stage.block, buffer)
    return any(buffer.same_as(other) for other in stage.writes) or reads(stage, buffer)


def reads(stage: Stage, buffer: tirx.Var) -> bool:
    """Whether a stage's stores read a buffer."""
    return any(load.source.same_as(buffer) for load in stage.reads())


def size_of(*values: tirx.Expr) -> int:
    """How many nodes expressions have when they are written out; no more than a few over what counts as large."""
    nodes = itertools.chain.from_iterable(walk(value) for value in values)
    return sum(1 for _ in itertools.islice(nodes, _LARGE + 1))
