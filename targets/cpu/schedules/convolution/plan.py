"""How a convolution is cut up into tasks and register tiles."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.target import CpuTarget

# Positions of a band: enough to use a block of weights often, few enough to keep the source in the cache.
MAX_BAND = 512
# (output channels, vectors of positions) of register tiles, for 32 and for 16 vector registers.
WIDE_TILES = ((8, 2), (12, 1), (4, 4), (2, 8))
NARROW_TILES = ((6, 2), (8, 1), (4, 3), (2, 5))
# The same for tiles that read from panels.
WIDE_PANEL, NARROW_PANEL = (8, 3), (6, 2)
# A panel pays when this many blocks read it.
LEAST_READERS = 8
# Shorter sums are over before a panel has paid.
LEAST_DEPTH = 128
# Tasks for each thread: the more, the fewer blocks read a panel.
TASKS_PER_THREAD = 2


@dataclass(frozen=True)
class Plan:
    """How a convolution is cut up.

    Attributes:
        rows: output channels of a register tile.
        vectors: vectors of positions of a register tile.
        lanes: elements of a vector.
        height: output rows of a band.
        direct: whether the source is the input itself.
        readers: blocks of channels that a task computes from panels; 0 where it computes one, from the source.
    """

    rows: int
    vectors: int
    lanes: int
    height: int
    direct: bool
    readers: int = 0


def choose_plan(target: CpuTarget, conv: Convolution) -> Plan:
    """The plan that computes the fewest positions and channels that nobody wants."""
    lanes = conv.taps.lanes(target)
    shapes = WIDE_TILES if target.vector_registers >= 32 else NARROW_TILES
    channels = conv.out_channels // conv.groups
    plain = conv.top == conv.left == 0 and conv.stride == (1, 1) and conv.unpadded
    pitch = conv.width if plain else conv.source_width
    packed = _panel_plan(target, conv, pitch) if plain and conv.kernel == (1, 1) else None
    if packed is not None:
        return packed
    best: tuple[float, Plan] | None = None
    for rows, vectors in shapes:
        for height in range(1, conv.out_height + 1):
            length = (height - 1) * pitch + conv.out_width
            if height > 1 and length > MAX_BAND:
                break
            direct = plain and length >= lanes
            fitting = min(vectors, length // lanes) if direct else min(vectors, -(-length // lanes))
            bands = -(-conv.out_height // height)
            # A vector costs its multiply-adds, the loads of the source (from the second cache) and of the weights.
            feeding = 1 + 0.2 * (2 * fitting + 0.5 * rows) / (rows * fitting)
            blocks = -(-channels // rows)
            tiles = bands * -(-length // lanes) * blocks * rows
            idle = imbalance(bands * blocks * conv.groups, target.threads)
            cost = tiles * feeding * (1 + 0.002 * bands) * idle
            if best is None or cost < best[0]:
                best = cost, Plan(rows, fitting, lanes, height, direct)
    assert best is not None  # a band of one row always fits
    return best[1]


def _panel_plan(target: CpuTarget, conv: Convolution, pitch: int) -> Plan | None:
    """The plan with panels, or None where too few blocks would read them.

    (Larger filters have overlapping vectors, which stay in the first cache: for them, panels brought nothing.)
    """
    lanes = conv.taps.lanes(target)
    rows, most = WIDE_PANEL if target.vector_registers >= 32 else NARROW_PANEL
    blocks = -(-(conv.out_channels // conv.groups) // rows)
    if conv.group_words < LEAST_DEPTH:
        return None
    best: tuple[float, Plan] | None = None
    for height in range(1, conv.out_height + 1):
        length = (height - 1) * pitch + conv.out_width
        if height > 1 and length > MAX_BAND:
            break
        direct = length >= lanes
        bands = -(-conv.out_height // height)
        tasks = -(-TASKS_PER_THREAD * target.threads // bands)
        readers = -(-blocks // tasks)
        if readers < LEAST_READERS:
            continue
        for vectors in range(1, most + 1):
            if direct and vectors * lanes > length:
                break
            pieces = [vectors] * (-(-length // lanes) // vectors) + [-(-length // lanes) % vectors]
            # A step of a tile costs its multiply-adds and, less than those, its loads; a panel is copied once.
            cost = sum(rows * v + 0.6 * (rows + v) + 16 * v / readers for v in pieces if v) * bands
            cost *= imbalance(bands * -(-blocks // readers) * conv.groups, target.threads)
            if best is None or cost < best[0]:
                best = cost, Plan(rows, vectors, lanes, height, direct, readers)
    return None if best is None else best[1]


def imbalance(tasks: int, threads: int) -> float:
    """How many times as long as an even share takes the thread with the most of so many equal tasks."""
    return -(-tasks // threads) * threads / tasks
