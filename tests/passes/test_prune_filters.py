from __future__ import annotations

import numpy as np
import pytest
import tvm
from builders import assert_refused, assert_same_values, assert_unmatched, const, graph, random
from tvm import relax
from tvm.relax import op

from greencc.ir import bindings_of, constant_array, is_call, shape_of, span_of
from greencc.kernels import kernel
from greencc.passes.base import PassContext
from greencc.passes.prune_filters import PruneFilters

PASS = PruneFilters(0.25)
IMAGE = (2, 3, 6, 6)
# A quarter of eight channels: those that nobody reads in the graphs below, so that nothing changes without them.
DULL, KEPT = [2, 5], [0, 1, 3, 4, 6, 7]
BOUNDARY = "the channels reach an input or an output"
UNKNOWN = "an operator on the channels is not understood"


def reading(*shape, seed=0, dull=DULL, axis=1):
    """A weight that is zero for some channels of what it reads."""
    weight = random(*shape, seed=seed)
    np.moveaxis(weight, axis, 0)[dull] = 0
    return weight


def conv(e, x, weight, groups=1, strides=(1, 1)):
    pad = weight.shape[-1] // 2
    return e(op.nn.conv2d(x, const(weight), strides=strides, padding=(pad, pad), groups=groups))


def first(e, x, channels=8, seed=0, size=3):
    return conv(e, x, random(channels, shape_of(x.ty)[1].value, size, size, seed=seed))


def last(e, x, dull=DULL, seed=9):
    return conv(e, x, reading(4, shape_of(x.ty)[1].value, 1, 1, dull=dull, seed=seed))


def filters(module, name="relax.nn.conv2d"):
    """Shapes of the weights of all convolutions, or of the second operands of other operators."""
    return [tuple(constant_array(b.value.args[1]).shape) for b in bindings_of(module["main"]) if is_call(b.value, name)]


def pruned(module, rewrites, outputs=1):
    """The module after the pass, which takes channels away that nobody reads, and none of the outputs."""
    result = PASS.run(module, PassContext())
    assert (result.rewrites, [r.reason for r in result.refusals]) == (rewrites, [BOUNDARY] * outputs)
    assert relax.analysis.check_well_formed(result.module)
    assert_same_values(module, result.module, random(*IMAGE, seed=5), rtol=1e-9, atol=1e-9)
    return result.module


class Seen:
    """Activations whose mean squares along an axis are given, by the shape of the value and the axis."""

    def __init__(self, squares):
        self.squares, self.asked = squares, []

    def mean_squares(self, module, values, axes):
        shapes = [tuple(int(dim) for dim in shape_of(value.ty)) for value in values]
        self.asked += list(zip(shapes, axes, strict=True))
        return [np.asarray(self.squares[key], np.float64) for key in zip(shapes, axes, strict=True)]


def block(e, x, maker=None, reader=None):
    """Two convolutions with a bias and a ReLU in between."""
    wide = conv(e, x, random(8, 3, 3, 3) if maker is None else maker)
    wide = e(op.nn.relu(e(op.add(wide, const(random(1, 8, 1, 1, seed=1))))))
    return conv(e, wide, random(4, 8, 1, 1, seed=2) if reader is None else reader)


def test_filters_biases_and_inputs_of_the_next_convolution_go():
    before = graph(lambda e, x: block(e, x, reader=reading(4, 8, 3, 3)), x=IMAGE)
    after = pruned(before, 1)
    assert filters(after) == [(6, 3, 3, 3), (4, 6, 3, 3)]
    assert filters(after, "relax.add") == [(1, 6, 1, 1)]
    assert_same_values(before, after, random(*IMAGE, seed=5), rtol=1e-4, atol=1e-4, by_tvm=True)
    np.testing.assert_array_equal(weights(after)[0], random(8, 3, 3, 3)[KEPT])
    assert [span_of(b.value) for b in bindings_of(after["main"])][:3] == ["conv2d.1", "add.2", "relu.3"]


def weights(module):
    return [constant_array(b.value.args[1]) for b in bindings_of(module["main"]) if is_call(b.value, "relax.nn.conv2d")]


def test_data_decide_by_mean_square_times_squares_of_what_reads():
    maker, reader = random(8, 3, 3, 3), random(4, 8, 1, 1, seed=2)
    squares = np.arange(1.0, 9.0)[::-1]
    seen = Seen({((2, 8, 6, 6), 1): squares})
    before = graph(block, x=IMAGE)
    result = PASS.run(before, PassContext(activations=seen))
    scores = squares * (reader.astype(np.float64) ** 2).sum(axis=(0, 2, 3))
    kept = np.sort(np.argsort(-scores)[:6])
    assert list(kept) != unseen(maker, reader)
    np.testing.assert_array_equal(weights(result.module)[0], maker[kept])
    np.testing.assert_array_equal(weights(result.module)[1], reader[:, kept])
    assert seen.asked == [((2, 8, 6, 6), 1)]
    masked = reader.copy()
    masked[:, np.setdiff1d(range(8), kept)] = 0
    expected = graph(lambda e, x: block(e, x, maker, masked), x=IMAGE)
    assert_same_values(expected, result.module, random(*IMAGE, seed=5), rtol=1e-9, atol=1e-9)


def unseen(maker, reader):
    """The channels kept without data."""
    made, read = ((w.astype(np.float64) ** 2).sum(axis=axes) for w, axes in ((maker, (1, 2, 3)), (reader, (0, 2, 3))))
    return sorted(np.argsort(-made * read)[:6].tolist())


def test_without_data_weights_decide():
    maker, reader = random(8, 3, 3, 3), random(4, 8, 1, 1, seed=2)
    result = PASS.run(graph(block, x=IMAGE), PassContext())
    np.testing.assert_array_equal(weights(result.module)[1], reader[:, unseen(maker, reader)])


def test_scores_of_all_readers_count():
    one, other = random(4, 8, 1, 1, seed=2), random(4, 8, 3, 3, seed=3)

    def body(e, x):
        wide = first(e, x)
        pooled = e(op.nn.relu(e(op.mean(wide, axis=[2, 3], keepdims=True))))
        return conv(e, wide, one), conv(e, pooled, other)

    seen = {((2, 8, 6, 6), 1): np.arange(8.0), ((2, 8, 1, 1), 1): np.arange(8.0)[::-1] * 0.1}
    result = PASS.run(graph(body, x=IMAGE), PassContext(activations=Seen(seen)))
    sums = [(w.astype(np.float64) ** 2).sum(axis=(0, 2, 3)) for w in (one, other)]
    scores = sum(squares * total for squares, total in zip(seen.values(), sums, strict=True))
    np.testing.assert_array_equal(weights(result.module)[0], random(8, 3, 3, 3)[np.sort(np.argsort(-scores)[:6])])


def test_convolutions_of_one_sum_lose_the_same_channels():
    def body(e, x):
        stream = e(op.nn.relu(first(e, x)))
        inner = e(op.nn.relu(conv(e, stream, reading(8, 8, 3, 3, seed=1))))
        return last(e, e(op.add(stream, conv(e, inner, reading(8, 8, 3, 3, seed=2)))))

    assert filters(pruned(graph(body, x=IMAGE), 2)) == [(6, 3, 3, 3), (6, 6, 3, 3), (6, 6, 3, 3), (4, 6, 1, 1)]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_filters_and_norms_go_with_their_channels(multiplier):
    wide = 8 * multiplier
    dull = [c * multiplier + i for c in DULL for i in range(multiplier)]

    def body(e, x):
        deep = conv(e, first(e, x), random(wide, 1, 3, 3, seed=1), groups=8, strides=(2, 2))
        statistics = [const(np.abs(random(wide, seed=i))) for i in range(4)]
        normal = e(relax.TupleGetItem(e(op.nn.batch_norm(deep, *statistics, axis=1, training=False)), 0))
        return last(e, e(op.clip(e(op.multiply(normal, const(random(wide, 1, 1, seed=3)))), 0, 6)), dull)

    after = pruned(graph(body, x=IMAGE), 1)
    six = 6 * multiplier
    assert filters(after) == [(6, 3, 3, 3), (six, 1, 3, 3), (4, six, 1, 1)]
    assert [int(b.value.attrs.groups) for b in bindings_of(after["main"]) if is_call(b.value, "relax.nn.conv2d")] == [
        1, 6, 1
    ]  # fmt: skip


@pytest.mark.parametrize("dense", [False, True])
def test_gates_lose_the_channels_that_they_scale(dense):
    def body(e, x):
        wide = first(e, x)
        mean = e(op.mean(wide, axis=[2, 3], keepdims=not dense))
        if dense:  # squeeze and excite by products
            few = e(op.matmul(mean, const(reading(8, 5, axis=0, seed=1))))
            gate = e(op.reshape(e(op.matmul(few, const(random(5, 8, seed=2)))), (2, 8, 1, 1)))
        else:
            gate = conv(e, conv(e, mean, reading(1, 8, 1, 1, seed=1)), random(8, 1, 1, 1, seed=2))
        return last(e, e(op.multiply(wide, e(op.sigmoid(gate)))))

    before = graph(body, x=IMAGE)
    result = PASS.run(before, PassContext())
    assert result.nodes == ("conv2d.1",)
    assert_same_values(before, result.module, random(*IMAGE, seed=5), rtol=1e-9, atol=1e-9)
    assert filters(result.module, "relax.matmul") == ([(6, 5), (5, 6)] if dense else [])
    assert filters(result.module)[-1] == (4, 6, 1, 1)


def test_concatenated_channels_go_at_their_places():
    def body(e, x):
        parts = [first(e, x), first(e, x, 4, seed=1), first(e, x, seed=2)]
        joined = e(op.nn.relu(e(op.concat(parts, axis=1))))
        return last(e, joined, [*DULL, 8 + 1, *(12 + c for c in (0, 7))])

    after = pruned(graph(body, x=IMAGE), 3)
    assert filters(after) == [(6, 3, 3, 3), (3, 3, 3, 3), (6, 3, 3, 3), (4, 15, 1, 1)]


@pytest.mark.parametrize("how", ["split", "slice"])
def test_parts_of_channels_lose_their_own(how):
    def body(e, x):
        wide = first(e, x, 16)
        if how == "split":
            halves = e(op.split(wide, 2, axis=1))
            low, high = (e(relax.TupleGetItem(halves, i)) for i in range(2))
        else:
            low, high = (e(op.strided_slice(wide, [2, 1], [0, at], [6, at + 8])) for at in (0, 8))
        return last(e, low), last(e, high, [0, 1], seed=8)

    after = pruned(graph(body, x=IMAGE), 2, outputs=2)
    assert filters(after) == [(12, 3, 3, 3), (4, 6, 1, 1), (4, 6, 1, 1)]
    assert PASS.run(graph(body, x=IMAGE), PassContext()).nodes == ("conv2d.1",)
    kept = [*KEPT, *range(10, 16)]
    np.testing.assert_array_equal(weights(after)[0], random(16, 3, 3, 3)[kept])


def test_a_sum_of_concatenated_channels_ties_each_part():
    def body(e, x):
        joined = e(op.concat([first(e, x), first(e, x, seed=1)], axis=1))
        return last(e, e(op.add(joined, first(e, x, 16, seed=2))), [0, 1, 8, 9])

    after = pruned(graph(body, x=IMAGE), 2)
    assert filters(after) == [(6, 3, 3, 3), (6, 3, 3, 3), (12, 3, 3, 3), (4, 12, 1, 1)]


def test_rows_of_a_product_behind_a_flattened_image_go():
    weight = reading(8, 9, 5, axis=0).reshape(72, 5)
    after = pruned(graph(lambda e, x: flattened(e, x, weight), x=IMAGE), 1, outputs=0)
    assert (filters(after), filters(after, "relax.matmul")) == ([(6, 3, 3, 3)], [(54, 5)])


def flattened(e, x, weight):
    options = {"kind": "max", "kernel": [2, 2], "strides": [2, 2], "dilations": [1, 1]}
    pooled = e(kernel("pool", [first(e, x)], [3, 3, 0, 0, 0, 0], **options))
    return e(op.matmul(e(op.reshape(pooled, (2, 72))), const(weight)))


def test_data_decide_by_all_elements_of_a_flattened_channel():
    weight, squares = random(72, 5), np.random.default_rng(1).random(72)
    result = PASS.run(
        graph(lambda e, x: flattened(e, x, weight), x=IMAGE), PassContext(activations=Seen({((2, 72), 1): squares}))
    )
    scores = (squares * (weight.astype(np.float64) ** 2).sum(axis=1)).reshape(8, 9).sum(axis=1)
    np.testing.assert_array_equal(weights(result.module)[0], random(8, 3, 3, 3)[np.sort(np.argsort(-scores)[:6])])


def test_tokens_of_an_image_lose_columns_with_any_batch():
    def body(e, x):
        maps = e(op.nn.avg_pool2d(first(e, x), (6, 1)))
        batch = shape_of(x.ty)[0]
        tokens = e(op.permute_dims(e(op.squeeze(maps, [2])), [0, 2, 1]))
        deep = e(op.reshape(tokens, relax.ShapeExpr([batch, 1, 6, 8])))
        return e(op.matmul(deep, const(reading(8, 5, axis=0))))

    after = pruned(graph(body, x=("batch", 3, 6, 6)), 1, outputs=0)
    assert (filters(after), filters(after, "relax.matmul")) == ([(6, 3, 3, 3)], [(6, 5)])


def test_shuffled_channels_go_with_those_of_the_other_halves():
    dull = [c for c in range(16) if c // 2 in DULL]  # behind the shuffle, pairs of one column

    def body(e, x):
        halves = e(op.reshape(first(e, x, 16), (2, 2, 8, 6, 6)))
        shuffled = e(op.reshape(e(op.permute_dims(halves, [0, 2, 1, 3, 4])), (2, 16, 6, 6)))
        return last(e, shuffled, dull)

    after = pruned(graph(body, x=IMAGE), 1)
    assert filters(after) == [(12, 3, 3, 3), (4, 12, 1, 1)]
    np.testing.assert_array_equal(weights(after)[0], random(16, 3, 3, 3)[[*KEPT, *(8 + c for c in KEPT)]])


@pytest.mark.parametrize(("width", "fraction", "left"), [(8, 0.25, 6), (32, 0.25, 24), (60, 0.25, 48), (40, 0.9, 4)])
def test_widths_stay_multiples_of_tiles(width, fraction, left):
    module = graph(lambda e, x: last(e, first(e, x, width)), x=IMAGE)
    result = PruneFilters(fraction).run(module, PassContext())
    assert filters(result.module) == [(left, 3, 3, 3), (4, left, 1, 1)]


def test_shared_filters_stay_shared_where_the_same_goes():
    shared = const(random(8, 3, 3, 3))

    def body(e, x):
        sides = [e(op.nn.conv2d(x, shared, padding=(1, 1))) for _ in range(2)]
        return last(e, e(op.add(*sides)))

    result = pruned(graph(body, x=IMAGE), 1)
    one, other = (b.value.args[1] for b in list(bindings_of(result["main"]))[:2])
    assert one.same_as(other)


def two_blocks(e, x):
    return last(e, first(e, last(e, first(e, x)), seed=3))


def test_only_chosen_groups_are_pruned():
    module = graph(two_blocks, x=IMAGE)
    everything = PASS.run(module, PassContext()).nodes
    assert everything == ("conv2d.1", "conv2d.2", "conv2d.3")
    for nodes in ({"conv2d.1"}, {"conv2d.3"}, set()):
        result = PASS.run(module, PassContext(choices={PASS.name: frozenset(nodes)}))
        assert set(result.nodes) == nodes
        assert filters(result.module)[0][0] == (6 if "conv2d.1" in nodes else 8)


def test_a_group_that_is_cut_into_parts_is_refused_in_each():
    def tail(e, x, y):
        return last(e, e(op.add(x, first(e, y))))

    assert_refused(PASS, graph(tail, x=(2, 8, 6, 6), y=IMAGE), 2, BOUNDARY)


def test_one_round_is_made():
    module = graph(two_blocks, x=IMAGE)
    text = module.script(show_meta=False)
    result = PASS.run(module, PassContext())
    assert (result.rewrites, result.counts) == (3, {PASS.name: 3})
    assert module.script(show_meta=False) == text
    tvm.ir.assert_structural_equal(PruneFilters(0.0).run(module, PassContext()).module, module)


def test_products_alone_are_left_to_another_pass():
    def body(e, x):
        return e(op.matmul(e(op.nn.relu(e(op.matmul(x, const(random(8, 8)))))), const(random(8, 6))))

    assert_unmatched(PASS, graph(body, x=(2, 8)))


@pytest.mark.parametrize("place", ["maker", "reader"])
def test_condition_1_float32(place):
    def body(e, x):
        kinds = ["float16" if here == place else "float32" for here in ("maker", "reader")]
        wide = e(op.nn.conv2d(e(op.astype(x, kinds[0])), const(random(8, 3, 1, 1), kinds[0])))
        narrow = e(op.nn.conv2d(e(op.astype(wide, kinds[1])), const(random(4, 8, 1, 1), kinds[1])))
        return e(op.mean(narrow, axis=[1]))

    chosen = PassContext(choices={PASS.name: frozenset({"conv2d.2"})})
    result = PASS.run(graph(body, x=IMAGE), chosen)
    reason = "a convolution or product of the channels is not in float32"
    assert [(r.condition, r.reason) for r in result.refusals] == [(1, reason)]


def test_condition_2_outputs_and_inputs_keep_their_channels():
    assert_refused(PASS, graph(lambda e, x: e(op.nn.relu(first(e, x))), x=IMAGE), 2, BOUNDARY)

    def both(e, x):
        wide = first(e, x)
        return wide, e(op.mean(last(e, wide), axis=[0, 2, 3]))

    result = PASS.run(graph(both, x=IMAGE), PassContext())
    assert {r.node: r.condition for r in result.refusals}["conv2d.1"] == 2

    def with_input(e, x):
        deep = conv(e, x, random(8, 1, 3, 3), groups=8)
        return last(e, e(op.add(deep, first(e, x))))

    assert_refused(PASS, graph(with_input, x=(2, 8, 6, 6)), 2, BOUNDARY)


def _softmax(e, wide, x):
    return e(op.nn.softmax(wide, axis=1))


def _grouped(e, wide, x):
    return conv(e, wide, random(8, 4, 1, 1), groups=2)


def _computed_filters(e, wide, x):
    return e(op.nn.conv2d(wide, e(op.tanh(const(random(8, 8, 1, 1))))))


def _sum_over_channels(e, wide, x):
    return e(op.subtract(wide, e(op.mean(wide, axis=[1], keepdims=True))))


def _every_second(e, wide, x):
    return e(op.strided_slice(wide, [1], [0], [8], [2]))


def _other_axis(e, wide, x):
    return e(op.add(wide, e(op.permute_dims(wide, [0, 2, 1, 3]))))


def _computed_vector(e, wide, x):
    return e(op.add(wide, e(op.reshape(e(op.sum(x, axis=[0, 1, 2])), (8, 1, 1)))))


def _half_merged(e, wide, x):
    return e(op.reshape(wide, (2, 4, 16, 8)))


def _rows(e, wide, x):
    return e(op.matmul(e(op.permute_dims(wide, [0, 2, 3, 1])), e(op.tanh(const(random(8, 5))))))


def _columns_of_another_axis(e, wide, x):
    return e(op.matmul(wide, const(random(8, 8))))


def _norm_over_width(e, wide, x):
    statistics = [const(np.abs(random(8, seed=i))) for i in range(4)]
    return e(relax.TupleGetItem(e(op.nn.batch_norm(wide, *statistics, axis=3, training=False)), 0))


def _other_layout(e, wide, x):
    return e(op.nn.avg_pool2d(wide, (1, 1), layout="NHWC"))


def _convolved_columns(e, wide, x):
    return first(e, e(op.permute_dims(wide, [0, 2, 1, 3])))


def _joined_with_a_vector(e, wide, x):
    return e(op.concat([wide, const(random(2, 1, 8, 8))], axis=1))


OPAQUE = [
    _softmax, _grouped, _computed_filters, _sum_over_channels, _every_second, _other_axis, _computed_vector,
    _half_merged, _rows, _columns_of_another_axis, _norm_over_width, _other_layout, _convolved_columns,
    _joined_with_a_vector,
]  # fmt: skip


@pytest.mark.parametrize("between", OPAQUE)
def test_condition_3_what_is_unknown_keeps_its_channels(between):
    """Eight channels of eight rows and columns, so that an axis taken for another one would fit."""

    def body(e, x):
        return e(op.mean(between(e, first(e, x), x)))

    result = PASS.run(graph(body, x=(2, 3, 8, 8)), PassContext())
    assert result.rewrites == 0
    assert ("conv2d.1", 3, UNKNOWN) in [(r.node, r.condition, r.reason) for r in result.refusals]


def test_condition_3_a_cast_of_a_shape():
    x = relax.Var("x", relax.TensorType(IMAGE, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            cast = builder.match_cast(first(builder.emit, x), relax.TensorType((2, 8, 6, 6), "float32"))
            result = builder.emit_output(relax.Tuple([builder.emit(op.mean(last(builder.emit, cast)))]))
        builder.emit_func_output(result)
    refusals = PASS.run(builder.get(), PassContext()).refusals
    assert (refusals[0].condition, refusals[0].reason) == (3, UNKNOWN)


def test_condition_3_stands_alone():
    def body(e, x):
        wide = e(op.nn.softmax(first(e, x), axis=1))
        return e(op.mean(wide))

    assert_refused(PASS, graph(body, x=IMAGE), 3, UNKNOWN)


@pytest.mark.parametrize("place", ["maker", "reader", "seen"])
def test_condition_4_finite(place):
    maker, reader, squares = random(8, 3, 3, 3), random(4, 8, 1, 1), np.ones(8)
    {"maker": maker, "reader": reader, "seen": squares}[place].flat[3] = np.inf
    context = PassContext(activations=Seen({((2, 8, 6, 6), 1): squares}), choices={PASS.name: frozenset({"conv2d.1"})})
    result = PASS.run(graph(lambda e, x: block(e, x, maker, reader), x=IMAGE), context)
    assert [(r.condition, r.reason) for r in result.refusals] == [(4, "a weight or an activation is not finite")]


def test_condition_5_something_goes():
    module = graph(lambda e, x: e(op.mean(last(e, first(e, x)), axis=[0, 2, 3])), x=IMAGE)
    chosen = PassContext(choices={PASS.name: frozenset({"conv2d.1"})})
    result = PruneFilters(0.01).run(module, chosen)
    assert [(r.condition, r.reason) for r in result.refusals] == [(5, "no channel would go")]
    assert filters(PruneFilters(0.99).run(module, chosen).module) == [(1, 3, 3, 3), (4, 1, 1, 1)]
