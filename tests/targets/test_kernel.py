"""Inlining blocks of a kernel."""

from __future__ import annotations

import pytest
import tvm
from tvm import s_tir, te, tirx

from greencc.targets.kernel import MAX_NODES, InlineError, blocks, inline_blocks
from greencc.targets.tir import loads, written_out


def grown(x: te.Tensor, n: int) -> te.Tensor:
    return te.compute((8,), lambda i: x[i] * (x[i] + 1.0), name=f"y{n}")


def chain(length: int) -> s_tir.Schedule:
    """Maps each of which reads the one before twice."""
    x = first = te.placeholder((8,), "float32", name="x")
    for n in range(length):
        x = grown(x, n)
    return s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([first, x])}))


def test_what_stays_small_is_inlined() -> None:
    schedule = chain(4)
    inline_blocks(schedule, blocks(schedule)[:-1])
    (last,) = blocks(schedule)
    value = schedule.get(last).body.value
    # A product, a sum and its constant for each of 1 + 2 + 4 + 8 maps, and 16 reads at an index each.
    assert written_out([value], {}) == 3 * 15 + 2 * 16
    assert {load.source.name for load in loads(value)} == {"x"}


def test_what_doubles_with_every_map_is_not() -> None:
    schedule = chain(40)
    before = schedule.mod
    with pytest.raises(InlineError, match="too large"):
        inline_blocks(schedule, blocks(schedule)[:-1])
    tvm.ir.assert_structural_equal(schedule.mod, before)
    assert len(blocks(schedule)) == 40


def test_shared_nodes_count_wherever_they_are_read() -> None:
    x = tirx.Var("x", "float32")
    value = x
    for _ in range(60):
        value = value + value
    assert written_out([value], {}) == 2**61 - 1 > MAX_NODES
