"""What functions take and give but nobody needs: outputs and inputs of main, results and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import tvm
from tvm import ir, relax, tirx

from greencc.errors import GreenccError, UserError
from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, bindings_of, operands, relax_functions, shape_of, substitute
from greencc.passes.graph import Graph, publish, symbols_of


@dataclass(frozen=True)
class Slot:
    """A parameter or result that nothing uses.

    Attributes:
        kind: "unused-input" of main, "unused-parameter" or "unused-result" of a private function.
        node: function and index, or the input's name.
        binds_symbol: it is a parameter that gives a dimension, used elsewhere, its value.
        escapes: the function, or its whole tuple of results, is used as a value.
    """

    kind: str
    node: str
    binds_symbol: bool = False
    escapes: bool = False


MayDrop = Callable[[Slot], bool]


def result_fields(function: relax.Function) -> list[relax.Expr] | None:
    """The values in the tuple that a function returns, or None when it returns anything else."""
    result = Graph(tvm.IRModule(), function).value(function.body.body)
    return list(result.fields) if isinstance(result, relax.Tuple) else None


def with_results(function: relax.Function, fields: list[relax.Expr]) -> relax.Function:
    """`function` returning a tuple of these values."""
    values = relax.Tuple(fields)
    var = relax.Var("gv", relax.TupleType([field.ty for field in fields]))
    builder = relax.BlockBuilder()
    last = relax.DataflowBlock([relax.VarBinding(var, builder.normalize(values))])
    *blocks, block = [*function.body.blocks] or [None]
    if isinstance(block, relax.DataflowBlock):
        last = relax.DataflowBlock([*block.bindings, *last.bindings])
    elif block is not None:
        blocks.append(block)
    body = publish(builder.normalize(relax.SeqExpr([*blocks, last], var)))
    return relax.Function(function.params, body, None, function.is_pure, function.attrs, function.span)


def select_outputs(module: tvm.IRModule, names: Iterable[str]) -> tuple[tvm.IRModule, int]:
    """`module` with only these outputs of main, in the model's order, and the number of outputs dropped."""
    main = module["main"]
    known = [str(name) for name in main.attrs[OUTPUTS_ATTR]]
    wanted = set(names)
    unknown = sorted(wanted - set(known))
    if unknown or not wanted:
        what = f"the model has no output '{unknown[0]}'" if unknown else "no output is named"
        raise UserError(f"--outputs: {what}; its outputs: {', '.join(known)}")
    fields = result_fields(main)
    if fields is None or len(fields) != len(known):
        raise GreenccError("function main doesn't return the tuple of its outputs")
    keep = [i for i, name in enumerate(known) if name in wanted]
    if len(keep) == len(known):
        return module, 0
    main = with_results(main, [fields[i] for i in keep])
    main = main.with_attr(OUTPUTS_ATTR, [known[i] for i in keep])
    return _replaced(module, {"main": main}), len(known) - len(keep)


def unused_parameters(function: relax.Function) -> list[int]:
    """Indices of parameters whose values nothing in the function uses."""
    graph = Graph(tvm.IRModule(), function)
    return [i for i, p in enumerate(function.params) if not graph.users(p) and not graph.is_result(p)]


def drop_inputs(module: tvm.IRModule, may_drop: MayDrop) -> tuple[tvm.IRModule, int]:
    """`module` without the unused inputs of main that may go, and how many those are."""
    main = module["main"]
    names = [p.name for p in main.params]
    keep = _keep_parameters(main, lambda i, binds: may_drop(Slot("unused-input", names[i], binds)))
    if len(keep) == len(names):
        return module, 0
    main = relax.Function([main.params[i] for i in keep], main.body, main.ret_ty, main.is_pure, main.attrs, main.span)
    if INPUTS_ATTR in main.attrs:
        main = main.with_attr(INPUTS_ATTR, [str(main.attrs[INPUTS_ATTR][i]) for i in keep])
    return _replaced(module, {"main": main}), len(names) - len(keep)


def shrink_private_functions(module: tvm.IRModule, may_drop: MayDrop) -> tuple[tvm.IRModule, int]:
    """`module` without unused results and parameters of private functions, and how many were dropped."""
    uses = _Uses(module)
    plan: dict[str, tuple[list[int], list[int]]] = {}
    dropped = 0
    for gv, function in relax_functions(module):
        name = gv.name_hint
        if name not in uses.private:
            continue
        fields = result_fields(function)
        results = list(range(len(fields or ())))
        needed = uses.needed_results(name)
        keep_results = [
            i
            for i in results
            if i in needed or not needed or not may_drop(Slot("unused-result", f"{name}#{i}", escapes=uses.whole(name)))
        ]
        escapes = name in uses.as_value

        def may(i: int, binds: bool, name: str = name, escapes: bool = escapes) -> bool:
            return may_drop(Slot("unused-parameter", f"{name}#{i}", binds, escapes))

        keep_params = _keep_parameters(function, may)
        if len(keep_params) < len(function.params) or len(keep_results) < len(results):
            plan[name] = (keep_params, keep_results)
            dropped += len(function.params) - len(keep_params) + len(results) - len(keep_results)
    return (_apply(module, plan) if plan else module), dropped


def drop_unreachable(module: tvm.IRModule) -> tuple[tvm.IRModule, int]:
    """`module` without private functions that no public one reaches, and how many were dropped."""
    functions = {gv.name_hint: function for gv, function in relax_functions(module)}
    todo = [name for name, function in functions.items() if _is_public(function)]
    reached: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in reached and name in functions:
            reached.add(name)
            todo.extend(gv.name_hint for gv in _globals_in(functions[name]))
    dead = functions.keys() - reached
    if not dead:
        return module, 0
    kept = {gv: fn for gv, fn in module.functions_items() if gv.name_hint not in dead}
    return tvm.IRModule(kept, attrs=module.attrs, global_infos=module.global_infos), len(dead)


class _Uses:
    """How private functions are used. Functions called in the two branches of one If change together."""

    def __init__(self, module: tvm.IRModule) -> None:
        functions = dict(relax_functions(module))
        self.private = {gv.name_hint for gv, function in functions.items() if not _is_public(function)}
        self.as_value: set[str] = set()
        self._whole: set[str] = set()
        self._needed: dict[str, set[int]] = {name: set() for name in self.private}
        self._group = {name: name for name in self.private}
        for function in functions.values():
            self._scan(Graph(module, function))

    def needed_results(self, name: str) -> set[int]:
        """Indices of the results that some caller projects out."""
        members = [n for n in self.private if self._find(n) == self._find(name)]
        return set().union(*(self._needed[n] for n in members))

    def whole(self, name: str) -> bool:
        """Whether some caller uses the tuple of results as a whole."""
        return any(n in self._whole | self.as_value for n in self.private if self._find(n) == self._find(name))

    def _scan(self, graph: Graph) -> None:
        branch_calls: set[relax.Var] = set()
        for var, value in graph.definitions():
            self.as_value.update(gv.name_hint for gv in operands(value) if isinstance(gv, ir.GlobalVar))
            if isinstance(value, relax.If):
                bodies = [branch.body for branch in (value.true_branch, value.false_branch)]
                callees = [_callee(graph, body) for body in bodies]
                if all(callee in self.private for callee in callees):
                    branch_calls.update(bodies)
                    self._group[self._find(str(callees[0]))] = self._find(str(callees[1]))
                    self._use(graph, var, str(callees[0]))
        for var, value in graph.definitions():
            callee = _callee(graph, var) if isinstance(value, relax.Call) else None
            if callee in self.private and var not in branch_calls:
                self._use(graph, var, str(callee))

    def _use(self, graph: Graph, var: relax.Var, callee: str) -> None:
        if graph.is_result(var):
            self._whole.add(callee)
        for user in graph.users(var):
            value = graph.value(user)
            if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(var):
                self._needed[callee].add(int(value.index))
            else:
                self._whole.add(callee)

    def _find(self, name: str) -> str:
        while self._group[name] != name:
            name = self._group[name]
        return name


def _apply(module: tvm.IRModule, plan: Mapping[str, tuple[list[int], list[int]]]) -> tvm.IRModule:
    """`module` with the planned functions keeping these parameters and results, and their calls adapted."""
    shrunk: dict[str, relax.Function] = {}
    for name, (params, results) in plan.items():
        old = module[name]
        fields = result_fields(old) or []
        new = with_results(old, [fields[i] for i in results]) if len(results) < len(fields) else old
        params_kept = [old.params[i] for i in params]
        shrunk[name] = relax.Function(params_kept, new.body, None, old.is_pure, old.attrs, old.span)
    targets = {}
    for name, function in shrunk.items():
        targets[name] = ir.GlobalVar(name)
        relax.expr._update_type(targets[name], function.ty)
    functions = {}
    for gv, function in module.functions_items():
        new = shrunk.get(gv.name_hint, function)
        if isinstance(new, relax.Function):
            new = _Recall(plan, targets).function(new)
        functions[targets.get(gv.name_hint, gv)] = new
    return tvm.IRModule(functions, attrs=module.attrs, global_infos=module.global_infos)


class _Recall:
    """Adapts one function's calls to shrunk functions: fewer arguments, and results with other indices."""

    def __init__(self, plan: Mapping[str, tuple[list[int], list[int]]], targets: Mapping[str, ir.GlobalVar]) -> None:
        self._plan, self._targets = plan, targets
        self._env: dict[relax.Expr, relax.Expr] = {}
        self._results: dict[relax.Var, list[int]] = {}
        self._builder = relax.BlockBuilder()

    def function(self, function: relax.Function) -> relax.Function:
        body = self._sequence(function.body)
        return relax.Function(function.params, body, None, function.is_pure, function.attrs, function.span)

    def _sequence(self, seq: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in seq.blocks:
            kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
            blocks.append(kind([self._binding(binding) for binding in block.bindings]))
        return self._builder.normalize(relax.SeqExpr(blocks, substitute(seq.body, self._env)))

    def _binding(self, binding: relax.Binding) -> relax.Binding:
        var, value = binding.var, binding.value
        if isinstance(binding, relax.MatchCast):
            return relax.MatchCast(var, substitute(value, self._env), binding.ty)
        results = None
        if isinstance(value, relax.If):
            true, false = self._sequence(value.true_branch), self._sequence(value.false_branch)
            results = self._results.get(true.body)
            value = relax.If(substitute(value.cond, self._env), true, false, value.span)
        elif isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar):
            name = value.op.name_hint
            value = substitute(value, self._env)
            if name in self._plan:
                params, results = self._plan[name]
                value = relax.Call(self._targets[name], [value.args[i] for i in params], None, [], value.span)
        elif isinstance(value, relax.TupleGetItem):
            source = substitute(value.tuple_value, self._env)
            kept = self._results.get(source)
            index = int(value.index) if kept is None else kept.index(int(value.index))
            value = relax.TupleGetItem(source, index)
        else:
            value = substitute(value, self._env)
        value = self._builder.normalize(value)
        if results is not None:
            self._env[var] = type(var)(var.name, value.ty)
            self._results[self._env[var]] = results
        return relax.VarBinding(self._env.get(var, var), value)


def _keep_parameters(function: relax.Function, may_drop: Callable[[int, bool], bool]) -> list[int]:
    keep = list(range(len(function.params)))
    used = {s for b in bindings_of(function) for part in (b.var.ty, b.value) for s in symbols_of(part)}
    for i in unused_parameters(function):
        others = [dim for j in keep if j != i for dim in shape_of(function.params[j].ty) or ()]
        bound = {dim for dim in others if isinstance(dim, tirx.Var)}
        needed = used | {s for dim in others if not isinstance(dim, tirx.Var) for s in symbols_of(dim)}
        binds = any(s in needed and s not in bound for s in symbols_of(function.params[i].ty))
        if may_drop(i, binds):
            keep.remove(i)
    return keep


def _replaced(module: tvm.IRModule, functions: Mapping[str, relax.Function]) -> tvm.IRModule:
    """`module` with public functions of another type; a global variable carries its function's type."""
    kept = {gv: fn for gv, fn in module.functions_items() if gv.name_hint not in functions}
    for name, function in functions.items():
        gv = ir.GlobalVar(name)
        relax.expr._update_type(gv, function.ty)
        kept[gv] = function
    return tvm.IRModule(kept, attrs=module.attrs, global_infos=module.global_infos)


def _callee(graph: Graph, expr: relax.Expr) -> str | None:
    value = graph.value(expr)
    is_call = isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar)
    return value.op.name_hint if is_call else None


def _globals_in(function: relax.Function) -> list[ir.GlobalVar]:
    found: list[ir.GlobalVar] = []
    for binding in bindings_of(function):
        found.extend(use for use in operands(binding.value) if isinstance(use, ir.GlobalVar))
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, ir.GlobalVar):
            found.append(binding.value.op)
    return found


def _is_public(function: relax.Function) -> bool:
    return function.attrs is not None and "global_symbol" in function.attrs
