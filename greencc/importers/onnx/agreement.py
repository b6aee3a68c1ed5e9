"""Makes the sizes of an operator's operands agree where shape inference can't prove that they do.

Two symbolic sizes that have to be equal (or broadcast) may be written differently: `sequence` beside
`min(sequence, 512)`. Either the model implies a bound of a dimension or the equality of two, which is learnt (the
import starts again with it, and the runtime checks it on the user's inputs), or one size is asserted to equal the
other when the model runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tvm import ir, relax, sym, tirx

from greencc.importers.onnx.values import Dim, analyzer, as_dim, same_dim
from greencc.ir import shape_of
from greencc.kernels import KERNEL, kernel_name
from greencc.kernels.elementwise import KERNELS as ELEMENTWISE

if TYPE_CHECKING:
    from greencc.importers.onnx.walker import GraphWalker

_BROADCASTING = frozenset(
    f"relax.{name}"
    for name in (
        "add", "subtract", "multiply", "divide", "floor_divide", "power", "mod", "floor_mod", "maximum", "minimum",
        "equal", "not_equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or",
        "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift", "where", "atan2",
    )
)  # fmt: skip


class ImpliedFact(Exception):
    """The model only makes sense when dimension `symbol` is at most `limit`, or equal to the dimension `other`."""

    def __init__(self, symbol: str, *, limit: int | None = None, other: str | None = None) -> None:
        super().__init__(f"{symbol} <= {limit}" if other is None else f"{symbol} == {other}")
        self.symbol = symbol
        self.limit = limit
        self.other = other


def settle(walker: GraphWalker, call: relax.Call) -> relax.Call:
    """`call` with operands whose sizes agree; the operands are asserted to have them.

    Raises ImpliedFact when a bound of a dimension, or its being equal to another one, makes them agree.
    """
    if not isinstance(call.op, ir.Op):
        return call
    name = call.op.name
    if name in _BROADCASTING:
        return _with_args(call, _aligned(walker, list(call.args), fixed=0))
    if name == KERNEL and kernel_name(call) in ELEMENTWISE:
        return _with_args(call, [*_aligned(walker, list(call.args[:-1]), fixed=0), call.args[-1]])
    if name == "relax.matmul" and min(_rank(arg) for arg in call.args) > 2:
        return _with_args(call, _aligned(walker, list(call.args), fixed=2))
    if name == "relax.concat" and isinstance(call.args[0], relax.Tuple):
        return _with_args(call, [relax.Tuple(_alike(walker, list(call.args[0].fields), int(call.attrs.axis)))])
    return call


def _aligned(walker: GraphWalker, args: list[relax.Expr], fixed: int) -> list[relax.Expr]:
    """Operands that broadcast with each other on all but the last `fixed` axes."""
    shapes = [shape_of(arg.ty) for arg in args]
    if any(shape is None for shape in shapes):
        return args
    known = [[as_dim(dim) for dim in shape] for shape in shapes if shape is not None]
    for axis in range(1 + fixed, max(map(len, known)) + 1):
        members = [i for i, shape in enumerate(known) if len(shape) >= axis and not _is_one(shape[-axis])]
        _agree(known, members, -axis)
    return [_asserted(walker, arg, shape) for arg, shape in zip(args, known, strict=True)]


def _alike(walker: GraphWalker, args: list[relax.Expr], axis: int) -> list[relax.Expr]:
    """Operands of equal sizes on every axis but `axis`."""
    shapes = [shape_of(arg.ty) for arg in args]
    if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
        return args
    known = [[as_dim(dim) for dim in shape] for shape in shapes if shape is not None]
    for position in range(len(known[0])):
        if position != axis % len(known[0]):
            _agree(known, list(range(len(known))), position)
    return [_asserted(walker, arg, shape) for arg, shape in zip(args, known, strict=True)]


def _agree(shapes: list[list[Dim]], members: Sequence[int], axis: int) -> None:
    """Give all members the same size on an axis: a static one if there is one, else the simplest expression.

    A symbol alone is the last choice: to TVM, asserting that a size is `n` defines `n`, which checks nothing.
    """
    sizes = [shapes[i][axis] for i in members]
    if len(sizes) < 2 or all(_plainly_equal(sizes[0], size) for size in sizes):
        return
    chosen = min(sizes, key=lambda size: (not isinstance(size, int), isinstance(size, tirx.Var), len(str(size))))
    for i in members:
        size = shapes[i][axis]
        if not same_dim(size, chosen):
            for symbol, limit in _candidates([size, chosen]):
                if limit > 1 and _equal_under(size, chosen, symbol, limit):
                    raise ImpliedFact(symbol.name, limit=limit)
            if isinstance(size, tirx.Var) and isinstance(chosen, tirx.Var):
                raise ImpliedFact(size.name, other=chosen.name)
            if isinstance(size, int) and isinstance(chosen, int):
                continue  # a plain mistake of the model, which type inference reports
        shapes[i][axis] = chosen


def _plainly_equal(a: Dim, b: Dim) -> bool:
    """Whether shape inference, which knows no bounds, sees that two sizes are equal."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return bool(sym.Analyzer().can_prove_equal(a, b))


def _candidates(dims: Sequence[Dim]) -> Iterator[tuple[tirx.Var, int]]:
    """(symbol, limit) for every min(symbol + k, constant) in the sizes."""
    for node in _minima(dims):
        for value, limit in ((node.a, node.b), (node.b, node.a)):
            if not isinstance(limit, tirx.IntImm):
                continue
            for var in tirx.analysis.undefined_vars(tirx.Evaluate(value)):
                offset = analyzer().simplify(value - var)
                if isinstance(offset, tirx.IntImm):
                    yield var, int(limit) - int(offset)


def _minima(nodes: Iterable[object]) -> Iterator[tirx.Min]:
    for node in nodes:
        if isinstance(node, tirx.Min):
            yield node
        yield from _minima(getattr(node, side) for side in ("a", "b") if hasattr(node, side))


def _equal_under(a: Dim, b: Dim, symbol: tirx.Var, limit: int) -> bool:
    narrowed = analyzer().clone()
    with narrowed.constraint_scope(symbol <= limit):
        return bool(narrowed.can_prove_equal(a, b))


def _asserted(walker: GraphWalker, arg: relax.Expr, shape: list[Dim]) -> relax.Expr:
    own = shape_of(arg.ty)
    assert own is not None
    if all(_plainly_equal(as_dim(a), b) for a, b in zip(own, shape, strict=True)):
        return arg
    return walker.emit_cast(arg, relax.TensorType(shape, arg.ty.dtype))


def _is_one(dim: Dim) -> bool:
    return isinstance(dim, int) and dim == 1


def _rank(arg: relax.Expr) -> int:
    return int(arg.ty.ndim) if isinstance(arg.ty, relax.TensorType) else -1


def _with_args(call: relax.Call, args: list[relax.Expr]) -> relax.Call:
    if all(a.same_as(b) for a, b in zip(args, call.args, strict=True)):
        return call
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)
