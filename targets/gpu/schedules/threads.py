"""What emitted GPU kernels are made of: launches, barriers, memory of a thread and of a workgroup, flat accesses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.tir import as_int, i64, ramp


@contextmanager
def launch(groups: tirx.Expr, threads: int) -> Iterator[tuple[tirx.Expr, tirx.Expr]]:
    """Emit a launch of `groups` workgroups around what is emitted inside; gives the group's and the thread's number.

    Both are int64: the index arithmetic of kernels is.
    """
    with T.launch_thread("blockIdx.x", groups) as group, T.launch_thread("threadIdx.x", threads) as thread:
        yield _wide(group), _wide(thread)


def barrier() -> None:
    """Emit a barrier: what the threads of a workgroup wrote to shared memory before is read by all behind it.

    TVM inserts barriers itself where it finds none, but not inside a condition, and kernels for several numbers of
    rows stand in one.
    """
    T.evaluate(T.tvm_storage_sync("shared"))


def shared(elements: int, dtype: str) -> tirx.Var:
    """Emit the declaration of memory that a workgroup shares."""
    return T.alloc_buffer((elements,), dtype, scope="shared")


def local(elements: int, dtype: str) -> tirx.Var:
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
