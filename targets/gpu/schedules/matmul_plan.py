"""How large the tiles of a product are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.products import Product
from greencc.targets.tir import as_int

# Columns of shared memory that keep rows apart, so that threads that write a column don't wait for each other; a
# multiple of the longest vector.
PADDING = 4
# What a symbolic size is taken for: the tokens of some sequences.
_USUAL_SIZE = 256


@dataclass(frozen=True)
class TilePlan:
    """How large tiles are.

    Attributes:
        rows, columns: of a workgroup's tile.
        depth: of a step, in elements, or words of bytes.
        thread_rows, thread_columns: of a thread's part of the tile; 1, 2 or multiples of 4.
        slices: parts that a step is made of, each of `depth`; each is multiplied by threads of its own.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    slices: int = 1

    @property
    def slice_threads(self) -> int:
        """Threads that multiply a slice."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    @property
    def threads(self) -> int:
        """Threads of a workgroup."""
        return self.slice_threads * self.slices

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a workgroup: elements and words are of 4 bytes."""
        tiles = self.slices * self.depth * (self.rows + self.columns + 2 * PADDING)
        return 4 * (tiles + (self.slices - 1) * self.slice_threads * self.thread_columns)


# From the most work for what is read to the least. A thread that multiplies 8 rows with 8 columns reads 16 elements of
# shared memory for 64 multiply-adds; with 4 and 4 they are 8 for 16.
_TILES = (
    TilePlan(128, 128, 16, 8, 8),
    TilePlan(128, 64, 16, 8, 8),
    TilePlan(64, 64, 16, 8, 8),
    TilePlan(32, 64, 16, 8, 8),
    TilePlan(32, 32, 16, 4, 4),
)
_SMALLEST = TilePlan(16, 16, 16, 4, 4)
# A slice has at least so many steps; more slices than this are added up for longer than they save.
_SLICE_STEPS = 4
_MOST_SLICES = 4


def plan_tiles(product: Product, gpu: Capabilities, most_rows: int | None = None) -> TilePlan:
    """The largest tiles of which there are enough to keep a device busy, or the smallest, the depth in slices then.

    Tiles have no more rows than the product, or 32; `most_rows` is what is known of a symbolic number of them.
    """
    rows = as_int(product.rows.size)
    most = most_rows if rows is None else rows
    fitting = [
        plan
        for plan in _TILES
        if plan.threads <= gpu.max_threads and plan.shared_bytes <= gpu.shared_bytes
        and (most is None or plan.rows <= max(most, 32))
    ]  # fmt: skip
    enough = [plan for plan in fitting if _count(product, plan, most) >= gpu.cores]
    if enough:
        return enough[0]
    plan = fitting[-1] if fitting else _SMALLEST
    steps = _usual(product.depth.size) // (plan.depth * (4 if product.is_int8 else 1))
    while plan.slices < _MOST_SLICES and steps >= 2 * plan.slices * _SLICE_STEPS:
        more = replace(plan, slices=2 * plan.slices)
        is_enough = _count(product, plan, most) * plan.slices >= gpu.cores
        if is_enough or more.threads > gpu.max_threads or more.shared_bytes > gpu.shared_bytes:
            break
        plan = more
    return plan


def _count(product: Product, plan: TilePlan, rows: int | None) -> int:
    """Tiles of the result."""
    batch, columns = _usual(product.batch.size), _usual(product.columns.size)
    return batch * -(-(rows or _USUAL_SIZE) // plan.rows) * -(-columns // plan.columns)


def _usual(size: tirx.Expr) -> int:
    known = as_int(size)
    return _USUAL_SIZE if known is None else known
