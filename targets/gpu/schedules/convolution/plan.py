"""How a convolution is cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.convolution.form import Contraction
from greencc.targets.tir import as_int

# Threads for each core that keep a GPU busy.
CORE_THREADS = 512
# What an axis of unknown size is taken for: a batch, and rows or columns of an image.
LIKELY_BATCH, LIKELY_SIZE = 1, 32


@dataclass(frozen=True)
class Plan:
    """A workgroup's tile of filters x positions.

    A thread gathers elements of one position only: threads are a multiple of positions, and tiles of whole turns.

    Attributes:
        filters, positions: of a thread; 4 or a multiple of it, or less.
        teams, lanes: threads along filters and along positions.
        depth: products of each sum between two barriers, for each slice.
        slices: parts of the sums that are computed by threads of their own, and added in the end.
    """

    filters: int
    positions: int
    teams: int
    lanes: int
    depth: int
    slices: int

    @property
    def rows(self) -> int:
        """Filters of a tile."""
        return self.filters * self.teams

    @property
    def columns(self) -> int:
        """Positions of a tile."""
        return self.positions * self.lanes

    @property
    def threads(self) -> int:
        """Threads of a workgroup."""
        return self.teams * self.lanes * self.slices

    @property
    def step(self) -> int:
        """Products of each sum between two barriers, of all slices."""
        return self.depth * self.slices

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a workgroup."""
        sums = self.rows * self.columns * self.slices if self.slices > 1 else 0
        return 4 * (self.depth * self.slices * (self.rows + self.columns) + sums)

    def cost(self, filters: int, positions: int, groups: int, depth: int, cores: int) -> float:
        """Time by a crude count of instructions, in arbitrary units, on a device of so many cores."""
        tiles = -(-filters // self.rows) * -(-positions // self.columns) * groups
        steps = -(-depth // (self.depth * self.slices)) * self.depth
        # For each step of a thread: multiply-adds, loads from shared memory, and its part of the tiles' copies.
        gathered = self.slices * (12 * self.columns + 2 * self.rows) / self.threads
        work = steps * (self.filters * self.positions + self.filters + self.positions + gathered)
        work += 8 * self.filters * self.positions * (1 + (self.slices > 1))
        busy = min(tiles * self.threads, cores * CORE_THREADS)
        return work * tiles * self.threads / busy


PLANS = (
    Plan(8, 4, 16, 16, 8, 1),
    Plan(8, 4, 8, 16, 16, 1),
    Plan(4, 4, 16, 16, 16, 1),
    Plan(4, 4, 8, 32, 16, 1),
    Plan(4, 4, 4, 32, 16, 1),
    Plan(4, 4, 2, 16, 8, 4),
    Plan(4, 4, 8, 16, 16, 1),
    Plan(4, 4, 8, 8, 8, 4),
    Plan(4, 4, 4, 16, 8, 4),
    Plan(2, 2, 8, 8, 16, 4),
    Plan(2, 2, 8, 8, 16, 1),
)


def choose_plan(conv: Contraction, gpu: Capabilities) -> Plan:
    """The cheapest plan that the device can run."""
    positions = likely_positions(conv)
    fitting = [plan for plan in PLANS if plan.threads <= gpu.max_threads and plan.shared_bytes <= gpu.shared_bytes]
    each = conv.filters // conv.groups
    return min(fitting, key=lambda plan: plan.cost(each, positions, conv.groups, conv.depth, gpu.cores))


def likely_positions(conv: Contraction) -> int:
    """How many positions a convolution has, about, where that isn't known."""
    batch, *sizes = [as_int(extent) for extent in conv.positions]
    positions = batch or LIKELY_BATCH
    for size in sizes:
        positions *= size or LIKELY_SIZE
    return positions
