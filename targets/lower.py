"""From a Relax module of operators to scheduled kernels with packed weights: the target-independent steps.

    legalize -> fuse -> schedule each kernel -> lift constants into parameters -> pack weights -> place tensors

Constants stay in the module until every kernel has its schedule, because only then their layouts are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import ir, relax, s_tir, tirx

from greencc.artifact.bundle import KernelCall
from greencc.errors import GreenccError
from greencc.ir import bindings_of, constant_array, dim_text, rebuild_function, relax_functions
from greencc.targets.base import RULE_ATTR, Declined, Layout, Rule, Scheduled, Target
from greencc.targets.cost import call_cost
from greencc.targets.fusion import keep_reductions_apart
from greencc.targets.memory import OVERWRITES_ATTR, place_tensors
from greencc.targets.origins import label_values, restore_labels, trace_origins


@dataclass(frozen=True)
class Lowered:
    """A module ready for code generation.

    Attributes:
        module: scheduled PrimFuncs and Relax functions; `main` takes the inputs, then the weights.
        weights: the weights by name, in the order of main's trailing parameters, packed.
        calls: kernels in launch order with the source nodes that they stand for.
        rules: schedule rule by kernel name.
        tuned: names of the kernels that follow a recorded plan.
        arena_bytes: memory that intermediate tensors share, outputs excluded.
    """

    module: tvm.IRModule
    weights: dict[str, np.ndarray]
    calls: tuple[KernelCall, ...]
    rules: dict[str, str]
    tuned: frozenset[str]
    arena_bytes: int


def lower(module: tvm.IRModule, target: Target) -> Lowered:
    """Lower `module` for `target`."""
    # Fusion drops what nothing uses; so that calls and their origins stay in step, it goes first.
    module, labels = label_values(relax.transform.DeadCodeElimination(["main"])(module))
    module = restore_labels(target.legalize(module), labels)
    module, origins = fuse(module)
    scheduled = schedule(module, target)
    calls = tuple(_describe(module, call, nodes) for call, nodes in zip(kernel_calls(module), origins, strict=True))
    module, weights = lift_constants(module, scheduled)
    placed = place_tensors(module, target.alignment)
    launched = tuple(call for i, call in enumerate(calls) if i not in placed.copies_saved)
    rules = {name: item.rule for name, item in scheduled.items()}
    tuned = frozenset(name for name, item in scheduled.items() if item.plan is not None)
    return Lowered(placed.module, weights, launched, rules, tuned, placed.arena_bytes)


def _describe(module: tvm.IRModule, call: relax.Call, nodes: tuple[str, ...]) -> KernelCall:
    cost = call_cost(module, call)
    operations, moved = _amount(cost.operations), _amount(cost.bytes)
    return KernelCall(call.args[0].name_hint, nodes, operations, moved, cost.arithmetic)


def _amount(expr: tirx.Expr | None) -> int | str | None:
    return int(expr) if isinstance(expr, tirx.IntImm) else None if expr is None else dim_text(expr)


def fuse(module: tvm.IRModule) -> tuple[tvm.IRModule, list[tuple[str, ...]]]:
    """Fuse elementwise operators into their producers and consumers, one PrimFunc per group.

    Also returns the source nodes of every kernel call, in the order of `kernel_calls`. A reshape that fused with
    nothing is no kernel any more but another view of its operand.
    """
    annotated = keep_reductions_apart(relax.transform.AnnotateTIROpPattern()(module))
    grouped = relax.transform.FuseOps()(annotated)
    origins = trace_origins(annotated, grouped)
    fused = relax.transform.FuseTIR()(grouped)
    viewed = relax.transform.RewriteDataflowReshape()(fused)
    launched = {call.args[0].name_hint for call in kernel_calls(viewed)}
    calls = zip(kernel_calls(fused), origins, strict=True)
    return viewed, [nodes for call, nodes in calls if call.args[0].name_hint in launched]


def schedule(module: tvm.IRModule, target: Target) -> dict[str, Scheduled]:
    """A schedule for every PrimFunc of the module, by name."""
    constants = constant_parameters(module)
    used = {call.args[0].name_hint for call in kernel_calls(module)}
    rules = target.rules()
    result: dict[str, Scheduled] = {}
    for gv, func in module.functions_items():
        name = gv.name_hint
        if not isinstance(func, tirx.PrimFunc) or name not in used:
            continue
        outcome = schedule_kernel(func, constants.get(name, frozenset()), rules)
        if isinstance(outcome, Declined):
            raise GreenccError(f"no schedule for kernel '{name}': {outcome.reason}")
        result[name] = outcome
    return result


def schedule_kernel(func: tirx.PrimFunc, constants: frozenset[int], rules: Sequence[Rule]) -> Scheduled | Declined:
    """The schedule of the first rule that applies, or what all of them say.

    A kernel that was emitted with its schedule names its rule: that one alone is asked, and where there is none the
    kernel stays as it is.
    """
    own = str(func.attrs[RULE_ATTR]) if func.attrs and RULE_ATTR in func.attrs else None
    reasons = []
    for rule in rules:
        if own not in (None, rule.name):
            continue
        try:
            outcome = rule.apply(func, constants)
        except s_tir.ScheduleError as error:  # an imperative kernel has no blocks to take apart
            outcome = Declined(str(error).strip().splitlines()[-1])
        if isinstance(outcome, Scheduled):
            return outcome
        reasons.append(f"{rule.name}: {outcome.reason}")
    return Declined("; ".join(reasons)) if own is None else Scheduled(func, own)


def constant_parameters(module: tvm.IRModule) -> dict[str, frozenset[int]]:
    """For each kernel, the parameters that get a constant at every call."""
    found: dict[str, frozenset[int]] = {}
    for call in kernel_calls(module):
        here = frozenset(i for i, arg in enumerate(_arguments(call)) if isinstance(arg, ir.GenericConst))
        name = call.args[0].name_hint
        found[name] = found[name] & here if name in found else here
    return found


def lift_constants(module: tvm.IRModule, scheduled: dict[str, Scheduled]) -> tuple[tvm.IRModule, dict[str, np.ndarray]]:
    """Make every constant a trailing parameter of `main`, packed as its kernel wants it.

    A private function (a branch of an If) gets its constants as parameters too, and every call of it passes them.
    """
    lifter = _Lifter(module, scheduled)
    return lifter.module(), lifter.main_weights()


class _Lifter:
    """Lifts the constants of all functions of a module, callees before callers."""

    def __init__(self, module: tvm.IRModule, scheduled: dict[str, Scheduled]) -> None:
        self._functions = {gv.name_hint: function for gv, function in relax_functions(module)}
        self._scheduled = scheduled
        self._weights: dict[str, np.ndarray] = {}
        self._names: dict[tuple[object, ...], str] = {}
        self._needs: dict[str, dict[str, relax.Var]] = {}
        self._builder = relax.BlockBuilder()
        # A kernel whose weight is packed has another type than before, and a call is checked against the type of
        # the variable that names the kernel: so every kernel gets a new variable.
        self._variables = {
            name: self._builder.add_func(
                item.func.with_attrs({RULE_ATTR: item.rule, OVERWRITES_ATTR: list(item.overwrites)}), name
            )
            for name, item in scheduled.items()
        }
        for name in self._functions:
            self._lift(name)

    def module(self) -> tvm.IRModule:
        """The module without constants."""
        return self._builder.get()

    def main_weights(self) -> dict[str, np.ndarray]:
        """Packed weights in the order of main's trailing parameters."""
        return {name: self._weights[name] for name in self._needs["main"]}

    def _lift(self, name: str) -> None:
        if name in self._needs:
            return
        function, used = self._functions[name], self._needs.setdefault(name, {})
        body = rebuild_function(function, lambda value: self._value(value, used)).body
        lifted = relax.Function(
            [*function.params, *used.values()], body, function.ret_ty, function.is_pure, function.attrs
        )
        self._variables[name] = self._builder.add_func(lifted, name)

    def _value(self, value: relax.Expr, used: dict[str, relax.Var], layout: Layout | None = None) -> relax.Expr:
        if isinstance(value, ir.GenericConst):
            return self._parameter(self._name(value, layout), used)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._value(field, used) for field in value.fields])
        if not isinstance(value, relax.Call):
            return value
        if isinstance(value.op, ir.GlobalVar):
            callee = value.op.name_hint
            self._lift(callee)
            extra = [self._parameter(name, used) for name in self._needs[callee]]
            args = [self._value(arg, used) for arg in value.args]
            return relax.Call(self._variables[callee], [*args, *extra])
        if not _is_kernel_call(value):
            args = [self._value(arg, used) for arg in value.args]
            return relax.Call(value.op, args, value.attrs, value.ty_args)
        kernel = value.args[0].name_hint
        layouts = self._scheduled[kernel].layouts
        operands = [self._value(arg, used, layouts.get(i)) for i, arg in enumerate(_arguments(value))]
        args = [self._variables[kernel], relax.Tuple(operands), *value.args[2:]]
        return relax.Call(value.op, args, value.attrs, value.ty_args)

    def _name(self, constant: ir.GenericConst, layout: Layout | None) -> str:
        array = constant_array(constant)
        if array is None:
            raise GreenccError("a constant holds no array")
        # Equal constants are one, wherever they come from: weights that operators share, stored anew for each of them.
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=32).digest()
        key = (digest, array.shape, str(array.dtype), layout)
        if key not in self._names:
            self._names[key] = f"w{len(self._weights):04d}"
            self._weights[self._names[key]] = array if layout is None else layout.pack(array)
        return self._names[key]

    def _parameter(self, name: str, used: dict[str, relax.Var]) -> relax.Var:
        array = self._weights[name]
        if name not in used:
            used[name] = relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))
        return used[name]


def kernel_calls(module: tvm.IRModule) -> list[relax.Call]:
    """Calls of kernels in launch order; those of private functions follow main's."""
    return [
        binding.value
        for _, function in relax_functions(module)
        for binding in bindings_of(function)
        if _is_kernel_call(binding.value)
    ]


def _is_kernel_call(value: relax.Expr) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, ir.Op)
        and value.op.name in ("relax.call_tir", "relax.call_tir_inplace")
    )


def _arguments(call: relax.Call) -> list[relax.Expr]:
    args = call.args[1]
    return list(args.fields) if isinstance(args, relax.Tuple) else [args]
