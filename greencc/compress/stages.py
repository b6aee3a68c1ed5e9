"""An optimised module, cut into stages at narrow places: variants of one stage are compiled and run alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.calibration import Calibration
from greencc.ir import (
    INPUTS_ATTR,
    OUTPUTS_ATTR,
    bindings_of,
    constant_array,
    dtype_of,
    is_call,
    operands,
    shape_of,
    substitute,
    with_span,
)
from greencc.passes.base import Pass, PassContext, node_name
from greencc.passes.graph import publish, symbols_of
from greencc.passes.pipeline import run_pipeline
from greencc.targets.base import Target
from greencc.verification import Program

State = Mapping[str, np.ndarray]
"""Values that live between two stages, by name; the inputs of the model among them."""
Choices = Mapping[str, frozenset[str]]
"""By pass name, the operators that the pass may change."""

# Before the names of the model's outputs, which values between stages can't have.
_RESULT = "output."
# A place is narrow when at most so many times the bytes of the narrowest cross it.
_NARROW = 1.5
# What an open dimension counts as when bytes are compared.
_OPEN_SIZE = 64
_HEAVY = ("relax.matmul", "relax.nn.conv2d")


@dataclass(frozen=True)
class Stage:
    """A part of the model.

    Attributes:
        module: its main takes the values that live before the stage and returns those that live behind it.
        nodes: names of the operators in it.
    """

    module: tvm.IRModule
    nodes: frozenset[str]


class Stages:
    """The stages of one module, their variants, and what they compute.

    Args:
        module: optimised, in single precision; operators have names of their own (see `with_unique_names`).
        target: what the stages are compiled for; its code must run here.
        passes: what is applied to a stage, restricted by choices.
        count: how many stages to aim for.
    """

    def __init__(self, module: tvm.IRModule, target: Target, passes: Sequence[Pass], count: int = 12) -> None:
        self._target, self._passes = target, passes
        self.stages = cut(module, count)
        self._programs: dict[tuple[int, frozenset[tuple[str, frozenset[str]]]], Program] = {}
        self._states: list[list[State]] = []

    def calibrate(self, samples: Sequence[State]) -> None:
        """Keep what lies between the stages when they run on `samples` in single precision."""
        self._states = [list(samples)]
        for number in range(len(self.stages)):
            program = self.program(number, {})
            self._states.append([program(state) for state in self._states[-1]])

    def stage_of(self, node: str) -> int:
        """Number of the stage that holds the operator called `node`."""
        return next(i for i, stage in enumerate(self.stages) if node in stage.nodes)

    def state(self, number: int) -> list[State]:
        """What lies before stage `number`, one state for each calibration sample."""
        return self._states[number]

    def program(self, number: int, choices: Choices) -> Program:
        """Stage `number` after the passes, restricted to the choices that concern it."""
        stage = self.stages[number]
        here = {name: nodes & stage.nodes for name, nodes in choices.items()}
        key = number, frozenset((name, nodes) for name, nodes in here.items() if nodes)
        if key not in self._programs:
            module = stage.module
            if key[1]:
                watched = Calibration(self._target, self._states[number]) if self._states else None
                context = PassContext(activations=watched, choices=here)
                module = run_pipeline(module, self._passes, context).module
            self._programs[key] = Program(module, self._target)
        return self._programs[key]

    def run(self, choices: Choices, state: State, first: int = 0) -> State:
        """The model's outputs from the state before stage `first`."""
        for number in range(first, len(self.stages)):
            state = self.program(number, choices)(state)
        return {name.removeprefix(_RESULT): array for name, array in state.items() if name.startswith(_RESULT)}


def with_unique_names(module: tvm.IRModule) -> tvm.IRModule:
    """`module` where no two of main's operators with weights have a name: a number behind it sets the second apart.

    Operators without weights are not counted, so that passes which add such leave the numbers as they are.
    """
    seen: dict[str, int] = {}
    main = module["main"]

    def has_weight(value: relax.Expr) -> bool:
        arrays = (constant_array(use) for use in operands(value))
        return any(array is not None and array.ndim > 1 for array in arrays)

    def sequence(seq: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in seq.blocks:
            bindings = [
                relax.VarBinding(binding.var, named(binding))
                if isinstance(binding, relax.VarBinding) and has_weight(binding.value)
                else binding
                for binding in block.bindings
            ]
            blocks.append(type(block)(bindings))
        return relax.SeqExpr(blocks, seq.body, seq.span)

    def named(binding: relax.VarBinding) -> relax.Expr:
        name = node_name(binding.var, binding.value)
        seen[name] = seen.get(name, 0) + 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        return with_span(binding.value, unique)

    body = relax.BlockBuilder().normalize(sequence(main.body))
    result = module.clone()
    function = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs, main.span)
    result.update_func(module.get_global_var("main"), function)
    return result


def cut(module: tvm.IRModule, count: int) -> list[Stage]:
    """Stages of `module`, at most `count`, cut where little lives and with about equally many products each."""
    main = module["main"]
    bindings = [(binding, block) for block in main.body.blocks for binding in block.bindings]
    edges = [0, *_places(main, [binding for binding, _ in bindings], count), len(bindings)]
    lives = _live_values(main, [binding for binding, _ in bindings])
    names = dict(zip(main.params, map(str, main.attrs[INPUTS_ATTR]), strict=True))
    for place in edges[1:-1]:
        for var in lives[place]:
            names.setdefault(var, f"value{len(names)}")
    return [
        _stage(module, bindings[low:high], lives[low], None if high == len(bindings) else lives[high], names)
        for low, high in itertools.pairwise(edges)
    ]


def _places(main: relax.Function, bindings: Sequence[relax.Binding], count: int) -> list[int]:
    """Where to cut: numbers of the bindings that begin another stage."""
    if any(isinstance(binding.value, relax.If) for binding in bindings):
        return []  # a branch reads what it likes
    widths = [sum(map(_bytes, live)) for live in _live_values(main, bindings)]
    narrow = _NARROW * min(widths[1:-1], default=0)
    allowed = [i for i in range(1, len(bindings)) if widths[i] <= narrow]
    heavy = np.cumsum([0, *(_is_heavy(binding.value) for binding in bindings)])
    parts = max(1, min(count, int(heavy[-1])))
    wanted = [heavy[-1] * i / parts for i in range(1, parts)]
    if not allowed:
        return []
    return sorted({min(allowed, key=lambda i: (abs(heavy[i] - share), widths[i])) for share in wanted})


def _is_heavy(value: relax.Expr) -> bool:
    """Whether it is a product or a convolution with a constant."""
    constant = any(constant_array(use) is not None for use in operands(value))
    return constant and any(is_call(value, name) for name in _HEAVY)


def _live_values(main: relax.Function, bindings: Sequence[relax.Binding]) -> list[list[relax.Var]]:
    """What lives before each binding, and behind the last: what is read from there on and made before it.

    Parameters with symbolic dimensions live on: they say what the symbols are.
    """
    givers = [param for param in main.params if any(True for _ in symbols_of(param.ty))]
    live: dict[relax.Var, None] = dict.fromkeys(_used(main.body.body))
    found = [list(live)]
    for binding in reversed(bindings):
        live.pop(binding.var, None)
        live.update(dict.fromkeys(_used(binding.value)))
        found.append(list(dict.fromkeys([*live, *givers])))
    return [list(main.params), *found[-2::-1]]


def _used(value: relax.Expr) -> list[relax.Var]:
    uses = [value] if isinstance(value, relax.Var) else operands(value)
    return [use for use in uses if isinstance(use, relax.Var)]


def _bytes(var: relax.Var) -> int:
    shape = shape_of(var.ty)
    if shape is None:
        return 1 << 40  # a shape or a tuple: no place to cut
    sizes = [int(dim) if isinstance(dim, tirx.IntImm) else _OPEN_SIZE for dim in shape]
    return prod(sizes) * np.dtype(str(dtype_of(var.ty))).itemsize


def _stage(
    module: tvm.IRModule,
    bindings: Sequence[tuple[relax.Binding, relax.BindingBlock]],
    before: Sequence[relax.Var],
    behind: Sequence[relax.Var] | None,
    names: Mapping[relax.Var, str],
) -> Stage:
    """The stage of some bindings, with the blocks that they come from; `behind` is None for the last one."""
    main, builder = module["main"], relax.BlockBuilder()
    # What was made by another stage, perhaps as a dataflow variable, is a parameter here.
    params: dict[relax.Expr, relax.Expr] = {var: relax.Var(names[var], var.ty) for var in before}
    blocks: list[relax.BindingBlock] = []
    for block, members in itertools.groupby(bindings, key=lambda pair: pair[1]):
        kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
        blocks.append(kind([_with_values(builder, binding, params) for binding, _ in members]))
    if behind is None:
        returned = main.body.body
        outputs = [_RESULT + str(name) for name in main.attrs[OUTPUTS_ATTR]]
    else:
        returned = relax.Tuple(list(behind))
        outputs = [names[var] for var in behind]
    returned = builder.normalize(substitute(returned, params))
    result = relax.Var("result", returned.ty)
    blocks.append(relax.BindingBlock([relax.VarBinding(result, returned)]))
    body = publish(builder.normalize(relax.SeqExpr(blocks, result)))
    attrs = {key: main.attrs[key] for key in main.attrs.keys()}  # noqa: SIM118 (not a mapping)
    attrs |= {INPUTS_ATTR: [names[var] for var in before], OUTPUTS_ATTR: outputs}
    function = relax.Function(list(params.values()), body, result.ty, main.is_pure).with_attrs(attrs)
    staged = module.clone()
    staged.update_func(module.get_global_var("main"), function)
    nodes = frozenset(node_name(b.var, b.value) for b in bindings_of(function) if isinstance(b.value, relax.Call))
    return Stage(staged, nodes)


def _with_values(
    builder: relax.BlockBuilder, binding: relax.Binding, values: Mapping[relax.Expr, relax.Expr]
) -> relax.Binding:
    new = builder.normalize(substitute(binding.value, values))
    if isinstance(binding, relax.MatchCast):
        return relax.MatchCast(binding.var, new, binding.ty)
    return relax.VarBinding(binding.var, new)
