"""Reading and rewriting TIR expressions. TVM has no Python functors for them, so nodes are dispatched by type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tvm import ir, sym, tirx
from tvm.tirx.script import builder as T

from greencc.errors import GreenccError

_BINARY = (
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max,
    tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.And, tirx.Or,
    tirx.BitwiseAnd, tirx.BitwiseOr, tirx.BitwiseXor, tirx.LShift, tirx.RShift,
)  # fmt: skip
_LEAVES = (tirx.IntImm, tirx.FloatImm, ir.StringImm) if hasattr(ir, "StringImm") else (tirx.IntImm, tirx.FloatImm)


def children(expr: tirx.Expr) -> list[tirx.Expr]:
    """Direct operands of an expression."""
    if isinstance(expr, _BINARY):
        return [expr.a, expr.b]
    if isinstance(expr, (tirx.Not, tirx.BitwiseNot)):
        return [expr.a]
    if isinstance(expr, tirx.Cast):
        return [expr.value]
    if isinstance(expr, tirx.Select):
        return [expr.condition, expr.true_value, expr.false_value]
    if isinstance(expr, ir.TensorLoad):
        return list(expr.indices)
    if isinstance(expr, tirx.Let):
        return [expr.value, expr.body]
    if isinstance(expr, tirx.Broadcast):
        return [expr.value]
    if isinstance(expr, tirx.Ramp):
        return [expr.base, expr.stride]
    if isinstance(expr, ir.Call):
        return [arg for arg in expr.args if isinstance(arg, tirx.Expr)]
    return []


def walk(expr: tirx.Expr) -> Iterator[tirx.Expr]:
    """The expression and everything below it, parents first."""
    stack = [expr]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(children(node))


def distinct(expr: tirx.Expr) -> Iterator[tirx.Expr]:
    """The nodes of an expression, those that it shares between its parts once: written out it may be very large."""
    stack, seen = [expr], {expr}
    while stack:
        node = stack.pop()
        yield node
        for child in children(node):
            if child not in seen:
                seen.add(child)
                stack.append(child)


def written_out(exprs: Iterable[tirx.Expr], sizes: Mapping[tirx.Var, int]) -> int:
    """How many nodes expressions have in all, what their parts share counted each time.

    A read of a buffer in `sizes` counts as so many nodes more: what is put in its place.
    """
    known: dict[tirx.Expr, int] = {}

    def count(expr: tirx.Expr) -> int:
        if isinstance(expr, _LEAVES):
            return 1
        if expr not in known:
            more = sizes.get(expr.source, 0) if isinstance(expr, ir.TensorLoad) else 0
            known[expr] = 1 + more + sum(map(count, children(expr)))
        return known[expr]

    return sum(map(count, exprs))


def loads(expr: tirx.Expr) -> Iterator[ir.TensorLoad]:
    """The buffer reads in an expression; one that parts of it share comes once."""
    return (node for node in distinct(expr) if isinstance(node, ir.TensorLoad))


def uses_var(expr: tirx.Expr, var: tirx.Var) -> bool:
    """Whether `var` occurs in an expression."""
    return any(node.same_as(var) for node in distinct(expr))


def rewrite(expr: tirx.Expr, replace: Callable[[tirx.Expr], tirx.Expr | None]) -> tirx.Expr:
    """`expr` with every node that `replace` maps to something replaced, parents first.

    What parts of the expression share is rewritten once, and shared again: `replace` must give the same for the same.

    Raises GreenccError for a node type that it doesn't know: silently keeping it would be wrong code.
    """
    return _rewritten(expr, replace, {})


def _rewritten(
    expr: tirx.Expr, replace: Callable[[tirx.Expr], tirx.Expr | None], known: dict[tirx.Expr, tirx.Expr]
) -> tirx.Expr:
    if isinstance(expr, _LEAVES):
        # Constants of one value are equal whatever their type, so they are no keys.
        new = replace(expr)
        return expr if new is None else new
    found = known.get(expr)
    if found is None:
        new = replace(expr)
        found = known[expr] = _rebuilt(expr, replace, known) if new is None else new
    return found


def _rebuilt(
    expr: tirx.Expr, replace: Callable[[tirx.Expr], tirx.Expr | None], known: dict[tirx.Expr, tirx.Expr]
) -> tirx.Expr:
    if isinstance(expr, tirx.Var):
        return expr
    old = children(expr)
    parts = [_rewritten(child, replace, known) for child in old]
    if isinstance(expr, ir.Call):
        if all(a is b for a, b in zip(old, parts, strict=True)):
            return expr
        rewritten = iter(parts)
        args = [next(rewritten) if isinstance(arg, tirx.Expr) else arg for arg in expr.args]
        return ir.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span, ret_ty=expr.ty)
    if isinstance(expr, _BINARY):
        return type(expr)(*parts)
    if isinstance(expr, (tirx.Not, tirx.BitwiseNot)):
        return type(expr)(parts[0])
    if isinstance(expr, tirx.Cast):
        return tirx.Cast(expr.ty.dtype, parts[0])
    if isinstance(expr, tirx.Select):
        return tirx.Select(*parts)
    if isinstance(expr, ir.TensorLoad):
        return tirx.BufferLoad(expr.source, parts)
    if isinstance(expr, tirx.Let):
        return tirx.Let(expr.var, *parts)
    if isinstance(expr, tirx.Broadcast):
        return tirx.Broadcast(parts[0], expr.lanes)
    if isinstance(expr, tirx.Ramp):
        return tirx.Ramp(parts[0], parts[1], expr.lanes)
    raise GreenccError(f"schedule: no rule for the TIR node {type(expr).__name__}")


def substitute(expr: tirx.Expr, values: Mapping[tirx.Var, tirx.Expr]) -> tirx.Expr:
    """`expr` with variables replaced."""
    return rewrite(expr, lambda node: values.get(node) if isinstance(node, tirx.Var) else None)


def as_int(expr: tirx.Expr | int) -> int | None:
    """The value of a constant integer expression, or None."""
    return int(expr) if isinstance(expr, (int, tirx.IntImm)) else None


def i64(value: int) -> tirx.Expr:
    """An int64 constant: shapes and indices are int64 throughout."""
    return tirx.IntImm("int64", value)


def ramp(base: tirx.Expr, lanes: int) -> tirx.Expr:
    """Indices base, base + 1, ... of a vector access; `base` itself for a single lane."""
    return base if lanes == 1 else tirx.Ramp(base, i64(1), lanes)


def splat(value: tirx.Expr, lanes: int) -> tirx.Expr:
    """The value in every lane of a vector; `value` itself for a single lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def vector_type(dtype: str, lanes: int) -> str:
    """The name of the type of `lanes` elements; `dtype` itself for a single lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def prefetch(element: tirx.Expr, cache: int) -> None:
    """Emit a request to bring the line of an element into the first- or second-level cache, and go on.

    The element may lie outside its buffer: asking for an address can't fail.
    """
    # LLVM's operands: to read; locality (3 is the first cache, 2 the second); data, not instructions.
    operands = [tirx.IntImm("int32", value) for value in (0, 4 - cache, 1)]
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", tirx.address_of(element), *operands))


def strided_load(load: Callable[[tirx.Expr, int], tirx.Expr], start: tirx.Expr, stride: int, lanes: int) -> tirx.Expr:
    """Elements start, start + stride, ... of what `load(first, lanes)` gives neighbouring elements of, as a vector.

    With stride 2 they are picked out of two vectors, which hold nothing behind the last of them.
    """
    if stride == 1 or lanes == 1:
        return load(start, lanes)
    if stride != 2:
        each = [load(start + i64(lane * stride), 1) for lane in range(lanes)]
        return tirx.Shuffle(each, [tirx.IntImm("int32", lane) for lane in range(lanes)])
    parts = [load(start + i64(first), lanes) for first in (0, lanes - 1)]
    picked = [2 * lane for lane in range(lanes // 2)] + [lanes + 2 * lane + 1 for lane in range(lanes // 2)]
    return tirx.Shuffle(parts, [tirx.IntImm("int32", index) for index in picked])


def cover(count: int, lanes: int, body: Callable[[tirx.Expr, int], None]) -> None:
    """Emit `body(start, lanes)` for vectors that cover 0..count; the last one overlaps the one before."""
    while lanes > count:
        lanes //= 2
    full, rest = divmod(count, lanes)
    with T.serial(i64(0), i64(full)) as step:
        body(step * i64(lanes), lanes)
    if rest:
        body(i64(count - lanes), lanes)


def unravel(index: tirx.Expr, extents: list[tirx.Expr]) -> list[tirx.Expr]:
    """Coordinates of a linear index in a row-major space."""
    coordinates: list[tirx.Expr] = []
    for extent in reversed(extents[1:]):
        coordinates.append(tirx.floormod(index, extent) if as_int(extent) != 1 else i64(0))
        index = tirx.floordiv(index, extent) if as_int(extent) != 1 else index
    return [index if as_int(extents[0]) != 1 else i64(0), *reversed(coordinates)] if extents else []


def split_index(index: tirx.Expr, extents: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """Coordinates of a linear index, which isn't negative, in a row-major space: `unravel` by plain divisions.

    TVM simplifies the flattened index of an access (iter_map_simplify), and is wrong where two coordinates by floored
    divisions of one index are shifted and wrapped: of (t // 10 + 2) % 3 and (t % 10 + 3) % 5 it loses the 3. Plain
    divisions it leaves alone; and where a size is symbolic, they save the correction of a floored one.
    """
    found: list[tirx.Expr] = [i64(0) for _ in extents]
    open_axes = [axis for axis, extent in enumerate(extents) if as_int(extent) != 1]
    for axis in reversed(open_axes):
        is_first = axis == open_axes[0]
        found[axis] = index if is_first else tirx.truncmod(index, extents[axis])
        index = index if is_first else tirx.truncdiv(index, extents[axis])
    return found


def volume(extents: list[tirx.Expr]) -> tirx.Expr:
    """How many elements a space has."""
    total: tirx.Expr = i64(1)
    for extent in extents:
        total = total * extent
    return sym.Analyzer().simplify(total)


def with_own_symbols(shapes: list[list[tirx.Expr]]) -> list[list[tirx.Expr]]:
    """Shapes in variables of the kernel's own: a buffer can define `n`, but not solve `n // 2` for `n`."""
    symbols: dict[str, tirx.Expr] = {}

    def own(dim: tirx.Expr) -> tirx.Expr:
        if isinstance(dim, tirx.IntImm):
            return dim
        return symbols.setdefault(str(dim), tirx.Var(f"n{len(symbols)}", "int64"))

    return [[own(dim) for dim in shape] for shape in shapes]
