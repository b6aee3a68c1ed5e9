"""The pass that sets the least important weights to zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.errors import UserError
from greencc.ir import constant, shape_of
from greencc.passes.base import Activations, Condition
from greencc.passes.calibrated import CalibratedPass, all_finite
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, is_only_reader
from greencc.passes.weighted import WEIGHTED, is_convolution

# name -> (how many go, of how many consecutive inputs)
PATTERNS = {"2:4": (2, 4)}


@dataclass(frozen=True)
class Weighted:
    """A product or a convolution `call` with its constant weight.

    Attributes:
        squares: mean square of each column or channel of its input over calibration data; None without data.
        least, fraction, pattern: the options of the pass.
    """

    graph: Graph
    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    squares: np.ndarray | None
    least: int
    fraction: float
    pattern: str

    @property
    def axis(self) -> int:
        """The axis of the input that the weight's inputs lie along."""
        return 1 if is_convolution(self.call) else -1

    @property
    def has_plain_form(self) -> bool:
        """Whether the weight is a matrix, or one of a convolution in the layouts NCHW and OIHW."""
        if not is_convolution(self.call):
            return self.weight.ndim == 2
        attrs = self.call.attrs
        return (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")

    @property
    def inputs(self) -> int:
        """How many columns or channels of the input an output reads."""
        return int(self.weight.shape[1 if is_convolution(self.call) else 0])

    @property
    def divides(self) -> bool:
        """Whether the pattern, where there is one, divides the inputs."""
        return not self.pattern or self.inputs % PATTERNS[self.pattern][1] == 0

    @cached_property
    def zeroed(self) -> np.ndarray:
        """The weight with zeros for what goes."""
        columns = self._columns(self.weight).copy()
        scores = np.abs(columns) * self._norms()
        gone, group = PATTERNS.get(self.pattern, (round(len(columns) * self.fraction), len(columns)))
        shape = (-1, group, columns.shape[1])
        order = np.argsort(scores.reshape(shape), axis=1, kind="stable")[:, :gone]
        np.put_along_axis(columns.reshape(shape), order, 0, axis=1)
        return self._from_columns(columns)

    def _columns(self, weight: np.ndarray) -> np.ndarray:
        """[inputs of an output, outputs]; inputs that follow each other are channels of one place in a filter."""
        return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)) if is_convolution(self.call) else weight

    def _from_columns(self, columns: np.ndarray) -> np.ndarray:
        if not is_convolution(self.call):
            return columns
        filters, channels, rows, places = self.weight.shape
        return columns.reshape(rows, places, channels, filters).transpose(3, 2, 0, 1)

    def _norms(self) -> np.ndarray:
        """The norm of what each weight of `_columns` is multiplied with, but for a common factor."""
        if self.squares is None:
            return np.ones((1, 1))
        norms: np.ndarray = np.sqrt(self.squares)
        if not is_convolution(self.call):
            return norms[:, None]
        filters, channels, *places = self.weight.shape
        by_group = norms.reshape(-1, channels)
        by_filter = np.repeat(by_group, filters // len(by_group), axis=0)
        return np.tile(by_filter.T, (int(np.prod(places)), 1))


@dataclass(frozen=True)
class Sparsify(CalibratedPass[Weighted]):
    """Set the least important weights of products and convolutions with constant weights to zero.

        y = matmul(x, w)    becomes    y = matmul(x, where(m, w, 0))
        y = conv2d(x, w)    becomes    y = conv2d(x, where(m, w, 0))

    A weight is as important as |w| times the norm of the column or channel that it is multiplied with, over calibration
    data (Wanda, arXiv:2306.11695, equation 1); without data, as |w|. Weights of one output are compared with each
    other: `fraction` of them go, or with the pattern 2:4 two of every four whose inputs follow each other (for a
    convolution, channels of one place in a filter). The others stay as they are. What that saves is bytes of a packed
    artifact; products take the time that they took. The result is not equal: this pass is not in the default pipeline.
    Legal when
    1. operands and result are float32;
    2. the weight is a matrix; a convolution is NCHW and OIHW;
    3. all weights, and all activations that were seen, are finite;
    4. the weight has at least `min-weights` elements: a smaller one saves nothing;
    5. nothing else reads the weight: it would be stored twice;
    6. the pattern divides the inputs of an output;
    7. something goes that is not 0 yet.

    Options:
        fraction: how much of each output's weights goes, 0 to 1.
        pattern: "2:4", instead of the fraction.
        min_weights: see 4.
    """

    fraction: float = 0.5
    pattern: str = ""
    min_weights: int = 4096

    name: ClassVar[str] = "sparsify"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(2, "the weight is not a matrix, or the convolution not NCHW", lambda m: m.has_plain_form),
        Condition(3, "a weight or an activation is not finite", lambda m: all_finite(m.weight, m.squares)),
        Condition(4, "the weight is too small for zeros to pay", lambda m: m.weight.size >= m.least),
        Condition(5, "something else reads the weight too", lambda m: is_only_reader(m.graph, m.weight)),
        Condition(6, "the pattern does not divide the inputs", lambda m: m.divides),
        Condition(7, "no weight would go", lambda m: _nonzero(m.zeroed) < _nonzero(m.weight)),
    )

    def __post_init__(self) -> None:
        if self.pattern and self.pattern not in PATTERNS:
            raise UserError(f"sparsify: unknown pattern '{self.pattern}'; known: {', '.join(PATTERNS)}")
        if not 0 < self.fraction < 1:
            raise UserError(f"sparsify: fraction {self.fraction:g} is not between 0 and 1")

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See CalibratedPass."""
        if call.op.name not in WEIGHTED or len(shape_of(call.args[0].ty) or []) < 2:
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Weighted(graph, var, call, weight, None, self.min_weights, self.fraction, self.pattern)

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Weighted]) -> list[Weighted]:
        """See CalibratedPass."""
        asked = [match for match in matches if self.refusal(match) is None]
        values, axes = [match.call.args[0] for match in asked], [match.axis for match in asked]
        seen = activations.mean_squares(module, values, axes) if asked else []
        squares = {match.root: array for match, array in zip(asked, seen, strict=True)}
        return [replace(match, squares=squares.get(match.root)) for match in matches]

    def zeros(self, match: Weighted) -> float:
        """See CalibratedPass."""
        return 1 - _nonzero(match.zeroed) / match.weight.size

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See CalibratedPass."""
        call = match.call
        return relax.Call(call.op, [call.args[0], constant(match.zeroed)], call.attrs, call.ty_args, call.span)


def _nonzero(array: np.ndarray) -> int:
    return int(np.count_nonzero(array))
