"""Attention of a few queries, as in decoding: a workgroup takes all queries that read the same keys.

With so few rows, the time goes into reading keys and values once. Each thread computes the scores of one key of a block
with all rows; then threads stand for columns of the values, in teams that share out the block's keys. What the teams
have summed up is added in the end.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.attention_sequence import NEGATIVE_INFINITY, Sequence, finite
from greencc.targets.gpu.schedules.launch import when
from greencc.targets.gpu.schedules.shared_tiles import ceiling, share_out
from greencc.targets.gpu.schedules.threads import local, shared
from greencc.targets.tir import as_int, i64, ramp

# Threads of a workgroup: many where a core has few workgroups, since each thread asks for one key at a time.
FEW_THREADS, MANY_THREADS = 128, 512
CORE_GROUPS = 5
# Queries of a sequence, and rows of all heads that share keys: their sums are in registers.
MAX_QUERIES, MAX_ROWS = 4, 16
# Teams whose sums are added without a loop: narrow values make hundreds.
MOST_UNROLLED = 16
# Threads that look for a row's largest score.
PARTS = FEW_THREADS // MAX_ROWS

Combine = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]


def fits_decode(attrs: AttentionAttrs, rows: tirx.Expr, gpu: Capabilities) -> bool:
    """Whether the rows are known to be so few that this form serves."""
    count = as_int(rows)
    if count is None or count > MAX_QUERIES:
        return False
    width = count * (attrs.heads // attrs.kv_heads)
    return width <= MAX_ROWS and decode_bytes(attrs, width, FEW_THREADS) <= gpu.shared_bytes


def decode_threads(attrs: AttentionAttrs, gpu: Capabilities, batch: int | None, queries: int) -> int:
    """Threads of a workgroup for `batch` sequences, if known, of so many queries each."""
    rows = decode_rows(attrs, queries)
    threads = FEW_THREADS
    if (batch or 1) * attrs.kv_heads < CORE_GROUPS * gpu.cores:
        while (
            threads * 2 <= min(gpu.max_threads, MANY_THREADS)
            and decode_bytes(attrs, rows, threads * 2) <= gpu.shared_bytes
        ):
            threads *= 2
    return threads


def decode_rows(attrs: AttentionAttrs, queries: int) -> int:
    """Rows of all heads that read the same keys."""
    return queries * (attrs.heads // attrs.kv_heads)


def decode_bytes(attrs: AttentionAttrs, rows: int, threads: int) -> int:
    """Shared memory of a workgroup, at most."""
    return 4 * (rows * (attrs.head_dim + threads + PARTS) + threads * 4 * -(-attrs.value_dim // threads))


class DecodeEmitter:
    """Emits what one workgroup does.

    Args:
        attrs: the operator's attributes.
        threads: of a workgroup.
        queries: how many rows each sequence has.
    """

    def __init__(self, attrs: AttentionAttrs, threads: int, queries: int) -> None:
        self.attrs, self.threads, self.queries = attrs, threads, queries
        self.rows = decode_rows(attrs, queries)

    def emit(self, sequence: Sequence, kv_head: tirx.Expr, thread: tirx.Expr) -> None:
        """All rows of the heads that read keys of head `kv_head`."""
        self.sequence, self.kv_head, self.thread = sequence, kv_head, thread
        self.value_lanes = sequence.value_lanes
        columns = self.attrs.value_dim // self.value_lanes  # vectors of a value
        self.value_parts = -(-columns // self.threads)
        self.lanes = -(-columns // self.value_parts)
        self.teams = 1
        while self.teams * 2 * self.lanes <= self.threads:
            self.teams *= 2
        self.team, self.lane = tirx.floordiv(thread, i64(self.lanes)), tirx.floormod(thread, i64(self.lanes))
        self.own = self.value_lanes * self.value_parts
        self.query = shared(self.rows * self.attrs.head_dim, "float32")
        self.powers = shared(self.rows * self.threads, "float32")
        self.gathered = shared(self.rows * PARTS, "float32")
        self.scores, self.peaks, self.totals = (local(self.rows, "float32") for _ in range(3))
        self.sums = local(self.rows * self.own, "float32")
        self.part, self.factor = local(4, "float32"), local(1, "float32")
        self._clear()
        with T.serial(i64(0), ceiling(sequence.keys, self.threads)) as block:
            first = block * i64(self.threads)
            self._score(first + thread)
            self._weigh()
            self._add_values(first)
        self._store()

    def _each(self, count: int) -> T.frame.ForFrame:
        return T.unroll(i64(0), i64(count))

    def _place(self, row: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """(head, query) of a row."""
        head = self.kv_head * i64(self.attrs.heads // self.attrs.kv_heads)
        return head + tirx.floordiv(row, i64(self.queries)), tirx.floormod(row, i64(self.queries))

    def _clear(self) -> None:
        """Queries in shared memory, and no key seen."""
        size = self.attrs.head_dim
        zero = tirx.const(0.0, "float32")

        def move(item: tirx.Expr) -> None:
            head, row = self._place(tirx.floordiv(item, i64(size)))
            value = self.sequence.query(row, head, tirx.floormod(item, i64(size)), 1)
            T.buffer_store(self.query, value, [item])

        share_out(self.rows * size, self.threads, self.thread, move)
        with self._each(self.rows) as r:
            T.buffer_store(self.peaks, tirx.const(NEGATIVE_INFINITY, "float32"), [r])
            T.buffer_store(self.totals, zero, [r])
        with self._each(self.rows * self.own) as i:
            T.buffer_store(self.sums, zero, [i])

    def _score(self, key: tirx.Expr) -> None:
        """Scores of all rows with a thread's key."""
        lanes, size = self.sequence.score_lanes, self.attrs.head_dim
        with self._each(self.rows) as r:
            T.buffer_store(self.scores, tirx.const(0.0, "float32"), [r])
        with T.serial(i64(0), i64(size // lanes)) as step:
            column = step * i64(lanes)
            value = self.sequence.key(key, self.kv_head, column, lanes)
            T.buffer_store(self.part, value, [ramp(i64(0), lanes)])
            with self._each(self.rows) as r, self._each(lanes) as lane:
                query = self.query[r * i64(size) + column + lane]
                T.buffer_store(self.scores, self.scores[r] + query * self.part[lane], [r])
        with self._each(self.rows) as r:
            head, row = self._place(r)
            T.buffer_store(self.scores, self.sequence.score(self.scores[r], row, head, key), [r])

    def _combine(self, values: tirx.Var, start: float, combine: Combine, use: Callable[..., None]) -> None:
        """Emit `use(r, value)` for every row, with what all threads' values of it combine to."""
        with self._each(self.rows) as r:
            T.buffer_store(self.powers, values[r], [r * i64(self.threads) + self.thread])

        def gather(item: tirx.Expr) -> None:
            row, part = tirx.floordiv(item, i64(PARTS)), tirx.floormod(item, i64(PARTS))
            T.buffer_store(self.factor, tirx.const(start, "float32"), [i64(0)])
            with T.serial(i64(0), i64(self.threads // PARTS)) as i:
                other = self.powers[row * i64(self.threads) + i * i64(PARTS) + part]
                T.buffer_store(self.factor, combine(self.factor[i64(0)], other), [i64(0)])
            T.buffer_store(self.gathered, self.factor[i64(0)], [item])

        share_out(self.rows * PARTS, self.threads, self.thread, gather)
        with self._each(self.rows) as r:
            T.buffer_store(self.factor, tirx.const(start, "float32"), [i64(0)])
            with self._each(PARTS) as part:
                other = self.gathered[r * i64(PARTS) + part]
                T.buffer_store(self.factor, combine(self.factor[i64(0)], other), [i64(0)])
            use(r, self.factor[i64(0)])

    def _weigh(self) -> None:
        """Powers of the block's scores, and what was summed up so far by the new largest score."""
        scale = local(1, "float32")

        def weigh(r: tirx.Expr, found: tirx.Expr) -> None:
            peak = tirx.max(self.peaks[r], found)
            T.buffer_store(scale, tirx.exp(self.peaks[r] - finite(peak)), [i64(0)])
            T.buffer_store(self.peaks, peak, [r])
            T.buffer_store(self.scores, tirx.exp(self.scores[r] - finite(self.peaks[r])), [r])
            T.buffer_store(self.totals, self.totals[r] * scale[i64(0)] + self.scores[r], [r])
            T.buffer_store(self.powers, self.scores[r], [r * i64(self.threads) + self.thread])
            with self._each(self.own) as i:
                at = r * i64(self.own) + i
                T.buffer_store(self.sums, self.sums[at] * scale[i64(0)], [at])

        self._combine(self.scores, NEGATIVE_INFINITY, tirx.max, weigh)

    def _add_values(self, first: tirx.Expr) -> None:
        """Powers times values: a team's keys, a thread's columns."""
        count = tirx.min(self.sequence.keys - first, i64(self.threads))
        with when(self._works()), T.serial(i64(0), ceiling(count, self.teams)) as step:
            key = step * i64(self.teams) + self.team
            with self._each(self.value_parts) as part:
                value = self.sequence.value(first + key, self.kv_head, self._column(part), self.value_lanes)
                T.buffer_store(self.part, value, [ramp(i64(0), self.value_lanes)])
                with self._each(self.rows) as r, self._each(self.value_lanes) as lane:
                    at = r * i64(self.own) + part * i64(self.value_lanes) + lane
                    weight = self.powers[r * i64(self.threads) + key]
                    T.buffer_store(self.sums, self.sums[at] + weight * self.part[lane], [at])

    def _works(self) -> tirx.Expr | None:
        """Whether a thread has columns; None where all do."""
        return self.team < i64(self.teams) if self.teams * self.lanes < self.threads else None

    def _column(self, part: tirx.Expr) -> tirx.Expr:
        """The first column of a thread's vector, the last one again where it has none."""
        vector = tirx.min(part * i64(self.lanes) + self.lane, i64(self.attrs.value_dim // self.value_lanes - 1))
        return vector * i64(self.value_lanes)

    def _store(self) -> None:
        """Sums of all threads and teams, and the rows' results."""
        size, pitch = self.attrs.value_dim, self.lanes * self.own
        inverse = local(self.rows, "float32")

        def invert(r: tirx.Expr, total: tirx.Expr) -> None:
            T.buffer_store(inverse, self.sequence.inverse(total), [r])

        self._combine(self.totals, 0.0, lambda a, b: a + b, invert)
        teams = shared(self.teams * pitch, "float32")
        with T.unroll(i64(0), i64(self.rows)) as r:
            with when(self._works()), self._each(self.value_parts) as part, self._each(self.value_lanes) as lane:
                place = self.team * i64(pitch) + (part * i64(self.lanes) + self.lane) * i64(self.value_lanes) + lane
                T.buffer_store(teams, self.sums[r * i64(self.own) + part * i64(self.value_lanes) + lane], [place])
            head, row = self._place(r)

            def add(item: tirx.Expr, r: tirx.Expr = r, head: tirx.Expr = head, row: tirx.Expr = row) -> None:
                T.buffer_store(self.factor, tirx.const(0.0, "float32"), [i64(0)])
                loop = T.unroll if self.teams <= MOST_UNROLLED else T.serial
                with loop(i64(0), i64(self.teams)) as team:
                    T.buffer_store(self.factor, self.factor[i64(0)] + teams[team * i64(pitch) + item], [i64(0)])
                place = [self.sequence.batch, self.sequence.first + row, head * i64(size) + item]
                value = self.factor[i64(0)] * inverse[r]
                T.buffer_store(self.sequence.out, self.sequence.narrowed(value), place)

            share_out(size, self.threads, self.thread, add)
