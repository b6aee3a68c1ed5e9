"""Products of matrices by a subgroup (GL_KHR_cooperative_matrix), from TVM's fragments in wmma memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import ir, tirx

from greencc.targets.vulkan.emitter.memory import Binding, Fragment, Memory
from greencc.targets.vulkan.emitter.parallel import need_subgroup, pointer

if TYPE_CHECKING:
    from greencc.targets.vulkan.emitter.expressions import Expressions

SCOPES = {
    "wmma.matrix_a": "gl_MatrixUseA",
    "wmma.matrix_b": "gl_MatrixUseB",
    "wmma.accumulator": "gl_MatrixUseAccumulator",
}
_LAYOUTS = {"row_major": "gl_CooperativeMatrixLayoutRowMajor", "col_major": "gl_CooperativeMatrixLayoutColumnMajor"}


def fill(expressions: Expressions, expr: ir.Call) -> None:
    """Every element of a fragment is one value."""
    fragment, m, n, k, index, value = expr.args
    place = _fragment(expressions, fragment, (m, n, k))
    expressions.context.emit(f"{_at(expressions, place, index)} = {place.glsl}({expressions.value(value)});")


def load(expressions: Expressions, expr: ir.Call) -> None:
    """A fragment from memory."""
    fragment, m, n, k, index, address, stride, layout = expr.args
    place = _fragment(expressions, fragment, (m, n, k))
    array, start = _memory(expressions, address, place, is_store=False)
    expressions.context.emit(
        f"coopMatLoad({_at(expressions, place, index)}, {array}, {start}, {expressions.index(stride)}, "
        f"{_layout(expressions, layout)});"
    )


def store(expressions: Expressions, expr: ir.Call) -> None:
    """A fragment to memory."""
    fragment, m, n, k, index, address, stride, layout = expr.args
    place = _fragment(expressions, fragment, (m, n, k))
    array, start = _memory(expressions, address, place, is_store=True)
    expressions.context.emit(
        f"coopMatStore({_at(expressions, place, index)}, {array}, {start}, {expressions.index(stride)}, "
        f"{_layout(expressions, layout)});"
    )


def multiply(expressions: Expressions, expr: ir.Call) -> None:
    """A fragment of sums from a product and another one."""
    texts = [
        _at(expressions, _fragment(expressions, fragment, None), index)
        for fragment, index in zip(expr.args[::2], expr.args[1::2], strict=True)
    ]
    expressions.context.emit(f"{texts[0]} = coopMatMulAdd({texts[1]}, {texts[2]}, {texts[3]});")


RULES = {
    "tvm_fill_fragment": fill,
    "tvm_load_matrix_sync": load,
    "tvm_store_matrix_sync": store,
    "tvm_mma_sync": multiply,
}


def _fragment(
    expressions: Expressions, data: tirx.Expr, sizes: tuple[tirx.Expr, tirx.Expr, tirx.Expr] | None
) -> Fragment:
    """The fragments of a buffer. The first use that says how large they are declares them."""
    context = expressions.context
    if not (context.gpu.has_tensor_cores or context.gpu.has_tensor_bfloat16 or context.gpu.has_tensor_int8):
        raise context.fail("a product of matrices by a subgroup, which the device doesn't have")
    need_subgroup(expressions, "a product of matrices")
    context.need("matrix")
    context.need("memory_model")
    if isinstance(data, ir.Call) and isinstance(data.op, ir.Op) and data.op.name == "tirx.buffer_data":
        data = data.args[0]
    memory = context.memory.get(data) if isinstance(data, tirx.Var) else None
    place = memory.place if memory is not None else None
    if not isinstance(place, Fragment):
        raise context.fail("a product of matrices that aren't in wmma memory")
    if place.glsl:
        return place
    if sizes is None:
        raise context.fail(f"the fragment '{place.name}' is used before it is filled or loaded")
    m, n, k = (int(size) for size in sizes)
    rows, columns = {"gl_MatrixUseA": (m, k), "gl_MatrixUseB": (k, n)}.get(place.use, (m, n))
    assert memory is not None
    kind = memory.element
    feature = {"float16_t": "float16", "int8_t": "int8", "uint8_t": "int8"}.get(kind.storage)
    if feature is not None:
        context.need(feature)
    place.glsl = f"coopmat<{kind.storage}, gl_ScopeSubgroup, {rows}, {columns}, {place.use}>"
    place.declaration.text = f"{place.glsl} {place.name}[{place.count // (rows * columns)}];"
    return place


def _at(expressions: Expressions, place: Fragment, index: tirx.Expr) -> str:
    return f"{place.name}[{expressions.index(index)}]"


def _memory(expressions: Expressions, address: tirx.Expr, fragment: Fragment, is_store: bool) -> tuple[str, str]:
    memory, start = pointer(expressions, address)
    return _array(expressions, memory, is_store), f"uint({start})"


def _array(expressions: Expressions, memory: Memory, is_store: bool) -> str:
    place = memory.place
    if isinstance(place, Binding):
        place.is_written |= is_store
        place.is_read |= not is_store
        expressions.context.requires.update(memory.element.requires)
        return place.view(memory.element.storage)
    return place.name


def _layout(expressions: Expressions, layout: tirx.Expr) -> str:
    found = _LAYOUTS.get(str(layout.value))
    if found is None:
        raise expressions.context.fail(f"a matrix of layout '{layout.value}'")
    return found
