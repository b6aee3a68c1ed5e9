"""Where a kernel's buffers lie: storage buffers with views of several types, shared memory, registers.

A storage buffer is declared once for every type that it is read or written as; the declarations share a binding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from greencc.targets.vulkan.emitter.types import Element


@dataclass
class Line:
    """A line of the shader; one that turns out to be needed only later is empty until then."""

    depth: int
    text: str = ""


@dataclass
class Binding:
    """A storage buffer parameter.

    Attributes:
        index: its binding.
        name: of the parameter, unique in the kernel.
        views: GLSL types of elements that it is accessed as.
    """

    index: int
    name: str
    bytes: int | None = None
    is_read: bool = False
    is_written: bool = False
    views: set[str] = field(default_factory=set)

    @property
    def access(self) -> str:
        """read, write or readwrite."""
        return ("read" if self.is_read or not self.is_written else "") + ("write" if self.is_written else "")

    def view(self, glsl: str) -> str:
        """The array of elements of a GLSL type."""
        self.views.add(glsl)
        return f"{self.name}_{glsl}"

    def declarations(self, is_coherent: bool) -> list[str]:
        """The blocks that declare its views."""
        words = {"read": ["readonly"], "write": ["writeonly"]}.get(self.access, ["coherent"] if is_coherent else [])
        # Never `restrict`: its views overlap, and the memory plan lets a result take an operand's place.
        qualifiers = "".join(f"{word} " for word in words)
        return [
            f"layout(set = 0, binding = {self.index}, std430) {qualifiers}buffer B_{self.name}_{view} "
            f"{{ {view} {self.name}_{view}[]; }};"
            for view in sorted(self.views)
        ]


@dataclass
class Array:
    """An array in shared memory or in registers.

    Attributes:
        name: unique in the kernel.
        count: number of elements.
        is_shared: whether the threads of a workgroup share it.
        lanes: of an element; TVM makes arrays of vectors of what is accessed in whole vectors only.
        is_packed: whether its elements are as wide as in a storage buffer, not as in registers.
    """

    name: str
    count: int
    is_shared: bool
    lanes: int = 1
    is_packed: bool = False


@dataclass
class Fragment:
    """Parts of matrices that a subgroup holds together.

    Attributes:
        count: number of elements of all fragments.
        use: whether they are factors or sums, in GLSL's words.
        declaration: the line that declares them once their size is known.
        glsl: their type, empty until then.
    """

    name: str
    count: int
    use: str
    declaration: Line
    glsl: str = ""


@dataclass
class Memory:
    """A buffer of the kernel: where it lies, and as what."""

    place: Binding | Array | Fragment
    element: Element
