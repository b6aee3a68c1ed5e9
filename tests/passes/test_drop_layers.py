from __future__ import annotations

import numpy as np
import pytest
import reference
from builders import const, graph, ops, random
from tvm.relax import op

from greencc import UserError
from greencc.passes.base import PassContext
from greencc.passes.blocks import find_blocks
from greencc.passes.drop_layers import DropLayers

WIDTH = 6


def norm(e, x):
    return e(op.nn.layer_norm(x, const(np.ones(WIDTH)), const(np.zeros(WIDTH)), axes=[-1]))


def post_norm(e, x, seed):
    """A layer whose norms follow its residual connections, as in BERT."""
    mixed = norm(e, e(op.add(x, e(op.matmul(x, const(random(WIDTH, WIDTH, seed=seed)))))))
    wide = e(op.tanh(e(op.matmul(mixed, const(random(WIDTH, 9, seed=seed))))))
    return norm(e, e(op.add(mixed, e(op.matmul(wide, const(random(9, WIDTH, seed=seed)))))))


def pre_norm(e, x, seed):
    """A layer whose residual connections go through, as in GPT."""
    x = e(op.add(x, e(op.matmul(norm(e, x), const(random(WIDTH, WIDTH, seed=seed))))))
    wide = e(op.tanh(e(op.matmul(norm(e, x), const(random(WIDTH, 9, seed=seed))))))
    return e(op.add(x, e(op.matmul(wide, const(random(9, WIDTH, seed=seed))))))


def encoder(layer, seeds, side=False):
    """An embedding with a norm, layers, and a head; `side`: all layers read a value that is made before them."""

    def body(e, x):
        bias = e(op.exp(x)) if side else None
        value = norm(e, e(op.matmul(x, const(random(4, WIDTH)))))
        for seed in seeds:
            value = layer(e, value, seed)
            if bias is not None:
                value = e(op.add(value, e(op.sum(bias, axis=[-1], keepdims=True))))
        return e(op.matmul(norm(e, value), const(random(WIDTH, 3))))

    return graph(body, x=(5, 4))


@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("layer", [post_norm, pre_norm])
def test_the_first_layers_stay_whole(layer, side):
    module = encoder(layer, range(5), side)
    blocks = find_blocks(module["main"])
    assert len({block.node for block in blocks}) == 5
    result = DropLayers(keep=3).run(module, PassContext())
    wanted = encoder(layer, range(3), side)
    assert ops(result.module) == ops(wanted)
    assert (result.rewrites, result.nodes) == (2, (blocks[3].node, blocks[4].node))
    x = random(5, 4, seed=9)
    np.testing.assert_allclose(reference.evaluate(result.module, x)[0], reference.evaluate(wanted, x)[0], rtol=1e-12)


class Changes:
    def __init__(self, values):
        self.values = values

    def changes(self, module, pairs):
        assert len(pairs) == len(self.values)
        return self.values


def test_the_layers_that_change_most_stay():
    context = PassContext(activations=Changes([0.5, 0.1, 0.9, 0.2, 0.3]))
    module = encoder(post_norm, range(5))
    result = DropLayers(keep=3, order="change").run(module, context)
    blocks = find_blocks(module["main"])
    assert result.nodes == (blocks[1].node, blocks[3].node)
    x = random(5, 4, seed=9)
    wanted = reference.evaluate(encoder(post_norm, (0, 2, 4)), x)[0]
    np.testing.assert_allclose(reference.evaluate(result.module, x)[0], wanted, rtol=1e-12)


def test_the_layers_go_that_are_chosen():
    module = encoder(pre_norm, range(5))
    names = [block.node for block in find_blocks(module["main"])]
    result = DropLayers().run(module, PassContext(choices={"drop-layers": frozenset([names[1], names[4], "x"])}))
    assert result.nodes == (names[1], names[4])
    x = random(5, 4, seed=9)
    wanted = reference.evaluate(encoder(pre_norm, (0, 2, 3)), x)[0]
    np.testing.assert_allclose(reference.evaluate(result.module, x)[0], wanted, rtol=1e-12)
    assert DropLayers().run(module, PassContext(choices={})).rewrites == 0


def test_keeping_all_changes_nothing():
    module = encoder(pre_norm, range(3))
    for keep in (0, 3):
        assert DropLayers(keep=keep).run(module, PassContext()).rewrites == 0


def test_layers_of_other_shapes_end_a_run():
    def body(e, x):
        for seed in range(3):
            x = post_norm(e, x, seed)
        wide = e(op.tanh(e(op.matmul(x, const(random(WIDTH, 31))))))
        x = norm(e, e(op.add(x, e(op.matmul(wide, const(random(31, WIDTH)))))))
        return post_norm(e, x, 7)

    assert len(find_blocks(graph(body, x=(5, WIDTH))["main"])) == 3


def test_layers_that_change_the_shape_end_a_run():
    def body(e, x):
        for seed in range(3):
            x = norm(e, e(op.nn.conv2d(x, const(random(2, 2, 3, 3, seed=seed)), padding=1)))
        for seed in range(3, 5):
            x = norm(e, e(op.nn.conv2d(x, const(random(2, 2, 3, 3, seed=seed)), padding=1, strides=(2, 1))))
        return x

    assert len(find_blocks(graph(body, x=(1, 2, 16, WIDTH))["main"])) == 3


@pytest.mark.parametrize(("keep", "count"), [(4, 3), (-1, 3)])
def test_more_layers_than_there_are_can_not_stay(keep, count):
    with pytest.raises(UserError, match=f"can't keep {keep} layers: the model has {count} repeated layers"):
        DropLayers(keep=keep).run(encoder(post_norm, range(count)), PassContext())


def test_a_model_without_layers_has_none_to_drop():
    alone = graph(lambda e, x: e(op.exp(e(op.exp(x)))), x=(2, 3))
    with pytest.raises(UserError, match="the model has no repeated layers"):
        DropLayers(keep=1).run(alone, PassContext())


def test_unknown_orders_are_refused():
    with pytest.raises(UserError, match="order 'last' is unknown; known: first, change"):
        DropLayers(keep=1, order="last").run(encoder(post_norm, range(2)), PassContext())
