"""The operands of an attention kernel as one workgroup sees them: those of one sequence."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.ops import AttentionAttrs
from greencc.targets.gpu.schedules.shared_tiles import whole_lanes
from greencc.targets.tir import as_int, i64, ramp, vector_type

NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class Sequence:
    """One sequence of queries with its keys and values.

    Attributes:
        attrs: the operator's attributes.
        batch, first: the sequence's first row in the operands is [batch, first].
        rows, keys: how many queries and keys it has.
        element: its number, by which the mask is read.
        q, k, v, mask, out: operands and result.
    """

    attrs: AttentionAttrs
    batch: tirx.Expr
    first: tirx.Expr
    rows: tirx.Expr
    keys: tirx.Expr
    element: tirx.Expr
    q: tirx.Var
    k: tirx.Var
    v: tirx.Var
    mask: tirx.Var | None
    out: tirx.Var

    @property
    def score_lanes(self) -> int:
        """Elements of a load of queries and keys."""
        attrs = self.attrs
        pitches = [buffer.ty.shape[-1] for buffer in (self.q, self.k)]
        return whole_lanes(attrs.head_dim, attrs.q_offset, attrs.k_offset, *pitches)

    @property
    def value_lanes(self) -> int:
        """Elements of a load of values."""
        return whole_lanes(self.attrs.value_dim, self.attrs.v_offset, self.v.ty.shape[-1])

    def query(self, row: tirx.Expr, head: tirx.Expr, column: tirx.Expr, lanes: int) -> tirx.Expr:
        """Part of a query in float32; a row behind the last one stands for that."""
        start = i64(self.attrs.q_offset) + head * i64(self.attrs.head_dim) + column
        return self._load(self.q, row, self.rows, start, lanes)

    def key(self, row: tirx.Expr, head: tirx.Expr, column: tirx.Expr, lanes: int) -> tirx.Expr:
        """Part of a key, like `query`; `head` counts key heads."""
        start = i64(self.attrs.k_offset) + head * i64(self.attrs.head_dim) + column
        return self._load(self.k, row, self.keys, start, lanes)

    def value(self, row: tirx.Expr, head: tirx.Expr, column: tirx.Expr, lanes: int) -> tirx.Expr:
        """Part of a value, like `key`."""
        start = i64(self.attrs.v_offset) + head * i64(self.attrs.value_dim) + column
        return self._load(self.v, row, self.keys, start, lanes)

    def _load(self, buffer: tirx.Var, row: tirx.Expr, rows: tirx.Expr, column: tirx.Expr, lanes: int) -> tirx.Expr:
        place = tirx.max(tirx.min(row, rows - i64(1)), i64(0))
        value = tirx.BufferLoad(buffer, [self.batch, self.first + place, ramp(column, lanes)])
        return widened(value, lanes)

    def score(self, product: tirx.Expr, row: tirx.Expr, head: tirx.Expr, key: tirx.Expr) -> tirx.Expr:
        """What a row's product with a key counts as: scaled and masked; nothing where it doesn't see the key."""
        value = product * tirx.const(self.attrs.scale, "float32")
        if self.mask is not None:
            wanted = [
                self.element, head, tirx.min(row, self.rows - i64(1)), tirx.min(key, self.keys - i64(1)),
            ]  # fmt: skip
            index = [i64(0) if as_int(dim) == 1 else at for dim, at in zip(self.mask.ty.shape, wanted, strict=True)]
            value = value + widened(tirx.BufferLoad(self.mask, index), 1)
        seen = key < self.keys
        if self.attrs.causal:
            seen = tirx.And(seen, key <= row + self.keys - self.rows)
        return tirx.Select(seen, value, tirx.const(NEGATIVE_INFINITY, "float32"))

    def inverse(self, total: tirx.Expr) -> tirx.Expr:
        """What the weighted values of a row are multiplied with in the end; only a row without keys has a sum of 0."""
        value = tirx.const(1.0, "float32") / total
        if not self.attrs.nan_to_zero:
            return value
        zero = tirx.const(0.0, "float32")
        return tirx.Select(total.equal(zero), zero, value)

    def narrowed(self, value: tirx.Expr) -> tirx.Expr:
        """A result as it is stored."""
        kind = str(self.out.ty.dtype)
        return value if kind == "float32" else tirx.Cast(kind, value)


def widened(value: tirx.Expr, lanes: int) -> tirx.Expr:
    """A loaded value in float32."""
    kind = vector_type("float32", lanes)
    return value if str(value.ty.dtype) == kind else tirx.Cast(kind, value)


def finite(peak: tirx.Expr) -> tirx.Expr:
    """What is taken off the scores of a row whose largest is `peak`: 0 where it has seen no key."""
    none = peak.equal(tirx.const(NEGATIVE_INFINITY, "float32"))
    return tirx.Select(none, tirx.const(0.0, "float32"), peak)
