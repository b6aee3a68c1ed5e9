"""A convolution followed by an affine map of each channel: what `fuse-batch-norm` looks for and asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from tvm import relax

from greencc.passes.graph import Graph
from greencc.passes.matching import dims_of

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
_KINDS: dict[str, Literal["scale", "bias"]] = {
    "relax.multiply": "scale",
    "relax.divide": "scale",
    "relax.add": "bias",
    "relax.subtract": "bias",
}


@dataclass(frozen=True)
class Convolution:
    """A convolution and what is added to it.

    Attributes:
        value: the variable that holds the convolution without its bias.
        call: the convolution.
        weight: its constant weight, or None.
        bias: the other operand of an `add` after it, or None without one.
    """

    value: relax.Var
    call: relax.Call
    weight: np.ndarray | None
    bias: relax.Expr | None

    @property
    def axis(self) -> int:
        """Axis of the channels in the result."""
        layout = str(self.call.attrs.out_layout) or str(self.call.attrs.data_layout)
        return layout.index("C")

    @property
    def kernel_axis(self) -> int:
        """Axis of the output channels in the weight."""
        return str(self.call.attrs.kernel_layout).index("O")

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(dims_of(self.call.args[1])[self.kernel_axis])

    def spread(self, vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
        """A vector over the channels as an array of this rank, with the channels on this axis."""
        return vector.reshape([-1 if i == axis else 1 for i in range(rank)])

    def vector(self, array: np.ndarray | None) -> np.ndarray | None:
        """A constant as a float64 vector over the channels; None where it varies otherwise or is unknown."""
        if array is None or array.size not in (1, self.channels):
            return None
        rank = len(dims_of(self.value))
        shape = (1,) * (rank - array.ndim) + array.shape[max(0, array.ndim - rank) :]
        if array.size != 1 and shape[self.axis] != array.size:
            return None
        return np.array(np.broadcast_to(array.reshape(-1), self.channels), "float64")


@dataclass(frozen=True)
class Folding:
    """`root` is a normalisation, product, quotient, sum or difference (`call`) after a convolution."""

    graph: Graph
    root: relax.Var
    kind: Literal["batch-norm", "scale", "bias"]
    call: relax.Call
    conv: Convolution
    inner: tuple[relax.Var, ...]


def find(graph: Graph, root: relax.Var) -> Folding | None:
    """The convolution that `root` is an affine map of, or None."""
    value = graph.value(root)
    kind: Literal["batch-norm", "scale", "bias"] = "batch-norm"
    if isinstance(value, relax.TupleGetItem):
        call = graph.call(value.tuple_value, "relax.nn.batch_norm") if value.index == 0 else None
        operand = call.args[0] if call is not None else None
    else:
        call = graph.call(root)
        operand = _beside_constant(graph, call) if call is not None and call.op.name in _KINDS else None
        kind = _KINDS[call.op.name] if call is not None and operand is not None else kind
    conv = _convolution(graph, operand) if operand is not None else None
    if call is None or conv is None or (kind == "bias" and conv.bias is None):
        return None  # a lone bias has nothing to fold into
    leaves = [*conv.call.args, *call.args[1:], *([] if conv.bias is None else [conv.bias])]
    return Folding(graph, root, kind, call, conv, graph.between(root, leaves))


def _beside_constant(graph: Graph, call: relax.Call) -> relax.Expr | None:
    """The operand beside a constant; a quotient's or difference's must come first."""
    left, right = call.args
    if graph.constant(right) is not None:
        return left
    commutes = call.op.name in ("relax.multiply", "relax.add")
    return right if commutes and graph.constant(left) is not None else None


def _convolution(graph: Graph, expr: relax.Expr) -> Convolution | None:
    """`expr` as a convolution, perhaps with something added to it."""
    total = graph.call(expr, "relax.add")
    pairs = [(expr, None)] if total is None else [tuple(total.args), tuple(reversed(total.args))]
    for value, bias in pairs:
        call = graph.call(value)
        if call is not None and call.op.name in _CONVOLUTIONS:
            return Convolution(value, call, graph.constant(call.args[1]), bias)
    return None


def bias_of(conv: Convolution, graph: Graph) -> np.ndarray | None:
    """The constant per channel that is added to the convolution, or None."""
    return conv.vector(graph.constant(conv.bias)) if conv.bias is not None else None


def affine(f: Folding) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand of each channel."""
    ones, zeros = np.ones(f.conv.channels), np.zeros(f.conv.channels)
    if f.kind == "batch-norm":
        gamma, beta, mean, var = (np.float64(f.graph.constant(arg)) for arg in f.call.args[1:])
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = (gamma if f.call.attrs.scale else ones) / np.sqrt(var + float(f.call.attrs.epsilon))
            return gain, (beta if f.call.attrs.center else zeros) - mean * gain
    other = f.conv.vector(_constant(f))
    vector = ones if other is None else other
    with np.errstate(divide="ignore"):
        if f.kind == "scale":
            return (vector if f.call.op.name == "relax.multiply" else ones / vector), zeros
        return ones, vector if f.call.op.name == "relax.add" else -vector


def _constant(f: Folding) -> np.ndarray | None:
    """The constant operand of a product, quotient, sum or difference."""
    left, right = (f.graph.constant(arg) for arg in f.call.args)
    return left if right is None else right


def parameters_are_constant(f: Folding) -> bool:
    """Condition 2."""
    return f.kind != "batch-norm" or all(f.graph.constant(arg) is not None for arg in f.call.args[1:])


def statistics_are_stored(f: Folding) -> bool:
    """Condition 3."""
    return f.kind != "batch-norm" or not f.call.attrs.training


def is_over_channels(f: Folding) -> bool:
    """Condition 4."""
    if f.conv.bias is not None and bias_of(f.conv, f.graph) is None:
        return False
    if f.kind != "batch-norm":
        return f.conv.vector(_constant(f)) is not None
    sizes = [int(dims_of(arg)[0]) for arg in f.call.args[1:]]
    axis = int(f.call.attrs.axis) % len(dims_of(f.conv.value))
    return axis == f.conv.axis and sizes == [f.conv.channels] * 4


def is_finite(f: Folding) -> bool:
    """Condition 8."""
    return not parameters_are_constant(f) or bool(np.all(np.isfinite(affine(f)[0])))
