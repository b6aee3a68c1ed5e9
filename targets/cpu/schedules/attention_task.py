"""What one task of an attention kernel works on; see greencc.targets.cpu.schedules.attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from greencc.ops import AttentionAttrs
from greencc.targets.tir import as_int, i64, ramp, splat

NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class Block:
    """Keys first .. first + count - 1 of a sequence. Those of the only block are all."""

    first: tirx.Expr
    count: tirx.Expr


@dataclass(frozen=True)
class Task:
    """What one task works on: its sequence, and the buffers.

    Attributes:
        batch, first: the sequence's first row in the operands is [batch, first].
        rows, keys: how many queries and keys the sequence has.
        element: the sequence's number, by which the mask is read.
        head: the query head.
        q, k, v, mask, out: operands and result.
    """

    batch: tirx.Expr
    first: tirx.Expr
    rows: tirx.Expr
    keys: tirx.Expr
    element: tirx.Expr
    head: tirx.Expr
    q: tirx.Var
    k: tirx.Var
    v: tirx.Var
    mask: tirx.Var | None
    out: tirx.Var

    def at(self, buffer: tirx.Var, row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        """Element (or vector) of an operand, by the row in the sequence."""
        return tirx.BufferLoad(buffer, [self.batch, self.first + row, column])

    def kv_head(self, attrs: AttentionAttrs) -> tirx.Expr:
        """The head of keys and values that the query head reads."""
        group = attrs.heads // attrs.kv_heads
        return tirx.floordiv(self.head, i64(group)) if group > 1 else self.head

    def masked(self, mask: tirx.Var, row: tirx.Expr, key: tirx.Expr, lanes: int = 1) -> tirx.Expr:
        """What the mask adds to the scores of `lanes` keys from `key` on."""
        wanted = [self.element, self.head, row, key]
        index = [i64(0) if as_int(dim) == 1 else place for dim, place in zip(mask.ty.shape, wanted, strict=True)]
        if as_int(mask.ty.shape[3]) == 1:
            return splat(tirx.BufferLoad(mask, index), lanes)
        return tirx.BufferLoad(mask, [*index[:3], ramp(key, lanes)])


class TaskEmitter(Protocol):
    """Emits the tasks of a kernel."""

    @property
    def task_rows(self) -> int:
        """Queries of a task."""

    def task(self, task: Task, block: tirx.Expr) -> None:
        """All queries of block number `block`, of `task_rows` queries, for one head."""


def masks_rows(mask: list[tirx.Expr] | None) -> bool:
    """Whether a mask of this shape has another row for every query. One that is the same for all is added with ease."""
    return mask is not None and as_int(mask[2]) != 1


def score_offset(peak: tirx.Expr, lanes: int) -> tirx.Expr:
    """What is taken off scores. A row without any key keeps its -inf: subtracting -inf would give NaN."""
    low, zero = (splat(tirx.const(value, "float32"), lanes) for value in (NEGATIVE_INFINITY, 0.0))
    return tirx.Select(peak.equal(low), zero, peak)


def inverse_total(attrs: AttentionAttrs, peak: tirx.Expr, total: tirx.Expr, lanes: int) -> tirx.Expr:
    """What the weighted values of a row are multiplied with in the end."""
    low, zero, one = (splat(tirx.const(value, "float32"), lanes) for value in (NEGATIVE_INFINITY, 0.0, 1.0))
    value = one / total
    return tirx.Select(peak.equal(low), zero, value) if attrs.nan_to_zero else value
