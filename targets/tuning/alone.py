"""One kernel as a program of its own, so that it can be timed: launched several times, with weights anew each time.

In a model a layer's weights come from memory, because the other layers' have driven them out of the caches, while its
operand has just been computed. So the program launches the kernel `copies` times on the same operands, each time with
other weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.targets.base import RULE_ATTR, Code, Scheduled, Target
from greencc.targets.memory import OVERWRITES_ATTR, place_tensors
from greencc.targets.tir import i64, substitute, walk


@dataclass(frozen=True)
class Kernel:
    """A kernel of a module that isn't scheduled yet.

    Attributes:
        func: the PrimFunc; its last parameters are its results.
        constants: indices of parameters that are compile-time constants.
        results: how many parameters are results.
    """

    func: tirx.PrimFunc
    constants: frozenset[int]
    results: int

    @property
    def operands(self) -> tuple[int, ...]:
        """Indices of the parameters that are neither constants nor results."""
        return tuple(i for i in range(len(self.func.params) - self.results) if i not in self.constants)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the sizes that are known at run time only, in the order of the parameters."""
        return tuple(dict.fromkeys(var.name for var in _symbols(self.func)))

    def problem(self) -> str | None:
        """Why it can't run alone, or None."""
        operands = {i: self.func.params[i] for i in self.operands}
        if not all(hasattr(param.ty, "shape") for param in self.func.params):
            return "it takes a number"
        plain = {dim for param in operands.values() for dim in param.ty.shape if isinstance(dim, tirx.Var)}
        if any(symbol not in plain for symbol in _symbols(self.func)):
            return "a size is no dimension of an operand"
        return None

    def shape(self, parameter: int, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape of a parameter where symbols have these sizes."""
        symbols = {var: i64(sizes[var.name]) for var in _symbols(self.func)}
        analyzer = tvm.sym.Analyzer()
        dims = (substitute(dim, symbols) for dim in self.func.params[parameter].ty.shape)
        return tuple(int(analyzer.simplify(dim)) for dim in dims)


@dataclass(frozen=True)
class Alone:
    """A program of one kernel. Its entry takes the operands, then the weights of each launch.

    Attributes:
        code: what the target built.
        weights: of one launch, as they lie in memory.
        copies: how often it launches the kernel.
    """

    code: Code
    weights: tuple[np.ndarray, ...]
    copies: int


def build_alone(
    kernel: Kernel, scheduled: Scheduled, target: Target, constants: dict[int, np.ndarray], copies: int
) -> Alone:
    """The program of a kernel.

    Args:
        kernel: what is computed.
        scheduled: how.
        target: what to build for.
        constants: logical arrays of the parameters that are constants.
        copies: how often the program launches the kernel.

    Raises:
        GreenccError, TVMError: it can't be built.
    """
    weights = {
        i: array if scheduled.layouts.get(i) is None else scheduled.layouts[i].pack(array)
        for i, array in sorted(constants.items())
    }
    builder = relax.BlockBuilder()
    func = scheduled.func.with_attrs({RULE_ATTR: scheduled.rule, OVERWRITES_ATTR: list(scheduled.overwrites)})
    gv = builder.add_func(func, "kernel")
    params = kernel.func.params
    # Symbols of a function's signature are its own.
    renamed = {var: tirx.Var(var.name, "int64") for var in _symbols(kernel.func)}

    def of(index: int) -> relax.TensorType:
        ty = params[index].ty
        return relax.TensorType([substitute(dim, renamed) for dim in ty.shape], str(ty.dtype))

    operands = {i: relax.Var(f"x{i}", of(i)) for i in kernel.operands}
    sets = [
        {i: relax.Var(f"w{i}_{copy}", relax.TensorType(a.shape, str(a.dtype))) for i, a in weights.items()}
        for copy in range(copies)
    ]
    inputs = len(params) - kernel.results
    made = [of(i) for i in range(inputs, len(params))]
    with builder.function("main", [*operands.values(), *(var for own in sets for var in own.values())]):
        with builder.dataflow():
            for own in sets:
                args = [operands[i] if i in operands else own[i] for i in range(inputs)]
                out = builder.emit(relax.call_tir(gv, args, made))
            parts = [relax.TupleGetItem(out, i) for i in range(kernel.results)] if kernel.results > 1 else [out]
            result = builder.emit_output(relax.Tuple([builder.emit(part) for part in parts]))
        builder.emit_func_output(result)
    placed = place_tensors(builder.get(), target.alignment)
    return Alone(target.build(placed.module), tuple(weights.values()), copies)


def _symbols(func: tirx.PrimFunc) -> list[tirx.Var]:
    found = [
        node
        for param in func.params
        for dim in getattr(param.ty, "shape", ())
        for node in walk(dim)
        if isinstance(node, tirx.Var)
    ]
    return list(dict.fromkeys(found))
