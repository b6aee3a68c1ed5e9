from __future__ import annotations

import numpy as np
import pytest
import tvm
from small_graphs import bits, const, graph, ops, reasons, run_numpy, symbol, tensor
from tvm import relax

from greencc import ops as own_ops
from greencc.ir import bindings_of, constant_array
from greencc.kernels import kernel
from greencc.passes.base import PassContext, PassResult
from greencc.passes.fold_constants import FoldConstants

op = relax.op
A = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def fold(module: tvm.IRModule, **options: int) -> PassResult:
    result = FoldConstants(**options).run(module, PassContext())
    relax.analysis.well_formed(result.module)
    again = FoldConstants(**options).run(result.module, PassContext())
    assert again.rewrites == 0
    tvm.ir.assert_structural_equal(again.module, result.module)
    return result


def folded(value):
    """The one constant that `value(emit)` folds to."""
    result = fold(graph([tensor("x", 1)], lambda e, x: [value(e)]))
    assert ops(result.module) == []
    [output] = run_numpy(result.module, np.zeros(1, np.float32))
    return output


def dequantized(data, *parameters, axis=0, block=0):
    operands = [const(value, str(value.dtype)) for value in (data, *parameters)]
    return kernel("dequantize", operands, axis=axis, block=block, dtype="float32")


Q = np.array([[0, 255, 7], [128, 3, 200]], np.uint8)
SCALES = np.array([0.1, 0.25, 3], np.float32)
EXACT = {
    "dequantize": (
        lambda e: e(dequantized(Q, np.float32(0.1), np.uint8(129))),
        (Q.astype("float32") - 129) * np.float32(0.1),
    ),
    "dequantize columns": (
        lambda e: e(dequantized(Q, SCALES, np.arange(3, dtype=np.uint8), axis=1)),
        (Q - np.arange(3, dtype=np.float32)) * SCALES,
    ),
    "dequantize blocks": (
        lambda e: e(dequantized(Q, SCALES[None, :2].repeat(2, 0), axis=1, block=2)),
        Q * SCALES[[0, 0, 1]],
    ),
    "reshape": (lambda e: e(op.reshape(const(A), [3, 2])), A.reshape(3, 2)),
    "flatten": (lambda e: e(op.flatten(const(A))), A.reshape(-1)),
    "squeeze": (lambda e: e(op.squeeze(const(A[None]), [0])), A),
    "expand_dims": (lambda e: e(op.expand_dims(const(A), [1])), A[:, None]),
    "permute_dims": (lambda e: e(op.permute_dims(const(A))), A.T),
    "broadcast_to": (lambda e: e(op.broadcast_to(const(A[:1]), [2, 3])), np.broadcast_to(A[:1], (2, 3))),
    "concat": (lambda e: e(op.concat([const(A), const(A)], 1)), np.concatenate([A, A], 1)),
    "strided_slice": (lambda e: e(op.strided_slice(const(A), [1], [-2], [9])), A[:, 1:]),
    "backward slice": (lambda e: e(op.strided_slice(const(A), [1], [-1], [-9], [-1])), A[:, ::-1]),
    "astype": (lambda e: e(op.astype(const(A), "bool")), A.astype(bool)),
    "float to int": (lambda e: e(op.astype(const(A * 1.7), "int32")), (A * np.float32(1.7)).astype(np.int32)),
    "add": (lambda e: e(op.add(const(A), const(0.1))), A + np.float32(0.1)),
    "subtract": (lambda e: e(op.subtract(const(A), const(0.1))), A - np.float32(0.1)),
    "multiply": (lambda e: e(op.multiply(const(A), const(0.1))), A * np.float32(0.1)),
    "divide": (lambda e: e(op.divide(const(A), const(0.3))), A / np.float32(0.3)),
    "int division": (
        lambda e: e(op.divide(const([-7, 7], "int32"), const([2, 2], "int32"))),
        np.array([-3, 3], np.int32),
    ),
    "negative": (lambda e: e(op.negative(const(A))), -A),
    "where": (
        lambda e: e(op.where(const(A > 0, "bool"), const(A), const(9.0))),
        np.where(A > 0, A, np.float32(9)),
    ),
    "zeros": (lambda e: e(op.zeros([2], "int64")), np.zeros(2, np.int64)),
    "ones": (lambda e: e(op.ones([2], "float16")), np.ones(2, np.float16)),
    "full": (lambda e: e(op.full([2], const(3.0), "float32")), np.full(2, 3, np.float32)),
    "arange": (lambda e: e(op.arange(0, 5, 2)), np.arange(0, 5, 2)),
    "take": (lambda e: e(op.take(const(A), const([1, 0], "int64"), 1)), A[:, [1, 0]]),
    "maximum": (lambda e: e(op.maximum(const(A), const(0.0))), np.maximum(A, 0)),
}


@pytest.mark.parametrize("case", EXACT)
def test_folds_to_the_exact_value(case):
    value, expected = EXACT[case]
    assert bits([folded(value)]) == bits([expected])


def test_division_by_zero_is_no_error():
    assert bits([folded(lambda e: e(op.divide(const(A), const(0.0))))]) == bits(
        [np.array([[-np.inf, -np.inf, np.nan], [np.inf, np.inf, np.inf]], np.float32)]
    )


@pytest.mark.parametrize(
    ("relaxed", "exact", "tolerance"),
    [(op.exp, np.exp, 1e-6), (op.tanh, np.tanh, 1e-6), (op.sqrt, np.sqrt, 1e-7)],
)
def test_other_operators_are_run_by_tvm(relaxed, exact, tolerance):
    values = np.abs(A)
    np.testing.assert_allclose(folded(lambda e: e(relaxed(const(values)))), exact(values), rtol=tolerance, atol=0)


def test_folds_a_chain_longer_than_any_round_limit():
    def body(e, x):
        value = const(A)
        for _ in range(100):
            value = e(op.negative(value))
        return [e(op.add(x, value))]

    result = fold(graph([tensor("x", 2, 3)], body))
    assert ops(result.module) == ["add"]
    assert result.counts == {"negative": 100}
    assert bits(run_numpy(result.module, A)) == bits([A + A])


def test_folds_through_the_parts_of_a_split():
    def body(e, x):
        parts = e(op.split(const(A), 3, 1))
        middle = e(op.negative(e(relax.TupleGetItem(parts, 1))))
        return [e(op.add(x, middle)), e(op.add(x, e(relax.TupleGetItem(parts, 2))))]

    result = fold(graph([tensor("x", 2, 1)], body))
    assert ops(result.module) == ["add", "add"]
    assert result.counts == {"negative": 1, "split": 1}
    x = np.ones((2, 1), np.float32)
    assert bits(run_numpy(result.module, x)) == bits([x - A[:, 1:2], x + A[:, 2:]])


def test_folds_in_branch_functions():
    builder, p = relax.BlockBuilder(), tensor("p", 2, 3)
    with builder.function("inner", [p], private=True):
        with builder.dataflow():
            total = builder.emit(op.add(p, builder.emit(op.negative(const(A)))))
            result = builder.emit_output(relax.Tuple([total]))
        builder.emit_func_output(result)
    assert ops(fold(builder.get()).module, "inner") == ["add"]


def test_what_depends_on_an_input_stays():
    before = graph([tensor("x", 2, 3)], lambda e, x: [e(op.add(x, const(A))), e(op.reshape(x, [6]))])
    result = fold(before)
    assert (result.rewrites, result.refusals) == (0, ())
    tvm.ir.assert_structural_equal(result.module, before)


def test_a_call_of_a_packed_function_is_no_candidate():
    call = op.call_pure_packed("f", const(A), ty_args=relax.TensorType([2, 3], "float32"))
    result = fold(graph([tensor("x", 1)], lambda e, x: [e(call)]))
    assert (result.rewrites, result.refusals) == (0, ())


def attention(e):
    attrs = own_ops.AttentionAttrs(heads=1, kv_heads=1, head_dim=3, value_dim=3)
    return e(own_ops.attention(const(A[None]), const(A[None]), const(A[None]), None, attrs))


N = symbol("n")
REFUSED = {
    "random": (
        lambda e: e(relax.TupleGetItem(e(op.nn.dropout(const(A), 0.5)), 0)),
        (1, "the operator has an effect or is random"),
    ),
    "own operator": (attention, (2, "TVM has no lowering for the operator")),
    "symbolic": (
        lambda e: e(op.broadcast_to(const(A), relax.ShapeExpr([N, 2, 3]))),
        (3, "the result has no static shape"),
    ),
    "symbolic creation": (
        lambda e: e(op.zeros(relax.ShapeExpr([N]), "float32")),
        (3, "the result has no static shape"),
    ),
    "bfloat16 operand": (
        lambda e: e(op.negative(relax.const(A, "bfloat16"))),
        (4, "the element type is not computed at compile time"),
    ),
    "large": (
        lambda e: e(op.broadcast_to(const(A), [20_000, 2, 3])),
        (5, "the result is much larger than its operands"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    value, reason = REFUSED[case]
    before = graph([tensor("x", N)], lambda e, x: [value(e)])
    result = fold(before)
    assert result.rewrites == 0
    assert reasons(result) == [reason]
    tvm.ir.assert_structural_equal(result.module, before)


@pytest.mark.parametrize(("elements", "rewrites"), [(16, 1), (17, 0)])
def test_growth_limit_is_exact(elements, rewrites):
    before = graph([tensor("x", 1)], lambda e, x: [e(op.broadcast_to(const([1.0]), [elements]))])
    assert fold(before, max_growth=60).rewrites == rewrites


def test_weights_are_dequantized_once():
    w = np.ones((400, 100), np.int8)
    result = fold(graph([tensor("x", 1)], lambda e, x: [e(dequantized(w, np.float32(0.5)))]), max_growth=0)
    assert result.counts == {"dequantize": 1}


def test_weights_in_bytes_are_widened_once():
    """As models do that store weights with Cast and Mul."""
    w = np.ones((400, 100), np.int8)

    def body(e, x):
        return [e(op.multiply(e(op.astype(relax.const(w), "float32")), const(np.ones((1, 100)))))]

    result = fold(graph([tensor("x", 1)], body), max_growth=0)
    assert result.counts == {"astype": 1, "multiply": 1}


def test_growth_counts_against_large_operands():
    large = const(np.ones((400, 100)))
    result = fold(graph([tensor("x", 1)], lambda e, x: [e(op.permute_dims(large))]), max_growth=0)
    assert result.counts == {"permute_dims": 1}
    [output] = [b.value for b in bindings_of(result.module["main"])]
    assert constant_array(output.fields[0]).flags.c_contiguous
