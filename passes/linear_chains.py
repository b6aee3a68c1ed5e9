"""Two products or convolutions with nothing but rectifiers and biases between them: what `equalize-channels` scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tvm import relax

from greencc.ir import constant
from greencc.passes.graph import Graph

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
# f(c * x) = c * f(x) for c > 0.
_HOMOGENEOUS = ("relax.nn.relu", "relax.nn.leakyrelu")


@dataclass(frozen=True)
class Linear:
    """A product or a convolution `call` with its constant weight."""

    root: relax.Var
    call: relax.Call
    weight: np.ndarray

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, whose weight has axes "O" and "I"; else a product's [K, N]."""
        return self.call.op.name in _CONVOLUTIONS

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is computed from itself alone."""
        return self.is_convolution and self.weight.shape[self._input] == 1 and self.groups == self.channels

    @property
    def groups(self) -> int:
        """Number of groups that channels fall into."""
        return int(self.call.attrs.groups) if self.is_convolution else 1

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[self._output])

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[self._input]) * self.groups

    @property
    def out_axis(self) -> int:
        """Axis of the channels in the result, from its end."""
        if not self.is_convolution:
            return -1
        layout = str(self.call.attrs.out_layout) or str(self.call.attrs.data_layout)
        return layout.index("C") - len(layout)

    @property
    def in_axis(self) -> int:
        """Axis of the channels in what it reads, from its end."""
        layout = str(self.call.attrs.data_layout) if self.is_convolution else "C"
        return layout.index("C") - len(layout)

    @cached_property
    def sizes(self) -> np.ndarray:
        """The largest |weight| from each input to each output, of a depthwise convolution in each channel: float64."""
        sizes = np.moveaxis(np.abs(self.weight), (self._output, self._input), (0, 1))
        largest = sizes.max(axis=tuple(range(2, sizes.ndim)), initial=0.0)
        return np.asarray(largest[:, 0] if self.is_depthwise else largest, np.float64)

    def scaled(self, incoming: np.ndarray | None, outgoing: np.ndarray | None) -> relax.Expr:
        """The call with weights that read inputs divided by `incoming`, and give outputs divided by `outgoing`."""
        weight = self.weight.astype(np.float64)
        if incoming is not None:
            weight = weight * self._along(incoming, self._output if self.is_depthwise else self._input)
        if outgoing is not None:
            weight = weight / self._along(outgoing, self._output)
        call = self.call
        args = [call.args[0], constant(weight.astype(np.float32))]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    @property
    def _output(self) -> int:
        return str(self.call.attrs.kernel_layout).index("O") if self.is_convolution else 1

    @property
    def _input(self) -> int:
        return str(self.call.attrs.kernel_layout).index("I") if self.is_convolution else 0

    def _along(self, vector: np.ndarray, axis: int) -> np.ndarray:
        return vector.reshape([-1 if i == axis else 1 for i in range(self.weight.ndim)])


@dataclass(frozen=True)
class Bias:
    """A sum `root` of a value and a constant, its operand number `place`."""

    root: relax.Var
    call: relax.Call
    place: int
    array: np.ndarray

    def scaled(self, outgoing: np.ndarray, axis: int) -> relax.Expr:
        """The sum with the constant divided by factors for each channel, the channels' axis counted from the end."""
        divided = self.array / outgoing.reshape([-1, *[1] * (-axis - 1)])
        args = list(self.call.args)
        args[self.place] = constant(divided.astype(np.float32))
        return relax.Call(self.call.op, args, self.call.attrs, self.call.ty_args, self.call.span)


@dataclass(frozen=True)
class Link:
    """What runs from `first` to `second`, which reads it behind rectifiers and the sums `biases`.

    Attributes:
        inner: variables from the one, included, to the other.
        factors: what each channel in between is divided by, where that is known.
    """

    graph: Graph
    first: Linear
    second: Linear
    biases: tuple[Bias, ...]
    inner: tuple[relax.Var, ...]
    factors: np.ndarray | None = None

    @property
    def spread(self) -> float | None:
        """The largest factor or inverse of one, where they are known."""
        return None if self.factors is None else spread_of(self.factors)


def spread_of(factors: np.ndarray) -> float:
    """The largest of positive factors and their inverses."""
    with np.errstate(all="ignore"):
        return float(np.maximum(factors, 1 / factors).max(initial=1.0))


def links_of(graph: Graph) -> list[Link]:
    """The links of a function, in the order of their second operators."""
    found = []
    for var, _ in graph.definitions():
        second = _linear(graph, var)
        link = None if second is None else _link(graph, second)
        if link is not None:
            found.append(link)
    return found


def _link(graph: Graph, second: Linear) -> Link | None:
    """The link that `second` reads, or None where something else is in between."""
    inner: list[relax.Var] = []
    biases: list[Bias] = []
    var = _defined(graph, second.call.args[0])
    while True:
        call = graph.call(var)
        if call is None or not isinstance(var, relax.Var):
            return None
        inner.append(var)
        first = _linear(graph, var)
        if first is not None:
            return Link(graph, first, second, tuple(biases), tuple(inner))
        operand = call.args[0]
        if call.op.name == "relax.add":
            bias = _bias(graph, var, call)
            if bias is None:
                return None
            biases.append(bias)
            operand = call.args[1 - bias.place]
        elif call.op.name not in _HOMOGENEOUS:
            return None
        var = _defined(graph, operand)


def _bias(graph: Graph, var: relax.Var, call: relax.Call) -> Bias | None:
    """The sum `call` as one of a value and a constant."""
    arrays = [graph.constant(arg) for arg in call.args]
    return next((Bias(var, call, i, array) for i, array in enumerate(arrays) if array is not None), None)


def _linear(graph: Graph, var: relax.Var) -> Linear | None:
    """`var` as a product with a constant matrix, or a convolution with a constant weight in a layout without blocks."""
    call = graph.call(var)
    if call is None or call.op.name not in ("relax.matmul", *_CONVOLUTIONS):
        return None
    x, weight = (graph.constant(arg) for arg in call.args)
    if x is not None or weight is None:
        return None
    if call.op.name == "relax.matmul":
        return Linear(var, call, weight) if weight.ndim == 2 else None
    layouts = (call.attrs.data_layout, call.attrs.kernel_layout, call.attrs.out_layout or "C")
    return Linear(var, call, weight) if all(str(layout).isalpha() for layout in layouts) else None


def _defined(graph: Graph, expr: relax.Expr) -> relax.Expr:
    """The variable that `expr` is another name of."""
    values = graph.analysis(_values)
    while isinstance(values.get(expr), relax.Var):
        expr = values[expr]
    return expr


def _values(graph: Graph) -> dict[relax.Expr, relax.Expr]:
    return dict(graph.definitions())
