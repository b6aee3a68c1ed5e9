"""The kernels that greencc emits itself, while a module is lowered."""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, relax, tirx

from greencc.targets.fusion import OPAQUE, PATTERN_ATTR


class EmittedKernels:
    """Each form is emitted once: in TVM's eyes two kernels in symbolic sizes are never equal.

    TVM would take one that stores a single value for an elementwise operator, and fuse what it can't read.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], tirx.PrimFunc] = {}

    def add(
        self, builder: relax.BlockBuilder, name: str, emit: Callable[..., tirx.PrimFunc], *args: object
    ) -> ir.GlobalVar:
        """The variable of `emit(*args)` in the module that `builder` builds; `args` are told apart by their text."""
        form = (emit, *(str(arg) for arg in args))
        if form not in self._made:
            # TVM takes some of them for elementwise operators, which fuse: but their loops are no blocks.
            kernel = emit(*args).without_attr("global_symbol")
            self._made[form] = kernel.with_attr(PATTERN_ATTR, OPAQUE)
        return builder.add_func(self._made[form], name)
