"""Builds small Relax functions, lowers them with greencc's own stages, and runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import tvm
from tvm import relax

from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR
from greencc.targets.cpu.target import CpuTarget, host_target
from greencc.targets.lower import Lowered, lower
from greencc.verification import Library

Body = Callable[..., "relax.Expr | list[relax.Expr]"]


@cache
def host() -> CpuTarget:
    return host_target(2)


@cache
def targets() -> tuple[CpuTarget, ...]:
    """The host, and the host without its widest vectors: both code paths are tested on either machine."""
    narrow = tuple(f for f in host().features if not f.startswith("avx512"))
    if narrow == host().features:
        return (host(),)
    return (host(), replace(host(), cpu="haswell", features=tuple(f for f in narrow if f != "avxvnni")))


def function(params: Mapping[str, tuple[tuple[object, ...], str]], body: Body) -> tvm.IRModule:
    """A module whose main computes `body(emit, *params)`; shapes may hold tirx variables."""
    variables = [relax.Var(name, relax.TensorType(shape, dtype)) for name, (shape, dtype) in params.items()]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            results = body(builder.emit, *variables)
            fields = results if isinstance(results, list) else [results]
            result = builder.emit_output(relax.Tuple([builder.emit(field) for field in fields]))
        builder.emit_func_output(result)
    module = builder.get()
    names = {INPUTS_ATTR: list(params), OUTPUTS_ATTR: [f"y{i}" for i in range(len(fields))]}
    module.update_func(module.get_global_var("main"), module["main"].with_attrs(names))
    return module


class Runner:
    """A lowered and built module that can be called several times."""

    def __init__(self, module: tvm.IRModule, target: CpuTarget | None = None) -> None:
        self.target = target or host()
        self.lowered: Lowered = lower(module, self.target)
        self._library = self.target.build(self.lowered.module)

    @property
    def rules(self) -> set[str]:
        """Names of the schedule rules that were chosen."""
        return set(self.lowered.rules.values())

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return Library(self._library, self.lowered.weights)(list(arrays))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Reproducible standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
