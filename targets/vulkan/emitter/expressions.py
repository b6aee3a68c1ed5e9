"""TIR expressions to GLSL, one lane at a time.

`value` gives an expression of the register type of its dtype. `index` gives an int that holds an int64 expression
modulo 2^32, which is the value itself wherever it is an index. Vector expressions are taken apart into lanes; a load
of neighbouring elements goes through a temporary vector, which all lanes share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import ir, tirx

from greencc.targets.vulkan.emitter import calls, loads
from greencc.targets.vulkan.emitter.bounds import Bounds, bounds_of
from greencc.targets.vulkan.emitter.context import Context, Variable
from greencc.targets.vulkan.emitter.types import Element, dtype_of, float_literal, integer_literal, lanes_of

_ARITHMETIC: dict[type, str] = {tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*"}
_BITWISE: dict[type, str] = {tirx.BitwiseAnd: "&", tirx.BitwiseOr: "|", tirx.BitwiseXor: "^"}
_COMPARISONS: dict[type, str] = {
    tirx.EQ: "==", tirx.NE: "!=", tirx.LT: "<", tirx.LE: "<=", tirx.GT: ">", tirx.GE: ">=",
}  # fmt: skip
_DIVISIONS = (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)
_EXTREMES: dict[type, str] = {tirx.Min: "least", tirx.Max: "largest"}


class Expressions:
    """Writes the expressions of one kernel."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._rules: dict[type, Callable[[tirx.Expr, int], str]] = {
            tirx.IntImm: self._integer,
            tirx.FloatImm: self._float,
            tirx.Var: self._variable,
            tirx.Not: lambda e, lane: f"(!{self.value(e.a, lane)})",
            tirx.And: self._both,
            tirx.Or: self._either,
            tirx.BitwiseNot: self._bitwise_not,
            tirx.Cast: self._cast,
            tirx.Select: self._select,
            tirx.Let: self._let,
            tirx.Ramp: self._ramp,
            tirx.Broadcast: self._broadcast,
            tirx.Shuffle: self._shuffle,
            tirx.LShift: self._shift,
            tirx.RShift: self._shift,
            ir.TensorLoad: lambda e, lane: loads.load(self, e, lane),
            ir.Call: lambda e, lane: calls.call(self, e, lane),
        }
        self._rules.update(dict.fromkeys((*_ARITHMETIC, *_BITWISE), self._arithmetic))
        self._rules.update(dict.fromkeys(_COMPARISONS, self._comparison))
        self._rules.update(dict.fromkeys(_DIVISIONS, self._division))
        self._rules.update(dict.fromkeys(_EXTREMES, self._extreme))

    def value(self, expr: tirx.Expr, lane: int = 0) -> str:
        """One lane of an expression, in the register type of its dtype."""
        rule = self._rules.get(type(expr))
        if rule is None:
            raise self.context.fail(f"no rule for the TIR node {type(expr).__name__}")
        if _is_int64(expr) and not isinstance(expr, tirx.IntImm) and self.bounds(expr).fits:
            self.context.need("int64")
            return f"int64_t({self.index(expr, lane)})"
        return rule(expr, lane)

    def index(self, expr: tirx.Expr, lane: int = 0) -> str:
        """One lane of an integer expression as an int: of an int64, its value modulo 2^32."""
        if not _is_int64(expr):
            text, kind = self.value(expr, lane), self.context.element(dtype_of(expr))
            return text if kind.register == "int" else f"int({text})"
        if isinstance(expr, tirx.IntImm):
            return integer_literal(int(expr), self.context.element("int32"))
        if isinstance(expr, tirx.Var):
            return self._variable(expr, lane, narrow=True)
        # What only carries from lower to higher bits is right modulo 2^32 whatever its operands are.
        if isinstance(expr, (tirx.Add, tirx.Sub, tirx.Mul)):
            return f"({self.index(expr.a, lane)} {_ARITHMETIC[type(expr)]} {self.index(expr.b, lane)})"
        if type(expr) in _BITWISE:
            return f"({self.index(expr.a, lane)} {_BITWISE[type(expr)]} {self.index(expr.b, lane)})"
        if isinstance(expr, tirx.Cast) and not dtype_of(expr.value).startswith(("float", "bfloat")):
            return self.index(expr.value, lane)
        if isinstance(expr, tirx.Select):
            parts = [self.index(part, lane) for part in (expr.true_value, expr.false_value)]
            return self.selected(self.value(expr.condition, lane), parts, "int")
        if isinstance(expr, tirx.Ramp):
            return self._ramp(expr, lane, self.index)
        if isinstance(expr, tirx.Broadcast):
            return self._broadcast(expr, lane, self.index)
        if isinstance(expr, tirx.Let):
            return self._let(expr, lane, self.index)
        if isinstance(expr, ir.Call) and isinstance(expr.op, ir.Op):
            if expr.op.name == "prim.if_then_else":
                return self.conditional(expr.args, lane, self.index, "int")
            if expr.op.name == "prim.likely":
                return self.index(expr.args[0], lane)
        if self._operands_are_narrow(expr):
            if type(expr) in _DIVISIONS:
                return self._division(expr, lane, self.index, "int")
            if type(expr) in _EXTREMES:
                return self._extreme(expr, lane, self.index, "int")
            if isinstance(expr, (tirx.LShift, tirx.RShift)):
                return f"({self.index(expr.a, lane)} {_shift_of(expr)} {self.index(expr.b, lane)})"
        rule = self._rules.get(type(expr))
        if rule is None:
            raise self.context.fail(f"no rule for the TIR node {type(expr).__name__}")
        if not self.context.gpu.has_int64 and isinstance(expr, tirx.Cast):
            return f"int({self.value(expr.value, lane)})"
        return f"int({rule(expr, lane)})"

    def bounds(self, expr: tirx.Expr) -> Bounds:
        """Bounds of an integer expression."""
        return bounds_of(expr, self.context.bounds)

    def bind(self, var: tirx.Var, expr: tirx.Expr) -> None:
        """Declare a variable with the value of an expression."""
        context = self.context
        if _is_int64(var):
            context.bounds[var] = self.bounds(expr)
            context.variables[var] = self._bound_int64(var, expr)
            return
        kind = context.element(dtype_of(var))
        if not kind.is_float:
            context.bounds[var] = self.bounds(expr)
        names = []
        for lane in range(lanes_of(var)):
            text = self.value(expr, lane)
            name = context.name(var.name)
            context.emit(f"{kind.register} {name} = {text};")
            names.append(name)
        context.variables[var] = Variable(tuple(names))

    def _bound_int64(self, var: tirx.Var, expr: tirx.Expr) -> Variable:
        """A variable that is declared in the width, or widths, that it turns out to be used in."""
        context, lanes = self.context, range(lanes_of(var))
        slots = {(width, lane): context.reserve() for width in ("int", "int64_t") for lane in lanes}
        made: dict[tuple[str, int], str] = {}

        def declared(width: str, lane: int) -> str:
            if (width, lane) not in made:
                slot = slots[width, lane]
                with context.statement(), context.captured() as before:
                    text = self.index(expr, lane) if width == "int" else self.value(expr, lane)
                name = made[width, lane] = context.name(var.name if width == "int" else f"{var.name}_wide")
                slot.text = " ".join([*(line.text for line in before), f"{width} {name} = {text};"])
            return made[width, lane]

        return Variable(
            narrow=lambda lane: declared("int", lane),
            wide=None if self.bounds(expr).fits else lambda lane: declared("int64_t", lane),
        )

    def selected(self, condition: str, parts: Sequence[str], register: str) -> str:
        """The first or the second of two values that are both there."""
        return f"{self.context.helper('select', register)}({condition}, {parts[0]}, {parts[1]})"

    def conditional(
        self, args: Sequence[tirx.Expr], lane: int, part: Callable[[tirx.Expr, int], str], register: str
    ) -> str:
        """The second or the third of three expressions, of which only that one is evaluated."""
        context = self.context
        condition = self.value(args[0], lane if lanes_of(args[0]) > 1 else 0)
        texts, blocks = [], []
        for arg in args[1:]:
            with context.captured() as lines:
                texts.append(part(arg, lane))
            blocks.append(lines)
        if not any(blocks):
            return f"({condition} ? {texts[0]} : {texts[1]})"
        name = context.name("t")
        context.emit(f"{register} {name};")
        context.emit(f"if ({condition}) {{")
        for text, lines, end in zip(texts, blocks, ("} else {", "}"), strict=True):
            context.lines.extend(lines)
            with context.nested():
                context.emit(f"{name} = {text};")
            context.emit(end)
        return name

    def wrapped(self, text: str, kind: Element) -> str:
        """A register's value brought back into the range of a narrow integer type."""
        if not kind.is_narrow:
            return text
        if kind.is_unsigned:
            return f"({text} & {(1 << kind.bits) - 1}u)"
        return f"bitfieldExtract({text}, 0, {kind.bits})"

    def _integer(self, expr: tirx.Expr, lane: int) -> str:
        return integer_literal(int(expr), self.context.element(dtype_of(expr)))

    def _float(self, expr: tirx.Expr, lane: int) -> str:
        return float_literal(float(expr.value), self.context.element(dtype_of(expr)))

    def _variable(self, expr: tirx.Expr, lane: int, narrow: bool = False) -> str:
        found = self.context.variables.get(expr)
        if found is None:
            raise self.context.fail(f"the variable '{expr.name}' is not defined")
        if not narrow and found.wide is not None:
            self.context.need("int64")
            return found.wide(lane)
        return found.narrow(lane) if found.narrow is not None else found.lanes[lane]

    def _arithmetic(self, expr: tirx.Expr, lane: int) -> str:
        kind = self.context.element(dtype_of(expr))
        a, b = self.value(expr.a, lane), self.value(expr.b, lane)
        if kind.dtype == "bool":
            signs = {tirx.BitwiseAnd: "&&", tirx.BitwiseOr: "||", tirx.BitwiseXor: "!=", tirx.Mul: "&&"}
            if type(expr) not in signs:
                raise self.context.fail(f"{type(expr).__name__} of bool")
            return f"({a} {signs[type(expr)]} {b})"
        if type(expr) in _BITWISE:
            return f"({a} {_BITWISE[type(expr)]} {b})"
        return self.wrapped(f"({a} {_ARITHMETIC[type(expr)]} {b})", kind)

    def _bitwise_not(self, expr: tirx.Expr, lane: int) -> str:
        kind = self.context.element(dtype_of(expr))
        text = self.value(expr.a, lane)
        return f"(!{text})" if kind.dtype == "bool" else self.wrapped(f"(~{text})", kind)

    def _comparison(self, expr: tirx.Expr, lane: int) -> str:
        part = self.index if _is_int64(expr.a) and self._operands_are_narrow(expr) else self.value
        return f"({part(expr.a, lane)} {_COMPARISONS[type(expr)]} {part(expr.b, lane)})"

    def _both(self, expr: tirx.Expr, lane: int) -> str:
        return self._short_circuit(expr, lane, "&&", "false")

    def _either(self, expr: tirx.Expr, lane: int) -> str:
        return self._short_circuit(expr, lane, "||", "true")

    def _short_circuit(self, expr: tirx.Expr, lane: int, sign: str, decided: str) -> str:
        """The second operand may load what is there only if the first one allows it."""
        context = self.context
        first = self.value(expr.a, lane)
        with context.captured() as lines:
            second = self.value(expr.b, lane)
        if not lines:
            return f"({first} {sign} {second})"
        name = context.name("t")
        context.emit(f"bool {name} = {decided};")
        context.emit(f"if ({first if sign == '&&' else f'!{first}'}) {{")
        context.lines.extend(lines)
        with context.nested():
            context.emit(f"{name} = {second};")
        context.emit("}")
        return name

    def _division(
        self,
        expr: tirx.Expr,
        lane: int,
        part: Callable[[tirx.Expr, int], str] | None = None,
        register: str | None = None,
    ) -> str:
        part = part or self.value
        kind = self.context.element(dtype_of(expr)) if register is None else self.context.element("int32")
        a, b = part(expr.a, lane), part(expr.b, lane)
        node = type(expr)
        if kind.is_float and node is tirx.Div:
            return f"({a} / {b})"
        names = {
            tirx.Mod: "remainder",
            tirx.FloorDiv: "floor_quotient",
            tirx.FloorMod: "floor_remainder",
        }
        if kind.is_float:
            return f"{self.context.helper('float_' + names[node], kind.register)}({a}, {b})"
        if kind.is_unsigned or (self.bounds(expr.a).is_natural and self.bounds(expr.b).is_natural):
            return _natural_division(a, b, expr, kind)
        if node is tirx.Div:
            return self.wrapped(f"({a} / {b})", kind)
        # GLSL's own % is undefined for negative numbers.
        return self.wrapped(f"{self.context.helper(names[node], kind.register)}({a}, {b})", kind)

    def _extreme(
        self,
        expr: tirx.Expr,
        lane: int,
        part: Callable[[tirx.Expr, int], str] | None = None,
        register: str | None = None,
    ) -> str:
        part = part or self.value
        register = register or self.context.element(dtype_of(expr)).register
        if register == "bool":
            return f"({part(expr.a, lane)} {'&&' if isinstance(expr, tirx.Min) else '||'} {part(expr.b, lane)})"
        return f"{self.context.helper(_EXTREMES[type(expr)], register)}({part(expr.a, lane)}, {part(expr.b, lane)})"

    def _shift(self, expr: tirx.Expr, lane: int) -> str:
        kind = self.context.element(dtype_of(expr))
        return self.wrapped(f"({self.value(expr.a, lane)} {_shift_of(expr)} {self.index(expr.b, lane)})", kind)

    def _cast(self, expr: tirx.Expr, lane: int) -> str:
        source, target = dtype_of(expr.value), self.context.element(dtype_of(expr))
        if source.startswith("int64") and not target.is_wide:
            if not target.is_float and target.dtype != "bool":
                text = self.index(expr.value, lane)  # the lower bits are those of the result
                return self.wrapped(text if target.register == "int" else f"{target.register}({text})", target)
            if self.bounds(expr.value).fits or (self.bounds(expr.value).is_narrow and not self.context.gpu.has_int64):
                return self.converted(self.index(expr.value, lane), "int32", target)
        return self.converted(self.value(expr.value, lane), source, target)

    def converted(self, text: str, dtype: str, target: Element) -> str:
        """A value of another type in the register type of `target`, as C converts it."""
        source = self.context.element(dtype)
        if target.dtype == "bool":
            return text if source.dtype == "bool" else f"({text} != {source.register}(0))"
        if source.register != target.register:
            # C leaves open what a negative float is in a narrow unsigned type; every CPU goes through an int.
            through = "int" if source.is_float and target.is_narrow and target.is_unsigned else ""
            text = f"{target.register}({through}({text}))" if through else f"{target.register}({text})"
        if target.is_narrow and not (target.bits >= source.bits and target.is_unsigned == source.is_unsigned):
            return self.wrapped(text, target)
        if target.dtype == "bfloat16" and source.dtype != "bfloat16":
            return f"{self.context.helper('round_bfloat16')}({text})"
        return text

    def _select(self, expr: tirx.Expr, lane: int) -> str:
        kind = self.context.element(dtype_of(expr))
        condition = self.value(expr.condition, lane if lanes_of(expr.condition) > 1 else 0)
        parts = [self.value(part, lane) for part in (expr.true_value, expr.false_value)]
        return self.selected(condition, parts, kind.register)

    def _let(self, expr: tirx.Expr, lane: int, part: Callable[[tirx.Expr, int], str] | None = None) -> str:
        def declare() -> str:
            self.bind(expr.var, expr.value)
            return ""

        self.context.once(("let", expr.var), declare)
        return (part or self.value)(expr.body, lane)

    def _ramp(self, expr: tirx.Expr, lane: int, part: Callable[[tirx.Expr, int], str] | None = None) -> str:
        part = part or self.value
        if isinstance(expr.base, tirx.IntImm) and isinstance(expr.stride, tirx.IntImm):
            return part(tirx.IntImm(dtype_of(expr.base), int(expr.base) + lane * int(expr.stride)), 0)
        base = part(expr.base, 0)
        if lane == 0:
            return base
        if isinstance(expr.stride, tirx.IntImm):
            step = integer_literal(lane * int(expr.stride), self.context.element("int32"))
        else:
            step = f"{lane} * {part(expr.stride, 0)}"
        return f"({base} + {step})"

    def _broadcast(self, expr: tirx.Expr, lane: int, part: Callable[[tirx.Expr, int], str] | None = None) -> str:
        register = "int" if part == self.index else self.context.element(dtype_of(expr)).register
        return self.context.temporary(register, (part or self.value)(expr.value, lane % lanes_of(expr.value)))

    def _shuffle(self, expr: tirx.Expr, lane: int) -> str:
        flat = [(vector, i) for vector in expr.vectors for i in range(lanes_of(vector))]
        chosen = expr.indices[lane]
        if not isinstance(chosen, tirx.IntImm):
            raise self.context.fail("a Shuffle with an index that is no constant")
        return self.value(*flat[int(chosen)])

    def _operands_are_narrow(self, expr: tirx.Expr) -> bool:
        """Whether the operands of a binary expression are held exactly in 32 bits."""
        return hasattr(expr, "a") and hasattr(expr, "b") and all(self.bounds(x).is_narrow for x in (expr.a, expr.b))


def _is_int64(expr: tirx.Expr) -> bool:
    return dtype_of(expr).split("x")[0] == "int64"


def _natural_division(a: str, b: str, expr: tirx.Expr, kind: Element) -> str:
    """The quotient or the remainder of numbers that aren't negative, which unsigned division gives faster."""
    is_quotient = isinstance(expr, (tirx.Div, tirx.FloorDiv))
    by = int(expr.b) if isinstance(expr.b, tirx.IntImm) else 0
    if 0 < by < 1 << 31 and by & (by - 1) == 0 and not kind.is_wide:
        if is_quotient:
            return f"({a} >> {by.bit_length() - 1})" if by > 1 else a
        return f"({a} & {by - 1}u)" if kind.is_unsigned else f"({a} & {by - 1})"
    sign = "/" if is_quotient else "%"
    return f"int(uint({a}) {sign} uint({b}))" if kind.register == "int" else f"({a} {sign} {b})"


def _shift_of(expr: tirx.Expr) -> str:
    return "<<" if isinstance(expr, tirx.LShift) else ">>"
