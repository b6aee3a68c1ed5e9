"""Operations and bytes of kernels, against counts by hand."""

import numpy as np
import pytest
from running import function, host
from tvm import relax, tirx

from greencc.targets.lower import lower


def test_a_product_with_its_tail() -> None:
    weight, bias = np.ones((8, 16), np.float32), np.ones(16, np.float32)

    def body(emit, x):
        product = emit(relax.op.matmul(x, relax.const(weight)))
        return [emit(relax.op.nn.relu(emit(relax.op.add(product, relax.const(bias)))))]

    (call,) = lower(function({"x": ((4, 8), "float32")}, body), host()).calls
    assert call.operations == 4 * 16 * (2 * 8 + 2)
    assert call.bytes == 4 * (4 * 8 + 8 * 16 + 16 + 4 * 16)
    assert call.arithmetic == "float32"


def test_symbolic_sizes_stay_symbols_of_the_inputs() -> None:
    rows = tirx.Var("rows", "int64")
    module = function({"x": ((rows, 8), "float32")}, lambda emit, x: [emit(relax.op.exp(x))])
    (call,) = lower(module, host()).calls
    assert eval(str(call.operations), {"rows": 5}) == 5 * 8
    assert eval(str(call.bytes), {"rows": 5}) == 2 * 5 * 8 * 4


def test_a_lookup_reads_what_it_looks_up() -> None:
    table = relax.const(np.ones((1000, 16), np.float32))
    module = function({"ids": ((5,), "int64")}, lambda emit, ids: [emit(relax.op.take(table, ids, axis=0))])
    (call,) = lower(module, host()).calls
    assert call.operations == 0
    assert call.bytes == 5 * 8 + 2 * 5 * 16 * 4


@pytest.mark.parametrize("keys", [7, 64])
def test_attention_counts_its_two_products(keys: int) -> None:
    from greencc.ops import AttentionAttrs, attention

    attrs = AttentionAttrs(heads=2, kv_heads=2, head_dim=8, value_dim=8)
    shapes = {"q": ((3, 5, 16), "float32"), "k": ((3, keys, 16), "float32"), "v": ((3, keys, 16), "float32")}
    module = function(shapes, lambda emit, q, k, v: [emit(attention(q, k, v, None, attrs))])
    (call,) = lower(module, host()).calls
    scores = 3 * 2 * 5 * keys
    assert call.operations == scores * (2 * 8 + 2 * 8 + 5)
