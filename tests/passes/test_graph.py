from __future__ import annotations

import numpy as np
import pytest
import tvm
from small_graphs import const, finish, graph, ops, run_numpy, symbol, tensor
from tvm import relax

from greencc.errors import GreenccError
from greencc.ir import bindings_of, count_graph, make_span, span_of
from greencc.passes.graph import Graph, Unused, eliminate_dead, is_pure, rebuild, removable, symbols_of

op = relax.op


def main_of(module: tvm.IRModule) -> Graph:
    return Graph(module, module["main"])


def variable(view: Graph, operator: str) -> relax.Var:
    """The variable that the first call of `operator` defines."""
    return next(v for v, _ in view.definitions() if view.call(v, f"relax.{operator}") is not None)


def replaced(module: tvm.IRModule, function: relax.Function) -> tvm.IRModule:
    module = module.clone()
    module.update_func(module.get_global_var("main"), function)
    relax.analysis.well_formed(module)
    return module


def diamond() -> tvm.IRModule:
    def body(e, x):
        left = e(op.exp(x), "left")
        return [e(op.add(left, e(op.negative(left))), "join"), left]

    return graph([tensor("x", 2)], body)


def test_definitions_users_and_results():
    view = main_of(diamond())
    left, minus, join = (variable(view, name) for name in ("exp", "negative", "add"))
    assert view.users(left)[:2] == [minus, join]
    assert view.users(minus) == [join]
    assert view.only_used_by(minus, [join])
    assert not view.only_used_by(left, [minus, join])
    assert view.users(tensor("stranger", 2)) == []
    assert view.call(left, "relax.exp") is not None
    assert view.call(left, "relax.add") is None
    assert view.call(view.function.params[0]) is None


def test_a_use_is_counted_once_per_operand():
    view = main_of(graph([tensor("x", 2)], lambda e, x: [e(op.multiply(x, x))]))
    product = variable(view, "multiply")
    assert view.users(view.function.params[0]) == [product, product]


def test_value_looks_through_aliases_but_an_alias_is_a_user():
    view = main_of(graph([tensor("x", 2)], lambda e, x: [e(e(op.exp(x)))]))
    exp = variable(view, "exp")
    [alias] = view.users(exp)
    assert view.call(alias, "relax.exp") is not None
    assert not view.only_used_by(exp, [])


def test_a_match_cast_is_opaque():
    builder, x, n = (
        relax.BlockBuilder(),
        relax.Var("x", relax.TensorType(dtype="float32", ndim=1)),
        symbol("n"),
    )
    with builder.function("main", [x]):
        with builder.dataflow():
            cast = builder.match_cast(x, relax.TensorType([n], "float32"))
            result = builder.emit_output(relax.Tuple([builder.emit(op.exp(cast))]))
        builder.emit_func_output(result)
    view = main_of(builder.get())
    assert view.value(cast).same_as(cast)
    assert view.users(x) == [cast]


def test_constants_and_scalars():
    view = main_of(diamond())
    np.testing.assert_array_equal(view.constant(const([1.0, 2.0])), np.array([1, 2], np.float32))
    assert view.scalar(const([[3.0]])) == 3.0
    assert view.scalar(const([1.0, 2.0])) is None
    assert view.constant(view.function.params[0]) is None
    assert view.constant(relax.const([1.5], "bfloat16")).shape == (1,)


def test_rebuild_replaces_a_value_and_keeps_names():
    before = diamond()
    view = main_of(before)
    minus = variable(view, "negative")
    x = view.function.params[0]
    after = replaced(before, rebuild(before["main"], {minus: lambda b: op.abs(b.emit(op.sqrt(x)))}, owner="t"))
    assert ops(after) == ["exp", "sqrt", "abs", "add"]
    names = [span_of(b.value) for b in bindings_of(after["main"]) if isinstance(b.value, relax.Call)]
    assert names == ["left", None, None, "join"]
    assert ops(before) == ["exp", "negative", "add"]


def test_new_calls_carry_the_name_of_what_they_replace():
    before = diamond()
    left, x = variable(main_of(before), "exp"), before["main"].params[0]
    named = relax.Call(op.abs(x).op, [x], None, [], make_span("own"))
    after = rebuild(before["main"], {left: lambda b: op.sqrt(b.emit(named))}, owner="t")
    calls = [b.value for b in bindings_of(after) if isinstance(b.value, relax.Call)]
    assert [span_of(call) for call in calls][:2] == ["own", "left"]


def test_rebuild_lets_a_variable_or_constant_take_over():
    before = diamond()
    minus, x = variable(main_of(before), "negative"), before["main"].params[0]
    for value, expected in ((x, np.exp(1.0) + 1), (const([4.0, 4.0]), np.exp(1.0) + 4)):
        after = replaced(before, rebuild(before["main"], {minus: lambda b, v=value: v}, owner="t"))
        assert ops(after) == ["exp", "add"]
        np.testing.assert_allclose(run_numpy(after, np.ones(2, np.float32))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [lambda x: op.reshape(x, [1, 2]), lambda x: op.astype(x, "float16")])
def test_rebuild_refuses_another_type_and_names_pass_and_node(value):
    before = diamond()
    left, x = variable(main_of(before), "exp"), before["main"].params[0]
    with pytest.raises(GreenccError, match="pass some-pass changed the type of 'left'"):
        rebuild(before["main"], {left: lambda b: value(x)}, owner="some-pass")


def test_rebuild_compares_symbolic_shapes_as_expressions():
    n = symbol("n")
    before = graph([tensor("x", 2, n)], lambda e, x: [e(op.reshape(x, relax.ShapeExpr([n + n])))])
    view, x = main_of(before), before["main"].params[0]
    doubled = {variable(view, "reshape"): lambda b: op.reshape(b.emit(op.exp(x)), relax.ShapeExpr([n * 2]))}
    after = rebuild(before["main"], doubled, owner="t")
    assert ops(replaced(before, after)) == ["exp", "reshape"]


def two_blocks():
    builder, x = relax.BlockBuilder(), tensor("x", 2)
    with builder.function("main", [x]):
        with builder.dataflow():
            inner = builder.emit(op.exp(x))
            shared = builder.emit_output(op.negative(inner))
        # Dataflow blocks that touch would be merged.
        builder.emit(op.negative(x))
        with builder.dataflow():
            last = builder.emit(op.abs(shared))
            result = builder.emit_output(relax.Tuple([last]))
        builder.emit_func_output(result)
    return finish(builder.get(), 1)


def test_rebuild_publishes_a_value_that_leaves_its_block():
    before = two_blocks()
    view = main_of(before)
    inner, last = variable(view, "exp"), variable(view, "abs")
    assert isinstance(inner, relax.DataflowVar)
    after = replaced(before, rebuild(before["main"], {last: lambda b: op.sqrt(inner)}, owner="t"))
    assert not isinstance(variable(main_of(after), "exp"), relax.DataflowVar)
    assert ops(replaced(after, eliminate_dead(after["main"]))) == ["exp", "sqrt"]


def test_rebuild_publishes_a_value_that_a_function_returns_itself():
    builder, x = relax.BlockBuilder(), tensor("x", 2)
    with builder.function("main", [x]):
        with builder.dataflow():
            inner = builder.emit(op.exp(x))
            result = builder.emit_output(inner)
        builder.emit_func_output(result)
    before = builder.get()
    after = rebuild(before["main"], {result: lambda b: inner}, owner="t")
    assert ops(replaced(before, after)) == ["exp"]


def test_rebuild_reaches_into_the_branches_of_an_if():
    builder, c, x = relax.BlockBuilder(), tensor("c", dtype="bool"), tensor("x", 2)
    with builder.function("f", [p := tensor("p", 2)], private=True):
        builder.emit_func_output(builder.emit(relax.Tuple([builder.emit(op.exp(p))])))
    gv = builder.get().get_global_var("f")
    with builder.function("main", [c, x]):
        value = builder.emit(op.abs(x))
        both = builder.emit(relax.If(c, relax.Call(gv, [value]), relax.Call(gv, [x])))
        builder.emit_func_output(both)
    before = builder.get()
    after = replaced(before, rebuild(before["main"], {value: lambda b: x}, owner="t"))
    assert ops(after) == []
    calls = [b.value for b in bindings_of(after["main"]) if isinstance(b.value, relax.Call)]
    assert all(call.args[0].same_as(x) for call in calls)


def test_eliminate_dead_asks_before_it_removes():
    before = graph([tensor("x", 2)], lambda e, x: [(e(op.exp(e(op.abs(x)))), e(op.negative(x)))[1]])
    asked: list[Unused] = []

    def refuse(unused: Unused) -> bool:
        asked.append(unused)
        return False

    assert ops(replaced(before, eliminate_dead(before["main"], refuse))) == ["abs", "exp", "negative"]
    assert [unused.value.op.name for unused in asked] == ["relax.exp"]
    assert removable(asked[0])
    assert ops(replaced(before, eliminate_dead(before["main"]))) == ["negative"]


def test_purity():
    x = tensor("x", 2)
    assert is_pure(op.exp(x))
    assert not is_pure(op.print(x, format="{}"))
    assert is_pure(x)


def test_symbols_of_types_and_operands():
    n, m = symbol("n"), symbol("m")
    assert set(symbols_of(relax.TensorType([n, m + 1, 3], "float32"))) == {n, m}
    assert set(symbols_of(op.zeros(relax.ShapeExpr([n * 2]), "float32"))) == {n}
    assert set(symbols_of(op.strided_slice(tensor("x", 9), [0], [m], [9]))) == {m}
    assert set(symbols_of(op.exp(tensor("x", n)))) == set()


def test_counts_nodes_and_edges_of_nested_graphs():
    assert count_graph(diamond()) == (3, 6)
