"""elide-padding: packed graphs against the graphs that compute padding, in numpy; forms of masks; refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run
from tvm import relax
from tvm.relax import op

from greencc.errors import UserError
from greencc.ops import AttentionAttrs, GroupAttrs, attention, grouped_matmul, integer_matmul, rotary
from greencc.passes.base import PassContext
from greencc.passes.elide_padding import ElidePadding
from greencc.passes.row_wise import Batch, leads_of

B, S, H, D = 3, 6, 2, 4
C = H * D
WORDS = 11
LOWEST = float(np.finfo("float32").min)
ATTRS = AttentionAttrs(H, H, D, D, 0, C, 2 * C, scale=0.5)
IDS = ((B, S), "int64")
MASK = ((B, S), "int64")

MASKS = {
    "prefix": [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]],
    "suffix": [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "holes": [[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0]],
    "a sequence of padding": [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]],
    "first and last are padding": [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    "all padding": [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    "no padding": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
}


def ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, WORDS, (B, S))


def added(e, mask, fill: float = LOWEST):
    """(1 - mask) * fill as [B, 1, 1, S]."""
    wide = e(op.astype(e(op.reshape(mask, (B, 1, 1, S))), "float32"))
    return e(op.multiply(e(op.subtract(const(1.0), wide)), const(fill)))


def embedded(e, tokens):
    """Rows of a table, plus a row for each position."""
    words = e(op.take(const(random(WORDS, C)), tokens, axis=0, mode="clip"))
    return e(op.add(words, const(random(1, S, C, seed=1))))


def attended(e, x, scores, attrs: AttentionAttrs = ATTRS):
    """A projection, attention, a residual sum and a normalisation."""
    y = e(op.matmul(x, const(random(C, 3 * C, seed=2))))
    mixed = e(attention(y, y, y, scores, attrs))
    total = e(op.add(mixed, x))
    return e(op.nn.layer_norm(total, const(np.ones(C)), const(np.zeros(C)), axes=[-1]))


def pooled(e, x, mask):
    """The mean of the real rows."""
    weight = e(op.expand_dims(e(op.astype(mask, "float32")), 2))
    return e(op.sum(e(op.multiply(x, weight)), axis=1))


def encoder(e, tokens, mask):
    return attended(e, embedded(e, tokens), added(e, mask))


def pooled_encoder(e, tokens, mask):
    return pooled(e, encoder(e, tokens, mask), mask)


def assert_rows(before, after, *inputs: np.ndarray, mask: np.ndarray) -> None:
    """Real rows of outputs [B, S, ..] are equal and others zero; outputs without rows are equal."""
    with np.errstate(all="ignore"):
        pairs = zip(reference.evaluate(before, *inputs), reference.evaluate(after, *inputs), strict=True)
        for wanted, got in pairs:
            if wanted.shape[:2] == mask.shape:
                wanted = np.where(mask.reshape(*mask.shape, *(1,) * (wanted.ndim - 2)) != 0, wanted, 0.0)
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", MASKS)
def test_real_rows_stay_and_padded_ones_become_zeros(layout: str) -> None:
    before = graph(encoder, tokens=IDS, mask=MASK)
    after = rewritten(ElidePadding("mask"), before)
    assert "greencc.packed_attention" in ops(after)
    assert "greencc.attention" not in ops(after)
    mask = np.array(MASKS[layout])
    assert_rows(before, after, ids(), mask, mask=mask)


@pytest.mark.parametrize("layout", [name for name in MASKS if name != "all padding"])
def test_without_a_name_only_what_no_output_depends_on_is_elided(layout: str) -> None:
    before = graph(pooled_encoder, tokens=IDS, mask=MASK)
    after = rewritten(ElidePadding(), before)
    mask = np.array(MASKS[layout])
    assert_rows(before, after, ids(), mask, mask=mask)


def test_products_of_weights_in_bytes_are_row_wise() -> None:
    levels, scale = random(C, 3 * C, seed=3) * 40, random(2, 3 * C, seed=4)

    def body(e, tokens, mask):
        x = embedded(e, tokens)
        attrs = GroupAttrs(8, C // 2)
        y = e(grouped_matmul(x, const(levels, "int8"), const(np.abs(scale), "float16"), None, attrs))
        mixed = e(attention(y, y, y, added(e, mask), ATTRS))
        bytes_ = e(op.astype(e(op.nn.relu(mixed)), "int8"))
        exact = e(integer_matmul(bytes_, const(1, "int8"), const(levels[:, :C], "int8")))
        return e(op.add(e(op.astype(exact, "float32")), x))

    before = graph(body, tokens=IDS, mask=MASK)
    after = rewritten(ElidePadding("mask"), before)
    assert {"greencc.packed_attention", "greencc.grouped_matmul", "greencc.integer_matmul"} <= set(ops(after))
    mask = np.array(MASKS["holes"])
    assert_rows(before, after, ids(), mask, mask=mask)


def test_symbolic_sizes() -> None:
    def body(e, tokens, mask):
        dims = list(mask.ty.shape.values)
        wide = e(op.astype(e(op.reshape(mask, relax.ShapeExpr([dims[0], 1, 1, dims[1]]))), "float32"))
        scores = e(op.multiply(e(op.subtract(const(1.0), wide)), const(LOWEST)))
        return attended(e, e(op.take(const(random(WORDS, C)), tokens, axis=0, mode="clip")), scores)

    before = graph(body, tokens=(("b", "s"), "int64"), mask=(("b", "s"), "int64"))
    after = rewritten(ElidePadding("mask"), before)
    for batch, longest in ((1, 1), (2, 5), (4, 3)):
        rng = np.random.default_rng(batch)
        mask, tokens = rng.integers(0, 2, (batch, longest)), rng.integers(0, WORDS, (batch, longest))
        assert_rows(before, after, tokens, mask, mask=mask)


def test_a_batch_of_one() -> None:
    def body(e, tokens, mask):
        wide = e(op.astype(e(op.reshape(mask, (1, 1, 1, S))), "float32"))
        scores = e(op.multiply(e(op.subtract(const(1.0), wide)), const(LOWEST)))
        return attended(e, embedded(e, tokens), scores)

    before = graph(body, tokens=((1, S), "int64"), mask=((1, S), "int64"))
    after = rewritten(ElidePadding("mask"), before)
    mask = np.array([[0, 1, 1, 0, 1, 0]])
    assert_rows(before, after, ids()[:1], mask, mask=mask)


def test_causal_attention_keeps_its_order() -> None:
    attrs = AttentionAttrs(H, H, D, D, 0, C, 2 * C, scale=0.5, causal=True)

    def body(e, tokens, mask):
        return attended(e, embedded(e, tokens), added(e, mask), attrs)

    # The numpy reference knows no causal attention: the module must be what a non-causal one is, but for the attribute.
    after = rewritten(ElidePadding("mask"), graph(body, tokens=IDS, mask=MASK))
    assert ops(after) == ops(rewritten(ElidePadding("mask"), graph(encoder, tokens=IDS, mask=MASK)))
    calls = [b.value for block in after["main"].body.blocks for b in block.bindings]
    packed = [c for c in calls if isinstance(c, relax.Call) and c.op.name == "greencc.packed_attention"]
    assert AttentionAttrs.of(packed[0]) == attrs


# -- forms of masks ----------------------------------------------------------------------------------------------------


def _where(e, mask):
    keep = e(op.greater(e(op.reshape(mask, (B, 1, 1, S))), const(0, "int64")))
    return e(op.where(keep, const(0.0), const(-np.inf)))


def _of_squares(e, mask):
    """[B, 1, S, S], with a condition on the query that always holds, as Transformers writes it."""
    keep = e(op.greater(e(op.reshape(mask, (B, 1, 1, S))), const(0, "int64")))
    rows = e(op.greater_equal(const(np.arange(S).reshape(1, 1, S, 1), "int64"), const(0, "int64")))
    return e(op.where(e(op.logical_and(rows, keep)), const(0.0), const(LOWEST)))


def _taken(e, mask):
    """Elements of the flat mask, found by computed indices."""
    flat = e(op.reshape(mask, (B * S, 1)))
    indices = np.arange(B).reshape(B, 1, 1, 1) * S + np.arange(S)
    keys = e(op.reshape(e(op.take(flat, const(indices, "int64"), axis=0, mode="clip")), (B, 1, 1, S)))
    return e(op.multiply(e(op.subtract(const(1.0), e(op.astype(keys, "float32")))), const(-1e4)))


@pytest.mark.parametrize("form", [_where, _of_squares, _taken])
def test_forms_of_masks(form: Callable) -> None:
    before = graph(lambda e, t, m: attended(e, embedded(e, t), form(e, m)), tokens=IDS, mask=MASK)
    after = rewritten(ElidePadding("mask"), before)
    mask = np.array(MASKS["holes"])
    assert_rows(before, after, ids(), mask, mask=mask)


def test_every_row_wise_operator() -> None:
    """Elementwise, broadcasting by position and by sequence, over inner axes, changes of shape, rotary."""

    def body(e, tokens, mask, bias):
        x = encoder(e, tokens, mask)
        x = e(op.add(x, const(random(S, C))))
        x = e(op.multiply(x, bias))  # [B, 1, C]: one for each sequence
        x = e(op.add(const(random(B, S, C)), x))
        x = e(op.add(x, const(random(C))))
        heads = e(op.reshape(x, (B, S, H, D)))
        angles = (const(random(1, S, D)), const(random(1, S, D, seed=1)))
        heads = e(rotary(heads, *angles, interleaved=False))
        heads = e(op.permute_dims(heads, [0, 1, 3, 2]))
        heads = e(op.nn.softmax(heads, axis=3))
        heads = e(op.subtract(heads, e(op.mean(heads, axis=[2, 3], keepdims=True))))
        parts = e(op.take(heads, const([0, 2], "int64"), axis=2, mode="clip"))
        flat = e(op.reshape(parts, (B, S, 2 * H)))
        summed = e(op.expand_dims(e(op.sum(flat, axis=2)), 2))
        chosen = e(op.where(e(op.greater(summed, const(0.0))), flat, e(op.tanh(flat))))
        narrow = e(op.squeeze(e(op.matmul(chosen, const(random(2 * H, 1)))), [2]))
        return e(op.nn.gelu(flat)), narrow

    before = graph(body, tokens=IDS, mask=MASK, bias=(B, 1, C))
    after = rewritten(ElidePadding("mask"), before)
    mask = np.array(MASKS["holes"])
    assert_rows(before, after, ids(), mask, random(B, 1, C), mask=mask)
    packed = [b.var for block in after["main"].body.blocks for b in block.bindings if "layer_norm" in str(b.value)]
    assert [int(packed[0].ty.shape.values[0]), str(packed[0].ty.shape.values[1].name)] == [1, "tokens"]


def test_the_first_token_may_be_picked() -> None:
    def body(e, tokens, mask):
        x = encoder(e, tokens, mask)
        first = e(op.take(x, const(0, "int64"), axis=1, mode="clip"))
        return e(op.tanh(e(op.matmul(first, const(random(C, C))))))

    before = graph(body, tokens=IDS, mask=MASK)
    after = rewritten(ElidePadding("mask"), before)
    mask = np.array(MASKS["prefix"])
    assert_rows(before, after, ids(), mask, mask=mask)


def test_a_value_before_attention_may_also_be_used_elsewhere() -> None:
    def body(e, tokens, mask):
        x = embedded(e, tokens)
        return attended(e, x, added(e, mask)), e(op.mean(x, axis=1))

    before = graph(body, tokens=IDS, mask=MASK)
    after = rewritten(ElidePadding("mask"), before)
    mask = np.array(MASKS["suffix"])
    assert_rows(before, after, ids(), mask, mask=mask)


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(body: Callable, number: int, reason: str, **inputs: object) -> None:
    assert_refused(ElidePadding(), graph(body, tokens=IDS, mask=MASK, **inputs), number, reason)


def _both_ways(e, mask):
    real = e(op.astype(mask, "float32"))
    rows, keys = e(op.reshape(real, (B, 1, S, 1))), e(op.reshape(real, (B, 1, 1, S)))
    both = e(op.multiply(rows, keys))
    return e(op.multiply(e(op.subtract(const(1.0), both)), const(LOWEST)))


def _of_neighbour(e, mask):
    real = e(op.astype(mask, "float32"))
    shifted = e(op.take(real, const(np.roll(np.arange(S), 1), "int64"), axis=1, mode="clip"))
    return e(op.multiply(e(op.subtract(const(1.0), e(op.reshape(shifted, (B, 1, 1, S))))), const(LOWEST)))


def _of_first_sequence(e, mask):
    real = e(op.astype(e(op.take(mask, const([0], "int64"), axis=0, mode="clip")), "float32"))
    return e(op.multiply(e(op.subtract(const(1.0), e(op.reshape(real, (1, 1, 1, S))))), const(LOWEST)))


def _by_cosine(e, mask):
    real = e(op.astype(e(op.reshape(mask, (B, 1, 1, S))), "float32"))
    return e(op.multiply(e(op.subtract(const(1.0), e(op.cos(real)))), const(LOWEST)))


@pytest.mark.parametrize("form", [_both_ways, _of_neighbour, _of_first_sequence, _by_cosine])
def test_condition_1_masks_of_something_else(form: Callable) -> None:
    def body(e, tokens, mask):
        return pooled(e, attended(e, embedded(e, tokens), form(e, mask)), mask)

    refused(body, 1, "an attention's mask is no function of its keys' mask alone")


def test_condition_2_real_scores_change() -> None:
    def body(e, tokens, mask):
        near = const(-np.abs(np.arange(S)[:, None] - np.arange(S)).reshape(1, 1, S, S))
        scores = e(op.add(added(e, mask), near))
        return pooled(e, attended(e, embedded(e, tokens), scores), mask)

    refused(body, 2, "an attention's mask changes the scores of real tokens")


@pytest.mark.parametrize("fill", [-9e3, 0.0])
def test_condition_3_padding_in_sight(fill: float) -> None:
    def body(e, tokens, mask):
        return pooled(e, attended(e, embedded(e, tokens), added(e, mask, fill)), mask)

    refused(body, 3, "an attention sees padded tokens")


def _mean(e, x, mask):
    return e(op.mean(x, axis=1))


def _unmasked_attention(e, x, mask):
    y = e(op.matmul(x, const(random(C, 3 * C))))
    return pooled(e, e(attention(y, y, y, None, ATTRS)), mask)


def _mean_of_shifted(e, x, mask):
    """Zero only where the mask of the next token is."""
    weight = e(op.astype(mask, "float32"))
    shifted = e(op.take(weight, const(np.roll(np.arange(S), 1), "int64"), axis=1, mode="clip"))
    return e(op.sum(e(op.multiply(x, e(op.expand_dims(shifted, 2)))), axis=1))


def _mean_of_padding(e, x, mask):
    weight = e(op.subtract(const(1.0), e(op.astype(mask, "float32"))))
    return e(op.sum(e(op.multiply(x, e(op.expand_dims(weight, 2)))), axis=1))


def _seen_by_others(e, x, mask):
    """Attention of other rows to these, though masked."""
    rows = const(random(B, 4, C, seed=3))
    return e(attention(rows, x, x, added(e, mask), AttentionAttrs(H, H, D, D)))


def _transposed(e, x, mask):
    return pooled(e, e(op.permute_dims(e(op.reshape(x, (S, B, C))), [1, 0, 2])), mask)


def _softmax_over_tokens(e, x, mask):
    return pooled(e, e(op.nn.softmax(x, axis=1)), mask)


@pytest.mark.parametrize(
    "use",
    [
        _mean,
        _unmasked_attention,
        _mean_of_shifted,
        _mean_of_padding,
        _seen_by_others,
        _transposed,
        _softmax_over_tokens,
    ],
)
def test_condition_4_real_and_padded_tokens_mix(use: Callable) -> None:
    def body(e, tokens, mask):
        return use(e, encoder(e, tokens, mask), mask)

    refused(body, 4, "an operator mixes real and padded tokens")


def test_condition_5_outputs_with_padded_rows() -> None:
    refused(encoder, 5, "an output has padded rows")

    def first(e, tokens, mask):
        return e(op.take(encoder(e, tokens, mask), const(0, "int64"), axis=1, mode="clip"))

    refused(first, 5, "an output has padded rows")


def test_attention_over_other_rows_is_no_part_of_the_region() -> None:
    def body(e, tokens, mask, q):
        x = embedded(e, tokens)
        return e(attention(q, x, x, added(e, mask), AttentionAttrs(H, H, D, D))), encoder(e, tokens, mask)

    before = graph(body, tokens=IDS, mask=MASK, q=(B, 4, C))
    after = rewritten(ElidePadding("mask"), before)
    mask = np.array(MASKS["holes"])
    assert_rows(before, after, ids(), mask, random(B, 4, C), mask=mask)
    assert ops(after).count("greencc.attention") == 1


def test_a_graph_without_masked_attention_is_left_alone() -> None:
    assert_unmatched(ElidePadding(), graph(lambda e, t, m: embedded(e, t), tokens=IDS, mask=MASK))


def test_a_named_input_that_can_not_be_elided_is_the_users_mistake() -> None:
    module = graph(pooled_encoder, tokens=IDS, mask=MASK)
    for name, words in (("nothing", "no input"), ("tokens", "no attention is masked by it")):
        with pytest.raises(UserError, match=words):
            ElidePadding(name).run(module, PassContext())
    mixed = graph(lambda e, t, m: _mean(e, encoder(e, t, m), m), tokens=IDS, mask=MASK)
    with pytest.raises(UserError, match=r"mean.*mixes real and padded tokens"):
        ElidePadding("mask").run(mixed, PassContext())
    elided = run(ElidePadding("mask"), graph(encoder, tokens=IDS, mask=MASK)).module
    with pytest.raises(UserError, match="'mask' is elided already"):
        ElidePadding("tokens").run(elided, PassContext())


def test_row_wise_operators_stay_within_a_token() -> None:
    batch = Batch(*relax.ShapeExpr([B, S]).values)
    near_misses = {
        "softmax over tokens": lambda e, x: e(op.nn.softmax(x, axis=1)),
        "normalisation over tokens": lambda e, x: e(
            op.nn.layer_norm(x, const(np.ones((S, C))), const(np.zeros((S, C))), axes=[1, 2])
        ),
        "rows in another order": lambda e, x: e(op.permute_dims(e(op.permute_dims(x, [1, 0, 2])), [1, 0, 2])),
        "a product that mixes tokens": lambda e, x: e(op.matmul(const(random(S, S)), x)),
        "taken from other rows": lambda e, x: e(op.take(x, const(np.arange(S)[::-1], "int64"), axis=1, mode="clip")),
    }
    for name, build in near_misses.items():
        module = graph(lambda e, x, build=build: build(e, x), x=(B, S, C))
        bindings = [b for block in module["main"].body.blocks for b in block.bindings]
        calls = [b for b in bindings if isinstance(b.value, relax.Call)]
        assert leads_of(batch, calls[-1].value, calls[-1].var) is None, name
