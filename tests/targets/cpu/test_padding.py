"""The kernels of elided padding against numpy: packing and spreading rows, attention of packed sequences."""

from __future__ import annotations

import numpy as np
import pytest
from running import Runner, function, normal, targets
from test_attention import ATOL, fused, reference
from tvm import relax, tirx

from greencc.kernels import kernel
from greencc.ops import packed_attention
from greencc.targets.cpu.target import CpuTarget

BATCH, LONGEST = 4, 150


def masks() -> list[np.ndarray]:
    """Prefixes, suffixes, holes; an empty sequence first, last and in the middle; nothing but padding."""
    rng = np.random.default_rng(0)
    places = np.arange(LONGEST)
    prefixes = places < np.array([[150], [1], [129], [64]])
    return [
        prefixes,
        prefixes[:, ::-1],
        rng.random((BATCH, LONGEST)) < 0.5,
        prefixes & np.array([[False], [True], [True], [False]]),
        prefixes & np.array([[True], [False], [True], [True]]),
        np.zeros((BATCH, LONGEST), bool),
        np.ones((BATCH, LONGEST), bool),
    ]


def packed(emit, mask: relax.Var, tokens: tirx.Var) -> tuple[relax.Expr, relax.Expr]:
    """Starts and places of a mask's real tokens, `tokens` in number."""
    counted = emit(kernel("token_starts", [mask]))
    starts, count = (emit(relax.TupleGetItem(counted, i)) for i in range(2))
    return starts, count


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "float32"])
def test_starts_and_counts(dtype: str) -> None:
    def body(emit, mask):
        counted = emit(kernel("token_starts", [mask]))
        return [emit(relax.TupleGetItem(counted, i)) for i in range(2)]

    symbols = (tirx.Var("b", "int64"), tirx.Var("s", "int64"))
    runner = Runner(function({"mask": (symbols, dtype)}, body))
    for mask in masks():
        starts, count = runner(mask.astype(dtype))
        flat = mask.ravel().astype(np.int64)
        np.testing.assert_array_equal(starts, (np.cumsum(flat) - flat).reshape(mask.shape))
        assert count.tolist() == [max(1, flat.sum())]


def test_packing_and_spreading_rows() -> None:
    """With the number of tokens as a dimension of an input, every kind of operand is packed and spread again."""
    b, s, n = (tirx.Var(name, "int64") for name in ("b", "s", "n"))

    def body(emit, mask, starts, tokens, every, position, bare, sequence):
        places = emit(kernel("token_places", [mask, starts], [n]))
        results = []
        for x, lead in ((every, "tokens"), (position, "positions"), (bare, "bare-positions"), (sequence, "sequences")):
            row = emit(kernel("pack_tokens", [x, places], [s], lead=lead))
            results += [row, emit(kernel("unpack_tokens", [row, mask, starts]))]
        return [*results, emit(relax.op.add(tokens, tokens))]

    params = {
        "mask": ((b, s), "bool"),
        "starts": ((b, s), "int64"),
        "tokens": ((n,), "float32"),
        "every": ((b, s, 5), "float32"),
        "position": ((1, s, 3), "float32"),
        "bare": ((s, 2), "float32"),
        "sequence": ((b, 1, 4), "float32"),
    }
    runner = Runner(function(params, body))
    for mask in masks():
        flat = mask.ravel().astype(np.int64)
        count = max(1, int(flat.sum()))
        starts = (np.cumsum(flat) - flat).reshape(mask.shape)
        arrays = [normal(BATCH, LONGEST, 5), normal(1, LONGEST, 3), normal(LONGEST, 2), normal(BATCH, 1, 4)]
        results = runner(mask, starts, np.zeros(count, np.float32), *arrays)
        for i, array in enumerate(arrays):
            whole = np.broadcast_to(array, (BATCH, LONGEST, array.shape[-1]))
            row, spread = results[2 * i : 2 * i + 2]
            if flat.any():
                np.testing.assert_array_equal(row[0], whole[mask])
            np.testing.assert_array_equal(spread, np.where(mask[..., None], whole, 0))


ATTENTIONS = {
    "plain": fused(3, 3, 32, 32),
    "grouped, sizes that fill no vector": fused(4, 2, 24, 40),
    "causal": fused(2, 2, 16, 16, causal=True),
}


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize(
    ("batch", "longest"),
    # Whole panels of keys in the longest sequence: others end within one all the same.
    [(BATCH, LONGEST), (BATCH, 192), (tirx.Var("b", "int64"), tirx.Var("s", "int64"))],
    ids=["static", "whole panels", "symbolic"],
)
def test_attention_of_packed_sequences(target: CpuTarget, batch: object, longest: object) -> None:
    n = tirx.Var("n", "int64")
    widths = {name: a.v_offset + a.kv_heads * a.value_dim for name, a in ATTENTIONS.items()}
    params: dict[str, tuple[tuple[object, ...], str]] = {"starts": ((batch, longest), "int64")}
    params |= {name: ((1, n, width), "float32") for name, width in widths.items()}

    def body(emit, starts, *rows):
        attributes = zip(rows, ATTENTIONS.values(), strict=True)
        return [emit(packed_attention(x, x, x, starts, attrs)) for x, attrs in attributes]

    runner = Runner(function(params, body), target)
    assert runner.rules == {"cpu-attention"}
    for mask in masks():
        flat = mask.ravel().astype(np.int64)
        count = max(1, int(flat.sum()))
        starts = (np.cumsum(flat) - flat).reshape(mask.shape)
        arrays = [normal(1, count, width, seed=i) for i, width in enumerate(widths.values())]
        ends = np.append(starts[1:, 0], count)
        given = np.zeros((BATCH, longest if isinstance(longest, int) else LONGEST), np.int64)
        given[:, 0] = starts[:, 0]  # no other column is read
        for got, x, attrs in zip(runner(given, *arrays), arrays, ATTENTIONS.values(), strict=True):
            for first, end in zip(starts[:, 0], ends, strict=True):
                if first < end and flat.any():
                    want = reference(x[:, first:end], attrs, None)
                    np.testing.assert_allclose(got[:, first:end], want, atol=ATOL, rtol=0)
