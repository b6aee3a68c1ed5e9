"""Loop and Scan whose number of steps is known while importing: the body is converted once per step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.movement import reshaped
from greencc.importers.onnx.convert.slicing import slice_axes
from greencc.importers.onnx.values import Value

# Steps times nodes of the body; beyond it the code would be larger than a loop is worth.
MAX_UNROLLED_NODES = 4096


def loop(ctx: NodeContext) -> list[relax.Expr | Value]:
    """Loop with a constant trip count, or a condition that is known before every step."""
    body: onnx.GraphProto = ctx.attr("body")
    limit = None
    if ctx.has(0):
        limit = int(ctx.constant(0).reshape(-1)[0])
    going = bool(ctx.constant(1).reshape(-1)[0]) if ctx.has(1) else True
    state = [ctx.value(index) for index in range(2, len(ctx.inputs))]
    collected: list[list[Value]] = [[] for _ in body.output[1 + len(state) :]]
    step = 0
    while going and (limit is None or step < limit):
        _check_size(ctx, body, step + 1)
        number = Value("", known=np.asarray(step, dtype=np.int64))
        outputs = run_body(ctx, body, [number, Value("", known=np.asarray(True)), *state])
        condition = outputs[0]
        if not condition.is_constant or condition.known is None:
            raise ctx.refuse("when it ends depends on data")
        going = bool(condition.known.reshape(-1)[0])
        state = outputs[1 : 1 + len(state)]
        for values, value in zip(collected, outputs[1 + len(state) :], strict=True):
            values.append(value)
        step += 1
    if step == 0 and collected:
        raise ctx.refuse("it collects outputs of no step at all")
    return [*state, *(stacked(ctx, values, 0) for values in collected)]


def scan(ctx: NodeContext) -> list[relax.Expr | Value]:
    """Scan over axes of a static length (opset 9 and on)."""
    if ctx.opset < 9:
        raise ctx.refuse("Scan before opset 9 has another form")
    body: onnx.GraphProto = ctx.attr("body")
    scanned = int(ctx.attr("num_scan_inputs"))
    states = len(ctx.inputs) - scanned
    gathered = len(body.output) - states
    in_axes = ctx.attr("scan_input_axes", [0] * scanned)
    out_axes = ctx.attr("scan_output_axes", [0] * gathered)
    in_reversed = ctx.attr("scan_input_directions", [0] * scanned)
    out_reversed = ctx.attr("scan_output_directions", [0] * gathered)
    length = ctx.shape(states)[in_axes[0] % ctx.rank(states)]
    if not isinstance(length, int) or length == 0:
        raise ctx.refuse("the number of its steps is only known at run time")
    _check_size(ctx, body, length)
    state = [ctx.value(index) for index in range(states)]
    collected: list[list[Value]] = [[] for _ in range(gathered)]
    for step in range(length):
        parts = []
        for position in range(scanned):
            index = states + position
            axis = in_axes[position] % ctx.rank(index)
            place = length - 1 - step if in_reversed[position] else step
            part = ctx.emit(slice_axes(ctx, ctx.tensor(index), [axis], [place], [place + 1], [1]))
            shape = [dim for n, dim in enumerate(ctx.shape(index)) if n != axis]
            parts.append(Value("", ctx.emit(reshaped(ctx, part, shape))))
        outputs = run_body(ctx, body, [*state, *parts])
        state = outputs[:states]
        for values, value in zip(collected, outputs[states:], strict=True):
            values.append(value)
    results: list[relax.Expr | Value] = list(state)
    for position, values in enumerate(collected):
        ordered = values[::-1] if out_reversed[position] else values
        results.append(stacked(ctx, ordered, out_axes[position]))
    return results


def run_body(ctx: NodeContext, body: onnx.GraphProto, inputs: list[Value]) -> list[Value]:
    """Convert a nested graph in place, its inputs bound to `inputs`; outer values stay visible."""
    walker = ctx.walker
    outer, graph = walker.values, walker.graph
    bound = {info.name: replace(value, name=info.name) for info, value in zip(body.input, inputs, strict=True)}
    walker.values, walker.graph = {**outer, **bound}, body
    before = len(walker.importer.unsupported)
    try:
        outputs = walker.run()
    finally:
        walker.values, walker.graph = outer, graph
    if len(walker.importer.unsupported) > before or len(outputs) != len(body.output):
        raise ctx.refuse("its body holds unsupported operators")
    return [replace(value) for value in outputs]


def stacked(ctx: NodeContext, values: list[Value], axis: int) -> relax.Expr:
    """Tensors of one shape along a new axis."""
    tensors = [ctx.walker.tensor(value, ctx.label) for value in values]
    rank = int(tensors[0].ty.ndim) + 1
    tensors = [ctx.emit(relax.op.expand_dims(tensor, axis % rank)) for tensor in tensors]
    return tensors[0] if len(tensors) == 1 else ctx.emit(relax.op.concat(tensors, axis % rank))


def _check_size(ctx: NodeContext, body: onnx.GraphProto, steps: int) -> None:
    if steps * len(body.node) > MAX_UNROLLED_NODES:
        raise ctx.refuse(f"{steps} steps of {len(body.node)} nodes are more than greencc unrolls")


CONVERTERS: dict[tuple[str, str], Converter] = {("", "Loop"): loop, ("", "Scan"): scan}
