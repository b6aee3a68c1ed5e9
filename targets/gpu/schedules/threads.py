"""What kernels of products are made of: launches with coordinates, accesses by distance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.tir import as_int, i64, ramp, split_index, volume


@contextmanager
def launch(extents: Sequence[tirx.Expr], threads: int) -> Iterator[tuple[list[tirx.Expr], tirx.Expr]]:
    """Emit a launch of workgroups in a row-major space around what is emitted inside.

    Gives the group's coordinates and the thread's number, int64: the index arithmetic of kernels is.
    """
    groups = volume(list(extents))
    with T.launch_thread("blockIdx.x", groups) as group, T.launch_thread("threadIdx.x", threads) as thread:
        yield _coordinates(_wide(group), extents), _wide(thread)


def _coordinates(index: tirx.Expr, extents: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """Coordinates of a group, each computed once."""
    found = split_index(index, extents)
    return [T.bind(place) if as_int(extent) != 1 else place for place, extent in zip(found, extents, strict=True)]


def shared(elements: int, dtype: str = "float32") -> tirx.Var:
    """Emit the declaration of memory that a workgroup shares."""
    return T.alloc_buffer((elements,), dtype, scope="shared")


def local(elements: int, dtype: str = "float32") -> tirx.Var:
    """Emit the declaration of a thread's own memory: registers, as long as its indices are constants."""
    return T.alloc_buffer((elements,), dtype, scope="local")


def at(buffer: tirx.Var, offset: tirx.Expr | int, lanes: int = 1) -> tirx.Expr:
    """Elements of a row-major tensor, by their distance from its first one."""
    return tirx.BufferLoad(buffer, place(buffer, offset, lanes))


def put(buffer: tirx.Var, value: tirx.Expr, offset: tirx.Expr | int, lanes: int = 1) -> None:
    """Emit a store to a row-major tensor, by the distance from its first element."""
    T.buffer_store(buffer, value, place(buffer, offset, lanes))


def place(buffer: tirx.Var, offset: tirx.Expr | int, lanes: int = 1) -> list[tirx.Expr]:
    """Indices of elements by their distance from a tensor's first one: the last index may exceed its size."""
    first = i64(offset) if isinstance(offset, int) else offset
    return [*(i64(0) for _ in list(buffer.ty.shape)[:-1]), ramp(first, lanes)]


def divided(index: tirx.Expr, by: int) -> tuple[tirx.Expr, tirx.Expr]:
    """Quotient and remainder."""
    if by == 1:
        return index, i64(0)
    return tirx.floordiv(index, i64(by)), tirx.floormod(index, i64(by))


def is_multiple(size: tirx.Expr, of: int) -> bool:
    """Whether a size is known to be a multiple of a number."""
    value = as_int(size)
    return value is not None and value % of == 0


def _wide(var: tirx.Var) -> tirx.Expr:
    return var if str(var.ty.dtype) == "int64" else tirx.Cast("int64", var)
