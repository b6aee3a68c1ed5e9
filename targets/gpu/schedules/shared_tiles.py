"""What the threads of a workgroup do together: share out work, and copy tiles into shared memory."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.gpu.schedules.launch import when
from greencc.targets.gpu.schedules.threads import local
from greencc.targets.tir import as_int, i64

# Turns of a copy that are written out one behind the other: loads of several are then under way at a time.
MAX_UNROLLED = 8
# Elements of padding behind a row of a transposed tile: neighbouring rows then lie in other banks, still aligned.
BANK_PADDING = 4


def share_out(total: int, threads: int, thread: tirx.Expr, body: Callable[[tirx.Expr], None]) -> None:
    """Emit `body(i)` for 0..total, each by one thread; neighbouring threads do neighbouring ones."""
    turns = -(-total // threads)
    loop = T.unroll if turns <= MAX_UNROLLED else T.serial
    with loop(i64(0), i64(turns)) as turn:
        item = turn * i64(threads) + thread
        with when(item < i64(total) if total % threads else None):
            body(item)


def copy_tile(
    rows: int,
    columns: int,
    lanes: int,
    threads: int,
    thread: tirx.Expr,
    load: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    store: Callable[[tirx.Expr, tirx.Expr, tirx.Expr], None],
) -> None:
    """Emit the copy of a tile by all threads.

    Args:
        rows, columns: of the tile; `lanes` divides the columns.
        lanes: elements of a load.
        threads, thread: how many there are, and which one this is.
        load: (row, column) -> `lanes` elements from a column on, as a vector of float32.
        store: (row, column, value) stores one element.
    """
    part = local(lanes, "float32") if lanes > 1 else None

    def move(item: tirx.Expr) -> None:
        per_row = columns // lanes
        row = tirx.floordiv(item, i64(per_row))
        column = tirx.floormod(item, i64(per_row)) * i64(lanes)
        if part is None:
            store(row, column, load(row, column))
            return
        T.buffer_store(part, load(row, column), [tirx.Ramp(i64(0), i64(1), lanes)])
        for lane in range(lanes):
            store(row, column + i64(lane), part[i64(lane)])

    share_out(rows * columns // lanes, threads, thread, move)


def whole_lanes(*numbers: tirx.Expr | int, most: int = 4) -> int:
    """The widest load, of at most so many elements, whose places are aligned: all are multiples of these numbers."""
    known = [as_int(number) for number in numbers]
    lanes = most
    while lanes > 1 and any(number is None or number % lanes for number in known):
        lanes //= 2
    return lanes


def split_index(index: tirx.Expr, extents: list[tirx.Expr]) -> list[tirx.Expr]:
    """Emit the coordinates of a linear index in a row-major space, each computed once.

    Neither is negative, which TVM can't know of symbolic extents: rounding towards zero is then one instruction.
    """
    coordinates: list[tirx.Expr] = []
    for extent in reversed(extents[1:]):
        if as_int(extent) == 1:
            coordinates.append(i64(0))
            continue
        coordinates.append(T.bind(tirx.truncmod(index, extent)))
        index = T.bind(tirx.truncdiv(index, extent))
    return [index, *reversed(coordinates)]


def ceiling(count: tirx.Expr, size: int) -> tirx.Expr:
    """How many parts of `size` cover `count`, which is not negative."""
    return tirx.truncdiv(count + i64(size - 1), i64(size))
