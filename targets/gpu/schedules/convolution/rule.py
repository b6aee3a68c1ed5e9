"""The rules for convolutions and for reductions over windows; see the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import ir, tirx

from greencc.targets.base import Declined, Layout, Scheduled
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.arithmetic import arithmetic_of
from greencc.targets.gpu.schedules.convolution.form import match_contraction, read_reduction
from greencc.targets.gpu.schedules.convolution.gemm import GemmEmitter
from greencc.targets.gpu.schedules.convolution.plan import choose_plan
from greencc.targets.gpu.schedules.convolution.window import window_kernel
from greencc.targets.gpu.schedules.convolution.words import in_words
from greencc.targets.kernel import DATA_PARALLEL, Tail, overwritable, parameter_index
from greencc.targets.packing import ChannelBlocks, JoinedBlocks
from greencc.targets.tir import as_int, loads, uses_var

# Filters that share data, from which on a matrix product pays.
LEAST_FILTERS = 4
# Elements of a window that one thread goes through.
MAX_WINDOW = 4096


@dataclass(frozen=True)
class ConvolutionRule:
    """Schedules convolutions whose filters share data."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "gpu-convolution"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a convolution with its tail, or decline."""
        found = read_reduction(func)
        if isinstance(found, str):
            return Declined(found)
        inlined, tail = found
        conv = match_contraction(tail)
        if isinstance(conv, str):
            return Declined(conv)
        if conv.filters // conv.groups < LEAST_FILTERS:
            return Declined("too few filters share data")
        gpu = self.target.gpu
        index = parameter_index(inlined, conv.weight.source)
        packs = index is not None and index in constants and conv.is_plain_weight
        conv = (in_words(conv) if packs else None) or conv
        plan, arithmetic = choose_plan(conv, gpu), arithmetic_of(conv.words, gpu)
        if index is None or not packs:
            emitted = GemmEmitter(inlined, conv, plan, arithmetic, None).emit()
            return _scheduled(self.name, inlined, tail, emitted, {})
        layout = (JoinedBlocks if conv.words else ChannelBlocks)(plan.rows, conv.groups)
        blocks = conv.groups * -(-(conv.filters // conv.groups) // plan.rows)
        emitted = GemmEmitter(inlined, conv, plan, arithmetic, [blocks, *conv.extents, plan.rows]).emit()
        return _scheduled(self.name, inlined, tail, emitted, {index: layout})


@dataclass(frozen=True)
class WindowRule:
    """Schedules reductions over small windows: pooling, depthwise convolutions, those of few filters a group."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "gpu-window"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a reduction over a window with its tail, or decline."""
        found = read_reduction(func)
        if isinstance(found, str):
            return Declined(found)
        inlined, tail = found
        reason = _check_window(tail)
        if reason is not None:
            return Declined(reason)
        return _scheduled(self.name, inlined, tail, window_kernel(inlined, tail), {})


def _scheduled(
    name: str, func: tirx.PrimFunc, tail: Tail, emitted: tirx.PrimFunc, layouts: dict[int, Layout]
) -> Scheduled:
    """A kernel that reads what only its tail reads right before it stores the result there."""
    read = [parameter_index(func, load.source) for load in loads(tail.producer.body.value)]
    overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in read]
    return Scheduled(emitted.with_attr("greencc.rule", name), name, layouts, tuple(overwrites))


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
