"""What a module computes when nothing reads some channels: what it must compute when they are removed."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from greencc.ir import constant
from greencc.passes.channel_groups import trace_channels
from greencc.passes.graph import Graph, rebuild
from greencc.passes.prune_filters import PruneFilters, Tied


def masked(module: tvm.IRModule, fraction: float) -> tvm.IRModule:
    """The module as it is, but that no convolution or product reads the channels that `prune-filters` removes."""
    main = module["main"]
    arrays: dict[relax.Expr, np.ndarray] = {}
    for group in trace_channels(Graph(module, main)).groups():
        tied = Tied(group, None, fraction)
        if all(condition.holds(tied) for condition in PruneFilters.conditions):
            for reader in group.readers:
                weight = arrays.setdefault(reader.call.args[1], reader.weight.copy())
                np.moveaxis(weight, reader.axis, 0)[np.isin(reader.along.numbers, tied.gone)] = 0
    result = module.clone()
    constants = {expr: constant(array) for expr, array in arrays.items()}
    result.update_func(module.get_global_var("main"), rebuild(main, {}, owner="masked", constants=constants))
    return result
