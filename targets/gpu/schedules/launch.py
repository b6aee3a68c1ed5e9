"""Emitting launches: a one-dimensional grid of workgroups, and what their threads do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm import s_tir, sym, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.tir import as_int, i64

Body = Callable[[tirx.Expr, tirx.Expr], None]


def launch(groups: tirx.Expr, threads: int, body: Body) -> tirx.Stmt:
    """A launch of `groups` workgroups (int64, perhaps symbolic) of `threads` threads.

    `body` gets the number of the workgroup and that of the thread in it, both int64, and emits statements. The grid has
    one dimension only, so that a device's limit on it can be met by several launches.
    """
    with IRBuilder() as ib, grid(groups, threads) as (group, thread):
        body(group, thread)
    return ib.get()


@contextmanager
def grid(groups: tirx.Expr, threads: int) -> Iterator[tuple[tirx.Expr, tirx.Expr]]:
    """The frame of what a launch's threads do: the number of the workgroup, and that of the thread in it.

    The host launches no grid without workgroups: CUDA refuses one.
    """
    with (
        when(None if as_int(groups) else groups > i64(0)),
        T.thread_binding(i64(0), groups, thread="blockIdx.x") as group,
        T.thread_binding(i64(0), i64(threads), thread="threadIdx.x") as thread,
    ):
        yield group, thread


def one_thread(block: s_tir.SBlock) -> tirx.Stmt:
    """A launch of a single thread that runs a block of statements at every point of its axes."""

    def body(_group: tirx.Expr, _thread: tirx.Expr) -> None:
        with ExitStack() as loops:
            places = [loops.enter_context(T.serial(i64(0), axis.dom.extent)) for axis in block.iter_vars]
            T.add_to_parent(s_tir.SBlockRealize(places, tirx.const(True, "bool"), block))

    return launch(i64(1), 1, body)


@contextmanager
def when(condition: tirx.Expr | None) -> Iterator[None]:
    """The frame of statements under a condition; None holds always."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def below(index: tirx.Expr, limit: tirx.Expr, most: tirx.Expr) -> tirx.Expr | None:
    """The condition `index < limit` for an index that is less than `most`, or None where it always holds."""
    return None if sym.Analyzer().can_prove(most <= limit) else index < limit


def barrier() -> None:
    """Emit a barrier: what any thread of the workgroup wrote into shared memory before it, all see after it."""
    T.evaluate(T.tvm_storage_sync("shared"))


def ceildiv(value: tirx.Expr, divisor: int) -> tirx.Expr:
    """The quotient value / divisor, rounded up."""
    return sym.Analyzer().simplify(tirx.floordiv(value + i64(divisor - 1), i64(divisor)))


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def group_threads(work: tirx.Expr, most: int) -> int:
    """Threads of a workgroup for `work` threads in all: no more than `most`, and no more than there is work for."""
    known = as_int(work)
    return most if known is None else min(most, max(32, power_of_two(known)))


def in_sequence(stmts: Sequence[tirx.Stmt]) -> tirx.Stmt:
    """One statement for several."""
    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(list(stmts))
