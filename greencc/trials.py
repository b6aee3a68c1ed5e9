"""Which of two operators takes less time on the target: both are compiled alone and run here, by turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, dtype_of, shape_of
from greencc.targets.base import Target
from greencc.targets.tir import i64, substitute, walk
from greencc.verification import Program, Runnable

# A dimension without an upper bound is tried with this size.
OPEN_SIZE = 128
_BLOCKS = 15
_BLOCK_SECONDS = 0.003
_MOST_RUNS = 200
# Other runtimes' idle threads spin for a while after their last run (0.04 s of ONNX Runtime's).
_PAUSE_SECONDS = 0.05


class Trials:
    """Times operators. Each comparison is made once; equal operators on equal types share it.

    Args:
        target: what they are compiled for; its code must run here.
        sizes: symbolic dimensions by name, and the size that each is tried with.
    """

    def __init__(self, target: Target, sizes: Mapping[str, int]) -> None:
        self._target, self._sizes = target, sizes
        self._known: dict[tuple[str, str], float] = {}

    def time_ratio(self, replacement: relax.Call, original: relax.Call) -> float:
        """How many times as long as `original` the call `replacement` takes.

        Operands that are variables get normally distributed numbers; what precedes and follows them is left out.
        """
        form = (_form(replacement), _form(original))
        if form not in self._known:
            self._known[form] = self._measure(replacement, original)
        return self._known[form]

    def _measure(self, *calls: relax.Call) -> float:
        programs = [Program(self._alone(call), self._target) for call in calls]
        ours, theirs = seconds_by_turns(programs, self._inputs(calls[0]))
        return ours / theirs

    def _alone(self, call: relax.Call) -> tvm.IRModule:
        """A module whose main does nothing but `call`, in known sizes."""
        params = {arg: relax.Var(f"x{i}", self._type(arg)) for i, arg in enumerate(_variables(call))}
        builder = relax.BlockBuilder()
        with builder.function("main", list(params.values())):
            with builder.dataflow():
                args = [params[arg] if isinstance(arg, relax.Var) else arg for arg in call.args]
                made = builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args))
                result = builder.emit_output(builder.emit(relax.Tuple([made])))
            builder.emit_func_output(result)
        module = builder.get()
        names = {INPUTS_ATTR: [var.name for var in params.values()], OUTPUTS_ATTR: ["y"]}
        module.update_func(module.get_global_var("main"), module["main"].with_attrs(names))
        return module

    def _inputs(self, call: relax.Call) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        types = [self._type(arg) for arg in _variables(call)]
        return {
            f"x{i}": rng.standard_normal([int(dim) for dim in ty.shape.values]).astype(str(ty.dtype))
            for i, ty in enumerate(types)
        }

    def _type(self, arg: relax.Var) -> relax.TensorType:
        analyzer = tvm.sym.Analyzer()

        def size(dim: tirx.Expr) -> int:
            symbols = [node for node in walk(dim) if isinstance(node, tirx.Var)]
            values = {symbol: i64(self._sizes.get(symbol.name, OPEN_SIZE)) for symbol in symbols}
            return int(analyzer.simplify(substitute(dim, values)))

        return relax.TensorType([size(dim) for dim in shape_of(arg.ty) or []], str(dtype_of(arg.ty)))


def seconds_by_turns(programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
    """Seconds that a run of each program takes: medians of blocks that take turns."""
    time.sleep(_PAUSE_SECONDS)
    once = max(program.seconds(inputs, 2) for program in programs) / 2
    runs = int(np.clip(_BLOCK_SECONDS / max(once, 1e-9), 1, _MOST_RUNS))
    times: list[list[float]] = [[] for _ in programs]
    for _ in range(_BLOCKS):
        for program, own in zip(programs, times, strict=True):
            program.seconds(inputs, 1)  # another program's data fill the caches
            own.append(program.seconds(inputs, runs) / runs)
    return [median(own) for own in times]


def _variables(call: relax.Call) -> list[relax.Var]:
    return list(dict.fromkeys(arg for arg in call.args if isinstance(arg, relax.Var)))


def _form(call: relax.Call) -> str:
    """What decides how long a call takes: operator, attributes and the operands' types."""
    operands = [f"{type(arg).__name__} {arg.ty}" for arg in call.args]
    return f"{call.op} {call.attrs} {operands}"
