"""The rules for convolutions and for reductions over windows; see the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, tirx

from greencc.targets.base import RULE_ATTR, Declined, Layout, Scheduled
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.arithmetic import arithmetic_of
from greencc.targets.gpu.schedules.convolution.form import Contraction, match_contraction, read_reduction
from greencc.targets.gpu.schedules.convolution.gemm import GemmEmitter
from greencc.targets.gpu.schedules.convolution.plan import choose_plan
from greencc.targets.gpu.schedules.convolution.space import plan_space, read_plan
from greencc.targets.gpu.schedules.convolution.window import THREADS, window_kernel
from greencc.targets.gpu.schedules.convolution.words import in_words
from greencc.targets.kernel import DATA_PARALLEL, Tail, overwritable, parameter_index
from greencc.targets.packing import ChannelBlocks, JoinedBlocks
from greencc.targets.tir import as_int, loads, uses_var
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# Filters that share data, from which on a matrix product pays.
LEAST_FILTERS = 4
# Up to so many filters that share data, a thread for each output may be as fast.
MOST_FILTERS = 8
# Elements of a window that one thread goes through.
MAX_WINDOW = 4096


@dataclass(frozen=True)
class ConvolutionRule:
    """Schedules convolutions whose filters share data."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-convolution"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = self._form(func, constants)
        return form if isinstance(form, Declined) else plan_space(form.conv, self.target.gpu)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a convolution with its tail, or decline."""
        form = self._form(func, constants)
        if isinstance(form, Declined):
            return form
        conv, gpu = form.conv, self.target.gpu
        problem = None if plan is None else plan_space(conv, gpu).problem(plan)
        if problem is not None:
            return Declined(problem)
        tiles = choose_plan(conv, gpu) if plan is None else read_plan(plan)
        arithmetic = arithmetic_of(conv.words, gpu)
        if form.weight is None:
            emitted = GemmEmitter(form.func, conv, tiles, arithmetic, None).emit()
            return _scheduled(self.name, form.func, conv.tail, emitted, {})
        layout = (JoinedBlocks if conv.words else ChannelBlocks)(tiles.rows, conv.groups)
        blocks = conv.groups * -(-(conv.filters // conv.groups) // tiles.rows)
        emitted = GemmEmitter(form.func, conv, tiles, arithmetic, [blocks, *conv.extents, tiles.rows]).emit()
        return _scheduled(self.name, form.func, conv.tail, emitted, {form.weight: layout})

    def _form(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Form | Declined:
        found = read_reduction(func)
        if isinstance(found, str):
            return Declined(found)
        inlined, tail = found
        conv = match_contraction(tail)
        if isinstance(conv, str):
            return Declined(conv)
        if conv.filters // conv.groups < LEAST_FILTERS:
            return Declined("too few filters share data")
        index = parameter_index(inlined, conv.weight.source)
        if index is None or index not in constants or not conv.is_plain_weight:
            return Form(inlined, conv, None)
        return Form(inlined, in_words(conv) or conv, index)


@dataclass(frozen=True)
class Form:
    """A convolution that the rule takes.

    Attributes:
        func: the kernel with what precedes the reduction inlined into it.
        conv: what it computes.
        weight: index of the parameter that is packed, or None.
    """

    func: tirx.PrimFunc
    conv: Contraction
    weight: int | None


@dataclass(frozen=True)
class WindowRule:
    """Schedules reductions over small windows: pooling, depthwise convolutions, those of few filters a group."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-window"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        found = _window(func)
        if isinstance(found, Declined):
            return found
        conv = match_contraction(found[1])
        if not isinstance(conv, str) and conv.filters // conv.groups > MOST_FILTERS:
            return Declined("many filters share data")
        threads = tuple(n for n in (32, 64, 128, 256, 512) if n <= self.target.gpu.max_threads)
        return Space((Knob("threads", nearby(threads, THREADS)),), {"threads": THREADS})

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a reduction over a window with its tail, or decline."""
        found = _window(func)
        if isinstance(found, Declined):
            return found
        threads = THREADS
        if plan is not None:
            space = self.space(func, constants)
            problem = space.reason if isinstance(space, Declined) else space.problem(plan)
            if problem is not None:
                return Declined(problem)
            threads = int(plan["threads"])
        inlined, tail = found
        return _scheduled(self.name, inlined, tail, window_kernel(inlined, tail, threads), {})


def _window(func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, Tail] | Declined:
    """A kernel that reduces over windows and its tail, see `read_reduction`, or why it doesn't."""
    found = read_reduction(func)
    if isinstance(found, str):
        return Declined(found)
    reason = _check_window(found[1])
    return found if reason is None else Declined(reason)


def _scheduled(
    name: str, func: tirx.PrimFunc, tail: Tail, emitted: tirx.PrimFunc, layouts: dict[int, Layout]
) -> Scheduled:
    """A kernel that reads what only its tail reads right before it stores the result there."""
    read = [parameter_index(func, load.source) for load in loads(tail.producer.body.value)]
    overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in read]
    return Scheduled(emitted.with_attr(RULE_ATTR, name), name, layouts, tuple(overwrites))


def _check_window(tail: Tail) -> str | None:
    """Why a reduction is none over a small window, or None: windows lie at places that depend on the output's."""
    block = tail.producer
    kept = [axis for axis in block.iter_vars if int(axis.iter_type) == DATA_PARALLEL]
    reduced = [axis for axis in block.iter_vars if int(axis.iter_type) != DATA_PARALLEL]
    size = 1
    for axis in reduced:
        extent = as_int(axis.dom.extent)
        if extent is None:
            return "a window of unknown size"
        size *= extent
    if size > MAX_WINDOW:
        return "a large window"
    if len(kept) != len(tail.output.ty.shape):
        return "the result isn't written in the order of its axes"
    if not all(index.same_as(axis.var) for index, axis in zip(block.body.indices, kept, strict=True)):
        return "the result isn't written in the order of its axes"

    def mixes(index: tirx.Expr) -> bool:
        return any(uses_var(index, a.var) for a in kept) and any(uses_var(index, a.var) for a in reduced)

    read: list[ir.TensorLoad] = list(loads(block.body.value))
    return None if any(mixes(index) for load in read for index in load.indices) else "no windows that move"
