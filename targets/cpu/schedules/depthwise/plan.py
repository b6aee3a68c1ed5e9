"""How a depthwise convolution is cut up into tasks and register tiles, and what of that can be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tuning.space import Knob, Plan, Space

# Multiply-adds of one tile, all written out: beyond, code grows and nothing is won.
MAX_UNROLLED = 512
# Vectors narrower than this leave most of a register empty.
LEAST_LANES = 4
MAX_ROWS, MAX_VECTORS = 8, 5
# Outputs of a band of a default plan: the copy that it reads fits the first cache.
BAND_OUTPUTS = 4096


@dataclass(frozen=True)
class Tiling:
    """How a depthwise convolution is cut up.

    Attributes:
        rows: output rows of a register tile.
        vectors: vectors of a row of the tile.
        lanes: elements of a vector.
        band: output rows that are computed from one copy.
        chunk: bands of channels that a task computes one after the other, in the order of the output.
    """

    rows: int
    vectors: int
    lanes: int
    band: int
    chunk: int

    @staticmethod
    def of(plan: Plan) -> Tiling:
        """The tiling that a plan of `tiling_space` stands for."""
        return Tiling(*(int(plan[name]) for name in ("rows", "vectors", "lanes", "band", "chunk")))


def tiling_space(target: CpuTarget, conv: Convolution, batch: int | None) -> Space:
    """The tilings of a convolution of `batch` images, None where their number is symbolic."""
    height, width = conv.out_height, conv.out_width
    lanes = [target.lanes()]
    while lanes[-1] // 2 >= LEAST_LANES:
        lanes.append(lanes[-1] // 2)
    bands = sorted({height, *(-(-height // parts) for parts in (2, 3, 4, 8))})
    planes = conv.words * (batch or 1)
    # The largest makes one task of all channels, where each is one band: it runs on the calling thread.
    chunks = sorted({*(chunk for chunk in (1, 2, 4, 8, 16) if chunk < planes), planes})
    knobs = (
        Knob("rows", tuple(range(1, min(MAX_ROWS, height) + 1))),
        Knob("vectors", tuple(range(1, min(MAX_VECTORS, -(-width // lanes[-1])) + 1))),
        Knob("lanes", tuple(reversed(lanes))),
        Knob("band", tuple(bands)),
        Knob("chunk", tuple(chunks)),
    )
    taps = conv.kernel[0] * conv.kernel[1]

    def refuses(plan: Plan) -> str | None:
        tiling = Tiling.of(plan)
        if tiling.vectors > 1 and tiling.vectors * tiling.lanes > width:
            return "a row has fewer vectors"
        if tiling.vectors == 1 and tiling.lanes > LEAST_LANES and tiling.lanes // 2 >= width:
            return "half a vector holds a row"
        if 2 * tiling.lanes < target.lanes() and 4 * tiling.lanes <= width:
            return "wider vectors hold a row"
        if tiling.rows > tiling.band:
            return "a band has fewer rows"
        if tiling.rows * (tiling.vectors + 1) > target.vector_registers:
            return "the sums don't fit the registers"
        if tiling.rows * tiling.vectors * taps > MAX_UNROLLED:
            return "the code of a tile is too long"
        return None

    def features(plan: Plan) -> dict[str, float]:
        tiling = Tiling.of(plan)
        copied_rows = (tiling.band - 1) * conv.stride[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1
        count = -(-height // tiling.band)
        row_tiles = count * -(-tiling.band // tiling.rows) * tiling.rows
        columns = tiling.vectors * tiling.lanes
        column_tiles = -(-width // columns) * columns
        window = (tiling.rows - 1) * conv.stride[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1
        tasks = -(-planes * count // tiling.chunk)
        return {
            "surplus": row_tiles * column_tiles / (height * width),
            "vector_steps": row_tiles * column_tiles / tiling.lanes,
            "sums": tiling.rows * tiling.vectors,
            "loads_per_step": 1 / tiling.vectors + window / (tiling.rows * conv.kernel[0]),
            "copied": count * copied_rows / (height * conv.stride[0]),
            "copy_bytes": 4 * copied_rows * conv.source_width * conv.phases[1],
            "tasks": tasks,
            "idle": -(-tasks // target.threads) * target.threads / tasks,
        }

    traits = {
        "channels": conv.out_channels, "height": height, "width": width, "taps": taps,
        "row_stride": conv.stride[0], "column_stride": conv.stride[1],
    }  # fmt: skip
    return Space(knobs, _start(target, conv, bands, chunks), traits, refuses, features)


def _start(target: CpuTarget, conv: Convolution, bands: list[int], chunks: list[int]) -> Plan:
    """Where a search begins: tiles that fill rows, about a dozen sums each, and bands that stay in the first cache."""
    width, lanes = conv.out_width, target.lanes()
    while lanes > LEAST_LANES and lanes // 2 >= width:
        lanes //= 2
    sums = min(target.vector_registers // 2, MAX_UNROLLED // (conv.kernel[0] * conv.kernel[1]))
    fitting = range(1, max(1, min(MAX_VECTORS, sums, width // lanes)) + 1)
    vectors = min(fitting, key=lambda count: (-(-width // (count * lanes)) * count, -count))
    band = max((rows for rows in bands if rows * width <= BAND_OUTPUTS), default=bands[0])
    rows = min(sums // vectors, band, MAX_ROWS)
    return {"rows": rows, "vectors": vectors, "lanes": lanes, "band": band, "chunk": chunks[0]}
