"""Rewriting TIR expressions."""

from tvm import tirx

from greencc.targets.tir import rewrite


def test_equal_numbers_keep_their_types() -> None:
    wide, narrow = tirx.Var("wide", "int64"), tirx.Var("narrow", "int32")
    moved = tirx.shift_left(narrow, tirx.const(8, "int32"))
    expr = tirx.Select(wide < tirx.const(8, "int64"), moved, narrow)
    other = tirx.Var("other", "int32")
    made = rewrite(expr, lambda node: other if node.same_as(narrow) else None)
    assert str(made.true_value.b.ty.dtype) == "int32"
    assert str(made.condition.b.ty.dtype) == "int64"
    assert made.true_value.a.same_as(other)
    assert made.false_value.same_as(other)
