"""How a convolution is cut up into tasks and register tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
# Steps of the sum in a panel: with the weights of a block it stays in the first cache.
PANEL_DEPTH = 128
# Channels between asking for a vector of the source and using it. (They lie too far apart for the machine to guess.)
CHANNELS_AHEAD = 8
# Weights beyond this size are read once, and the source once per block of channels; below, the other way round.
MAX_CACHED_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class Plan:
    """How a convolution is cut up.

    Attributes:
        over: what vectors run over, "positions" or "channels".
        rows: of a register tile, output channels; where vectors run over those, positions.
        vectors: of a register tile, for each of its rows.
        lanes: elements of a vector.
        height: output rows of a band.
        source: what taps read: the "input" itself, a padded "copy", or in each task one of its "band".
        blocks: blocks of channels that a task computes.
        panel: steps of the sum in a panel of the source that a task's blocks read; 0 where they read the source.
        outer: what tasks run over slowly: "bands", so that the source stays in the cache, or "blocks", so that the
            weights do.
        ahead: channels between asking for a vector of the source and using it; 0 where nothing is asked for.
        unroll: steps of the sum that are written out.
        finish: where the tail takes the sums from: "rows" of a buffer as soon as they are complete, while the next
            ones are computed; the same at the "end" of the band, or there as one "flat" row; or "registers".
    """

    rows: int
    vectors: int
    lanes: int
    height: int
    source: str
    blocks: int = 1
    panel: int = 0
    outer: str = "blocks"
    ahead: int = 0
    unroll: int = 1
    finish: str = "rows"
    over: str = "positions"

    @property
    def direct(self) -> bool:
        """Whether taps read the input itself."""
        return self.source == "input"

    @property
    def filters(self) -> int:
        """Output channels of a register tile."""
        return self.rows if self.over == "positions" else self.vectors * self.lanes


def is_plain(conv: Convolution) -> bool:
    """Whether taps can read the input itself."""
    return conv.top == conv.left == 0 and conv.stride == (1, 1) and conv.unpadded


def choose_plan(target: CpuTarget, conv: Convolution) -> Plan:
    """The plan that computes the fewest positions and channels that nobody wants."""
    lanes = conv.taps.lanes(target)
    shapes = WIDE_TILES if target.vector_registers >= 32 else NARROW_TILES
    channels = conv.out_channels // conv.groups
    plain = is_plain(conv)
    pitch = conv.width if plain else conv.source_width
    outer = "bands" if conv.out_channels * conv.steps * 4 <= MAX_CACHED_WEIGHTS else "blocks"
    packed = _panel_plan(target, conv, pitch) if plain and conv.kernel == (1, 1) else None
    if packed is not None:
        return replace(packed, outer=outer)
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
                best = cost, Plan(rows, fitting, lanes, height, _source(direct))
    assert best is not None  # a band of one row always fits
    # The vectors of larger filters overlap, and wait in the cache already.
    return replace(best[1], outer=outer, ahead=CHANNELS_AHEAD if conv.kernel == (1, 1) else 0)


def _source(direct: bool) -> str:
    return "input" if direct else "copy"


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
                panel = min(PANEL_DEPTH, conv.group_words)
                best = cost, Plan(rows, vectors, lanes, height, _source(direct), readers, panel, finish="end")
    return None if best is None else best[1]


def imbalance(tasks: int, threads: int) -> float:
    """How many times as long as an even share takes the thread with the most of so many equal tasks."""
    return -(-tasks // threads) * threads / tasks
