"""The plans that can be chosen for a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.convolution.plan import CHANNELS_AHEAD, Plan, choose_plan, imbalance, is_plain
from greencc.targets.cpu.schedules.convolution.tails import is_flat
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import Tail
from greencc.targets.tir import written_out
from greencc.targets.tuning import space as tuning
from greencc.targets.tuning.space import Knob, nearby

# Bands that an image may fall into.
BANDS = (1, 2, 3, 4, 7, 10, 14, 28, 56)
# Multiply-adds that may be written out, and nodes of tails.
MAX_BODY, MAX_TAILS = 288, 4000
# Of all that a tile or a band computes, what isn't wanted is at most so many times what is.
MAX_WASTE = 0.5
# Bytes of a task's sums.
MAX_SUMS = 1 << 21


def plan_space(target: CpuTarget, tail: Tail, conv: Convolution) -> tuning.Space:
    """The plans around that of `choose_plan`."""
    return _Choices(target, tail, conv).space()


def planned(plan: tuning.Plan) -> Plan:
    """What a plan of the space says."""
    numbers = {name: int(plan[name]) for name in _NUMBERS}
    words = {name: str(plan[name]) for name in _WORDS}
    return Plan(**numbers, **words)  # type: ignore[arg-type]


_NUMBERS = ("rows", "vectors", "lanes", "height", "blocks", "panel", "ahead", "unroll")
_WORDS = ("source", "outer", "finish", "over")


@dataclass(frozen=True)
class _Choices:
    target: CpuTarget
    tail: Tail
    conv: Convolution

    def space(self) -> tuning.Space:
        conv, default = self.conv, self._default
        channels = conv.out_channels // conv.groups
        single = conv.kernel == (1, 1)
        rows, columns = conv.kernel
        counts = nearby((1, 2, 4, 8, 16), default.blocks)
        heights = nearby(tuple(-(-conv.out_height // bands) for bands in BANDS), default.height)
        lanes = conv.taps.lanes(self.target)
        knobs = (
            Knob("over", ("channels", "positions")),
            Knob("rows", nearby((4, 6, 7, 8, 10, 12, 14), default.rows)),
            Knob("vectors", nearby((1, 2, 3, 4), default.vectors)),
            Knob("lanes", conv.taps.widths(self.target)),
            Knob("height", heights),
            Knob("source", ("band", "copy", "input") if is_plain(conv) else ("band", "copy")),
            Knob("blocks", tuple(count for count in counts if 2 * count <= max(channels, 2))),
            Knob("panel", tuple(sorted({0, default.panel}))),
            Knob("outer", ("bands", "blocks")),
            Knob("ahead", (0, CHANNELS_AHEAD) if single else (0,)),
            Knob("unroll", (1, 2, 4) if single else nearby((1, columns, rows * columns))),
            Knob("finish", ("end", "flat", "registers", "rows") if self._flat else ("end", "rows")),
        )
        own = {name: getattr(default, name) for name in (*_NUMBERS, *_WORDS)}
        traits = {
            "words": conv.group_words, "filters": channels, "groups": conv.groups, "taps": rows * columns,
            "positions": conv.out_height * conv.out_width, "width": conv.out_width, "stride": conv.stride[1],
            "tail": self._tail_nodes, "lanes": lanes,
        }  # fmt: skip
        return tuning.Space(knobs, own, traits, self.refuses, self.features)

    @cached_property
    def _default(self) -> Plan:
        return choose_plan(self.target, self.conv)

    @cached_property
    def _flat(self) -> bool:
        return is_flat(self.tail)

    @cached_property
    def _tail_nodes(self) -> int:
        return written_out([self.tail.value], {})

    def refuses(self, values: tuning.Plan) -> str | None:
        """Why values don't go together, or None."""
        plan, conv = planned(values), self.conv
        if plan == self._default:
            return None
        channels = conv.out_channels // conv.groups
        blocks = -(-channels // plan.filters)
        if plan.rows * plan.vectors + plan.vectors + 1 > self.target.vector_registers:
            return "the sums don't fit the registers"
        if plan.rows * plan.vectors * plan.unroll > MAX_BODY:
            return "too much is written out"
        if plan.blocks > blocks:
            return "there are fewer blocks"
        if blocks * plan.filters - channels > MAX_WASTE * channels:
            return "most channels are surplus"
        if conv.kernel == (1, 1) and conv.group_words % plan.unroll:
            return "the channels aren't whole steps"
        return self._sums_refuse(plan) or (
            self._channels_refuse(plan) if plan.over == "channels" else self._positions_refuse(plan)
        )

    def _sums_refuse(self, plan: Plan) -> str | None:
        contiguous = self._pitch(plan) == self.conv.out_width or plan.over == "channels"
        if plan.finish in ("flat", "registers") and not (contiguous or plan.height == 1):
            return "rows of sums have gaps"
        if plan.finish == "flat" and plan.height == 1:
            return "a row is flat"
        band = plan.filters * self._length(plan) * 4
        if band * (plan.blocks if plan.panel else 1) > MAX_SUMS:
            return "the sums are too many"
        return None

    def _channels_refuse(self, plan: Plan) -> str | None:
        if plan.panel or plan.ahead or plan.finish not in ("end", "flat"):
            return "vectors over channels have no panels, and are transposed"
        if plan.rows > plan.height * self.conv.out_width:
            return "there are fewer positions"
        return None

    def _positions_refuse(self, plan: Plan) -> str | None:
        length = self._length(plan)
        if plan.direct and length < plan.vectors * plan.lanes:
            return "a band is shorter than a tile"
        if (plan.vectors - 1) * plan.lanes >= length:
            return "a tile is longer than a band"
        if plan.panel and (plan.blocks == 1 or plan.ahead or plan.finish == "rows"):
            return "a panel is read once, or already in the cache"
        if plan.finish == "registers":
            if not plan.direct and length % plan.lanes:
                return "positions beyond the band would be stored"
            if plan.rows * plan.vectors * self._tail_nodes > MAX_TAILS:
                return "too long a tail"
        return None

    def _pitch(self, plan: Plan) -> int:
        return self.conv.width if plan.direct else self.conv.source_width

    def _length(self, plan: Plan) -> int:
        return (plan.height - 1) * self._pitch(plan) + self.conv.out_width

    def features(self, values: tuning.Plan) -> Mapping[str, float]:
        """What follows from a plan and decides about time."""
        plan, conv = planned(values), self.conv
        channels = conv.out_channels // conv.groups
        blocks = -(-channels // plan.filters)
        bands = -(-conv.out_height // plan.height)
        tasks = bands * -(-blocks // plan.blocks) * conv.groups
        if plan.over == "channels":
            positions = plan.height * conv.out_width
        else:
            positions = -(-self._length(plan) // plan.lanes) * plan.lanes
        wanted = conv.out_height * conv.out_width * channels
        return {
            "waste": bands * positions * blocks * plan.filters / wanted - 1,
            "imbalance": imbalance(tasks, self.target.threads),
            "tasks": tasks,
            "sums": plan.rows * plan.vectors,
            # Loads for each multiply-add: a word of each row, and vectors.
            "loads": (plan.rows + 2 * plan.vectors) / (plan.rows * plan.vectors),
            "weights": plan.filters * plan.blocks * conv.steps * 4,
            "source": (plan.height + conv.kernel[0] - 1) * self._pitch(plan) * conv.group_words * 4,
            "body": plan.rows * plan.vectors * plan.unroll,
        }
