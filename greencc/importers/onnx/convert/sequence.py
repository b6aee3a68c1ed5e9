"""Sequences and optionals that are resolved while importing: no list exists at run time."""

from __future__ import annotations

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.movement import reshaped
from greencc.importers.onnx.convert.slicing import slice_axes
from greencc.importers.onnx.values import Dim, Value, simplify


def sequence(ctx: NodeContext, elements: list[Value]) -> Value:
    """A sequence value."""
    return Value("", elements=elements)


def elements_of(ctx: NodeContext, index: int = 0) -> list[Value]:
    """The parts of input `index`, which must be a sequence."""
    elements = ctx.value(index).elements
    if elements is None:
        raise ctx.refuse(f"input {index} ('{ctx.value(index).name}') is no sequence known at compile time")
    return elements


def _index(ctx: NodeContext, position: int, count: int, *, insert: bool = False) -> int:
    index = ctx.ints(position)[0]
    if not -count <= index < count + insert:
        raise ctx.refuse(f"index {index} is outside of a sequence of {count}")
    return index + count if index < 0 else index


def construct(ctx: NodeContext) -> Value:
    """SequenceConstruct."""
    return sequence(ctx, [ctx.value(index) for index in range(len(ctx.inputs))])


def empty(ctx: NodeContext) -> Value:
    """SequenceEmpty."""
    return sequence(ctx, [])


def at(ctx: NodeContext) -> Value:
    """SequenceAt."""
    elements = elements_of(ctx)
    return elements[_index(ctx, 1, len(elements))]


def insert(ctx: NodeContext) -> Value:
    """SequenceInsert, at the end unless a position is given."""
    elements = list(elements_of(ctx))
    place = _index(ctx, 2, len(elements), insert=True) if ctx.has(2) else len(elements)
    elements.insert(place, ctx.value(1))
    return sequence(ctx, elements)


def erase(ctx: NodeContext) -> Value:
    """SequenceErase, the last one unless a position is given."""
    elements = list(elements_of(ctx))
    del elements[_index(ctx, 1, len(elements)) if ctx.has(1) else -1]
    return sequence(ctx, elements)


def length(ctx: NodeContext) -> Value:
    """SequenceLength."""
    return Value("", known=np.asarray(len(elements_of(ctx)), dtype=np.int64))


def concat(ctx: NodeContext) -> relax.Expr | Value:
    """ConcatFromSequence, along an axis or along a new one."""
    tensors = [ctx.walker.tensor(value, ctx.label) for value in elements_of(ctx)]
    if not tensors:
        raise ctx.refuse("an empty sequence has no concatenation")
    rank = int(tensors[0].ty.ndim) + bool(ctx.attr("new_axis", 0))
    axis = ctx.axis("axis", rank=rank)
    if ctx.attr("new_axis", 0):
        tensors = [ctx.emit(relax.op.expand_dims(tensor, axis)) for tensor in tensors]
    return tensors[0] if len(tensors) == 1 else relax.op.concat(tensors, axis)


def split(ctx: NodeContext) -> Value:
    """SplitToSequence: single slices (the axis dropped unless keepdims), equal parts, or given sizes."""
    axis = ctx.axis("axis", 0)
    shape = ctx.shape(0)
    whole = shape[axis]
    drop = not ctx.has(1) and not ctx.attr("keepdims", 1)
    sizes: list[Dim]
    if ctx.has(1):
        given = ctx.constant(1)
        if given.ndim:
            sizes = [int(size) for size in given]
        elif isinstance(whole, int):
            step = int(given)
            sizes = [min(step, whole - start) for start in range(0, whole, step)]
        else:
            raise ctx.refuse("a symbolic size in parts")
    elif isinstance(whole, int):
        sizes = [1] * whole
    else:
        raise ctx.refuse("how many parts there are is only known at run time")
    parts, start = [], 0
    for size in sizes:
        part = ctx.emit(slice_axes(ctx, ctx.tensor(0), [axis], [start], [simplify(start + size)], [1]))
        if drop:
            part = ctx.emit(reshaped(ctx, part, [dim for n, dim in enumerate(shape) if n != axis]))
        parts.append(Value("", part))
        start = start + size
    return sequence(ctx, parts)


def optional(ctx: NodeContext) -> Value:
    """Optional, OptionalGetElement: the value itself."""
    if not ctx.has(0):
        raise ctx.refuse("an optional without a value")
    return ctx.value(0)


def has_element(ctx: NodeContext) -> Value:
    """OptionalHasElement: known while importing."""
    return Value("", known=np.asarray(ctx.has(0)))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "ConcatFromSequence"): concat,
    ("", "Optional"): optional,
    ("", "OptionalGetElement"): optional,
    ("", "OptionalHasElement"): has_element,
    ("", "SequenceAt"): at,
    ("", "SequenceConstruct"): construct,
    ("", "SequenceEmpty"): empty,
    ("", "SequenceErase"): erase,
    ("", "SequenceInsert"): insert,
    ("", "SequenceLength"): length,
    ("", "SplitToSequence"): split,
}
