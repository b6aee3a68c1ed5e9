"""The attention kernel against float64: grouped heads, offsets into a fused projection, masks, symbolic sizes."""

import numpy as np
import pytest
from running import Runner, function, normal, targets
from tvm import tirx

from greencc.ops import AttentionAttrs, attention
from greencc.targets.cpu.target import CpuTarget

ATOL = 2e-6


def reference(y: np.ndarray, attrs: AttentionAttrs, mask: np.ndarray | None) -> np.ndarray:
    """softmax(scale Q K^T + mask) V in float64, from the fused projection [B, S, C]."""
    batch, rows, _ = y.shape

    def heads(offset: int, count: int, size: int) -> np.ndarray:
        part = y[:, :, offset : offset + count * size].astype(np.float64)
        return np.repeat(part.reshape(batch, rows, count, size), attrs.heads // count, axis=2)

    q = heads(attrs.q_offset, attrs.heads, attrs.head_dim)
    k = heads(attrs.k_offset, attrs.kv_heads, attrs.head_dim)
    v = heads(attrs.v_offset, attrs.kv_heads, attrs.value_dim)
    scores = np.einsum("bihd,bjhd->bhij", q, k) * attrs.scale
    if mask is not None:
        scores = scores + mask
    if attrs.causal:
        scores = np.where(np.tril(np.ones((rows, rows), bool)), scores, -np.inf)
    with np.errstate(invalid="ignore"):
        power = np.exp(scores - scores.max(-1, keepdims=True))
        weights = power / power.sum(-1, keepdims=True)
    if attrs.nan_to_zero:
        weights = np.nan_to_num(weights)
    return np.einsum("bhij,bjhd->bihd", weights, v).reshape(batch, rows, -1)


def fused(heads: int, kv_heads: int, head_dim: int, value_dim: int, **options: object) -> AttentionAttrs:
    """Attributes for Q, K and V side by side in one projection."""
    keys = heads * head_dim
    values = keys + kv_heads * head_dim
    return AttentionAttrs(
        heads,
        kv_heads,
        head_dim,
        value_dim,
        0,
        keys,
        values,
        scale=head_dim**-0.5,
        **options,  # type: ignore[arg-type]
    )


CASES = {
    "plain": (fused(2, 2, 32, 32), None),
    "grouped, sizes that fill no vector": (fused(4, 2, 24, 40), None),
    "causal": (fused(3, 3, 16, 16, causal=True), None),
    "mask per batch element": (fused(2, 2, 16, 16), ("b", 1, 1, "s")),
    "full mask": (fused(2, 2, 16, 16), ("b", 2, "s", "s")),
    "one-element head": (fused(1, 1, 1, 1), None),
}


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_all_forms_with_symbolic_and_static_sizes(target: CpuTarget) -> None:
    symbols = {"b": tirx.Var("b", "int64"), "s": tirx.Var("s", "int64")}
    for sizes in (symbols, {"b": 2, "s": 37}):
        params: dict[str, tuple[tuple[object, ...], str]] = {}
        for i, (attrs, mask) in enumerate(CASES.values()):
            width = attrs.v_offset + attrs.kv_heads * attrs.value_dim
            params[f"y{i}"] = ((sizes["b"], sizes["s"], width), "float32")
            if mask is not None:
                params[f"m{i}"] = (tuple(sizes.get(dim, dim) for dim in mask), "float32")

        def body(emit, *values, params=params):
            named = dict(zip(params, values, strict=True))
            return [
                emit(attention(named[f"y{i}"], named[f"y{i}"], named[f"y{i}"], named.get(f"m{i}"), attrs))
                for i, (attrs, _) in enumerate(CASES.values())
            ]

        runner = Runner(function(params, body), target)
        assert runner.rules == {"cpu-attention"}
        for batch, rows in ((2, 37),) if sizes is not symbols else ((1, 1), (2, 7), (1, 64), (3, 130)):
            actual = {"b": batch, "s": rows}
            arrays = {
                name: normal(*(actual.get(getattr(d, "name", d), d) for d in shape), seed=len(name) + rows)
                for name, (shape, _) in params.items()
            }
            for i, ((name, (attrs, _)), got) in enumerate(zip(CASES.items(), runner(*arrays.values()), strict=True)):
                want = reference(arrays[f"y{i}"], attrs, arrays.get(f"m{i}"))
                np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=f"{name} at {batch}x{rows}")


@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_rows_without_any_key(nan_to_zero: bool) -> None:
    attrs = fused(2, 2, 16, 16, nan_to_zero=nan_to_zero)
    y, mask = normal(1, 20, 96), np.zeros((1, 1, 20, 20), np.float32)
    mask[0, 0, 3] = -np.inf
    mask[0, 0, 5, 4:] = -np.inf
    runner = Runner(
        function(
            {"y": ((1, 20, 96), "float32"), "m": ((1, 1, 20, 20), "float32")},
            lambda emit, v, m: emit(attention(v, v, v, m, attrs)),
        )
    )
    got = runner(y, mask)[0]
    assert np.isnan(got[0, 3]).all() != nan_to_zero
    np.testing.assert_allclose(got, reference(y, attrs, mask), atol=ATOL, rtol=0)


@pytest.mark.parametrize("rows", [tirx.Var("s", "int64"), 1100], ids=["symbolic", "static"])
def test_more_keys_than_a_block_holds(rows: object) -> None:
    """Scores grow with the keys, so that later blocks rescale what earlier ones left; some rows see no early block."""
    plain, causal = fused(2, 2, 16, 24, nan_to_zero=True), fused(2, 1, 16, 24, causal=True)
    shapes = {"y": (1, rows, 112), "m": (1, 1, rows, rows), "z": (1, rows, 72)}
    runner = Runner(
        function(
            {name: (shape, "float32") for name, shape in shapes.items()},
            lambda emit, y, m, z: [emit(attention(y, y, y, m, plain)), emit(attention(z, z, z, None, causal))],
        )
    )
    count = 1100
    y, z = normal(1, count, 112), normal(1, count, 72, seed=1)
    y[..., 32:64] *= np.linspace(0.5, 8, count, dtype=np.float32)[:, None]
    mask = np.zeros((1, 1, count, count), np.float32)
    mask[..., 3, :] = -np.inf
    mask[..., 5, :1000] = -np.inf
    mask[..., 7, 30:] = -np.inf
    got = runner(y, mask, z)
    np.testing.assert_allclose(got[0], reference(y, plain, mask), atol=1e-5, rtol=0)
    np.testing.assert_allclose(got[1], reference(z, causal, None), atol=1e-5, rtol=0)


def test_large_scores_do_not_overflow() -> None:
    attrs = fused(1, 1, 16, 16)
    y = normal(1, 16, 48) * np.float32(100)
    runner = Runner(function({"y": ((1, 16, 48), "float32")}, lambda emit, v: emit(attention(v, v, v, None, attrs))))
    np.testing.assert_allclose(runner(y)[0], reference(y, attrs, None), atol=2e-3, rtol=0)


def test_cross_attention_takes_keys_of_another_length() -> None:
    attrs = AttentionAttrs(2, 2, 16, 8, scale=0.25)
    q, k, v = normal(2, 5, 32), normal(2, 11, 32, seed=1), normal(2, 11, 16, seed=2)
    runner = Runner(
        function(
            {"q": (q.shape, "float32"), "k": (k.shape, "float32"), "v": (v.shape, "float32")},
            lambda emit, a, b, c: emit(attention(a, b, c, None, attrs)),
        )
    )
    split = [a.reshape(2, -1, 2, a.shape[-1] // 2).astype(np.float64) for a in (q, k, v)]
    scores = np.einsum("bihd,bjhd->bhij", split[0], split[1]) * 0.25
    power = np.exp(scores - scores.max(-1, keepdims=True))
    want = np.einsum("bhij,bjhd->bihd", power / power.sum(-1, keepdims=True), split[2]).reshape(2, 5, 16)
    np.testing.assert_allclose(runner(q, k, v)[0], want, atol=ATOL, rtol=0)
