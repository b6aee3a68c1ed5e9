"""How a matrix product is computed: the choices that its emitters read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MatmulPlan:
    """Choices for one kernel; those that can be tuned are knobs of the same name.

    Attributes:
        rows, vectors: the register tile: rows, and vectors of columns of each. Constant B is packed in panels as wide.
        lanes: sums in a vector.
        rest: what becomes of rows that don't fill a tile: "exact" gives them a tile of their own height, "even" makes
            all tiles of a task nearly equal in height, "padded" repeats the last row and drops the surplus.
        task_rows: rows of a task.
        order: what runs fastest over the tasks of a product: "panels" of columns or blocks of "rows".
        parallel: 1 where threads share the tasks, else 0.
        ahead: steps between asking for a part of packed B and reading it.
        burst: steps between requests for parts of the next panel of packed B; 0 where nothing is asked for.
        share: tiles among which those requests are divided.
        direct_rows: up to so many rows, levels in groups are read by every tile, not written down as values once.
        stored: element type of packed B.
    """

    rows: int
    vectors: int
    lanes: int
    rest: str
    task_rows: int
    order: str
    parallel: int
    ahead: int
    burst: int
    share: int
    direct_rows: int
    stored: str

    @property
    def columns(self) -> int:
        """Columns of a tile, and of a panel."""
        return self.vectors * self.lanes


def tile_heights(count: int, most: int, *, even: bool) -> list[tuple[int, int]]:
    """Tiles that cover `count` rows, from the first row on: (number of tiles, their height), at most `most` high.

    All are of the full height but the last; or, `even`, they differ by one row.
    """
    if even:
        tiles = -(-count // most)
        height, higher = divmod(count, tiles)
        parts = [(higher, height + 1), (tiles - higher, height)]
    else:
        full, rest = divmod(count, most)
        parts = [(full, most), (1 if rest else 0, rest)]
    return [(times, height) for times, height in parts if times]
