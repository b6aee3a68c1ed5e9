"""What can be chosen of a product's kernels: how tiles are cut, and how threads share a product of few rows out.

For a number of rows that is known at run time only, tiles for few rows and for many are chosen apart, by knobs whose
names begin with `few_` and `many_`; the kernel of a single row stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.gemv import GemvPlan
from greencc.targets.gpu.schedules.matmul_plan import TilePlan
from greencc.targets.gpu.schedules.products import Product
from greencc.targets.tir import as_int
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# A smaller workgroup leaves most of a GPU's vector units idle.
LEAST_THREADS = 16
# Sums of a thread: their products are written out one behind the other.
MOST_SUMS = 256
# Without an instruction for it, a dot product of words of four bytes is as long as so many multiply-adds.
WORD_WORK = 4
# Elements of the next step that a thread holds in registers.
_MOST_HELD = 320
# What symbolic sizes are taken for, where it is about few rows, many rows, and all else.
_FEW, _MANY = 16, 128
# Tiles for few rows have up to so many.
_FEW_ROWS = 32


@dataclass(frozen=True)
class ProductPlan:
    """The launches of a product.

    Attributes:
        many: for any number of rows.
        few, one: for few rows, and for one; None where the number of rows is known.
    """

    many: GemvPlan | TilePlan
    few: TilePlan | None = None
    one: GemvPlan | None = None


@dataclass(frozen=True)
class Chunks:
    """What one thread copies of a tile at a time: tiles are made of whole ones.

    Attributes:
        rows, columns: of both factors' chunks.
        depth: elements of the longer one along the depth.
    """

    rows: int
    columns: int
    depth: int


def product_space(product: Product, gpu: Capabilities, default: ProductPlan, chunks: Chunks) -> Space:
    """The choices for a product whose launches by default are `default`."""
    rows, columns, depth = (as_int(axes.size) or 0 for axes in (product.rows, product.columns, product.depth))
    traits: dict[str, float] = {
        "batch": as_int(product.batch.size) or 0,
        "rows": rows,
        "columns": columns,
        "depth": depth,
        "bytes": int(product.is_int8),
    }
    if isinstance(default.many, GemvPlan):
        return _gemv_space(product, gpu, default.many, traits)
    parts = {"": _TileSpace(product, gpu, chunks, default.many, rows)}
    if default.few is not None:
        parts = {
            "few_": _TileSpace(product, gpu, chunks, default.few, _FEW),
            "many_": _TileSpace(product, gpu, chunks, default.many, _MANY),
        }

    def refuses(plan: Plan) -> str | None:
        return next(filter(None, (part.refuses(_read_tile(plan, prefix)) for prefix, part in parts.items())), None)

    def features(plan: Plan) -> dict[str, float]:
        return {
            prefix + name: value
            for prefix, part in parts.items()
            for name, value in part.features(_read_tile(plan, prefix)).items()
        }

    knobs = [knob for prefix, part in parts.items() for knob in part.knobs(prefix)]
    chosen = {prefix + name: value for prefix, part in parts.items() for name, value in _written(part.default).items()}
    return Space(tuple(knobs), chosen, traits, refuses, features)


def read_plan(plan: Plan, default: ProductPlan) -> ProductPlan:
    """The launches of a plan of the space of a product whose launches by default are `default`."""
    if isinstance(default.many, GemvPlan):
        return replace(default, many=_read_gemv(plan, default.many))
    if default.few is None:
        return replace(default, many=_read_tile(plan, ""))
    return replace(default, many=_read_tile(plan, "many_"), few=_read_tile(plan, "few_"))


def _gemv_space(product: Product, gpu: Capabilities, default: GemvPlan, traits: dict[str, float]) -> Space:
    columns, depth = (as_int(axes.size) or _MANY for axes in (product.columns, product.depth))
    knobs = (
        Knob("group_rows", tuple(n for n in nearby((1, 2, 4), default.rows) if n <= default.rows)),
        Knob("across", nearby((1, 2, 4, 8, 16, 32, 64, 128), default.across)),
        Knob("along", nearby((1, 2, 4, 8, 16, 32, 64, 128), default.along)),
    )

    def refuses(plan: Plan) -> str | None:
        made = _read_gemv(plan, default)
        return _misfit(made.threads, made.shared_bytes, gpu)

    def features(plan: Plan) -> dict[str, float]:
        made = _read_gemv(plan, default)
        return {
            "threads": made.threads,
            "groups": -(-columns // made.columns) * -(-default.rows // made.rows),
            "steps": -(-depth // made.along),
            "shared_bytes": made.shared_bytes,
        }

    chosen = {"group_rows": default.rows, "across": default.across, "along": default.along}
    return Space(knobs, chosen, traits, refuses, features)


def _read_gemv(plan: Plan, default: GemvPlan) -> GemvPlan:
    return GemvPlan(int(plan["group_rows"]), int(plan["across"]), int(plan["along"]), default.wide)


@dataclass(frozen=True)
class _TileSpace:
    """The choices for tiles of a product of so many rows, about."""

    product: Product
    gpu: Capabilities
    chunks: Chunks
    default: TilePlan
    rows: int

    def knobs(self, prefix: str) -> list[Knob]:
        own = _written(self.default)
        values = {
            "row_threads": (1, 2, 4, 8, 16) if self.rows <= _FEW else (4, 8, 16),
            "column_threads": (4, 8, 16, 32),
            "thread_rows": (2, 4, 8, 16) if self.rows <= _FEW else (4, 8, 16),
            "thread_columns": (4, 8, 16),
            "depth": (8, 16, 32),
            "slices": (1, 2, 4),
        }
        return [Knob(prefix + name, nearby(numbers, own[name])) for name, numbers in values.items()]

    def refuses(self, tile: TilePlan) -> str | None:
        chunks = self.chunks
        if tile.rows % chunks.rows or tile.columns % chunks.columns or tile.depth % chunks.depth:
            return "tiles aren't made of whole chunks"
        columns = as_int(self.product.columns.size)
        if _is_beyond(tile.rows, self.rows, _FEW_ROWS) or (columns and _is_beyond(tile.columns, columns, _MANY)):
            return "most of a tile lies behind the last row or column"
        work = WORD_WORK if self.product.is_int8 and not self.gpu.has_dot4 else 1
        if tile.thread_rows * tile.thread_columns * work > MOST_SUMS:
            return "a thread has too many sums"
        if (tile.rows + tile.columns) * tile.depth > _MOST_HELD * tile.slice_threads:
            return "a thread holds too much of the next step"
        return _misfit(tile.threads, tile.shared_bytes, self.gpu)

    def features(self, tile: TilePlan) -> dict[str, float]:
        product = self.product
        columns, depth = (as_int(axes.size) or _MANY for axes in (product.columns, product.depth))
        down, across = -(-self.rows // tile.rows), -(-columns // tile.columns)
        groups = down * across * (as_int(product.batch.size) or 1)
        return {
            "threads": tile.threads,
            "groups": groups,
            "rounds": -(-groups // self.gpu.cores) / (groups / self.gpu.cores),
            "waste": down * tile.rows * across * tile.columns / (self.rows * columns),
            "reads": 1 / tile.thread_rows + 1 / tile.thread_columns,
            "sums": tile.thread_rows * tile.thread_columns,
            "copies": (tile.rows + tile.columns) * tile.depth / tile.slice_threads,
            "steps": -(-depth // (tile.depth * tile.slices)),
            "shared_bytes": tile.shared_bytes,
        }


def _written(tile: TilePlan) -> dict[str, int]:
    """A tile as values of knobs."""
    return {
        "row_threads": tile.rows // tile.thread_rows,
        "column_threads": tile.columns // tile.thread_columns,
        "thread_rows": tile.thread_rows,
        "thread_columns": tile.thread_columns,
        "depth": tile.depth,
        "slices": tile.slices,
    }


def _read_tile(plan: Plan, prefix: str) -> TilePlan:
    def value(name: str) -> int:
        return int(plan[prefix + name])

    rows, columns = value("thread_rows"), value("thread_columns")
    sizes = value("row_threads") * rows, value("column_threads") * columns
    return TilePlan(*sizes, value("depth"), rows, columns, value("slices"))


def _is_beyond(size: int, limit: int, least: int) -> bool:
    """Whether a tile of twice as many rows (columns) as there are is larger than the least that is always allowed."""
    return size > least and size >= 2 * limit


def _misfit(threads: int, shared_bytes: int, gpu: Capabilities) -> str | None:
    if not LEAST_THREADS <= threads <= gpu.max_threads:
        return f"{threads} threads"
    return "too much shared memory" if shared_bytes > gpu.shared_bytes else None
