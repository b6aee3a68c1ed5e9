"""The choices of an attention kernel, and what they are by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvm import tirx

from greencc.ops import AttentionAttrs
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int

# Query rows of a task. Keys are laid out once per task: fewer rows repeat that more often, more make fewer tasks.
FEW_ROWS, MANY_ROWS = 128, 512
# Tasks for each thread that are enough to share out evenly.
TASKS_PER_THREAD = 4
# Bytes of a block of keys with its values, which stays in the second-level cache.
BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class AttentionPlan:
    """How an attention kernel is emitted.

    Attributes:
        across: what the lanes of a vector of scores are: keys (greencc.targets.cpu.schedules.attention_keys) or
            queries (attention_queries).
        lanes: elements of a vector.
        vectors: of keys, or of queries, whose scores a tile of registers holds.
        rows: of such a tile: queries where lanes are keys, and keys where they are queries.
        block: keys that a task takes at once. Fewer than that many are surely all, where their number is known.
        task_rows: queries of a task where lanes are keys. (Where they are queries, that many as its vectors hold.)
        parallel: whether threads share tasks.
    """

    across: Literal["keys", "queries"]
    lanes: int
    vectors: int
    rows: int
    block: int
    task_rows: int
    parallel: bool = True


def default_plan(
    attrs: AttentionAttrs, target: CpuTarget, batch: tirx.Expr, rows: tirx.Expr, keys: tirx.Expr
) -> AttentionPlan:
    """What is right for most: vectors of keys.

    Args:
        attrs: the operator's attributes.
        target: what the code is for.
        batch, rows, keys: sequences, queries of each (or of the longest), and keys.
    """
    lanes = target.lanes()
    # Query rows that go through the softmax together, and vectors of keys: their products fill the registers.
    tile_rows, choices = (8, (3, 2, 1)) if target.vector_registers >= 32 else (4, (2, 1))
    count = as_int(keys)
    needed = 2 if count is None else -(-count // lanes)
    # Keys that fill the last panel up are wasted work; between equals the first choice is the fastest.
    vectors = min(choices, key=lambda v: (-(-needed // v) * v if v <= needed else needed + v, choices.index(v)))
    block = max(BLOCK_BYTES // (4 * (attrs.head_dim + attrs.value_dim)), vectors * lanes)
    tasks = (as_int(batch) or 1) * attrs.heads
    task_rows = MANY_ROWS if tasks >= TASKS_PER_THREAD * target.threads else FEW_ROWS
    return AttentionPlan("keys", lanes, vectors, tile_rows, block, whole_tiles(task_rows, rows, tile_rows))


def whole_tiles(task_rows: int, rows: tirx.Expr, tile_rows: int) -> int:
    """Queries of a task where there may be fewer than `task_rows` of them."""
    known = as_int(rows)
    return task_rows if known is None else min(task_rows, -(-known // tile_rows) * tile_rows)
