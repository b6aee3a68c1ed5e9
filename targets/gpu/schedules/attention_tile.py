"""Attention of a block of query rows by a workgroup: products of tiles in shared memory, sums in registers.

Threads form a grid, `teams` x `lanes`. A thread computes the scores of `rows_per_thread` neighbouring rows with
`keys_per_thread` neighbouring keys, and later, of the same rows, every `lanes`-th part of the result. Keys and values
take turns in the same shared memory, a few columns of keys, or a few rows of values, at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.attention_sequence import NEGATIVE_INFINITY, Sequence, finite
from greencc.targets.gpu.schedules.launch import when
from greencc.targets.gpu.schedules.shared_tiles import BANK_PADDING, ceiling, copy_tile
from greencc.targets.gpu.schedules.threads import local, shared
from greencc.targets.tir import i64

BLOCK_KEYS = 32
# Neighbouring rows of a thread. More of them share its loads of keys and values, and take registers.
FEW_ROWS, MANY_ROWS = 4, 8
# Columns of queries and keys in shared memory at a time, at most.
MAX_DEPTH = 32
# Workgroups for each core: where there are more, each takes more rows, which share the loads of keys.
CORE_GROUPS = 5


@dataclass(frozen=True)
class FlashTile:
    """How a workgroup is laid out.

    Attributes:
        teams, lanes: threads along rows, and along keys or columns.
        own_rows: neighbouring rows of a thread, a multiple of 4.
        keys: how many are seen at a time, a multiple of the lanes.
        depth: columns of queries and keys in shared memory at a time, in `chunks` parts.
        resident: whether all columns of the queries stay there.
        value_keys: rows of values in shared memory at a time.
        value_lanes: neighbouring columns of the result of a thread, in `value_parts` parts.
    """

    teams: int
    lanes: int
    own_rows: int
    keys: int
    depth: int
    chunks: int
    resident: bool
    value_keys: int
    value_lanes: int
    value_parts: int

    @property
    def rows(self) -> int:
        """Query rows of a workgroup."""
        return self.teams * self.own_rows

    @property
    def threads(self) -> int:
        """Threads of a workgroup."""
        return self.teams * self.lanes

    @property
    def keys_per_thread(self) -> int:
        """Neighbouring keys of a thread."""
        return self.keys // self.lanes

    @property
    def row_pitch(self) -> int:
        """Elements from one column of the transposed queries (or powers) to the next."""
        return self.rows + BANK_PADDING

    @property
    def key_pitch(self) -> int:
        """Elements from one column of the transposed keys to the next."""
        return self.keys + BANK_PADDING

    @property
    def value_pitch(self) -> int:
        """Elements from one value to the next."""
        return self.lanes * self.value_lanes * self.value_parts

    @property
    def query_size(self) -> int:
        """Elements of the queries in shared memory."""
        return self.depth * (self.chunks if self.resident else 1) * self.row_pitch

    @property
    def operand_size(self) -> int:
        """Elements of the memory in which keys and values take turns."""
        return max(self.depth * self.key_pitch, self.value_keys * self.value_pitch)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a workgroup."""
        powers = self.keys * self.row_pitch
        return 4 * (self.query_size + self.operand_size + powers + self.rows * self.lanes)


def choose_tile(attrs: AttentionAttrs, gpu: Capabilities, batch: int | None, rows: int | None) -> FlashTile:
    """The tile for sequences of so many rows, if known: queries resident where they fit, many rows where many are."""
    teams = 8
    lanes = 8 if attrs.value_dim <= 64 else 16
    if rows is not None and -(-rows // (teams * MANY_ROWS)) * attrs.heads * (batch or 1) >= CORE_GROUPS * gpu.cores:
        wide = flash_tile(attrs, teams, lanes, MANY_ROWS, resident=True)
        if wide.shared_bytes <= gpu.shared_bytes:
            return wide
    if rows is not None and rows <= teams * FEW_ROWS // 2:
        teams //= 2
    tile = flash_tile(attrs, teams, lanes, FEW_ROWS, resident=True)
    return tile if tile.shared_bytes <= gpu.shared_bytes else flash_tile(attrs, teams, lanes, FEW_ROWS, resident=False)


def flash_tile(
    attrs: AttentionAttrs,
    teams: int,
    lanes: int,
    own_rows: int,
    *,
    resident: bool,
    keys: int = BLOCK_KEYS,
    most_depth: int = MAX_DEPTH,
) -> FlashTile:
    """A tile, with as much of a head at a time as `most_depth` columns take."""
    chunks = -(-attrs.head_dim // most_depth)
    depth = -(-attrs.head_dim // chunks)
    if attrs.head_dim % 4 == 0:
        depth = -(-depth // 4) * 4  # whole vectors
    value_lanes = next(n for n in (4, 2, 1) if attrs.value_dim % n == 0)
    parts = -(-attrs.value_dim // (lanes * value_lanes))
    # As many values at a time as fit where the keys were.
    value_keys = keys
    while value_keys > 4 and value_keys * lanes * value_lanes * parts > most_depth * (keys + BANK_PADDING):
        value_keys //= 2
    return FlashTile(teams, lanes, own_rows, keys, depth, chunks, resident, value_keys, value_lanes, parts)


class FlashEmitter:
    """Emits what one workgroup does.

    Args:
        sequence: what it works on.
        tile: how it is laid out.
        head: its query head.
        thread: the number of a thread in it.
    """

    def __init__(self, sequence: Sequence, tile: FlashTile, head: tirx.Expr, thread: tirx.Expr) -> None:
        self.sequence, self.tile, self.head, self.thread = sequence, tile, head, thread
        attrs = sequence.attrs
        group = attrs.heads // attrs.kv_heads
        self.kv_head = tirx.floordiv(head, i64(group)) if group > 1 else head
        self.team = tirx.floordiv(thread, i64(tile.lanes))
        self.lane = tirx.floormod(thread, i64(tile.lanes))
        self.queries = shared(tile.query_size, "float32")
        self.operand = shared(tile.operand_size, "float32")
        self.powers = shared(tile.keys * tile.row_pitch, "float32")
        self.gathered = shared(tile.rows * tile.lanes, "float32")
        self.scores = local(tile.own_rows * tile.keys_per_thread, "float32")
        self.sums = local(tile.own_rows * tile.value_lanes * tile.value_parts, "float32")
        self.peaks, self.totals, self.column = (local(tile.own_rows, "float32") for _ in range(3))
        self.factor = local(1, "float32")

    def emit(self, first: tirx.Expr) -> None:
        """The rows from `first` on."""
        sequence, tile = self.sequence, self.tile
        self._clear()
        if tile.resident:
            self._load_queries(first, i64(0), tile.depth * tile.chunks)
        seen = sequence.keys
        if sequence.attrs.causal:  # no row of the block sees a key behind the one that its last row sees last
            last = first + i64(tile.rows) + sequence.keys - sequence.rows
            seen = tirx.max(tirx.min(seen, last), i64(0))
        with T.serial(i64(0), ceiling(seen, tile.keys)) as block:
            key = block * i64(tile.keys)
            self._products(first, key)
            self._gather_peaks(first, key)
            self._weigh()
            self._add_values(key)
        self._store(first)

    def _each(self, count: int) -> T.frame.ForFrame:
        return T.unroll(i64(0), i64(count))

    def _row(self, r: tirx.Expr) -> tirx.Expr:
        """The place of a thread's row in the block."""
        return self.team * i64(self.tile.own_rows) + r

    def _clear(self) -> None:
        """No key has been seen."""
        zero = tirx.const(0.0, "float32")
        with self._each(self.tile.own_rows) as r:
            T.buffer_store(self.peaks, tirx.const(NEGATIVE_INFINITY, "float32"), [r])
            T.buffer_store(self.totals, zero, [r])
        with self._each(self.tile.own_rows * self.tile.value_lanes * self.tile.value_parts) as i:
            T.buffer_store(self.sums, zero, [i])

    def _load_queries(self, first: tirx.Expr, start: tirx.Expr, columns: int) -> None:
        def load(row: tirx.Expr, column: tirx.Expr, lanes: int) -> tirx.Expr:
            return self.sequence.query(first + row, self.head, column, lanes)

        self._load_transposed(self.queries, load, self.tile.rows, self.tile.row_pitch, start, columns)

    def _load_keys(self, first: tirx.Expr, start: tirx.Expr) -> None:
        def load(row: tirx.Expr, column: tirx.Expr, lanes: int) -> tirx.Expr:
            return self.sequence.key(first + row, self.kv_head, column, lanes)

        self._load_transposed(self.operand, load, self.tile.keys, self.tile.key_pitch, start, self.tile.depth)

    def _load_transposed(
        self,
        target: tirx.Var,
        loader: Callable[[tirx.Expr, tirx.Expr, int], tirx.Expr],
        rows: int,
        pitch: int,
        start: tirx.Expr,
        columns: int,
    ) -> None:
        """Columns start.. of some rows; what lies behind a head's last column is 0."""
        lanes, size = self.sequence.score_lanes, self.sequence.attrs.head_dim
        surplus = size != self.tile.depth * self.tile.chunks
        zero = tirx.const(0.0, "float32")

        def load(row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
            value = loader(row, start + column, lanes)
            if not surplus:
                return value
            nothing = zero if lanes == 1 else tirx.Broadcast(zero, lanes)
            return tirx.if_then_else(start + column < i64(size), value, nothing)

        def store(row: tirx.Expr, column: tirx.Expr, value: tirx.Expr) -> None:
            T.buffer_store(target, value, [column * i64(pitch) + row])

        copy_tile(rows, columns, lanes, self.tile.threads, self.thread, load, store)

    def _products(self, first: tirx.Expr, key: tirx.Expr) -> None:
        """Products of a thread's rows with its keys."""
        tile = self.tile
        with self._each(tile.own_rows * tile.keys_per_thread) as i:
            T.buffer_store(self.scores, tirx.const(0.0, "float32"), [i])
        with T.serial(i64(0), i64(tile.chunks)) as chunk:
            start = chunk * i64(tile.depth)
            self._load_keys(key, start)
            if not tile.resident:
                self._load_queries(first, start, tile.depth)
            with T.serial(i64(0), i64(tile.depth)) as d:
                column = start + d if tile.resident else d
                self._load_column(self.queries, column)
                with self._each(tile.keys_per_thread) as c:
                    place = d * i64(tile.key_pitch) + self.lane * i64(tile.keys_per_thread) + c
                    T.buffer_store(self.factor, self.operand[place], [i64(0)])
                    with self._each(self.tile.own_rows) as r:
                        at = r * i64(tile.keys_per_thread) + c
                        value = self.scores[at] + self.column[r] * self.factor[i64(0)]
                        T.buffer_store(self.scores, value, [at])

    def _load_column(self, source: tirx.Var, column: tirx.Expr) -> None:
        """A thread's rows of a column of transposed queries or powers."""
        for part in range(0, self.tile.own_rows, 4):
            start = column * i64(self.tile.row_pitch) + self._row(i64(part))
            value = tirx.BufferLoad(source, [tirx.Ramp(start, i64(1), 4)])
            T.buffer_store(self.column, value, [tirx.Ramp(i64(part), i64(1), 4)])

    def _gather_peaks(self, first: tirx.Expr, key: tirx.Expr) -> None:
        """Scores in place of products, and the largest of each thread where all can read it."""
        tile = self.tile
        with self._each(self.tile.own_rows) as r:
            T.buffer_store(self.factor, tirx.const(NEGATIVE_INFINITY, "float32"), [i64(0)])
            with self._each(tile.keys_per_thread) as c:
                at = r * i64(tile.keys_per_thread) + c
                own = key + self.lane * i64(tile.keys_per_thread) + c
                score = self.sequence.score(self.scores[at], first + self._row(r), self.head, own)
                T.buffer_store(self.scores, score, [at])
                T.buffer_store(self.factor, tirx.max(self.factor[i64(0)], self.scores[at]), [i64(0)])
            T.buffer_store(self.gathered, self.factor[i64(0)], [self._row(r) * i64(tile.lanes) + self.lane])

    def _weigh(self) -> None:
        """Powers of the scores, and what was summed up so far by the new largest score."""
        tile = self.tile
        own = tile.value_lanes * tile.value_parts
        peak = local(1, "float32")
        with self._each(self.tile.own_rows) as r:
            T.buffer_store(peak, self.peaks[r], [i64(0)])
            with self._each(tile.lanes) as lane:
                other = self.gathered[self._row(r) * i64(tile.lanes) + lane]
                T.buffer_store(peak, tirx.max(peak[i64(0)], other), [i64(0)])
            scale = tirx.exp(self.peaks[r] - finite(peak[i64(0)]))
            T.buffer_store(self.factor, scale, [i64(0)])
            T.buffer_store(self.peaks, peak[i64(0)], [r])
            T.buffer_store(self.totals, self.totals[r] * self.factor[i64(0)], [r])
            with self._each(own) as i:
                T.buffer_store(self.sums, self.sums[r * i64(own) + i] * self.factor[i64(0)], [r * i64(own) + i])
            with self._each(tile.keys_per_thread) as c:
                at = r * i64(tile.keys_per_thread) + c
                T.buffer_store(self.scores, tirx.exp(self.scores[at] - finite(peak[i64(0)])), [at])
                T.buffer_store(self.totals, self.totals[r] + self.scores[at], [r])
                column = self.lane * i64(tile.keys_per_thread) + c
                T.buffer_store(self.powers, self.scores[at], [column * i64(tile.row_pitch) + self._row(r)])

    def _add_values(self, key: tirx.Expr) -> None:
        """Powers times values."""
        tile, sequence = self.tile, self.sequence
        lanes = min(sequence.value_lanes, tile.value_lanes)
        own = tile.value_lanes * tile.value_parts
        with T.serial(i64(0), i64(tile.keys // tile.value_keys)) as chunk:
            start = chunk * i64(tile.value_keys)

            def load(row: tirx.Expr, column: tirx.Expr, start: tirx.Expr = start) -> tirx.Expr:
                return sequence.value(key + start + row, self.kv_head, column, lanes)

            def store(row: tirx.Expr, column: tirx.Expr, value: tirx.Expr) -> None:
                T.buffer_store(self.operand, value, [row * i64(tile.value_pitch) + column])

            copy_tile(tile.value_keys, sequence.attrs.value_dim, lanes, tile.threads, self.thread, load, store)
            with T.serial(i64(0), i64(tile.value_keys)) as step:
                self._load_column(self.powers, start + step)
                with self._each(tile.value_parts) as part, self._each(tile.value_lanes) as lane:
                    place = step * i64(tile.value_pitch) + self._value_column(part, lane)
                    T.buffer_store(self.factor, self.operand[place], [i64(0)])
                    with self._each(self.tile.own_rows) as r:
                        at = r * i64(own) + part * i64(tile.value_lanes) + lane
                        value = self.sums[at] + self.column[r] * self.factor[i64(0)]
                        T.buffer_store(self.sums, value, [at])

    def _value_column(self, part: tirx.Expr, lane: tirx.Expr) -> tirx.Expr:
        return (part * i64(self.tile.lanes) + self.lane) * i64(self.tile.value_lanes) + lane

    def _store(self, first: tirx.Expr) -> None:
        """Sums over all threads of a row, and its result."""
        tile, sequence = self.tile, self.sequence
        own, size = tile.value_lanes * tile.value_parts, sequence.attrs.value_dim
        with self._each(self.tile.own_rows) as r:
            T.buffer_store(self.gathered, self.totals[r], [self._row(r) * i64(tile.lanes) + self.lane])
        with self._each(self.tile.own_rows) as r:
            T.buffer_store(self.factor, tirx.const(0.0, "float32"), [i64(0)])
            with self._each(tile.lanes) as lane:
                other = self.gathered[self._row(r) * i64(tile.lanes) + lane]
                T.buffer_store(self.factor, self.factor[i64(0)] + other, [i64(0)])
            T.buffer_store(self.totals, sequence.inverse(self.factor[i64(0)]), [r])
        with self._each(self.tile.own_rows) as r:
            row = first + self._row(r)
            with when(row < sequence.rows), self._each(tile.value_parts) as part:
                inside = self._value_column(part, i64(0)) < i64(size) if tile.value_pitch != size else None
                with when(inside), self._each(tile.value_lanes) as lane:
                    column = self._value_column(part, lane)
                    value = self.sums[r * i64(own) + part * i64(tile.value_lanes) + lane] * self.totals[r]
                    place = [sequence.batch, sequence.first + row, self.head * i64(size) + column]
                    T.buffer_store(sequence.out, sequence.narrowed(value), place)
