"""A read-only view of one Relax function, and the rebuilding of a function with some values replaced.

Values are in A-normal form: the operands of a call are variables or constants. Rebuilding keeps variables,
names and source spans of everything that is not replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tvm
from tvm import ir, relax

from greencc.errors import GreenccError
from greencc.ir import bindings_of, constant_array, operands, same_type, scalar_value, span_of, with_span

Replacement = Callable[["Builder"], relax.Expr]


class Graph:
    """Definitions and uses of one function's values, nested If branches included."""

    def __init__(self, module: tvm.IRModule, function: relax.Function) -> None:
        self.module = module
        self.function = function
        self._values: dict[relax.Var, relax.Expr] = {}
        self._users: dict[relax.Var, list[relax.Var]] = {}
        for binding in bindings_of(function):
            self._values[binding.var] = binding.value
            for use in operands(binding.value):
                if isinstance(use, relax.Var):
                    self._users.setdefault(use, []).append(binding.var)
        self._results = {use for use in result_vars(function.body)}

    def definitions(self) -> Iterator[tuple[relax.Var, relax.Expr]]:
        """(variable, value) of every binding, in execution order."""
        yield from self._values.items()

    def value(self, expr: relax.Expr) -> relax.Expr:
        """What `expr` stands for: the definition of a variable, looking through aliases; else `expr` itself."""
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
        """Whether every use of `var` is in the definition of one of `users`; a returned value is used elsewhere."""
        allowed = set(users)
        return not self.is_result(var) and all(user in allowed for user in self.users(var))

    def constant(self, expr: relax.Expr) -> np.ndarray | None:
        """Values of `expr` when it is a constant, else None."""
        return constant_array(self.value(expr))

    def scalar(self, expr: relax.Expr) -> float | int | bool | None:
        """The one value of `expr` when it is a one-element constant, else None."""
        return scalar_value(self.value(expr))


class Builder:
    """Emits the calls of a replacement; each is normalised (typed) and carries the replaced node's source name."""

    def __init__(self, root: str | None) -> None:
        self._root = root
        self._block_builder = relax.BlockBuilder()
        self.bindings: list[relax.VarBinding] = []

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


def substitute(value: relax.Expr, env: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """`value` with its operands replaced by `env`; the same object when nothing changes."""
    if isinstance(value, relax.Var):
        return env.get(value, value)
    if isinstance(value, relax.Call):
        args = [substitute(arg, env) for arg in value.args]
        if all(a is b for a, b in zip(args, value.args, strict=True)):
            return value
        ret_ty = value.ty if not isinstance(value.op, ir.Op) or value.op.name == "relax.call_tir" else None
        return relax.Call(value.op, args, value.attrs, value.ty_args, value.span, ret_ty=ret_ty)
    if isinstance(value, relax.Tuple):
        fields = [substitute(field, env) for field in value.fields]
        if all(a is b for a, b in zip(fields, value.fields, strict=True)):
            return value
        return relax.Tuple(fields, value.span)
    if isinstance(value, relax.TupleGetItem):
        source = substitute(value.tuple_value, env)
        return value if source is value.tuple_value else relax.TupleGetItem(source, value.index)
    return value


def rebuild(
    function: relax.Function, replacements: Mapping[relax.Var, Replacement], *, owner: str
) -> relax.Function:
    """`function` with the definitions of some variables replaced.

    A replacement returns the new value: a call (bound to the same variable), or a variable or constant that
    takes over all uses. The new value must have the old one's type; otherwise GreenccError names `owner`.
    """
    env: dict[relax.Var, relax.Expr] = {}
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
            emitted = [relax.VarBinding(b.var, retype(substitute(b.value, env))) for b in builder.bindings]
            new = builder.normalize(substitute(new, env))
            if not same_type(new.ty, var.ty):
                where = span_of(value) or var.name_hint
                raise GreenccError(f"pass {owner} changed the type of '{where}' from {var.ty} to {new.ty}")
            if isinstance(new, relax.Call) or isinstance(var, relax.DataflowVar) is False:
                return [*emitted, relax.VarBinding(var, new)]
            env[var] = new
            return list(emitted)
        if isinstance(value, relax.If):
            branches = relax.If(
                substitute(value.cond, env), sequence(value.true_branch), sequence(value.false_branch), value.span
            )
            return [relax.VarBinding(var, retype(branches))]
        if isinstance(binding, relax.MatchCast):
            return [relax.MatchCast(var, substitute(value, env), binding.ty)]
        new = substitute(value, env)
        return [binding if new is value else relax.VarBinding(var, retype(new))]

    def retype(value: relax.Expr) -> relax.Expr:
        return normalizer.normalize(value)

    body = sequence(function.body)
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )


def eliminate_dead(function: relax.Function) -> relax.Function:
    """`function` without the bindings in dataflow blocks that nothing uses, and without empty blocks."""
    live: set[relax.Var] = set()

    def mark(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var):
            live.add(expr)
        for use in operands(expr):
            if isinstance(use, relax.Var):
                live.add(use)

    def sequence(seq: relax.SeqExpr) -> relax.SeqExpr:
        mark(seq.body)
        blocks: list[relax.BindingBlock] = []
        for block in reversed(seq.blocks):
            kept: list[relax.Binding] = []
            for binding in reversed(block.bindings):
                if binding.var not in live and not isinstance(binding, relax.MatchCast):
                    continue
                value = binding.value
                if isinstance(value, relax.If):
                    mark(value.cond)
                    value = relax.If(
                        value.cond, sequence(value.true_branch), sequence(value.false_branch), value.span
                    )
                    binding = relax.VarBinding(binding.var, relax.BlockBuilder().normalize(value))
                else:
                    mark(value)
                kept.append(binding)
            if kept:
                kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
                blocks.append(kind(kept[::-1]))
        return relax.BlockBuilder().normalize(relax.SeqExpr(blocks[::-1], seq.body))

    body = sequence(function.body)
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )
