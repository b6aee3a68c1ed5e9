"""The pass that lets operators which only choose or order values work on levels, not on what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant, dtype_of, is_call, substitute
from greencc.kernels import KERNEL, kernel_name, kernel_options
from greencc.passes.base import Condition, RewritePass
from greencc.passes.compositions import VIEWS
from greencc.passes.graph import Builder, Graph
from greencc.passes.quantized_operands import Quantization, quantization

# Operators whose results are elements of their operands, moved; they take a tuple, or one tensor of values first.
_MOVES = VIEWS | {f"relax.{name}" for name in ("broadcast_to", "concat", "permute_dims", "strided_slice", "take")}


@dataclass(frozen=True)
class UniformScheme:
    """What levels of type `dtype` stand for: (level - zero) * scale."""

    scale: np.float32
    zero: int
    dtype: str

    def level(self, value: float) -> int:
        """The level that a float is quantised to."""
        info = np.iinfo(self.dtype)
        with np.errstate(over="ignore"):
            return int(np.clip(np.rint(np.float32(value) / self.scale) + self.zero, info.min, info.max))


@dataclass(frozen=True)
class Span:
    """Operators between dequantised `sources` and the quantisation at `root`.

    Attributes:
        graph: where they were found.
        root: variable of the quantisation.
        made: the quantisation.
        inner: the operators' variables.
        sources: the dequantised values, and how they are.
    """

    graph: Graph
    root: relax.Var
    made: Quantization
    inner: tuple[relax.Var, ...]
    sources: Mapping[relax.Var, Quantization]

    @cached_property
    def scheme(self) -> UniformScheme | None:
        """The scheme of the result, where it is known and one for all levels."""
        return self._scheme(self.made, self.made.dtype)

    @property
    def keeps_scheme(self) -> bool:
        """Whether the sources have the scheme of the result."""
        found = [self._scheme(source, dtype_of(source.data.ty) or "") for source in self.sources.values()]
        return self.scheme is not None and all(scheme == self.scheme for scheme in found)

    @property
    def restores_levels(self) -> bool:
        """Whether quantising what a level stands for gives that level: nothing overflows or is subnormal."""
        if self.scheme is None:
            return True
        limits, info = np.finfo(np.float32), np.iinfo(self.scheme.dtype)
        return bool(limits.smallest_normal <= self.scheme.scale <= limits.max / (int(info.max) - int(info.min)))

    def _scheme(self, made: Quantization, dtype: str) -> UniformScheme | None:
        scale = self.graph.scalar(made.scale)
        zero = 0 if made.zero is None else self.graph.scalar(made.zero)
        return None if scale is None or zero is None else UniformScheme(np.float32(scale), int(zero), dtype)


@dataclass(frozen=True)
class SinkDequantize(RewritePass[Span]):
    """Move operators that choose or order values from floats to the integers that these stand for.

        y = quantize(max_pool(dequantize(q, scale, zero)), scale, zero)    becomes    y = max_pool(q)
        y = quantize(relu(dequantize(q, scale, zero)), scale, zero)        becomes    y = maximum(q, zero)
        y = quantize(dequantize(q, scale, zero), scale, zero)              becomes    y = q

    and so do reshapes, transposes, slices, look-ups, concatenations and clips. Quantising keeps order, so that it may
    come before such an operator, and it undoes dequantising: for n up to 65535, n * scale / scale in float32 is closer
    to n than a half. Equal bit for bit when
    1. all levels have one and the same known scale, zero point and type;
    2. the scale is positive and normal, and no level stands for more than floats can hold;
    3. nothing else uses the floats in between, which would be computed still;
    4. what is dequantised is float32.
    """

    name: ClassVar[str] = "sink-dequantize"
    conditions: ClassVar[tuple[Condition[Span], ...]] = (
        Condition(1, "the levels differ in scale, zero point or type", lambda m: m.keeps_scheme),
        Condition(2, "the scale does not restore levels", lambda m: m.restores_levels),
        Condition(3, "a value inside the form is used elsewhere", lambda m: m.graph.is_closed(m.root, m.inner)),
        Condition(
            4,
            "what is dequantised is not float32",
            lambda m: all(dtype_of(var.ty) == "float32" for var in m.sources),
        ),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Span | None:
        """See RewritePass."""
        made = quantization(graph, var, "quantize")
        if made is None:
            return None
        inner: list[relax.Var] = []
        sources: dict[relax.Var, Quantization] = {}
        pending = [made.data]
        while pending:
            expr = pending.pop()
            source = quantization(graph, expr, "dequantize")
            values = None if source is not None else _values(graph, expr)
            if not isinstance(expr, relax.Var) or (source is None and values is None):
                return None
            if source is not None:
                sources[expr] = source
            elif expr not in inner:
                inner.append(expr)
                pending.extend(values or ())
        return Span(graph, var, made, tuple(inner), sources)

    def rewrite(self, builder: Builder, match: Span) -> relax.Expr:
        """See RewritePass."""
        if match.scheme is None:
            raise ValueError("a match that condition 1 refuses")
        env: dict[relax.Expr, relax.Expr] = {var: source.data for var, source in match.sources.items()}
        # Values are defined before they are used.
        for var, value in match.graph.definitions():
            if var in match.inner:
                env[var] = _on_levels(builder, value, env, match.scheme)
        return env[match.made.data]


def _values(graph: Graph, expr: relax.Expr) -> list[relax.Expr] | None:
    """The operands that hold values, of an operator that only chooses or orders them; None for any other."""
    call = graph.call(expr)
    if call is None or not isinstance(expr.ty, relax.TensorType):
        return None
    if call.op.name == "relax.concat":
        return list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else None
    if call.op.name in _MOVES or call.op.name in _CHOICES:
        return [call.args[0]]
    is_max_pool = is_call(call, KERNEL) and kernel_name(call) == "pool" and kernel_options(call)["kind"] == "max"
    return [call.args[0]] if is_max_pool else None


def _on_levels(
    builder: Builder, call: relax.Call, env: Mapping[relax.Expr, relax.Expr], scheme: UniformScheme
) -> relax.Expr:
    """The operator with levels as its operands."""
    bounds = _CHOICES.get(call.op.name)
    if bounds is None:
        return builder.emit(substitute(call, env))
    levels, info = env[call.args[0]], np.iinfo(scheme.dtype)
    low, high = (None if bound is None else scheme.level(bound) for bound in bounds(call))
    if high is not None and high < info.max:
        levels = builder.emit(relax.op.minimum(levels, constant(np.array(high, scheme.dtype))))
    if low is not None and low > info.min:
        levels = builder.emit(relax.op.maximum(levels, constant(np.array(low, scheme.dtype))))
    return levels


# The bounds that operators hold values within, the upper one first where they cross.
_CHOICES: Mapping[str, Callable[[relax.Call], tuple[float | None, float | None]]] = {
    "relax.clip": lambda call: (float(call.args[1].value), float(call.args[2].value)),
    "relax.nn.relu": lambda _: (0.0, None),
}
