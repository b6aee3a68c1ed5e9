"""What can be chosen of a convolution's tiles."""

from __future__ import annotations

from collections.abc import Mapping

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.convolution.form import Contraction
from greencc.targets.gpu.schedules.convolution.plan import Plan as Tiles
from greencc.targets.gpu.schedules.convolution.plan import choose_plan, likely_positions
from greencc.targets.gpu.schedules.matmul_space import LEAST_THREADS, WORD_WORK
from greencc.targets.tir import walk
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# Sums of a thread: their products are written out one behind the other, and so is what becomes of them, in nodes of
# expressions.
_MOST_SUMS, _MOST_NODES = 256, 8192
# Elements of the next step that a thread holds in registers.
_MOST_HELD = 64
# A tile of more rows (columns) than this has at most twice those that there are.
_SMALL = 32


def plan_space(conv: Contraction, gpu: Capabilities) -> Space:
    """The tiles that a device can run."""
    default = choose_plan(conv, gpu)
    nodes = sum(1 for _ in walk(conv.tail.value))
    work = WORD_WORK if conv.words and not gpu.has_dot4 else 1
    most_sums = max(default.filters * default.positions, min(_MOST_SUMS // work, _MOST_NODES // nodes))
    each, positions = conv.filters // conv.groups, likely_positions(conv)
    knobs = (
        Knob("filters", nearby((2, 4, 8, 16), default.filters)),
        Knob("positions", nearby((1, 2, 4, 8, 16), default.positions)),
        Knob("teams", nearby((1, 2, 4, 8, 16), default.teams)),
        Knob("lanes", nearby((8, 16, 32, 64), default.lanes)),
        Knob("depth", nearby((8, 16, 32), default.depth)),
        Knob("slices", nearby((1, 2, 4), default.slices)),
    )

    def refuses(plan: Plan) -> str | None:
        tiles = read_plan(plan)
        if not LEAST_THREADS <= tiles.threads <= gpu.max_threads:
            return f"{tiles.threads} threads"
        if tiles.shared_bytes > gpu.shared_bytes:
            return "too much shared memory"
        if tiles.threads % tiles.columns or tiles.step % (tiles.threads // tiles.columns):
            return "threads don't gather whole positions"
        sums = tiles.filters * tiles.positions
        if sums > most_sums:
            return "a thread has too many sums"
        if tiles.step * (tiles.rows + tiles.columns) > _MOST_HELD * tiles.threads:
            return "a thread holds too much of the next step"
        is_empty = tiles.rows > max(2 * each, _SMALL, default.rows)
        is_empty |= tiles.columns > max(2 * positions, _SMALL, default.columns)
        return "most of a tile is empty" if is_empty else None

    def features(plan: Plan) -> Mapping[str, float]:
        tiles = read_plan(plan)
        down, across = -(-each // tiles.rows), -(-positions // tiles.columns)
        groups = down * across * conv.groups
        return {
            "threads": tiles.threads,
            "groups": groups,
            "rounds": -(-groups // gpu.cores) / (groups / gpu.cores),
            "waste": down * tiles.rows * across * tiles.columns / (each * positions),
            "reads": 1 / tiles.filters + 1 / tiles.positions,
            "sums": tiles.filters * tiles.positions,
            "copies": tiles.step * (tiles.rows + tiles.columns) / tiles.threads,
            "steps": -(-conv.depth // tiles.step),
            "shared_bytes": tiles.shared_bytes,
            "cost": tiles.cost(each, positions, conv.groups, conv.depth, gpu.cores),
        }

    traits = {
        "filters": each,
        "groups": conv.groups,
        "positions": positions,
        "depth": conv.depth,
        "words": int(conv.words),
    }
    return Space(knobs, _written(default), traits, refuses, features)


def read_plan(plan: Plan) -> Tiles:
    """The tiles of a plan."""
    return Tiles(**{name: int(value) for name, value in plan.items()})


def _written(tiles: Tiles) -> dict[str, int]:
    return {name: getattr(tiles, name) for name in Tiles.__dataclass_fields__}
