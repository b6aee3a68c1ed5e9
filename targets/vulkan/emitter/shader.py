"""What the emitter makes of a kernel: its source, and what a launch has to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BufferParameter:
    """A storage buffer.

    Attributes:
        access: read, write or readwrite.
        bytes: its size, None when it is known at run time only.
    """

    access: str
    bytes: int | None

    def entry(self) -> dict[str, object]:
        """How kernels.json lists it."""
        return {"kind": "buffer", "access": self.access, "bytes": self.bytes}


@dataclass(frozen=True)
class ScalarParameter:
    """A number, in a slot of eight bytes.

    Attributes:
        dtype: its type; what is narrower than 32 bits is passed as an int32 or uint32, float16 as a float32.
        is_index: whether the shader holds it in 32 bits, so that a launch must refuse what doesn't fit.
    """

    dtype: str
    is_index: bool

    def entry(self) -> dict[str, object]:
        """How kernels.json lists it."""
        return {"kind": "scalar", "type": self.dtype, "is_index": self.is_index}


@dataclass(frozen=True)
class Shader:
    """A compute shader.

    Attributes:
        source: GLSL.
        parameters: in the order of the kernel's arguments.
        launch: tags of the arguments that follow them: extents of the grid, and of the workgroup.
        workgroup: threads along x, y and z.
        requires: optional features of the device, sorted.
        subgroup: the size of a subgroup that it was made for, None when it depends on none.
        shared_bytes: memory that a workgroup shares.
        scalars_in_uniform: whether the scalars are in a uniform buffer, because they don't fit the push constants.
    """

    source: str
    parameters: tuple[BufferParameter | ScalarParameter, ...]
    launch: tuple[str, ...]
    workgroup: tuple[int, int, int]
    requires: tuple[str, ...]
    subgroup: int | None
    shared_bytes: int
    scalars_in_uniform: bool

    def entry(self) -> dict[str, object]:
        """How kernels.json lists it, without the place of its code."""
        return {
            "parameters": [parameter.entry() for parameter in self.parameters],
            "launch": list(self.launch),
            "workgroup": list(self.workgroup),
            "requires": list(self.requires),
            "subgroup": self.subgroup,
            "shared_bytes": self.shared_bytes,
            "scalars_in_uniform": self.scalars_in_uniform,
        }
