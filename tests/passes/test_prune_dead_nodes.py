from __future__ import annotations

import numpy as np
import pytest
import tvm
from small_graphs import bits, const, finish, graph, ops, prune, reasons, run_numpy, symbol, tensor
from tvm import relax

from greencc.errors import UserError
from greencc.ir import OUTPUTS_ATTR, bindings_of, count_graph, span_of
from greencc.passes.base import PassContext
from greencc.passes.prune_dead_nodes import UNUSED_INPUTS_ATTR, PruneDeadNodes

op = relax.op


def unary(shape, value, dtype="float32"):
    """main(x) = relu(value(emit, x)), so that no tested value is an output itself."""
    return graph([tensor("x", *shape, dtype=dtype)], lambda e, x: [e(op.nn.relu(value(e, x)))])


NO_OPS = {
    "reshape": ((2, 3), lambda e, x: e(op.reshape(x, [2, 3]))),
    "permute_dims": ((2, 3), lambda e, x: e(op.permute_dims(x, [0, 1]))),
    "permute_dims ": ((1, 1, 5), lambda e, x: e(op.permute_dims(x, [1, 0, 2]))),
    "astype": ((2, 3), lambda e, x: e(op.astype(x, "float32"))),
    "strided_slice": ((2, 3), lambda e, x: e(op.strided_slice(x, [1], [0], [3]))),
    "strided_slice ": ((1, 3), lambda e, x: e(op.strided_slice(x, [0], [-1], [-3], [-1]))),
    "broadcast_to": ((2, 3), lambda e, x: e(op.broadcast_to(x, [2, 3]))),
    "nn.pad": ((2, 3), lambda e, x: e(op.nn.pad(x, [0, 0, 0, 0]))),
    "squeeze": ((2, 3), lambda e, x: e(op.squeeze(x, []))),
    "flatten": ((6,), lambda e, x: e(op.flatten(x))),
    "split": ((2, 3), lambda e, x: e(op.split(x, 1, 1))),
    "concat": ((2, 3), lambda e, x: e(op.concat([x], 1))),
    "concat ": ((2, 3), lambda e, x: e(op.concat([const(np.zeros((0, 3))), x], 0))),
    "add": ((2, 3), lambda e, x: e(op.add(x, const(-0.0)))),
    "add ": ((2, 3), lambda e, x: e(op.add(const(np.full((2, 3), -0.0)), x))),
    "subtract": ((2, 3), lambda e, x: e(op.subtract(x, const([0.0, 0.0, 0.0])))),
    "multiply": ((2, 3), lambda e, x: e(op.multiply(const(1.0), x))),
    "divide": ((2, 3), lambda e, x: e(op.divide(x, const(1.0)))),
    "power": ((2, 3), lambda e, x: e(op.power(x, const(1.0)))),
    "where": ((2, 3), lambda e, x: e(op.where(const(True, "bool"), x, const(0.0)))),
}


@pytest.mark.parametrize("kind", NO_OPS)
def test_removes_an_operator_that_returns_its_operand(kind):
    shape, value = NO_OPS[kind]
    before = unary(shape, value)
    result = prune(before)
    assert ops(result.module) == ["nn.relu"]
    assert result.counts == {kind.strip(): 1}
    x = np.array([-1.5, -0.0, np.nan, np.inf, 0.0, 7.0], np.float32)[: np.prod(shape)].reshape(shape)
    assert bits(run_numpy(result.module, x)) == bits(run_numpy(before, x))


KEPT = {
    "other shape": ((2, 3), lambda e, x: e(op.reshape(x, [3, 2])), None),
    "other order": ((2, 3), lambda e, x: e(op.permute_dims(x)), None),
    "other dtype": ((2, 3), lambda e, x: e(op.astype(x, "float16")), None),
    "other constant": ((2, 3), lambda e, x: e(op.add(x, const([0.0, 0.0, 1.0]))), None),
    "1 - x": ((2, 3), lambda e, x: e(op.subtract(const(0.0), x)), None),
    "1 / x": ((2, 3), lambda e, x: e(op.divide(const(1.0), x)), None),
    "two operands": ((2, 3), lambda e, x: e(op.concat([x, x], 0)), None),
    "mixed where": (
        (2, 3),
        lambda e, x: e(op.where(const([True, False, True], "bool"), x, const(0.0))),
        None,
    ),
    "broadcast": ((3,), lambda e, x: e(op.multiply(x, const(np.ones((2, 3))))), 1),
    "broadcast where": ((3,), lambda e, x: e(op.where(const(np.ones((2, 1)), "bool"), x, const(0.0))), 1),
    "x + 0.0": ((2, 3), lambda e, x: e(op.add(x, const(0.0))), 2),
    "x - -0.0": ((2, 3), lambda e, x: e(op.subtract(x, const(-0.0))), 2),
    "mixed zeros": ((2, 3), lambda e, x: e(op.add(x, const([0.0, -0.0, -0.0]))), 2),
    "square transpose": ((3, 3), lambda e, x: e(op.permute_dims(x)), 3),
    "reversal": ((2, 3), lambda e, x: e(op.strided_slice(x, [1], [-1], [-4], [-1])), 4),
    "shift": ((2, 3), lambda e, x: e(op.nn.pad(x, [0, 0, 1, -1])), 5),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps_a_near_miss(case):
    shape, value, condition = KEPT[case]
    before = unary(shape, value)
    result = prune(before)
    tvm.ir.assert_structural_equal(result.module, before)
    assert [number for number, _ in reasons(result)] == ([] if condition is None else [condition])
    assert count_graph(result.module) == count_graph(before)


def test_says_why_it_refuses_and_at_which_node():
    before = graph([tensor("x", 3, 3)], lambda e, x: [e(op.permute_dims(x), "encoder/T")])
    [refusal] = prune(before).refusals
    assert (refusal.pass_name, refusal.node, refusal.condition, refusal.reason) == (
        "prune-dead-nodes",
        "encoder/T",
        3,
        "the transpose moves elements",
    )


@pytest.mark.parametrize("positive", [op.exp, op.sigmoid, op.abs, op.nn.softmax])
def test_adding_zero_to_what_is_never_negative_zero(positive):
    before = graph([tensor("x", 4)], lambda e, x: [e(op.add(e(positive(x)), const(0.0)))])
    assert prune(before).counts == {"add": 1}


def test_integer_zero_has_no_sign():
    before = graph([tensor("x", 4, dtype="int64")], lambda e, x: [e(op.add(x, const(0, "int64")))])
    assert prune(before).counts == {"add": 1}


COMPOSITIONS = {
    "view-of-view": ((2, 6), lambda e, x: e(op.reshape(e(op.reshape(x, [3, 4])), [4, 3])), ["reshape"]),
    "view-of-view ": ((2, 1), lambda e, x: e(op.squeeze(e(op.expand_dims(x, [0])), [0])), []),
    "transpose-of-transpose": (
        (2, 3, 4),
        lambda e, x: e(op.permute_dims(e(op.permute_dims(x, [1, 2, 0])), [1, 2, 0])),
        ["permute_dims"],
    ),
    "transpose-of-transpose ": ((2, 3), lambda e, x: e(op.permute_dims(e(op.permute_dims(x)))), []),
    "cast-of-cast": ((2, 3), lambda e, x: e(op.astype(e(op.astype(x, "float64")), "float16")), ["astype"]),
    "cast-of-cast ": ((2, 3), lambda e, x: e(op.astype(e(op.astype(x, "float64")), "float32")), []),
    "expand-of-expand": (
        (2, 1, 1),
        lambda e, x: e(op.broadcast_to(e(op.broadcast_to(x, [2, 3, 1])), [2, 3, 4])),
        ["broadcast_to"],
    ),
    "slice-of-slice": (
        (9, 9),
        lambda e, x: e(op.strided_slice(e(op.strided_slice(x, [0, 1], [1, 2], [9, -1], [2, 1])), [0], [1], [9], [2])),
        ["strided_slice"],
    ),
    "slice-of-slice ": (
        (9, 9),
        lambda e, x: e(op.strided_slice(e(op.strided_slice(x, [0], [1], [5])), [1], [8], [0], [-3])),
        ["strided_slice"],
    ),
    "slice-of-slice  ": (
        (9,),
        lambda e, x: e(op.strided_slice(e(op.strided_slice(x, [0], [-7], [8])), [0], [-2], [100])),
        ["strided_slice"],
    ),
    "slice-of-slice   ": (
        (9,),
        lambda e, x: e(op.strided_slice(e(op.strided_slice(x, [0], [2], [8])), [0], [3], [3])),
        ["strided_slice"],
    ),
    "concat-of-slices": (
        (9, 2),
        lambda e, x: e(op.concat([e(op.strided_slice(x, [0], [1], [4])), e(op.strided_slice(x, [0], [4], [6]))], 0)),
        ["strided_slice"],
    ),
    "concat-of-slices ": (
        (9, 2),
        lambda e, x: e(op.concat([e(op.strided_slice(x, [0], [0], [-5])), e(op.strided_slice(x, [0], [4], [99]))], -2)),
        [],
    ),
}


@pytest.mark.parametrize("case", COMPOSITIONS)
def test_two_in_a_row_become_one_or_none(case):
    shape, value, left = COMPOSITIONS[case]
    before = graph([tensor("x", *shape)], lambda e, x: [value(e, x)])
    result = prune(before)
    assert ops(result.module) == left
    assert result.counts[case.strip()] == 1
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert bits(run_numpy(result.module, x)) == bits(run_numpy(before, x))


def test_split_put_together_again():
    def body(e, x):
        parts = e(op.split(x, 3, 1))
        return [e(op.concat([e(relax.TupleGetItem(parts, i)) for i in range(3)], 1))]

    before = graph([tensor("x", 2, 6)], body)
    assert ops(prune(before).module) == []


def slices(dim, first, second, axes=(0, 0), strides=(1, 1)):
    def body(e, x):
        cut = e(op.strided_slice(x, [axes[0]], [first[0]], [first[1]], [strides[0]]))
        return [e(op.strided_slice(cut, [axes[1]], [second[0]], [second[1]], [strides[1]]))]

    return graph([tensor("x", dim, 9)], body)


N = symbol("n")
REFUSED_COMPOSITIONS = {
    "lossy": (graph([tensor("x", 2)], lambda e, x: [e(op.astype(e(op.astype(x, "int32")), "float32"))]), [6]),
    "int64 in float64": (
        graph([tensor("x", 2, dtype="int64")], lambda e, x: [e(op.astype(e(op.astype(x, "float64")), "int64"))]),
        [6],
    ),
    "signed in unsigned": (
        graph([tensor("x", 2, dtype="int8")], lambda e, x: [e(op.astype(e(op.astype(x, "uint16")), "int32"))]),
        [6],
    ),
    "symbolic size": (slices(N, (1, 8), (1, 3)), [7]),
    "backward outer": (slices(9, (1, 8), (-1, -4), strides=(1, -1)), [4]),
    "backward inner": (slices(9, (-1, -5), (1, 3), strides=(-1, 1)), [4]),
    "gap": (
        graph(
            [tensor("x", 9)],
            lambda e, x: [
                e(op.concat([e(op.strided_slice(x, [0], [0], [4])), e(op.strided_slice(x, [0], [5], [9]))], 0))
            ],
        ),
        [8],
    ),
    "swapped": (
        graph(
            [tensor("x", 8)],
            lambda e, x: [
                e(op.concat([e(op.strided_slice(x, [0], [4], [8])), e(op.strided_slice(x, [0], [0], [4]))], 0))
            ],
        ),
        [8],
    ),
    "symbolic pieces": (
        graph(
            [tensor("x", N)],
            lambda e, x: [
                e(op.concat([e(op.strided_slice(x, [0], [0], [4])), e(op.strided_slice(x, [0], [4], [9]))], 0))
            ],
        ),
        [7],
    ),
}


@pytest.mark.parametrize("case", REFUSED_COMPOSITIONS)
def test_refuses_a_composition(case):
    before, numbers = REFUSED_COMPOSITIONS[case]
    result = prune(before)
    tvm.ir.assert_structural_equal(result.module, before)
    assert [number for number, _ in reasons(result)] == numbers


def test_slices_of_other_axes_compose_with_symbolic_sizes():
    result = prune(slices(N, (1, 8), (2, 5), axes=(0, 1)))
    assert ops(result.module) == ["strided_slice"]


def test_slices_of_two_values_are_not_joined():
    def body(e, x, y):
        return [e(op.concat([e(op.strided_slice(x, [0], [0], [4])), e(op.strided_slice(y, [0], [4], [8]))], 0))]

    assert prune(graph([tensor("x", 8), tensor("y", 8)], body)).rewrites == 0


def test_symbolic_reshape_to_its_own_shape():
    before = graph([tensor("x", N, 4)], lambda e, x: [e(op.exp(e(op.reshape(x, relax.ShapeExpr([N, 4])))))])
    assert ops(prune(before).module) == ["exp"]


def test_composition_leaves_other_users_alone():
    def body(e, x):
        inner = e(op.permute_dims(x))
        return [inner, e(op.permute_dims(inner))]

    result = prune(graph([tensor("x", 2, 3)], body))
    assert ops(result.module) == ["permute_dims"]


def test_removes_dead_nodes_and_counts_them():
    def body(e, x):
        dead = e(op.exp(e(op.negative(x))))
        e(op.add(dead, x))
        return [e(op.nn.relu(x))]

    before = graph([tensor("x", 2)], body)
    result = prune(before)
    assert result.counts == {"dead-node": 3}
    assert (count_graph(before), count_graph(result.module)) == ((4, 6), (1, 2))


def test_merges_repeated_calls_and_what_follows_from_them():
    def body(e, x, y):
        first = e(op.exp(e(op.add(x, y))))
        second = e(op.exp(e(op.add(y, x))))
        return [e(op.multiply(first, second))]

    result = prune(graph([tensor("x", 2), tensor("y", 2)], body))
    assert ops(result.module) == ["add", "exp", "multiply"]
    assert result.counts == {"duplicate": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: op.nn.softmax(x, 0), lambda x: op.nn.softmax(x, 1)),
        (lambda x: op.subtract(x, const(1.0)), lambda x: op.subtract(const(1.0), x)),
        (lambda x: op.add(x, const(1.0)), lambda x: op.add(x, const(2.0))),
        (lambda x: op.reshape(x, [4, 1]), lambda x: op.reshape(x, [1, 4])),
        (lambda x: op.multiply(x, const(0.0)), lambda x: op.multiply(x, const(-0.0))),
    ],
)
def test_unequal_calls_stay(first, second):
    before = graph([tensor("x", 2, 2)], lambda e, x: [e(first(x)), e(second(x))])
    result = prune(before)
    assert "duplicate" not in result.counts
    assert len(ops(result.module)) == 2


def test_equal_constants_become_one_by_their_bits():
    def body(e, x):
        nan, zeros = np.float32(np.nan), np.zeros(300)
        return [e(op.add(x, const(c))) for c in (zeros + 3, zeros + 3, zeros, -zeros, zeros + nan, zeros + nan)]

    result = prune(graph([tensor("x", 300)], body))
    assert result.counts == {"equal-constant": 2, "duplicate": 2, "add": 1}
    assert reasons(result) == [(2, "adding this zero can change -0.0 to +0.0")]
    assert len(ops(result.module)) == 3


def test_a_random_operator_is_not_repeatable():
    def body(e, x):
        drops = [e(op.nn.dropout(x, 0.5)) for _ in range(2)]
        return [e(op.nn.relu(e(relax.TupleGetItem(drop, 0)))) for drop in drops]

    result = prune(graph([tensor("x", 4)], body))
    assert ops(result.module).count("nn.relu") == 2
    assert reasons(result) == [(10, "each call makes a new value")]


def effects(count):
    builder, x = relax.BlockBuilder(), tensor("x", 2)
    with builder.function("main", [x], pure=False):
        for _ in range(count):
            builder.emit(op.print(x, format="{}"))
        builder.emit_func_output(builder.emit(relax.Tuple([x])))
    return finish(builder.get(), 1)


def test_an_effect_is_neither_removed_nor_merged():
    result = prune(effects(2))
    assert ops(result.module) == ["print", "print"]
    assert set(reasons(result)) == {(9, "the operator has an effect")}


def test_selects_outputs_in_the_models_order():
    before = graph([tensor("x", 2)], lambda e, x: [e(op.exp(x)), e(op.negative(x)), e(op.nn.relu(x))])
    result = prune(before, outputs=("out2", "out0"))
    assert ops(result.module) == ["exp", "nn.relu"]
    assert list(result.module["main"].attrs[OUTPUTS_ATTR]) == ["out0", "out2"]
    assert result.counts == {"dropped-output": 1, "dead-node": 1}
    assert list(before["main"].attrs[OUTPUTS_ATTR]) == ["out0", "out1", "out2"]
    x = np.array([1.0, -2.0], np.float32)
    expected = run_numpy(before, x)
    assert bits(run_numpy(result.module, x)) == bits([expected[0], expected[2]])


@pytest.mark.parametrize("names", [("out7",), ()])
def test_unknown_output_lists_the_outputs(names):
    before = graph([tensor("x", 2)], lambda e, x: [e(op.exp(x)), e(op.negative(x))])
    with pytest.raises(UserError, match=r"its outputs: out0, out1"):
        prune(before, outputs=names)


def test_unused_input_stays_and_is_recorded():
    before = graph([tensor("x", 2), tensor("unused", 3)], lambda e, x, y: [e(op.exp(x))])
    result = prune(before)
    assert [p.name for p in result.module["main"].params] == ["x", "unused"]
    assert list(result.module["main"].attrs[UNUSED_INPUTS_ATTR]) == ["unused"]
    assert result.rewrites == 0


def test_drop_unused_inputs():
    before = graph([tensor("a", 2), tensor("x", 2), tensor("b", 3)], lambda e, a, x, b: [e(op.exp(x))])
    result = prune(before, drop_unused_inputs=True)
    main = result.module["main"]
    assert [p.name for p in main.params] == list(main.attrs["greencc.inputs"]) == ["x"]
    assert result.counts == {"unused-input": 2}


def test_an_input_that_gives_a_symbol_its_value_stays():
    n = symbol("n")
    before = graph([tensor("x", n)], lambda e, x: [e(op.zeros(relax.ShapeExpr([n, 2]), "float32"))])
    result = prune(before, drop_unused_inputs=True)
    assert len(result.module["main"].params) == 1
    assert reasons(result) == [(11, "it gives a symbolic dimension its value")]


def test_an_input_whose_symbol_another_gives_may_go():
    n = symbol("n")
    before = graph([tensor("x", n), tensor("y", n)], lambda e, x, y: [e(op.exp(y))])
    assert prune(before, drop_unused_inputs=True).counts == {"unused-input": 1}


def match_cast(keep):
    builder, x, n = (
        relax.BlockBuilder(),
        relax.Var("x", relax.TensorType(dtype="float32", ndim=1)),
        symbol("n"),
    )
    with builder.function("main", [x]):
        with builder.dataflow():
            builder.match_cast(x, relax.TensorType([n], "float32"))
            zeros = builder.emit(op.zeros(relax.ShapeExpr([n if keep else 2]), "float32"))
            result = builder.emit_output(relax.Tuple([zeros]))
        builder.emit_func_output(result)
    return finish(builder.get(), 1)


@pytest.mark.parametrize("keep", [True, False])
def test_match_cast_goes_unless_its_symbol_is_used(keep):
    result = prune(match_cast(keep))
    casts = [b for b in bindings_of(result.module["main"]) if isinstance(b, relax.MatchCast)]
    assert (len(casts), reasons(result)) == (
        (1, [(11, "it gives a symbolic dimension its value")]) if keep else (0, [])
    )


def branches(use):
    """main(c, x, y) = use(if c then then(x, y) else else_(x, y)); a branch gives (f(x), g(x)), y is idle."""
    builder = relax.BlockBuilder()
    for name, f, g in (("then", op.exp, op.negative), ("else_", op.nn.relu, op.abs)):
        params = [tensor("p", 2), tensor("idle", 3)]
        with builder.function(name, params, private=True):
            with builder.dataflow():
                values = [builder.emit(f(params[0])), builder.emit(g(params[0]))]
                result = builder.emit_output(relax.Tuple(values))
            builder.emit_func_output(result)
    then, otherwise = (builder.get().get_global_var(name) for name in ("then", "else_"))
    c, x, y = tensor("c", dtype="bool"), tensor("x", 2), tensor("y", 3)
    with builder.function("main", [c, x, y]):
        both = builder.emit(relax.If(c, relax.Call(then, [x, y]), relax.Call(otherwise, [x, y])))
        outputs = use(builder, both, then, x, y)
        builder.emit_func_output(builder.emit(relax.Tuple(outputs)))
    return finish(builder.get(), len(outputs))


def test_unused_results_and_parameters_of_branches_go():
    result = prune(branches(lambda b, both, then, x, y: [b.emit(relax.TupleGetItem(both, 1))]))
    assert (ops(result.module, "then"), ops(result.module, "else_")) == (["negative"], ["abs"])
    assert [len(result.module[name].params) for name in ("then", "else_")] == [1, 1]
    # Two results and two parameters; the operators of the results die with them.
    assert result.counts == {"unused-slot": 4, "dead-node": 2}
    tvm.compile(result.module, target=tvm.target.Target({"kind": "llvm"}))


def test_results_that_are_used_whole_stay():
    def use(b, both, then, x, y):
        whole = b.emit(relax.Tuple([both, x]))
        return [b.emit(relax.TupleGetItem(both, 1)), whole]

    result = prune(branches(use))
    assert [len(result.module[name].params) for name in ("then", "else_")] == [1, 1]
    assert ops(result.module, "then") == ["exp", "negative"]
    assert reasons(result)[0] == (12, "the function or all its results are used as a value")


def test_a_branch_nobody_takes_goes_with_its_function():
    before = branches(lambda b, both, then, x, y: [b.emit(op.exp(x))])
    result = prune(before)
    assert [gv.name_hint for gv in result.module.get_global_vars()] == ["main"]
    assert result.counts == {"dead-node": 1, "dead-function": 2}


def test_no_ops_go_in_branch_functions_too():
    builder, p = relax.BlockBuilder(), tensor("p", 2)
    with builder.function("inner", [p], private=True):
        with builder.dataflow():
            value = builder.emit(op.reshape(builder.emit(op.reshape(p, [2, 1])), [2]))
            result = builder.emit_output(relax.Tuple([value]))
        builder.emit_func_output(result)
    gv, x = builder.get().get_global_var("inner"), tensor("x", 2)
    with builder.function("main", [x]):
        pair = builder.emit(relax.Call(gv, [x]))
        builder.emit_func_output(builder.emit(relax.Tuple([builder.emit(relax.TupleGetItem(pair, 0))])))
    assert ops(prune(finish(builder.get(), 1)).module, "inner") == []


def test_a_value_that_two_blocks_use_leaves_its_block():
    builder, x = relax.BlockBuilder(), tensor("x", 2, 3)
    with builder.function("main", [x]):
        with builder.dataflow():
            inner = builder.emit(op.exp(x))
            shared = builder.emit_output(op.permute_dims(inner))
        builder.emit(op.negative(shared))
        with builder.dataflow():
            back = builder.emit(op.permute_dims(shared))
            result = builder.emit_output(relax.Tuple([back]))
        builder.emit_func_output(result)
    assert ops(prune(finish(builder.get(), 1)).module) == ["exp"]


def test_names_of_source_nodes_survive():
    def body(e, x):
        view = e(op.reshape(e(op.reshape(x, [6]), "a"), [3, 2]), "b")
        return [e(op.exp(view), "c")]

    calls = [b.value for b in bindings_of(prune(graph([tensor("x", 2, 3)], body)).module["main"])]
    assert [span_of(call) for call in calls if isinstance(call, relax.Call)] == ["b", "c"]


def test_the_input_module_is_left_alone():
    before = unary((2, 3), lambda e, x: e(op.reshape(x, [2, 3])))
    text = before.script()
    PruneDeadNodes().run(before, PassContext())
    assert before.script() == text


def test_compiled_results_are_equal():
    def body(e, x):
        twice = e(op.permute_dims(e(op.permute_dims(x, [0, 2, 1])), [0, 2, 1]))
        parts = e(op.split(twice, 2, 2))
        whole = e(op.concat([e(relax.TupleGetItem(parts, i)) for i in range(2)], 2))
        same = e(op.add(e(op.exp(whole)), e(op.exp(x))))
        return [e(op.multiply(e(op.reshape(e(op.reshape(same, [24])), [4, 6])), const(1.0)))]

    before = graph([tensor("x", 2, 3, 4)], body)
    after = prune(before).module
    assert ops(after) == ["exp", "add", "reshape"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    results = []
    for module in (before, after):
        executable = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))
        results.append(relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))[0].numpy())
    np.testing.assert_array_equal(results[0], results[1])
