"""Attention kernels by plan. They are emitted while a module is legalised, and again where a plan is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from greencc.ops import AttentionAttrs
from greencc.targets.gpu.capabilities import Capabilities, GpuTarget
from greencc.targets.gpu.schedules.attention import RULE, default_plan, planned_kernel
from greencc.targets.gpu.schedules.attention_decode import decode_bytes, decode_rows
from greencc.targets.gpu.schedules.attention_tile import MAX_DEPTH, FlashTile, flash_tile
from greencc.targets.gpu.schedules.matmul_space import LEAST_THREADS
from greencc.targets.tir import as_int
from greencc.targets.tuning.emitted import EmittedRule
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# Scores, or sums of weighted values, of a thread: products of each are written out one behind the other.
_MOST_SUMS = 64
# What a symbolic number of queries or keys is taken for when features of a plan are computed.
_USUAL = 128


@dataclass(frozen=True)
class _Form:
    """An attention kernel: what its operator says, types of its parameters, sizes, and its plan by default."""

    attrs: AttentionAttrs
    types: list[tuple[list[tirx.Expr], str]]
    batch: int | None
    rows: int | None
    keys: int | None
    default: FlashTile | int


@dataclass(frozen=True)
class AttentionRule(EmittedRule[_Form]):
    """Emits attention kernels again. Those over sequences of several lengths have one plan only."""

    target: GpuTarget
    name: str = RULE

    def form(self, func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> _Form:
        """See EmittedRule."""
        attrs = AttentionAttrs(**recipe)
        types = [(list(param.ty.shape), str(param.ty.dtype)) for param in func.params]
        (batch, rows, _), (_, keys, _) = types[0][0], types[1][0]
        default = default_plan(attrs, batch, rows, self.target.gpu)
        return _Form(attrs, types, as_int(batch), as_int(rows), as_int(keys), default)

    def space_of(self, form: _Form) -> Space:
        """See EmittedRule."""
        return _space(form, self.target.gpu)

    def emit(self, form: _Form, plan: Plan) -> tirx.PrimFunc:
        """See EmittedRule."""
        chosen = int(plan["threads"]) if isinstance(form.default, int) else _tile(form.attrs, plan)
        return planned_kernel(form.attrs, form.types, self.target, chosen)


def _space(form: _Form, gpu: Capabilities) -> Space:
    attrs = form.attrs
    traits = {
        "heads": attrs.heads,
        "head_dim": attrs.head_dim,
        "value_dim": attrs.value_dim,
        "queries": form.rows or 0,
        "keys": form.keys or 0,
        "causal": int(attrs.causal),
    }
    if isinstance(form.default, int):
        return _decode_space(form, form.default, gpu, traits)
    default = form.default
    knobs = (
        Knob("teams", nearby((2, 4, 8, 16), default.teams)),
        Knob("lanes", nearby((4, 8, 16), default.lanes)),
        Knob("thread_rows", nearby((4, 8, 16), default.own_rows)),
        Knob("keys", nearby((16, 32, 64), default.keys)),
        Knob("depth", nearby((16, 32, 64), MAX_DEPTH)),
        Knob("queries", ("in parts", "resident")),
    )
    values: dict[str, int | str] = {
        "teams": default.teams,
        "lanes": default.lanes,
        "thread_rows": default.own_rows,
        "keys": default.keys,
        "depth": MAX_DEPTH,
        "queries": "resident" if default.resident else "in parts",
    }
    largest = max(form.rows or _USUAL, default.rows)

    def refuses(plan: Plan) -> str | None:
        tile = _tile(attrs, plan)
        if not LEAST_THREADS <= tile.threads <= gpu.max_threads:
            return f"{tile.threads} threads"
        if tile.shared_bytes > gpu.shared_bytes:
            return "too much shared memory"
        if int(plan["depth"]) >= 2 * max(attrs.head_dim, MAX_DEPTH):
            return "a head is read at once with less"
        if tile.rows >= 2 * largest:
            return "most of a tile lies behind the last row"
        if _sums(tile) > max(_MOST_SUMS, _sums(default)):
            return "a thread has too many sums"
        return None

    def features(plan: Plan) -> Mapping[str, float]:
        tile = _tile(attrs, plan)
        rows, keys = form.rows or _USUAL, form.keys or _USUAL
        groups = -(-rows // tile.rows) * attrs.heads * (form.batch or 1)
        return {
            "threads": tile.threads,
            "groups": groups,
            "rounds": -(-groups // gpu.cores) / (groups / gpu.cores),
            "waste": -(-rows // tile.rows) * tile.rows / rows,
            "blocks": -(-keys // tile.keys),
            "reads": 2 / tile.own_rows + 1 / tile.keys_per_thread + 1 / (tile.value_lanes * tile.value_parts),
            "sums": _sums(tile),
            "shared_bytes": tile.shared_bytes,
        }

    return Space(knobs, values, traits, refuses, features)


def _sums(tile: FlashTile) -> int:
    """Sums that a thread adds up at a time: scores, or weighted values."""
    return tile.own_rows * max(tile.keys_per_thread, tile.value_lanes * tile.value_parts)


def _decode_space(form: _Form, default: int, gpu: Capabilities, traits: Mapping[str, float]) -> Space:
    rows = decode_rows(form.attrs, form.rows or 1)
    fitting = tuple(
        n for n in (32, 64, 128, 256, 512, 1024)
        if n <= gpu.max_threads and decode_bytes(form.attrs, rows, n) <= gpu.shared_bytes
    )  # fmt: skip
    return Space((Knob("threads", nearby(fitting, default)),), {"threads": default}, traits)


def _tile(attrs: AttentionAttrs, plan: Plan) -> FlashTile:
    return flash_tile(
        attrs,
        int(plan["teams"]),
        int(plan["lanes"]),
        int(plan["thread_rows"]),
        resident=plan["queries"] == "resident",
        keys=int(plan["keys"]),
        most_depth=int(plan["depth"]),
    )
