"""Kernels in tensor expressions: what Relax has no operator for, or one whose semantics differ from ONNX's.

In the graph they all are calls of one operator, `greencc.kernel`: its attribute `kernel` names an entry of
`KERNELS`, `options` holds the entry's keyword arguments as JSON, its last argument is a ShapeExpr with
further sizes (symbolic ones too). The result type is that of the tensor expression itself, so a kernel is
written once and can't disagree with its type.
"""

from greencc.kernels.base import KERNEL, Kernel, kernel_name, kernel_options
from greencc.kernels.calls import kernel, legalize
from greencc.kernels.table import KERNELS

__all__ = ["KERNEL", "KERNELS", "Kernel", "kernel", "kernel_name", "kernel_options", "legalize"]
