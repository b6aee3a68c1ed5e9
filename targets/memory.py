"""Where intermediate tensors lie: one arena for each function, planned when the model is compiled.

Tensors that are not alive at the same time share bytes; so do an operand that is read for the last time and the result
that is written element by element where it is read. A tensor that is nothing but others behind each other is made
in its place: the kernels that compute the parts write them where the whole will lie, and nothing is copied.

Sizes that are symbolic but bounded get room for the largest. Outputs, and what a branch or an unbounded size keeps from
being planned, are allocated one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import tvm
from tvm import ir, relax, sym, tirx

from greencc.ir import (
    PADDING_ATTR,
    SYMBOL_LOWER_ATTR,
    SYMBOL_UPPER_ATTR,
    is_call,
    operands,
    relax_functions,
    shape_of,
)
from greencc.padding import TOKENS_SYMBOL, ElidedPadding

# A PrimFunc with this attribute copies its operands behind each other along the axis that the attribute names.
CONCAT_ATTR = "greencc.concat"
# Of a PrimFunc: numbers of the parameters whose memory its result may take.
OVERWRITES_ATTR = "greencc.overwrites"


@dataclass(frozen=True)
class Placed:
    """A module whose tensors have their places.

    Attributes:
        module: kernels are called with their results as last arguments, in memory that the functions allocate.
        copies_saved: numbers of the kernel calls that are gone (launch order, other functions last).
        arena_bytes: size of main's arena.
    """

    module: tvm.IRModule
    copies_saved: frozenset[int]
    arena_bytes: int


@dataclass(eq=False)
class _Tensor:
    """A tensor that the function allocates.

    Attributes:
        var: its variable.
        index: number of the binding that allocates it.
        last: number of the last binding that uses it.
        bytes: its size, or the largest that it can have; None where that is not known.
        fixed: whether `bytes` is its size in any case.
        escapes: whether it outlives the function, or may.
        parent, offset: the tensor that it is a part of, or in whose place it is, and where in it.
        parts: the tensors that are parts of this one.
    """

    var: relax.Var
    index: int
    last: int
    bytes: int | None
    fixed: bool
    escapes: bool = False
    parent: _Tensor | None = None
    offset: int = 0
    parts: list[_Tensor] = field(default_factory=list)


def place_tensors(module: tvm.IRModule, alignment: int) -> Placed:
    """Plan the memory of every function of a module of scheduled kernels.

    Args:
        module: the module.
        alignment: kernels take buffers to begin at multiples of this many bytes.
    """
    explicit = tvm.transform.Sequential(
        [relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking(), relax.transform.CallTIRRewrite()]
    )(module)
    result = explicit.clone()
    saved: set[int] = set()
    arena_bytes = calls = 0
    for gv, function in relax_functions(explicit):
        plan = _Plan(explicit, function, alignment)
        saved.update(calls + number for number in plan.saved)
        calls += plan.calls
        if gv.name_hint == "main":
            arena_bytes = plan.arena_bytes
        result.update_func(gv, plan.function())
    return Placed(result, frozenset(saved), arena_bytes)


class _Plan:
    """The plan for one function."""

    def __init__(self, module: tvm.IRModule, function: relax.Function, alignment: int) -> None:
        self._module, self._function, self._alignment = module, function, alignment
        self._bindings = [binding for block in function.body.blocks for binding in block.bindings]
        self._analyzer = bounded_analyzer(function)
        self._tensors: dict[relax.Var, _Tensor] = {}
        self._views: dict[relax.Expr, tuple[_Tensor, ...]] = {}
        self._removed: set[int] = set()
        self.calls = 0
        self.saved: set[int] = set()
        self._collect()
        self._join_parts()
        self._overwrite()
        roots = (tensor for tensor in self._tensors.values() if tensor.parent is None)
        self._planned = [tensor for tensor in roots if not tensor.escapes and tensor.bytes is not None]
        self.arena_bytes = _pack(self._planned, alignment)

    # -- what there is -------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """The tensors, and from where to where they are alive."""
        for index, binding in enumerate(self._bindings):
            var, value = binding.var, binding.value
            if is_call(value, "relax.builtin.alloc_tensor"):
                size, fixed = self._size(value)
                tensor = _Tensor(var, index, index, size, fixed)
                self._tensors[var] = tensor
                self._views[var] = (tensor,)
                continue
            used = [tensor for use in _uses(value) for tensor in self._views.get(use, ())]
            for tensor in used:
                tensor.last = index
            if self._is_kernel_call(value):
                continue
            if isinstance(binding, relax.VarBinding) and _is_view(value):
                # Of a tuple, a field counts as any of the tuple's tensors.
                self._views[var] = tuple(dict.fromkeys(used))
                continue
            for tensor in used:
                tensor.escapes = True
        for use in _uses(self._function.body.body):
            for tensor in self._views.get(use, ()):
                tensor.escapes = True

    def _is_kernel_call(self, value: relax.Expr) -> bool:
        if not isinstance(value, relax.Call) or not isinstance(value.op, ir.GlobalVar):
            return False
        return isinstance(self._module[value.op], tirx.PrimFunc)

    def _size(self, call: relax.Call) -> tuple[int | None, bool]:
        """(bytes of an allocated tensor at most, whether it always has that many)."""
        dims = list(call.args[0].values)
        width = _width(call.ty)
        if all(isinstance(dim, tirx.IntImm) for dim in dims):
            return math.prod(int(dim) for dim in dims) * width, True
        elements: tirx.Expr = tirx.IntImm("int64", 1)
        for dim in dims:
            elements = elements * dim
        most = int(self._analyzer.const_int_bound(elements).max_value)
        return (most * width, False) if most < _UNBOUNDED else (None, False)

    # -- parts ---------------------------------------------------------------------------------------------

    def _join_parts(self) -> None:
        """Let the parts of a whole be made in their place, wherever all of them can be."""
        number = -1
        for index, binding in enumerate(self._bindings):
            if not self._is_kernel_call(binding.value):
                continue
            number += 1
            if self._joined(binding.value):
                self._removed.add(index)
                self.saved.add(number)
        self.calls = number + 1

    def _joined(self, call: relax.Call) -> bool:
        attrs = self._module[call.op].attrs
        if attrs is None or CONCAT_ATTR not in attrs:
            return False
        *sources, target = call.args
        axis = int(attrs[CONCAT_ATTR])
        dims = shape_of(target.ty) or []
        if any(not isinstance(dim, tirx.IntImm) or int(dim) != 1 for dim in dims[:axis]):
            return False  # a part is in several pieces
        whole = self._tensors.get(target)
        parts = [self._views.get(source, ()) for source in sources]
        if whole is None or not whole.fixed or any(len(found) != 1 for found in parts):
            return False
        tensors = [found[0] for found in parts]
        free = all(
            t.fixed and not t.escapes and t.parent is None and t is not whole and t.bytes == _bytes(source)
            for t, source in zip(tensors, sources, strict=True)
        )
        offsets = [sum(t.bytes or 0 for t in tensors[:i]) for i in range(len(tensors))]
        if not free or len(set(tensors)) < len(tensors) or any(at % self._alignment for at in offsets):
            return False
        for tensor, offset in zip(tensors, offsets, strict=True):
            tensor.parent, tensor.offset = whole, offset
            whole.parts.append(tensor)
            whole.index = min(whole.index, tensor.index)
            whole.last = max(whole.last, tensor.last)
        return True

    # -- results in the place of operands ------------------------------------------------------------------

    def _overwrite(self) -> None:
        """Let results take the place of operands that nothing reads any more, where their kernels allow it."""
        for index, binding in enumerate(self._bindings):
            if not self._is_kernel_call(binding.value) or index in self._removed:
                continue
            attrs = self._module[binding.value.op].attrs
            numbers = attrs[OVERWRITES_ATTR] if attrs is not None and OVERWRITES_ATTR in attrs else []
            *operands_, target = binding.value.args
            result = self._tensors.get(target)
            if not numbers or result is None or result.escapes or result.parent or result.parts:
                continue
            given = [tensor for operand in operands_ for tensor in self._views.get(operand, ())]
            for number in numbers:
                found = self._views.get(operands_[int(number)], ())
                if len(found) == 1 and given.count(found[0]) == 1 and self._gives_way(found[0], result, index):
                    break

    def _gives_way(self, operand: _Tensor, result: _Tensor, index: int) -> bool:
        """Put the result of binding `index` where its operand is, if it can be there."""
        root, _ = _root(operand)
        if operand.last != index or root.last != index or root.escapes or root.parts:
            return False
        if result.bytes is None or result.bytes != root.bytes:
            return False
        result.parent = root
        root.last = max(root.last, result.last)
        return True

    # -- the function --------------------------------------------------------------------------------------

    def function(self) -> relax.Function:
        """The function with its memory allocated by plan."""
        normalizer = relax.BlockBuilder()
        planned = set(self._planned)
        arena = relax.Var("arena", relax.AnyType()) if self.arena_bytes else None
        owned: dict[_Tensor, relax.Var] = {}
        blocks = []
        index = -1
        for block in self._function.body.blocks:
            bindings: list[relax.Binding] = []
            if arena is not None and index < 0:
                bindings.append(relax.VarBinding(arena, normalizer.normalize(_storage(self.arena_bytes))))
            for binding in block.bindings:
                index += 1
                if index in self._removed:
                    continue
                tensor = self._tensors.get(binding.var)
                if tensor is None:
                    bindings.append(binding)
                    continue
                root, offset = _root(tensor)
                storage = arena if root in planned else owned.get(root)
                if storage is None and root.parts:  # an output, or an unplanned tensor, that is made of parts
                    storage = owned[root] = relax.Var("storage", relax.AnyType())
                    bindings.append(relax.VarBinding(storage, normalizer.normalize(_storage(root.bytes or 0))))
                if storage is None:
                    bindings.append(binding)
                    continue
                at = offset + (root.offset if root in planned else 0)
                made = relax.op.memory.alloc_tensor(storage, at, binding.value.args[0], str(binding.value.ty.dtype))
                bindings.append(relax.VarBinding(binding.var, normalizer.normalize(made)))
            blocks.append(relax.BindingBlock(bindings))
        body = normalizer.normalize(relax.SeqExpr(blocks, self._function.body.body))
        old = self._function
        return relax.Function(old.params, body, old.ret_ty, old.is_pure, old.attrs, old.span)


# A bound beyond this is none.
_UNBOUNDED = 1 << 40


def _root(tensor: _Tensor) -> tuple[_Tensor, int]:
    """The tensor that one is a part of in the end, and where in it."""
    offset = 0
    while tensor.parent is not None:
        offset += tensor.offset
        tensor = tensor.parent
    return tensor, offset


def _pack(tensors: list[_Tensor], alignment: int) -> int:
    """Give each tensor its offset in the arena, the largest first, each in the tightest gap; the arena's size."""
    placed: list[_Tensor] = []
    end = 0
    for tensor in sorted(tensors, key=lambda t: (-(t.bytes or 0), t.index)):
        size = _aligned(tensor.bytes or 0, alignment)
        overlapping = sorted(
            (other for other in placed if other.index <= tensor.last and tensor.index <= other.last),
            key=lambda other: other.offset,
        )
        best: tuple[int, int] | None = None
        at = 0
        for other in overlapping:
            gap = other.offset - at
            if gap >= size and (best is None or gap < best[0]):
                best = gap, at
            at = max(at, other.offset + _aligned(other.bytes or 0, alignment))
        tensor.offset = at if best is None else best[1]
        placed.append(tensor)
        end = max(end, tensor.offset + size)
    return end


def _aligned(size: int, alignment: int) -> int:
    return -(-max(size, 1) // alignment) * alignment


def _bytes(expr: relax.Expr) -> int | None:
    dims = shape_of(expr.ty)
    if dims is None or not all(isinstance(dim, tirx.IntImm) for dim in dims):
        return None
    return math.prod(int(dim) for dim in dims) * _width(expr.ty)


def _width(ty: relax.TensorType) -> int:
    """Bytes of an element."""
    return (int(tvm.DataType(str(ty.dtype)).bits) + 7) // 8


def _storage(size: int) -> relax.Call:
    return relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")


def _is_view(value: relax.Expr) -> bool:
    """Whether a value is made of its operands' memory."""
    return isinstance(value, (relax.Tuple, relax.TupleGetItem, relax.Var)) or is_call(value, "relax.reshape")


def _uses(value: relax.Expr) -> Iterator[relax.Expr]:
    """Variables in a value, those of nested branches included."""
    if isinstance(value, relax.Var):
        yield value
    yield from operands(value)
    if isinstance(value, relax.If):
        for branch in (value.true_branch, value.false_branch):
            for block in branch.blocks:
                for binding in block.bindings:
                    yield from _uses(binding.value)
            yield from _uses(branch.body)


def bounded_analyzer(function: relax.Function) -> sym.Analyzer:
    """An analyzer that knows the bounds of the function's symbolic sizes."""
    attrs = function.attrs or {}
    lower, upper = (
        {str(name): int(size) for name, size in (attrs.get(attribute) or {}).items()}
        for attribute in (SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR)
    )
    analyzer = sym.Analyzer()
    for param in function.params:
        for dim in shape_of(param.ty) or []:
            if isinstance(dim, tirx.Var) and dim.name in upper:
                analyzer.bind(dim, ir.Range(lower.get(dim.name, 1), upper[dim.name] + 1))
    elided = ElidedPadding.of(attrs.get(PADDING_ATTR))
    if elided is not None:
        mask = next(param for param in function.params if param.name == elided.mask)
        batch, longest = shape_of(mask.ty) or []
        most = int(analyzer.const_int_bound(batch * longest).max_value)
        for binding in (b for block in function.body.blocks for b in block.bindings):
            if isinstance(binding, relax.MatchCast) and isinstance(binding.ty, relax.ShapeType):
                for dim in binding.ty.values:
                    if isinstance(dim, tirx.Var) and dim.name == TOKENS_SYMBOL and most < _UNBOUNDED:
                        analyzer.bind(dim, ir.Range(1, most + 1))
    return analyzer
