"""A read-only view of one Relax function, and the rebuilding of a function with some values replaced.

Values are in A-normal form: the operands of a call are variables or constants. Rebuilding keeps variables,
names and source spans of everything that is not replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import tvm
from tvm import ir, relax, tirx

from greencc.errors import GreenccError
from greencc.ir import bindings_of, constant_array, operands, same_type, scalar_value, span_of, substitute, with_span

if TYPE_CHECKING:
    from greencc.passes.base import PassContext

Replacement = Callable[["Builder"], relax.Expr]
AnalysisT = TypeVar("AnalysisT")


class Graph:
    """Definitions and uses of one function's values, nested If branches included.

    `context` is what a pass may know besides the module, None where nobody asks for that.
    """

    def __init__(self, module: tvm.IRModule, function: relax.Function, context: PassContext | None = None) -> None:
        self.module = module
        self.function = function
        self.context = context
        self._values: dict[relax.Var, relax.Expr] = {}
        self._users: dict[relax.Var, list[relax.Var]] = {}
        for binding in bindings_of(function):
            # A match_cast is opaque: it has other dimensions than what it is a cast of.
            if not isinstance(binding, relax.MatchCast):
                self._values[binding.var] = binding.value
            uses = operands(binding.value) if not isinstance(binding.value, relax.Var) else (binding.value,)
            for use in uses:
                if isinstance(use, relax.Var):
                    self._users.setdefault(use, []).append(binding.var)
        self._results = {use for use in result_vars(function.body)}
        self._analyses: dict[Any, Any] = {}

    def definitions(self) -> Iterator[tuple[relax.Var, relax.Expr]]:
        """(variable, value) of every binding, in execution order."""
        yield from self._values.items()

    def value(self, expr: relax.Expr) -> relax.Expr:
        """What `expr` stands for: a variable's definition, looking through aliases; else `expr` itself."""
        while isinstance(expr, relax.Var) and expr in self._values:
            expr = self._values[expr]
        return expr

    def call(self, expr: relax.Expr, op: str | None = None) -> relax.Call | None:
        """The operator call that defines `expr`, or None; with `op`, only a call of that operator."""
        value = self.value(expr)
        if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op):
            return None
        return value if op is None or value.op.name == op else None

    def users(self, var: relax.Var) -> list[relax.Var]:
        """Variables whose definitions use `var`, one entry per use."""
        return self._users.get(var, [])

    def is_result(self, var: relax.Var) -> bool:
        """Whether the function (or a branch) returns `var` itself."""
        return var in self._results

    def only_used_by(self, var: relax.Var, users: Iterable[relax.Var]) -> bool:
        """Whether only the definitions of `users` use `var`; a value that is returned is used elsewhere."""
        allowed = set(users)
        return not self.is_result(var) and all(user in allowed for user in self.users(var))

    def between(self, root: relax.Var, leaves: Iterable[relax.Expr]) -> tuple[relax.Var, ...]:
        """Variables that `root` is computed from, without `root`, the `leaves` and what lies behind those."""
        seen: set[relax.Expr] = {root, *leaves}
        found: list[relax.Var] = []
        pending = [root]
        while pending:
            for use in operands(self._values[pending.pop()]):
                if isinstance(use, relax.Var) and use in self._values and use not in seen:
                    seen.add(use)
                    found.append(use)
                    pending.append(use)
        return tuple(found)

    def is_closed(self, root: relax.Var, inner: Iterable[relax.Var]) -> bool:
        """Whether nothing but `root` and each other uses the values `inner`, so that they die with `root`."""
        users = {root, *inner}
        return all(self.only_used_by(var, users) for var in users - {root})

    def analysis(self, kind: Callable[[Graph], AnalysisT]) -> AnalysisT:
        """`kind(self)`, made once per graph: facts that several matches on one graph share."""
        if kind not in self._analyses:
            self._analyses[kind] = kind(self)
        return cast(AnalysisT, self._analyses[kind])

    def constant(self, expr: relax.Expr) -> np.ndarray | None:
        """Values of `expr` when it is a constant, else None."""
        return constant_array(self.value(expr))

    def scalar(self, expr: relax.Expr) -> float | int | bool | None:
        """The one value of `expr` when it is a one-element constant, else None."""
        return scalar_value(self.value(expr))


class Builder:
    """Emits the calls of a replacement, typed and carrying the replaced node's source name."""

    def __init__(self, root: str | None) -> None:
        self._root = root
        self._block_builder = relax.BlockBuilder()
        self.bindings: list[relax.Binding] = []

    def normalize(self, expr: relax.Expr) -> relax.Expr:
        """`expr` with its type inferred; a call without a source name gets the replaced node's."""
        if isinstance(expr, relax.Call) and expr.span is None:
            expr = with_span(expr, self._root)
        return self._block_builder.normalize(expr)

    def emit(self, expr: relax.Expr, name: str = "v") -> relax.Var:
        """Bind `expr` to a fresh variable and return the variable."""
        value = self.normalize(expr)
        var = relax.DataflowVar(name, value.ty)
        self.bindings.append(relax.VarBinding(var, value))
        return var

    def match_cast(self, expr: relax.Expr, ty: relax.Type, name: str = "v") -> relax.Var:
        """Bind `expr`, asserted at run time to have the type `ty`, whose new symbols it gives their values."""
        var = relax.DataflowVar(name, ty)
        self.bindings.append(relax.MatchCast(var, expr, ty))
        return var


def result_vars(body: relax.SeqExpr) -> Iterator[relax.Var]:
    """Variables that a sequence returns, those of nested branches included."""
    for block in body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.If):
                yield from result_vars(binding.value.true_branch)
                yield from result_vars(binding.value.false_branch)
    if isinstance(body.body, relax.Var):
        yield body.body
    yield from (use for use in operands(body.body) if isinstance(use, relax.Var))


def rebuild(
    function: relax.Function,
    replacements: Mapping[relax.Var, Replacement],
    *,
    owner: str,
    constants: Mapping[relax.Expr, relax.Expr] | None = None,
) -> relax.Function:
    """`function` with the definitions of some variables, and some constants, replaced.

    A replacement returns the new value: a call or tuple (bound to the same variable), or a variable or
    constant that takes over all uses. Its type must be the old value's; otherwise GreenccError names `owner`.
    A value may be used in another block than before: it then leaves its dataflow block as an output.
    """
    env: dict[relax.Expr, relax.Expr] = dict(constants or {})
    normalizer = relax.BlockBuilder()

    def sequence(seq: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in seq.blocks:
            bindings: list[relax.Binding] = []
            for binding in block.bindings:
                bindings.extend(rebind(binding))
            kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
            blocks.append(kind(bindings))
        result = relax.SeqExpr(blocks, substitute(seq.body, env))
        return normalizer.normalize(result)

    def rebind(binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        if var in replacements:
            builder = Builder(span_of(value))
            new = replacements[var](builder)
            emitted = [renamed(b) for b in builder.bindings]
            new = builder.normalize(substitute(new, env))
            if not same_type(new.ty, var.ty):
                where = span_of(value) or var.name
                raise GreenccError(f"pass {owner} changed the type of '{where}' from {var.ty} to {new.ty}")
            if not isinstance(new, (relax.Var, ir.GenericConst)):
                return [*emitted, relax.VarBinding(var, new)]
            env[var] = new
            return list(emitted)
        if isinstance(value, relax.If):
            branches = relax.If(
                substitute(value.cond, env),
                sequence(value.true_branch),
                sequence(value.false_branch),
                value.span,
            )
            return [relax.VarBinding(var, retype(branches))]
        return [renamed(binding)]

    def renamed(binding: relax.Binding) -> relax.Binding:
        new = substitute(binding.value, env)
        if isinstance(binding, relax.MatchCast):
            return relax.MatchCast(binding.var, new, binding.ty)
        return binding if new is binding.value else relax.VarBinding(binding.var, retype(new))

    def retype(value: relax.Expr) -> relax.Expr:
        return normalizer.normalize(value)

    body = publish(sequence(function.body))
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)


def publish(body: relax.SeqExpr) -> relax.SeqExpr:
    """`body` with every dataflow variable that is used outside its block made an ordinary one."""
    home: dict[relax.Var, int] = {}
    escaping: dict[relax.Expr, relax.Expr] = {}

    def use(expr: relax.Expr, block: int) -> None:
        for var in (expr, *operands(expr)):
            if isinstance(var, relax.DataflowVar) and home.get(var, block) != block and var not in escaping:
                escaping[var] = relax.Var(var.name, var.ty)

    def scan(seq: relax.SeqExpr) -> None:
        for block in seq.blocks:
            number = len(numbers)
            numbers.append(block)
            for binding in block.bindings:
                use(binding.value, number)
                home[binding.var] = number
                if isinstance(binding.value, relax.If):
                    scan(binding.value.true_branch)
                    scan(binding.value.false_branch)
        use(seq.body, -1)

    def rename(seq: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in seq.blocks:
            bindings: list[relax.Binding] = []
            for binding in block.bindings:
                var = escaping.get(binding.var, binding.var)
                value = substitute(binding.value, escaping)
                if isinstance(value, relax.If):
                    value = relax.If(
                        substitute(value.cond, escaping),
                        rename(value.true_branch),
                        rename(value.false_branch),
                        value.span,
                    )
                value = normalizer.normalize(value)
                if isinstance(binding, relax.MatchCast):
                    bindings.append(relax.MatchCast(var, value, binding.ty))
                else:
                    bindings.append(relax.VarBinding(var, value))
            kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
            blocks.append(kind(bindings))
        return normalizer.normalize(relax.SeqExpr(blocks, substitute(seq.body, escaping)))

    numbers: list[relax.BindingBlock] = []
    normalizer = relax.BlockBuilder()
    scan(body)
    return rename(body) if escaping else body


def is_pure(value: relax.Expr) -> bool:
    """Whether computing `value` has no effect but its result."""
    if not isinstance(value, relax.Call):
        return True
    if isinstance(value.op, ir.Op):
        return bool(value.op.get_attr("FPurity"))
    return bool(getattr(value.op.ty, "purity", False))


@dataclass(frozen=True)
class Unused:
    """A binding that nothing uses. `binds_symbol`: it is a match_cast whose dimensions are still used."""

    var: relax.Var
    value: relax.Expr
    binds_symbol: bool


def removable(unused: Unused) -> bool:
    """Whether an unused binding may go: its value has no effect, and no dimension that is still used."""
    return is_pure(unused.value) and not unused.binds_symbol


def symbols_of(expr: relax.Expr | relax.Type) -> Iterator[tirx.Var]:
    """Symbolic dimensions in a type, or in the shapes and numbers among the operands of an expression."""
    if isinstance(expr, ir.Type):
        yield from relax.analysis.tir_vars_in_type(expr)
    elif isinstance(expr, relax.ShapeExpr):
        yield from symbols_of(relax.ShapeType(list(expr.values)))
    elif isinstance(expr.ty, ir.PrimType):
        yield from tirx.analysis.undefined_vars(tirx.Evaluate(expr))
    elif isinstance(expr, (relax.Call, relax.Tuple)):
        yield from (s for use in operands(expr) for s in symbols_of(use))


def eliminate_dead(function: relax.Function, may_remove: Callable[[Unused], bool] = removable) -> relax.Function:
    """`function` without the unused bindings that `may_remove` allows, and without empty blocks."""
    live: set[relax.Var] = set()
    symbols: set[tirx.Var] = set()
    has_casts = any(isinstance(binding, relax.MatchCast) for binding in bindings_of(function))

    def mark(expr: relax.Expr) -> None:
        live.update(use for use in (expr, *operands(expr)) if isinstance(use, relax.Var))
        if has_casts:
            symbols.update(symbols_of(expr))

    def keeps(binding: relax.Binding) -> bool:
        if binding.var in live:
            return True
        is_cast = isinstance(binding, relax.MatchCast)
        binds = is_cast and any(symbol in symbols for symbol in symbols_of(binding.ty))
        return not may_remove(Unused(binding.var, binding.value, binds))

    def sequence(seq: relax.SeqExpr) -> relax.SeqExpr:
        mark(seq.body)
        blocks: list[relax.BindingBlock] = []
        for block in reversed(seq.blocks):
            kept: list[relax.Binding] = []
            for binding in reversed(block.bindings):
                if not keeps(binding):
                    continue
                value = binding.value
                if has_casts:
                    symbols.update(symbols_of(binding.var.ty))
                if isinstance(value, relax.If):
                    mark(value.cond)
                    value = relax.If(value.cond, sequence(value.true_branch), sequence(value.false_branch), value.span)
                    binding = relax.VarBinding(binding.var, normalizer.normalize(value))
                else:
                    mark(value)
                kept.append(binding)
            if kept:
                kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
                blocks.append(kind(kept[::-1]))
        return normalizer.normalize(relax.SeqExpr(blocks[::-1], seq.body))

    normalizer = relax.BlockBuilder()
    body = sequence(function.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)
