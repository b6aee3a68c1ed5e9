"""What a target hands to the artifact writer: machine code, weights, and what is known about both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
"""A numpy array of any of the element types that an artifact may hold."""

DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
)  # fmt: skip
"""Element types of inputs, outputs and weights, by their numpy names."""

ARITHMETIC = ("float32", "int8")
"""What a kernel's products are computed with; its limit is the machine's rate of these."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input, an output or a weight.

    Attributes:
        name: the model's own name for it.
        dtype: numpy name, one of `DTYPES`.
        shape: a dimension is an integer, a symbol's name, or (outputs only) an expression in symbols.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class KernelCall:
    """One launch of a kernel and the source model's nodes that it computes.

    Attributes:
        kernel: function name in the machine code; layers of one shape share kernels.
        nodes: names of the nodes in the user's model.
        operations: arithmetic operations that the computation needs (a multiply-add is 2): an integer, or an
            expression in symbols; None where that is unknown.
        bytes: what it has to read and write at least, likewise.
        arithmetic: what it computes with, one of `ARITHMETIC`.
    """

    kernel: str
    nodes: tuple[str, ...]
    operations: int | str | None = None
    bytes: int | str | None = None
    arithmetic: str = "float32"


@dataclass(frozen=True)
class Compiled:
    """A model compiled for one target.

    Attributes:
        library: a shared object; its `vm_load_executable` gives a VM whose `main(inputs..., weights...)`
            returns a tuple of tensors, one for each of `outputs`.
        weights: contiguous arrays by name, in call order.
        inputs: the user's inputs, in call order.
        outputs: the outputs, in the order of the returned tuple.
        symbols: bounds (lowest, highest or None) of every symbol that a shape names.
        target: `kind`, `mcpu`, `features` (instruction sets the code needs, by LLVM's names),
            `threads` (None for the machine's own count) and `triple`; of a GPU its `gpu`, what it can do.
        calls: kernel launches of one run, in order.
        report: what the compiler did, for people and scripts; nothing in it may vary between two
            compilations of the same model (no times, no paths).
        kernels: what a GPU runs, by name of the member: those of `greencc.artifact.manifest.KERNELS` for the kind.
    """

    library: bytes
    weights: Mapping[str, Array]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, tuple[int, int | None]]
    target: Mapping[str, object]
    calls: tuple[KernelCall, ...]
    report: Mapping[str, object]
    kernels: Mapping[str, bytes] = field(default_factory=dict)
