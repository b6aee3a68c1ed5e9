"""An optimised module in stages: variants of one stage are compiled and run alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from greencc.calibration import AnswerT, Calibration, SubjectT
from greencc.compress.builds import RememberedBuilds
from greencc.compress.candidates import LAYER, Candidate, Choices, Kind, apply_choices
from greencc.compress.cutting import RESULT, Layer, cut
from greencc.ir import bindings_of, constant_array, is_call, operands, with_span
from greencc.passes.base import PassContext, node_name
from greencc.passes.blocks import find_blocks
from greencc.samples import Samples
from greencc.targets.base import Target
from greencc.verification import Program

State = Mapping[str, np.ndarray]
"""Values that live between two stages, by name; the inputs of the model among them."""


class Stages:
    """The stages of one module, their variants, and what they compute.

    Args:
        module: optimised, in single precision; operators have names of their own (see `with_unique_names`).
        target: what the stages are compiled for; its code must run here.
        kinds: what may be done to a stage. A layer that is dropped is passed over.
        count: how many stages to aim for.
    """

    def __init__(self, module: tvm.IRModule, target: Target, kinds: Sequence[Kind], count: int = 24) -> None:
        self._target = RememberedBuilds(target)
        self._kinds = [kind for kind in kinds if kind != LAYER]
        made = cut(module, count, with_layers=LAYER in kinds)
        self.stages = made.stages
        self._layers = {layer.node: layer for layer in made.layers}
        self._programs: dict[tuple[int, frozenset[tuple[str, frozenset[str]]]], Program] = {}
        self._states: list[list[State]] = []
        self._observed: list[StageCalibration] = []

    def calibrate(self, samples: Sequence[State]) -> None:
        """Keep what lies between the stages when they run on `samples` in single precision."""
        self._states = [list(samples)]
        for number in range(len(self.stages)):
            program = self.program(number, {})
            self._states.append([program(state) for state in self._states[-1]])
        pairs = zip(self.stages, self._states[:-1], strict=True)
        self._observed = [StageCalibration(stage.module, self._target, states) for stage, states in pairs]

    def layers(self) -> list[Candidate]:
        """The layers that may be dropped."""
        return [Candidate(layer.node, LAYER.label, inside=self._nodes(layer)) for layer in self._layers.values()]

    def stages_of(self, candidate: Candidate) -> range:
        """Numbers of the stages that a candidate changes."""
        if candidate.label == LAYER.label:
            layer = self._layers[candidate.node]
            return range(layer.first, layer.end)
        number = next(i for i, stage in enumerate(self.stages) if candidate.node in stage.nodes)
        return range(number, number + 1)

    def holds(self, candidate: Candidate) -> bool:
        """Whether a stage shows what a candidate does: branches lies in none, channels may reach into two."""
        number = next((i for i, stage in enumerate(self.stages) if candidate.node in stage.nodes), None)
        if number is None or candidate.is_precision:
            return number is not None
        finder = next(kind.finder for kind in self._kinds if kind.label == candidate.label)
        context = PassContext(choices={finder.name: frozenset({candidate.node})})
        return finder.run(self.stages[number].module, context).rewrites > 0

    def state(self, number: int) -> Sequence[State]:
        """What lives before stage `number`, for every calibration sample."""
        return self._states[number]

    def program(self, number: int, choices: Choices) -> Program:
        """Stage `number` with those of the choices that concern it."""
        stage = self.stages[number]
        here = {label: nodes & stage.nodes for label, nodes in choices.items()}
        key = number, frozenset((label, nodes) for label, nodes in here.items() if nodes)
        if key not in self._programs:
            observed = self._observed[number] if self._observed else None
            module = apply_choices(stage.module, self._kinds, here, observed).module
            self._programs[key] = Program(module, self._target)
        return self._programs[key]

    def run(self, choices: Choices, state: State, first: int = 0) -> State:
        """The model's outputs from the state before stage `first`."""
        dropped = {layer.first: layer for layer in self._dropped(choices)}
        number = first
        while number < len(self.stages):
            layer = dropped.get(number)
            if layer is None:
                state = self.program(number, choices)(state)
                number += 1
            else:
                state = {**state, layer.behind: state[layer.before]}
                number = layer.end
        return {name.removeprefix(RESULT): array for name, array in state.items() if name.startswith(RESULT)}

    def _dropped(self, choices: Choices) -> list[Layer]:
        return [self._layers[node] for node in choices.get(LAYER.label, ())]

    def _nodes(self, layer: Layer) -> frozenset[str]:
        return frozenset().union(*(stage.nodes for stage in self.stages[layer.first : layer.end]))


class StageCalibration(Calibration):
    """Answers questions about a stage: what is asked of one of its products is asked of all of them at once.

    Every candidate of a stage asks the same of another value, and every question compiles a program and runs all data.

    Args:
        module: of the stage.
        target: see Calibration.
        samples: what lives before the stage.
    """

    def __init__(self, module: tvm.IRModule, target: Target, samples: Samples) -> None:
        super().__init__(target, samples)
        self._module = module
        self._multiplied = _multiplied(module)

    def grams(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """See Calibration. They are remembered: those of a stage are few."""
        ask = super().grams
        return self._remembered(("grams", module), values, lambda new: ask(module, new))

    def _remembered(
        self,
        question: tuple[Hashable, ...],
        subjects: Sequence[SubjectT],
        ask: Callable[[list[SubjectT]], list[AnswerT]],
    ) -> list[AnswerT]:
        others = self._others(question)
        return super()._remembered(question, [*subjects, *others], ask)[: len(subjects)]

    def _others(self, question: tuple[Hashable, ...]) -> list[Any]:
        """What a question should be asked of besides."""
        kind, about = question[:2]
        if about is not self._module:
            return []
        if kind == "mean squares":
            return [(value, -1) for value in self._multiplied]
        return self._multiplied if kind in ("largest", "grams") else []


def _multiplied(module: tvm.IRModule) -> list[relax.Expr]:
    """What a stage multiplies by constants."""
    calls = [binding.value for binding in bindings_of(module["main"]) if is_call(binding.value, "relax.matmul")]
    return [call.args[0] for call in calls if constant_array(call.args[1]) is not None]


def with_unique_names(module: tvm.IRModule) -> tvm.IRModule:
    """`module` where no two of the operators have a name that may be chosen: a number behind it sets the second apart.

    Those are main's operators with weights and those that a layer ends with. Others are not counted, so that passes
    which add such leave the numbers as they are.
    """
    seen: dict[str, int] = {}
    main = module["main"]
    ends = {block.behind for block in find_blocks(main)}

    def may_be_chosen(binding: relax.Binding) -> bool:
        arrays = (constant_array(use) for use in operands(binding.value))
        return binding.var in ends or any(array is not None and array.ndim > 1 for array in arrays)

    def sequence(seq: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in seq.blocks:
            bindings = [
                relax.VarBinding(binding.var, named(binding))
                if isinstance(binding, relax.VarBinding) and may_be_chosen(binding)
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
