"""Kernels written for GPUs, in place of those whose common form runs one step after the other."""

from __future__ import annotations

from tvm import relax

from greencc.kernels import KERNEL, kernel_name
from greencc.kernels import legalize as legalize_kernel
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.kernels.emit import GpuLowering
from greencc.targets.gpu.kernels.extremes import lower_arg_extreme, lower_position
from greencc.targets.gpu.kernels.powers import lower_power_of_integers
from greencc.targets.gpu.kernels.scan import lower_scan, lower_token_places, lower_token_starts
from greencc.targets.gpu.kernels.scatter import lower_relax_scatter_elements, lower_scatter_elements, lower_scatter_nd
from greencc.targets.gpu.kernels.sort import lower_top_k
from greencc.targets.lowerings import Lowering

GPU_KERNELS: dict[str, GpuLowering] = {
    "arg_extreme": lower_arg_extreme,
    "power_of_integers": lower_power_of_integers,
    "scan": lower_scan,
    "scatter_elements": lower_scatter_elements,
    "scatter_nd": lower_scatter_nd,
    "token_places": lower_token_places,
    "token_starts": lower_token_starts,
    "top_k": lower_top_k,
}
"""By the name of a kernel of `greencc.kernels`."""

_OPERATORS: dict[str, GpuLowering] = {
    "relax.argmax": lower_position(largest=True),
    "relax.argmin": lower_position(largest=False),
    "relax.scatter_elements": lower_relax_scatter_elements,
}


def kernel_lowerings(target: GpuTarget, kernels: EmittedKernels) -> dict[str, Lowering]:
    """Lowerings by name of the operator, for `relax.transform.LegalizeOps`."""

    def bound(lower: GpuLowering) -> Lowering:
        return lambda builder, call: lower(builder, call, target, kernels)

    def of_kernel(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        lower = GPU_KERNELS.get(kernel_name(call))
        return legalize_kernel(builder, call) if lower is None else lower(builder, call, target, kernels)

    return {KERNEL: of_kernel, **{name: bound(lower) for name, lower in _OPERATORS.items()}}
