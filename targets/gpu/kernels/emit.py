"""What the kernels written for GPUs share: how one is declared, and how rows along an axis are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import RULE_ATTR
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.launch import below, ceildiv, grid, group_threads, when
from greencc.targets.tir import as_int, i64, split_index, volume, with_own_symbols

GpuLowering: TypeAlias = Callable[[relax.BlockBuilder, relax.Call, GpuTarget, EmittedKernels], relax.Expr]
"""(builder, call, target, kernels made so far) -> what the call becomes."""

TensorForm: TypeAlias = tuple[Sequence[tirx.Expr], str]
"""Shape and element type."""


def form(ty: relax.Type) -> TensorForm:
    """Shape and element type of a tensor type."""
    return list(ty.shape.values), str(ty.dtype)


def emitted_kernel(
    name: str, inputs: Sequence[TensorForm], outputs: Sequence[TensorForm], body: Callable[..., None]
) -> tirx.PrimFunc:
    """A kernel that `body` emits: it is called with the buffers of the inputs and of the outputs.

    Symbolic sizes become variables of the kernel's own; `name` is what reports call its schedule rule.
    """
    shapes = with_own_symbols([list(shape) for shape, _ in (*inputs, *outputs)])
    types = [dtype for _, dtype in (*inputs, *outputs)]
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        names = [f"x{n}" for n in range(len(inputs))] + [f"y{n}" for n in range(len(outputs))]
        buffers = [T.arg(n, T.buffer(shape, t)) for n, shape, t in zip(names, shapes, types, strict=True)]
        T.func_attr({"tirx.noalias": True, RULE_ATTR: f"gpu-{name}"})
        # TVM looks into kernels of one operand for reshapes, and expects a block there.
        with T.sblock("root"):
            body(*buffers)
    return ib.get()


def for_each(total: tirx.Expr, target: GpuTarget, body: Callable[[tirx.Expr], None], most: int = 256) -> None:
    """Emit a launch in which each of `total` threads runs `body` with its number (int64)."""
    threads = group_threads(total, min(most, target.gpu.max_threads))
    groups = ceildiv(total, threads)
    with grid(groups, threads) as (group, thread):
        index = group * i64(threads) + thread
        with when(below(index, total, groups * i64(threads))):
            body(index)


def strided(lane: tirx.Expr, lanes: int, total: tirx.Expr, body: Callable[[tirx.Expr], None]) -> None:
    """Emit `body` for every lanes-th of `total` places, from `lane` on."""
    rounds = ceildiv(total, lanes)
    with T.serial(i64(0), rounds) as turn:
        index = turn * i64(lanes) + lane
        with when(below(index, total, rounds * i64(lanes))):
            body(index)


@dataclass(frozen=True)
class Lines:
    """The lines of a tensor along one axis: `count` of them with `size` elements each."""

    shape: Sequence[tirx.Expr]
    axis: int

    @property
    def size(self) -> tirx.Expr:
        """Elements of a line."""
        return self.shape[self.axis]

    @property
    def others(self) -> list[tirx.Expr]:
        """Sizes of the other axes."""
        return [*self.shape[: self.axis], *self.shape[self.axis + 1 :]]

    @property
    def count(self) -> tirx.Expr:
        """How many lines there are."""
        return volume(self.others)

    @property
    def is_innermost(self) -> bool:
        """Whether a line lies in memory as one piece."""
        return as_int(volume(list(self.shape[self.axis + 1 :]))) == 1

    def place(self, line: tirx.Expr, position: tirx.Expr) -> list[tirx.Expr]:
        """Coordinates of an element."""
        own = split_index(line, self.others)
        return [*own[: self.axis], position, *own[self.axis :]]


def register(dtype: str, value: tirx.Expr) -> tirx.Var:
    """A variable of a thread: a buffer of one element, holding `value`."""
    own = T.alloc_buffer([i64(1)], dtype, scope="local")
    T.buffer_store(own, value, [i64(0)])
    return own


def get(buffer: tirx.Var, at: tirx.Expr | int = 0) -> tirx.Expr:
    """An element of a one-dimensional buffer."""
    return tirx.BufferLoad(buffer, [i64(at) if isinstance(at, int) else at])


def put(buffer: tirx.Var, value: tirx.Expr, at: tirx.Expr | int = 0) -> None:
    """Store an element of a one-dimensional buffer."""
    T.buffer_store(buffer, value, [i64(at) if isinstance(at, int) else at])
