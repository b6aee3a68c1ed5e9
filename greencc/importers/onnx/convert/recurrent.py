"""RNN, GRU and LSTM over a sequence of known length.

The input projections of all steps are one product; a small set of operators follows per step. Formulas and defaults
are those of the ONNX operators' documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext, Result
from greencc.importers.onnx.values import Dim, as_expr
from greencc.ir import constant

# Steps times directions; beyond it the code would be larger than a loop is worth.
MAX_UNROLLED_STEPS = 512

Activation: TypeAlias = "Callable[[NodeContext, relax.Expr], relax.Expr]"


@dataclass(frozen=True)
class Direction:
    """What one direction computes with.

    Attributes:
        inputs: [steps, batch, gates * hidden]: X W^T + the bias that is added to it.
        recurrent: R^T [hidden, gates * hidden].
        bias: the recurrent bias [gates * hidden], or None.
        peepholes: the parts of P [hidden] each, or none.
        activations: the gate functions in the operator's order.
        reverse: whether time runs backwards.
    """

    inputs: relax.Expr
    recurrent: relax.Expr
    bias: relax.Expr | None
    peepholes: tuple[relax.Expr, ...]
    activations: tuple[Activation, ...]
    reverse: bool


@dataclass(frozen=True)
class Sizes:
    """Steps, batch (perhaps symbolic) and hidden units."""

    steps: int
    batch: Dim
    hidden: int


def recurrent(gates: int, states: int, default: tuple[str, ...]) -> Converter:
    """A converter for an operator with `gates` gates, `states` states and the default activations."""

    def convert(ctx: NodeContext) -> Result:
        return _Layer(ctx, gates, states, default).convert()

    return convert


class _Layer:
    def __init__(self, ctx: NodeContext, gates: int, states: int, default: tuple[str, ...]) -> None:
        self.ctx = ctx
        self.gates = gates
        self.states = states
        self.default = default
        self.dtype = ctx.value(0).dtype
        self.batch_first = bool(ctx.attr("layout", 0))
        self.clip = float(ctx.attr("clip", 0.0))
        direction = str(ctx.attr("direction", "forward"))
        if direction not in ("forward", "reverse", "bidirectional"):
            raise ctx.refuse(f"direction '{direction}' is unknown")
        self.reversals = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]

    def convert(self) -> list[relax.Expr]:
        ctx = self.ctx
        data, shape = ctx.tensor(0), ctx.shape(0)
        if self.batch_first:
            data, shape = self._emit(relax.op.permute_dims(data, [1, 0, 2])), [shape[1], shape[0], shape[2]]
        steps, hidden = shape[0], ctx.shape(2)[-1]
        if not isinstance(steps, int):
            raise ctx.refuse("the length of the sequence must be fixed; give --shape")
        if not isinstance(hidden, int) or ctx.attr("hidden_size", hidden) != hidden:
            raise ctx.refuse(f"hidden_size {ctx.attr('hidden_size')} differs from the weights' {hidden}")
        if steps * len(self.reversals) > MAX_UNROLLED_STEPS:
            raise ctx.refuse(f"{steps} steps are more than the {MAX_UNROLLED_STEPS} that are unrolled")
        sizes = Sizes(steps, shape[1], hidden)
        masks = self._masks(sizes)
        outputs: list[relax.Expr] = []
        finals: list[list[relax.Expr]] = [[] for _ in range(self.states)]
        for index, reverse in enumerate(self.reversals):
            direction = self._direction(index, reverse, data, sizes)
            hiddens, states = self._run(direction, self._initial(index, sizes), sizes, masks)
            outputs.append(self._emit(relax.op.stack(hiddens, 0)))
            for final, state in zip(finals, states, strict=True):
                final.append(state)
        axes = (2, 1) if self.batch_first else (1, 0)
        if self.batch_first:
            outputs = [self._emit(relax.op.permute_dims(output, [1, 0, 2])) for output in outputs]
        results = [self._emit(relax.op.stack(outputs, axes[0]))]
        results += [self._emit(relax.op.stack(final, axes[1])) for final in finals]
        return results[: len(ctx.node.output)]

    def _direction(self, index: int, reverse: bool, data: relax.Expr, sizes: Sizes) -> Direction:
        ctx, width = self.ctx, self.gates * sizes.hidden
        weight, recurrence = self._transposed(1, index), self._transposed(2, index)
        inputs = self._emit(relax.op.matmul(data, weight))
        bias = None
        if ctx.has(3):
            own, bias = self._part(3, index, 0, width), self._part(3, index, width, 2 * width)
            inputs = self._emit(relax.op.add(inputs, own))
        peepholes: tuple[relax.Expr, ...] = ()
        if ctx.op == "LSTM" and ctx.has(7):
            bounds = range(0, 3 * sizes.hidden, sizes.hidden)
            peepholes = tuple(self._part(7, index, at, at + sizes.hidden) for at in bounds)
        names = [str(name) for name in ctx.attr("activations", [*self.default] * len(self.reversals))]
        count = len(self.default)
        if len(names) != count * len(self.reversals):
            raise ctx.refuse(f"{len(names)} activations for {len(self.reversals)} directions of {count}")
        activations = self._activations(names)[index * count : (index + 1) * count]
        return Direction(inputs, recurrence, bias, peepholes, tuple(activations), reverse)

    def _run(
        self, direction: Direction, states: list[relax.Expr], sizes: Sizes, masks: list[relax.Expr] | None
    ) -> tuple[list[relax.Expr], list[relax.Expr]]:
        """(hidden state per step in the order of time, final states)."""
        step = {"RNN": self._rnn_step, "GRU": self._gru_step, "LSTM": self._lstm_step}[self.ctx.op]
        hiddens: list[relax.Expr | None] = [None] * sizes.steps
        times = range(sizes.steps)
        for time in reversed(times) if direction.reverse else times:
            inputs = self._emit(relax.op.take(direction.inputs, relax.const(time, "int64"), 0, mode="clip"))
            new = step(direction, inputs, states, sizes)
            output = new[0]
            if masks is not None:
                # Beyond the end of a shorter sequence states stay and outputs are 0.
                new = [
                    self._emit(relax.op.where(masks[time], after, before))
                    for after, before in zip(new, states, strict=True)
                ]
                output = self._emit(relax.op.where(masks[time], output, self._scalar(0.0)))
            hiddens[time], states = output, new
        return [hidden for hidden in hiddens if hidden is not None], states

    # -- steps ---------------------------------------------------------------------------------------------

    def _rnn_step(self, d: Direction, inputs: relax.Expr, states: list[relax.Expr], sizes: Sizes) -> list[relax.Expr]:
        total = self._emit(relax.op.add(inputs, self._recurrence(d, states[0])))
        return [self._apply(d.activations[0], total)]

    def _gru_step(self, d: Direction, inputs: relax.Expr, states: list[relax.Expr], sizes: Sizes) -> list[relax.Expr]:
        hidden, size = states[0], sizes.hidden
        update_gate, candidate = d.activations
        if self.ctx.attr("linear_before_reset", 0):
            linear = self._recurrence(d, hidden)
            gates = self._emit(relax.op.add(self._columns(inputs, 0, 2 * size), self._columns(linear, 0, 2 * size)))
            z, r = (self._apply(update_gate, self._columns(gates, i * size, (i + 1) * size)) for i in range(2))
            reset = self._emit(relax.op.multiply(r, self._columns(linear, 2 * size, 3 * size)))
        else:
            product = self._emit(relax.op.matmul(hidden, self._columns(d.recurrent, 0, 2 * size)))
            if d.bias is not None:
                product = self._emit(relax.op.add(product, self._columns(d.bias, 0, 2 * size)))
            gates = self._emit(relax.op.add(self._columns(inputs, 0, 2 * size), product))
            z, r = (self._apply(update_gate, self._columns(gates, i * size, (i + 1) * size)) for i in range(2))
            reset = self._emit(relax.op.multiply(r, hidden))
            reset = self._emit(relax.op.matmul(reset, self._columns(d.recurrent, 2 * size, 3 * size)))
            if d.bias is not None:
                reset = self._emit(relax.op.add(reset, self._columns(d.bias, 2 * size, 3 * size)))
        total = self._emit(relax.op.add(self._columns(inputs, 2 * size, 3 * size), reset))
        new = self._apply(candidate, total)
        kept = self._emit(relax.op.multiply(z, hidden))
        rest = self._emit(relax.op.subtract(self._scalar(1.0), z))
        return [self._emit(relax.op.add(self._emit(relax.op.multiply(rest, new)), kept))]

    def _lstm_step(self, d: Direction, inputs: relax.Expr, states: list[relax.Expr], sizes: Sizes) -> list[relax.Expr]:
        hidden, cell = states
        gate, candidate, output_function = d.activations
        total = self._emit(relax.op.add(inputs, self._recurrence(d, hidden)))
        i, o, f, c = (self._columns(total, n * sizes.hidden, (n + 1) * sizes.hidden) for n in range(4))
        if d.peepholes:
            i, f = self._peep(i, d.peepholes[0], cell), self._peep(f, d.peepholes[2], cell)
        new = self._emit(relax.op.multiply(self._apply(gate, i), self._apply(candidate, c)))
        keep: relax.Expr
        if self.ctx.attr("input_forget", 0):
            keep = self._emit(relax.op.subtract(self._scalar(1.0), self._apply(gate, i)))
        else:
            keep = self._apply(gate, f)
        cell = self._emit(relax.op.add(self._emit(relax.op.multiply(keep, cell)), new))
        if d.peepholes:
            o = self._peep(o, d.peepholes[1], cell)
        shown = self._emit(output_function(self.ctx, cell))
        return [self._emit(relax.op.multiply(self._apply(gate, o), shown)), cell]

    # -- operands ------------------------------------------------------------------------------------------

    def _initial(self, index: int, sizes: Sizes) -> list[relax.Expr]:
        states: list[relax.Expr] = []
        for position in range(5, 5 + self.states):
            if not self.ctx.has(position):
                shape = [as_expr(sizes.batch), as_expr(sizes.hidden)]
                states.append(self._emit(relax.op.zeros(shape, self.dtype)))
                continue
            axis = 1 if self.batch_first else 0
            part = relax.op.take(self.ctx.tensor(position), relax.const(index, "int64"), axis, mode="clip")
            states.append(self._emit(part))
        return states

    def _masks(self, sizes: Sizes) -> list[relax.Expr] | None:
        """Per step which batch entries still run [batch, 1], or None when all sequences are of full length."""
        if not self.ctx.has(4):
            return None
        lengths = self.ctx.value(4)
        if lengths.is_constant and lengths.known is not None and (lengths.known == sizes.steps).all():
            return None
        column = self._emit(relax.op.reshape(self.ctx.tensor(4), [as_expr(sizes.batch), 1]))
        return [
            self._emit(relax.op.greater(column, self.ctx.const(time, lengths.dtype))) for time in range(sizes.steps)
        ]

    def _transposed(self, position: int, index: int) -> relax.Expr:
        """Weights [out, in] of one direction as [in, out]."""
        value = self.ctx.value(position)
        if value.is_constant and value.known is not None:
            return constant(value.known[index].T)
        part = relax.op.take(self.ctx.tensor(position), relax.const(index, "int64"), 0, mode="clip")
        return self._emit(relax.op.permute_dims(self._emit(part), [1, 0]))

    def _part(self, position: int, index: int, begin: int, end: int) -> relax.Expr:
        value = self.ctx.value(position)
        if value.is_constant and value.known is not None:
            return constant(value.known[index, begin:end])
        whole = relax.op.take(self.ctx.tensor(position), relax.const(index, "int64"), 0, mode="clip")
        return self._columns(self._emit(whole), begin, end)

    def _columns(self, data: relax.Expr, begin: int, end: int) -> relax.Expr:
        """Elements [begin, end) of the last axis; constants are cut here."""
        from greencc.ir import constant_array

        if (known := constant_array(data)) is not None:
            return constant(known[..., begin:end])
        axis = int(data.ty.ndim) - 1
        return self._emit(relax.op.strided_slice(data, [axis], [begin], [end]))

    def _recurrence(self, d: Direction, hidden: relax.Expr) -> relax.Expr:
        product = self._emit(relax.op.matmul(hidden, d.recurrent))
        return product if d.bias is None else self._emit(relax.op.add(product, d.bias))

    def _peep(self, data: relax.Expr, weight: relax.Expr, cell: relax.Expr) -> relax.Expr:
        return self._emit(relax.op.add(data, self._emit(relax.op.multiply(weight, cell))))

    def _apply(self, activation: Activation, data: relax.Expr) -> relax.Expr:
        """The activation of its input, which is clipped first."""
        if self.clip > 0:
            data = self._emit(relax.op.clip(data, -self.clip, self.clip))
        return self._emit(activation(self.ctx, data))

    def _activations(self, names: Sequence[str]) -> list[Activation]:
        """Functions by name; alpha and beta are dealt out to those that take them, in order."""
        alphas = [float(a) for a in self.ctx.attr("activation_alpha", [])]
        betas = [float(b) for b in self.ctx.attr("activation_beta", [])]
        found: list[Activation] = []
        for name in names:
            key = name.lower()
            if key in _PLAIN:
                found.append(_plain(_PLAIN[key]))
            elif key in _WITH_PARAMETERS:
                make, alpha, beta = _WITH_PARAMETERS[key]
                if key in _WITHOUT_DEFAULTS and not alphas:
                    raise self.ctx.refuse(f"activation '{name}' without activation_alpha: runtimes disagree on it")
                first = (alphas.pop(0) if alphas else alpha) if alpha is not None else 0.0
                second = (betas.pop(0) if betas else beta) if beta is not None else 0.0
                found.append(make(first, second))
            else:
                raise self.ctx.refuse(f"activation '{name}' is not supported")
        return found

    def _scalar(self, value: float) -> relax.Expr:
        return self.ctx.const(value, self.dtype)

    def _emit(self, expr: relax.Expr) -> relax.Expr:
        return self.ctx.emit(expr)


def _plain(function: Callable[[relax.Expr], relax.Expr]) -> Activation:
    return lambda _, x: function(x)


def _affine(alpha: float, beta: float) -> Activation:
    def apply(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
        dtype = ctx.value(0).dtype
        return relax.op.add(ctx.emit(relax.op.multiply(x, ctx.const(alpha, dtype))), ctx.const(beta, dtype))

    return apply


def _leaky_relu(alpha: float, _: float) -> Activation:
    return lambda _, x: relax.op.nn.leakyrelu(x, alpha)


def _hard_sigmoid(alpha: float, beta: float) -> Activation:
    return lambda ctx, x: relax.op.clip(ctx.emit(_affine(alpha, beta)(ctx, x)), 0.0, 1.0)


def _elu(alpha: float, _: float) -> Activation:
    def apply(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
        dtype = ctx.value(0).dtype
        low = ctx.emit(relax.op.subtract(ctx.emit(relax.op.exp(x)), ctx.const(1.0, dtype)))
        scaled = ctx.emit(relax.op.multiply(low, ctx.const(alpha, dtype)))
        return relax.op.where(ctx.emit(relax.op.less(x, ctx.const(0.0, dtype))), scaled, x)

    return apply


def _thresholded(alpha: float, _: float) -> Activation:
    def apply(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
        dtype = ctx.value(0).dtype
        above = ctx.emit(relax.op.greater(x, ctx.const(alpha, dtype)))
        return relax.op.where(above, x, ctx.const(0.0, dtype))

    return apply


def _softsign(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
    one = ctx.const(1.0, ctx.value(0).dtype)
    return relax.op.divide(x, ctx.emit(relax.op.add(one, ctx.emit(relax.op.abs(x)))))


_PLAIN: dict[str, Callable[[relax.Expr], relax.Expr]] = {
    "relu": relax.op.nn.relu,
    "sigmoid": relax.op.sigmoid,
    "tanh": relax.op.tanh,
}
_WITH_PARAMETERS: dict[str, tuple[Callable[[float, float], Activation], float | None, float | None]] = {
    "affine": (_affine, 1.0, 0.0),
    "elu": (_elu, 1.0, None),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
    "leakyrelu": (_leaky_relu, 0.01, None),
    "softsign": (lambda _, __: _softsign, None, None),
    "thresholdedrelu": (_thresholded, 1.0, None),
}

_WITHOUT_DEFAULTS = frozenset({"affine", "thresholdedrelu"})

CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "RNN"): recurrent(1, 1, ("Tanh",)),
    ("", "GRU"): recurrent(3, 1, ("Sigmoid", "Tanh")),
    ("", "LSTM"): recurrent(4, 2, ("Sigmoid", "Tanh", "Tanh")),
}
