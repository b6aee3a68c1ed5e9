"""How large the tiles of a product on matrix units are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.products import Product
from greencc.targets.tir import as_int
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

EDGE = 16
"""Rows, columns and depth of a fragment."""
AREA = EDGE * EDGE
# Bytes that a line of a tile is longer than it has to be: neighbouring lines lie in other banks of shared memory, and
# a line still begins at a multiple of 16 bytes, as fragments have to.
PADDING_BYTES = 16
# Result tiles that keep a large GPU busy: with fewer of them, tiles are smaller.
_ENOUGH_TILES = 128
# What a symbolic size is taken for when tiles are chosen: the tokens of some sequences.
_USUAL_ROWS = 512
# Fragments of sums of a warp: a thread holds eight elements of each, and their products are written out.
_MOST_FRAGMENTS = 16
# Words of the next step that a thread holds in registers.
_MOST_HELD = 64


@dataclass(frozen=True)
class WarpTiles:
    """How large tiles are, all in elements.

    Attributes:
        rows, columns: of a workgroup's tile.
        warp_rows, warp_columns: of a warp's part of it.
        depth: of a step.
        warp: threads of a warp.
    """

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    depth: int
    warp: int

    @property
    def across(self) -> int:
        """Warps next to each other along the columns."""
        return self.columns // self.warp_columns

    @property
    def warps(self) -> int:
        """Warps of a workgroup."""
        return self.across * (self.rows // self.warp_rows)

    @property
    def fragments(self) -> int:
        """Fragments of sums of a warp."""
        return self.warp_rows // EDGE * (self.warp_columns // EDGE)

    @property
    def threads(self) -> int:
        """Threads of a workgroup."""
        return self.warps * self.warp

    def shared_bytes(self, width: int) -> int:
        """Shared memory of a workgroup at most, for factors whose elements have `width` bytes."""
        tiles = (self.rows + self.columns) * (self.depth * width + PADDING_BYTES)
        return tiles + self.warps * AREA * 4


def choose_tiles(product: Product, gpu: Capabilities) -> WarpTiles | None:
    """The largest tiles that there are enough of and that fit on the device, None where none do."""
    width = 1 if product.is_int8 else 2
    warp, depth = gpu.subgroup or 1, 32 // width * 2
    plans = [
        WarpTiles(128, 128, 64, 32, depth, warp),
        WarpTiles(64, 64, 32, 32, depth, warp),
        WarpTiles(32, 64, 16, 32, depth, warp),
    ]
    fitting = [p for p in plans if p.threads <= gpu.max_threads and p.shared_bytes(width) <= gpu.shared_bytes]
    many = [p for p in fitting if _tiles(product, p) >= _ENOUGH_TILES]
    return next(iter([*many, *fitting[-1:]]), None)


def _tiles(product: Product, tiles: WarpTiles) -> int:
    """Tiles of the result, as far as its sizes are known."""
    sizes = as_int(product.batch.size), as_int(product.rows.size), as_int(product.columns.size)
    usual = 1, _USUAL_ROWS, _USUAL_ROWS
    batch, rows, columns = (other if size is None else size for size, other in zip(sizes, usual, strict=True))
    return batch * -(-rows // tiles.rows) * -(-columns // tiles.columns)


def tile_space(product: Product, default: WarpTiles, gpu: Capabilities) -> Space:
    """The tiles that a device can run."""
    width = 1 if product.is_int8 else 2
    knobs = (
        Knob("warps_down", nearby((1, 2, 4), default.rows // default.warp_rows)),
        Knob("warps_across", nearby((1, 2, 4), default.across)),
        Knob("warp_rows", nearby((16, 32, 64), default.warp_rows)),
        Knob("warp_columns", nearby((16, 32, 64), default.warp_columns)),
        Knob("depth", nearby((16, 32, 64, 128), default.depth)),
    )
    values = {
        "warps_down": default.rows // default.warp_rows,
        "warps_across": default.across,
        "warp_rows": default.warp_rows,
        "warp_columns": default.warp_columns,
        "depth": default.depth,
    }

    def refuses(plan: Plan) -> str | None:
        tiles = read_tiles(plan, default.warp)
        if tiles.threads > gpu.max_threads:
            return f"{tiles.threads} threads"
        if tiles.shared_bytes(width) > gpu.shared_bytes:
            return "too much shared memory"
        if tiles.fragments > _MOST_FRAGMENTS:
            return "a warp has too many fragments"
        held = (tiles.rows + tiles.columns) * tiles.depth * width // 4
        return "a thread holds too much of the next step" if held > _MOST_HELD * tiles.threads else None

    sizes = as_int(product.rows.size), as_int(product.columns.size), as_int(product.depth.size)
    rows, columns, depth = (size or _USUAL_ROWS for size in sizes)

    def features(plan: Plan) -> Mapping[str, float]:
        tiles = read_tiles(plan, default.warp)
        down, across = -(-rows // tiles.rows), -(-columns // tiles.columns)
        groups = down * across * (as_int(product.batch.size) or 1)
        return {
            "threads": tiles.threads,
            "groups": groups,
            "rounds": -(-groups // gpu.cores) / (groups / gpu.cores),
            "waste": down * tiles.rows * across * tiles.columns / (rows * columns),
            "reads": EDGE / tiles.warp_rows + EDGE / tiles.warp_columns,
            "fragments": tiles.fragments,
            "steps": -(-depth // tiles.depth),
            "shared_bytes": tiles.shared_bytes(width),
        }

    traits = {"rows": sizes[0] or 0, "columns": columns, "depth": depth, "bytes": width}
    return Space(knobs, values, traits, refuses, features)


def read_tiles(plan: Plan, warp: int) -> WarpTiles:
    """The tiles of a plan, on a device whose warps have so many threads."""
    rows, columns = int(plan["warp_rows"]), int(plan["warp_columns"])
    sizes = int(plan["warps_down"]) * rows, int(plan["warps_across"]) * columns
    return WarpTiles(*sizes, rows, columns, int(plan["depth"]), warp)
