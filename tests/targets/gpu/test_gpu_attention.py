"""The GPU kernels of attention against float64: heads, masks, offsets, symbolic sizes, many keys and few queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_running import GpuRunner, device
from tvm import tirx

from greencc.ops import AttentionAttrs, attention, packed_attention
from greencc.targets.gpu.schedules.attention_tile import choose_tile
from tests.targets.cpu.running import function, normal

pytestmark = pytest.mark.vulkan

ATOL = 2e-6
SYMBOLS = {name: tirx.Var(name, "int64") for name in "bst"}


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, attrs: AttentionAttrs, mask: np.ndarray | None = None
) -> np.ndarray:
    """softmax(scale Q K^T + mask) V in float64, of operands [B, S or T, columns]."""

    def heads(array: np.ndarray, offset: int, count: int, size: int) -> np.ndarray:
        part = array[:, :, offset : offset + count * size].astype(np.float64)
        return np.repeat(part.reshape(*array.shape[:2], count, size), attrs.heads // count, axis=2)

    queries = heads(q, attrs.q_offset, attrs.heads, attrs.head_dim)
    keys = heads(k, attrs.k_offset, attrs.kv_heads, attrs.head_dim)
    values = heads(v, attrs.v_offset, attrs.kv_heads, attrs.value_dim)
    scores = np.einsum("bihd,bjhd->bhij", queries, keys) * attrs.scale
    if mask is not None:
        scores = scores + mask
    if attrs.causal:
        rows, columns = scores.shape[2:]
        scores = np.where(np.tril(np.ones((rows, columns), bool), columns - rows), scores, -np.inf)
    with np.errstate(invalid="ignore"):
        power = np.exp(scores - scores.max(-1, keepdims=True))
        weights = power / power.sum(-1, keepdims=True)
    if attrs.nan_to_zero:
        weights = np.nan_to_num(weights)
    return np.einsum("bhij,bjhd->bihd", weights, values).reshape(*q.shape[:2], -1)


def fused(heads: int, kv_heads: int, head_dim: int, value_dim: int, **options: Any) -> AttentionAttrs:
    """Attributes for Q, K and V side by side in one projection."""
    keys = heads * head_dim
    values = keys + kv_heads * head_dim
    return AttentionAttrs(heads, kv_heads, head_dim, value_dim, 0, keys, values, scale=head_dim**-0.5, **options)


def width(attrs: AttentionAttrs) -> int:
    """Columns of a fused projection."""
    return attrs.v_offset + attrs.kv_heads * attrs.value_dim


def apart(attrs: AttentionAttrs) -> AttentionAttrs:
    """The same heads in operands of their own."""
    return replace(attrs, q_offset=0, k_offset=0, v_offset=0)


def three(attrs: AttentionAttrs, rows: object, keys: object, batch: object = 2) -> dict[str, Any]:
    """Parameters q, k and v."""
    sizes = {
        "q": (rows, attrs.heads * attrs.head_dim),
        "k": (keys, attrs.kv_heads * attrs.head_dim),
        "v": (keys, attrs.kv_heads * attrs.value_dim),
    }
    return {name: ((batch, *size), "float32") for name, size in sizes.items()}


CASES = {
    "plain": (fused(2, 2, 32, 32), None),
    "grouped, sizes that fill no vector": (fused(4, 2, 24, 40), None),
    "causal": (fused(3, 3, 16, 16, causal=True), None),
    "mask per batch element": (fused(2, 2, 16, 16), ("b", 1, 1, "s")),
    "mask per row": (fused(2, 2, 16, 16), ("b", 2, "s", "s")),
    "odd heads": (fused(2, 1, 13, 7), (1, 2, "s", 1)),
    "one-element head": (fused(1, 1, 1, 1), None),
    "queries that don't stay in shared memory": (fused(1, 1, 260, 136), None),
}


# Those that are tried with static sizes too.
STATIC = ("causal", "mask per row")


@pytest.mark.parametrize("symbolic", [True, False], ids=["symbolic", "static"])
def test_all_forms(symbolic: bool) -> None:
    sizes: dict[str, Any] = SYMBOLS if symbolic else {"b": 2, "s": 37}
    cases = {name: case for name, case in CASES.items() if symbolic or name in STATIC}
    params: dict[str, tuple[tuple[object, ...], str]] = {}
    for i, (attrs, mask) in enumerate(cases.values()):
        params[f"y{i}"] = ((sizes["b"], sizes["s"], width(attrs)), "float32")
        if mask is not None:
            params[f"m{i}"] = (tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in mask), "float32")

    def body(emit, *values):
        named = dict(zip(params, values, strict=True))
        return [
            emit(attention(named[f"y{i}"], named[f"y{i}"], named[f"y{i}"], named.get(f"m{i}"), attrs))
            for i, (attrs, _) in enumerate(cases.values())
        ]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-attention"}
    for batch, rows in ((1, 1), (2, 7), (1, 64), (3, 67)) if symbolic else ((2, 37),):
        actual = {"b": batch, "s": rows}
        arrays = {
            name: normal(*(actual.get(getattr(d, "name", d), d) for d in shape), seed=len(name) + rows)
            for name, (shape, _) in params.items()
        }
        for i, ((name, (attrs, _)), got) in enumerate(zip(cases.items(), runner(*arrays.values()), strict=True)):
            y = arrays[f"y{i}"]
            want = reference(y, y, y, attrs, arrays.get(f"m{i}"))
            np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=f"{name} at {batch}x{rows}")


@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_rows_without_any_key(nan_to_zero: bool) -> None:
    attrs = fused(2, 2, 16, 16, nan_to_zero=nan_to_zero)
    y, mask = normal(1, 40, 96), np.zeros((1, 1, 40, 40), np.float32)
    mask[0, 0, 3] = -np.inf
    mask[0, 0, 5, 4:] = -np.inf
    mask[0, 0, 6, :36] = -np.inf
    few = apart(replace(attrs, kv_heads=1))
    q, k, v = normal(1, 2, 32, seed=1), normal(1, 40, 16, seed=2), normal(1, 40, 16, seed=3)
    shapes = {"y": y, "m": mask, "q": q, "k": k, "v": v, "n": mask[:, :, 2:4]}

    def body(emit, y, m, q, k, v, n):
        return [emit(attention(y, y, y, m, attrs)), emit(attention(q, k, v, n, few))]

    runner = GpuRunner(function({name: (array.shape, "float32") for name, array in shapes.items()}, body))
    many, two = runner(*shapes.values())
    assert np.isnan(many[0, 3]).all() != nan_to_zero
    np.testing.assert_allclose(many, reference(y, y, y, attrs, mask), atol=ATOL, rtol=0)
    np.testing.assert_allclose(two, reference(q, k, v, few, mask[:, :, 2:4]), atol=ATOL, rtol=0)


@pytest.mark.parametrize("rows", [SYMBOLS["s"], 600], ids=["symbolic", "static"])
def test_many_keys(rows: object) -> None:
    """Scores grow with the keys, so that later blocks rescale what earlier ones left; some rows see no early block."""
    plain, causal = fused(2, 2, 16, 24, nan_to_zero=True), fused(2, 1, 16, 24, causal=True)
    count = 600
    y, z = normal(1, count, 112), normal(1, count, 72, seed=1)
    y[..., 32:64] *= np.linspace(0.5, 8, count, dtype=np.float32)[:, None]
    mask = np.zeros((1, 1, count, count), np.float32)
    mask[..., 3, :] = -np.inf
    mask[..., 5, :500] = -np.inf
    mask[..., 7, 30:] = -np.inf
    params = {"y": ((1, rows, 112), "float32"), "m": ((1, 1, rows, rows), "float32"), "z": ((1, rows, 72), "float32")}

    def body(emit, y, m, z):
        return [emit(attention(y, y, y, m, plain)), emit(attention(z, z, z, None, causal))]

    got = GpuRunner(function(params, body))(y, mask, z)
    np.testing.assert_allclose(got[0], reference(y, y, y, plain, mask), atol=1e-5, rtol=0)
    np.testing.assert_allclose(got[1], reference(z, z, z, causal), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", [16, 33])
@pytest.mark.parametrize("cores", [0, 1000])
def test_few_and_many_rows_a_thread(head_dim: int, cores: int) -> None:
    """A device whose cores are busy computes more rows with each thread."""
    chosen = device()
    target = replace(chosen, gpu=replace(chosen.gpu, cores=cores))
    attrs = fused(2, 1, head_dim, 72, causal=True)
    y = normal(2, 100, width(attrs))
    module = function({"y": (y.shape, "float32")}, lambda emit, v: emit(attention(v, v, v, None, attrs)))
    np.testing.assert_allclose(GpuRunner(module, target)(y)[0], reference(y, y, y, attrs), atol=ATOL, rtol=0)
    few, many = (choose_tile(attrs, replace(chosen.gpu, cores=n), 2, 100) for n in (1000, 0))
    assert many.rows == 2 * few.rows


def test_large_scores_do_not_overflow() -> None:
    attrs = fused(1, 1, 16, 16)
    y = normal(1, 16, 48) * np.float32(100)
    runner = GpuRunner(function({"y": (y.shape, "float32")}, lambda emit, v: emit(attention(v, v, v, None, attrs))))
    np.testing.assert_allclose(runner(y)[0], reference(y, y, y, attrs), atol=2e-3, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_keys_of_another_length(causal: bool) -> None:
    """With fewer queries than keys, the last query sees the last key."""
    attrs = AttentionAttrs(2, 2, 16, 8, scale=0.25, causal=causal)
    params = three(attrs, SYMBOLS["s"], SYMBOLS["t"])
    runner = GpuRunner(function(params, lambda emit, q, k, v: emit(attention(q, k, v, None, attrs))))
    for rows, keys in ((5, 11), (40, 70)):
        q, k, v = normal(2, rows, 32), normal(2, keys, 32, seed=1), normal(2, keys, 16, seed=2)
        np.testing.assert_allclose(runner(q, k, v)[0], reference(q, k, v, attrs), atol=ATOL, rtol=0)


FEW = {
    "one query, grouped": (AttentionAttrs(8, 2, 32, 64, scale=0.2), 1, (1, 300, 1025), False),
    "some queries, causal, masked": (AttentionAttrs(4, 2, 24, 40, scale=0.2, causal=True), 3, (3, 129), True),
    "odd heads": (AttentionAttrs(2, 2, 5, 131, scale=0.4), 2, (77,), True),
    "heads of one element": (AttentionAttrs(3, 3, 1, 1), 4, (130,), False),
    "values longer than a workgroup": (AttentionAttrs(1, 1, 8, 1030), 1, (9,), False),
}


def test_few_queries() -> None:
    """As in decoding: keys are shared out, and what each thread found is put together."""
    params: dict[str, Any] = {}
    for i, (attrs, rows, _, masked) in enumerate(FEW.values()):
        keys = tirx.Var(f"t{i}", "int64")
        params |= {f"{name}{i}": ty for name, ty in three(attrs, rows, keys).items()}
        if masked:
            params[f"m{i}"] = ((2, 1, 1, keys), "float32")

    def body(emit, *values):
        named = dict(zip(params, values, strict=True))
        operands = [[named.get(f"{name}{i}") for name in "qkvm"] for i in range(len(FEW))]
        return [emit(attention(*four, attrs)) for four, (attrs, *_) in zip(operands, FEW.values(), strict=True)]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-attention"}
    for turn in range(3):
        arrays: dict[str, np.ndarray] = {}
        for i, (attrs, rows, lengths, masked) in enumerate(FEW.values()):
            keys = lengths[turn % len(lengths)]
            for seed, (name, (shape, _)) in enumerate(three(attrs, rows, keys).items()):
                arrays[f"{name}{i}"] = normal(*shape, seed=seed)
            if masked:
                arrays[f"m{i}"] = np.where(normal(2, 1, 1, keys, seed=4) < 1, 0, -np.inf).astype(np.float32)
                arrays[f"m{i}"][..., 0] = 0
        for i, ((name, (attrs, *_)), got) in enumerate(zip(FEW.items(), runner(*arrays.values()), strict=True)):
            q, k, v = (arrays[f"{operand}{i}"] for operand in "qkv")
            want = reference(q, k, v, attrs, arrays.get(f"m{i}"))
            np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=f"{name}, {k.shape[1]} keys")


@pytest.mark.parametrize("rows", [1, 50])
def test_operands_that_are_stored_in_float16(rows: int) -> None:
    """They are widened as they are loaded: only the result is rounded."""
    attrs = AttentionAttrs(2, 1, 32, 16, scale=0.2)
    params = {name: (shape, "float16") for name, (shape, _) in three(attrs, rows, 50).items()}
    runner = GpuRunner(function(params, lambda emit, q, k, v: emit(attention(q, k, v, None, attrs))))
    q, k, v = (normal(*shape, seed=i).astype(np.float16) for i, (shape, _) in enumerate(params.values()))
    (got,) = runner(q, k, v)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, reference(q, k, v, attrs).astype(np.float16), rtol=2**-10, atol=1e-6)


PACKED = {
    "plain": fused(3, 3, 32, 32),
    "grouped, sizes that fill no vector": fused(4, 2, 24, 40),
    "causal": fused(2, 2, 16, 16, causal=True),
}
LENGTHS = ([150, 1, 129, 64], [0, 40, 0, 31], [33, 0, 0, 0], [0, 0, 0, 0], [32, 64, 32, 96])


def test_packed_sequences() -> None:
    """Sequences behind each other in one row, some of them empty; a row without any token has one all the same."""
    batch, longest = SYMBOLS["b"], SYMBOLS["s"]
    params: dict[str, tuple[tuple[object, ...], str]] = {"starts": ((batch, longest), "int64")}
    params |= {name: ((1, SYMBOLS["t"], width(attrs)), "float32") for name, attrs in PACKED.items()}

    def body(emit, starts, *rows):
        return [emit(packed_attention(x, x, x, starts, a)) for x, a in zip(rows, PACKED.values(), strict=True)]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-attention"}
    for lengths in LENGTHS:
        ends = np.cumsum(lengths)
        count = max(1, int(ends[-1]))
        starts = np.zeros((4, 150), np.int64)
        starts[:, 0] = ends - lengths  # no other column is read
        arrays = [normal(1, count, width(attrs), seed=i) for i, attrs in enumerate(PACKED.values())]
        for got, x, attrs in zip(runner(starts, *arrays), arrays, PACKED.values(), strict=True):
            for first, end in zip(ends - lengths, ends, strict=True):
                if first < end:
                    part = x[:, first:end]
                    want = reference(part, part, part, attrs)
                    np.testing.assert_allclose(got[:, first:end], want, atol=ATOL, rtol=0)
