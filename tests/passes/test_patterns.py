from __future__ import annotations

import numpy as np
import pytest
from small_graphs import const, graph, tensor
from tvm import relax

from greencc.passes.graph import Graph
from greencc.passes.patterns import any_, constant, op, scalar

R = relax.op


def found(pattern, body, *params):
    """What `pattern` captures at the one output of main(params)."""
    module = graph(params or [tensor("x", 2), tensor("y", 2)], lambda e, *v: [body(e, *v)])
    view = Graph(module, module["main"])
    [output] = view.value(module["main"].body.body).fields
    captures = pattern.find(view, output)
    return None if captures is None else {name: view.value(value) for name, value in captures.items()}


def test_captures_operands_by_name():
    captured = found(op("subtract", any_("a"), op("exp", any_("b"))), lambda e, x, y: e(R.subtract(x, e(R.exp(y)))))
    assert {name: value.name for name, value in captured.items()} == {"a": "x", "b": "y"}


def test_another_operator_or_order_does_not_match():
    pattern = op("subtract", any_("a"), op("exp", any_("b")))
    assert found(pattern, lambda e, x, y: e(R.add(x, e(R.exp(y))))) is None
    assert found(pattern, lambda e, x, y: e(R.subtract(e(R.exp(y)), x))) is None
    assert found(op("exp", any_()), lambda e, x, y: x) is None


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("call", [R.add, R.multiply, R.maximum, R.equal])
def test_commutative_operators_match_in_either_order(call, swap):
    name = {R.add: "add", R.multiply: "multiply", R.maximum: "maximum", R.equal: "equal"}[call]

    def body(e, x, y):
        operands = [e(R.exp(x)), y]
        return e(call(*(operands[::-1] if swap else operands)))

    captured = found(op(name, op("exp", any_("a")), any_("b")), body)
    assert (captured["a"].name, captured["b"].name) == ("x", "y")


def test_a_repeated_name_is_one_value():
    square = op("multiply", any_("x"), any_("x"))
    assert found(square, lambda e, x, y: e(R.multiply(x, x))) is not None
    assert found(square, lambda e, x, y: e(R.multiply(x, y))) is None


def test_backtracks_over_operand_orders():
    # exp fits either operand, but the name ties it to the one below the negation.
    pattern = op("add", op("exp", any_("x")), op("multiply", op("negative", any_("x")), any_()))

    def body(e, x, y):
        product = e(R.multiply(y, e(R.negative(x))))
        return e(R.add(product, e(R.exp(x))))

    assert found(pattern, body)["x"].name == "x"


def test_alternatives_are_tried_in_order():
    square = op("power", any_("x"), scalar(2.0)) | op("multiply", any_("x"), any_("x"))
    assert found(square, lambda e, x, y: e(R.power(x, const(2.0))))["x"].name == "x"
    assert found(square, lambda e, x, y: e(R.multiply(y, y)))["x"].name == "y"
    assert found(square, lambda e, x, y: e(R.power(x, const(3.0)))) is None


def test_scalars_match_within_rtol_and_of_any_rank():
    pattern = op("multiply", any_("x"), scalar(1 / np.sqrt(2), "half"))
    square = (tensor("x", 2, 2), tensor("y", 2))
    assert found(pattern, lambda e, x, y: e(R.multiply(x, const([[0.70710677]]))), *square) is not None
    assert found(pattern, lambda e, x, y: e(R.multiply(x, const(0.7071)))) is None
    assert found(pattern, lambda e, x, y: e(R.multiply(x, const([0.70710677, 0.70710677])))) is None
    assert found(pattern, lambda e, x, y: e(R.multiply(x, y))) is None


def test_scalar_zero_matches_exactly_zero():
    pattern = op("add", any_(), scalar(0.0))
    assert found(pattern, lambda e, x, y: e(R.add(x, const(0.0)))) is not None
    assert found(pattern, lambda e, x, y: e(R.add(x, const(1e-30)))) is None


def test_constants_with_a_predicate():
    pattern = op("add", any_("x"), constant("c", lambda a: a.ndim == 1))
    assert found(pattern, lambda e, x, y: e(R.add(x, const([1.0, 2.0])))) is not None
    assert found(pattern, lambda e, x, y: e(R.add(x, const(1.0)))) is None


def test_attributes_and_the_matched_call_itself():
    last = op("nn.softmax", any_("x"), bind="root", attrs=lambda call: call.attrs.axis == -1)
    assert found(last, lambda e, x, y: e(R.nn.softmax(x, -1)))["root"].op.name == "relax.nn.softmax"
    assert found(last, lambda e, x, y: e(R.nn.softmax(x, 0))) is None


def test_looks_through_aliases():
    assert found(op("exp", op("negative", any_("x"))), lambda e, x, y: e(R.exp(e(e(R.negative(x)))))) is not None
