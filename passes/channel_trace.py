"""Following the channels of convolutions and products through a function: which go together, who makes and reads them.

Removing a channel means removing it from everything that is tied to it: a dependency group, as in DepGraph
(arXiv:2301.12900), found here index by index. Each index of a channel axis begins with a number of its own where it is
made, and operators tie numbers: a sum ties those of its operands index by index, a concatenation puts them one behind
the other, a depthwise convolution hands them on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

import numpy as np
from tvm import relax, tirx

from greencc.ir import operands, shape_of
from greencc.passes.base import node_name
from greencc.passes.channel_axes import ChannelAxis
from greencc.passes.graph import Graph

Axes = tuple[ChannelAxis | None, ...]
"""Where the channels of a value lie: one entry for each field of a tuple, one for a tensor."""


class Bound(Enum):
    """Why channels can't be removed."""

    INTERFACE = "they reach an input or an output"
    UNKNOWN = "an operator on them is not understood"


@dataclass(frozen=True)
class Filters:
    """A constant weight along channels: of a convolution or a product that makes them, or of one that reads them.

    Attributes:
        var: what the convolution or product is bound to.
        call: the convolution or product.
        weight: all its weights.
        axis: the axis of the weight that runs along the channels.
        value: the value whose channels they are: the result for a maker, the operand for a reader.
        along: the channels of that value, one for each index of the weight's axis.
    """

    var: relax.Var
    call: relax.Call
    weight: np.ndarray
    axis: int
    value: relax.Expr
    along: ChannelAxis

    @property
    def squares(self) -> np.ndarray:
        """The sum of squares of the weights at each index of `along`, float64."""
        rows = np.moveaxis(self.weight, self.axis, 0).reshape(self.weight.shape[self.axis], -1)
        return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


@dataclass(frozen=True)
class Group:
    """Channels that lie on the same axes of the same values.

    Attributes:
        node: name of the first convolution that makes them.
        channels: their numbers, ascending.
        makers: what they come out of, depthwise convolutions on the way included.
        readers: what reads them and makes other channels.
        bounds: why they can't be removed.
    """

    node: str
    channels: np.ndarray
    makers: tuple[Filters, ...]
    readers: tuple[Filters, ...]
    bounds: frozenset[Bound]


class Trace:
    """The channels of all values of a function. The rules of `channel_rules` tell it what each operator does."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.axes: dict[relax.Expr, Axes] = {}
        self._parents: list[int] = []
        self._filters: dict[Literal["maker", "reader"], list[Filters]] = {"maker": [], "reader": []}
        self._bounds: list[tuple[np.ndarray, Bound]] = []

    # -- what rules ask and tell ------------------------------------------------------------------------------

    def axes_of(self, expr: relax.Expr) -> Axes:
        """Where the channels of a value lie; None in it for constants, and for what has no channels."""
        if isinstance(expr, relax.Tuple):
            return tuple(axis for field in expr.fields for axis in self.axes_of(field))
        return self.axes.get(expr, (None,))

    def axis_of(self, expr: relax.Expr) -> ChannelAxis | None:
        """Where the channels of a tensor lie."""
        axes = self.axes_of(expr)
        return axes[0] if len(axes) == 1 else None

    def fresh(self, size: int) -> np.ndarray:
        """Numbers of channels that no other value has."""
        first = len(self._parents)
        self._parents.extend(range(first, first + size))
        return np.arange(first, first + size)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Channels of the same index go together."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self._parents[high] = low

    def bind(self, axis: ChannelAxis | None, bound: Bound) -> None:
        """None of these channels can be removed."""
        if axis is not None:
            self._bounds.append((axis.numbers, bound))

    def add(self, kind: Literal["maker", "reader"], filters: Filters) -> None:
        """These weights make, or read, channels."""
        self._filters[kind].append(filters)

    def unknown(self, var: relax.Var, value: relax.Expr) -> Axes:
        """What is computed from these operands is not understood: their channels stay, and so do the result's."""
        for use in operands(value) if not isinstance(value, relax.Var) else (value,):
            for axis in self.axes_of(use):
                self.bind(axis, Bound.UNKNOWN)
        return self.opaque(var.ty, Bound.UNKNOWN)

    def opaque(self, ty: relax.Type, bound: Bound) -> Axes:
        """Channels on axis 1 that can't be removed, for a value that comes from elsewhere."""
        if isinstance(ty, relax.TupleType):
            return tuple(self.opaque(field, bound)[0] for field in ty.fields)
        dims = shape_of(ty) or []
        if len(dims) < 2 or not isinstance(dims[1], tirx.IntImm):
            return (None,)
        axis = ChannelAxis(1, self.fresh(int(dims[1])))
        self.bind(axis, bound)
        return (axis,)

    # -- the result -------------------------------------------------------------------------------------------

    def resolve(self) -> None:
        """Replace every number by that of its channel: the smallest of those that go together."""
        roots = np.array([self._root(i) for i in range(len(self._parents))], np.int64)

        def resolved(axis: ChannelAxis | None) -> ChannelAxis | None:
            return None if axis is None else replace(axis, numbers=roots[axis.numbers])

        self.axes = {value: tuple(map(resolved, axes)) for value, axes in self.axes.items()}
        self._bounds = [(roots[numbers], bound) for numbers, bound in self._bounds]
        for filters in self._filters.values():
            filters[:] = [replace(f, along=replace(f.along, numbers=roots[f.along.numbers])) for f in filters]

    def groups(self) -> Iterator[Group]:
        """The groups that convolutions make, in the order of those."""
        places: dict[int, list[int]] = {}
        for place, axis in enumerate(axis for axes in self.axes.values() for axis in axes if axis is not None):
            for number in np.unique(axis.numbers):
                places.setdefault(int(number), []).append(place)
        together: dict[tuple[int, ...], list[int]] = {}
        for number, where in places.items():
            together.setdefault(tuple(where), []).append(number)
        for numbers in together.values():
            channels = np.sort(np.array(numbers))
            makers, readers = (tuple(_along(self._filters[kind], channels)) for kind in ("maker", "reader"))
            first = next((maker for maker in makers if maker.call.op.name == "relax.nn.conv2d"), None)
            if first is not None:
                bounds = frozenset(bound for found, bound in self._bounds if np.isin(found, channels).any())
                yield Group(node_name(first.var, first.call), channels, makers, readers, bounds)

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number


def _along(filters: list[Filters], channels: np.ndarray) -> Iterator[Filters]:
    return (found for found in filters if np.isin(found.along.numbers, channels).any())
