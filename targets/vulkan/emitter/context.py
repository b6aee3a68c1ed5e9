"""What the parts of the emitter share while they write one kernel: its lines, names, variables and memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tvm import sym, tirx

from greencc.errors import GreenccError, UserError
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.vulkan.emitter.bounds import Bounds
from greencc.targets.vulkan.emitter.memory import Line, Memory
from greencc.targets.vulkan.emitter.types import Element, element

_SIMPLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|-?[0-9]+u?l?|\(-[0-9]+l?\)|[0-9.]+(e[+-][0-9]+)?|\w+\.[xyzw]")


@dataclass
class Variable:
    """A variable of the kernel.

    Attributes:
        lanes: GLSL names of its lanes; of an int64 the ones that hold it in 32 bits, if some do.
        wide: gives the name of the int64 of a lane; None where the value fits 32 bits.
        narrow: gives the name of the int of a lane, which may have to be declared first.
    """

    lanes: tuple[str, ...] = ()
    wide: Callable[[int], str] | None = None
    narrow: Callable[[int], str] | None = None


@dataclass
class Context:
    """The state of one kernel's emission."""

    kernel: str
    gpu: Capabilities
    requires: set[str] = field(default_factory=set)
    helpers: set[tuple[str, str]] = field(default_factory=set)
    variables: dict[tirx.Var, Variable] = field(default_factory=dict)
    bounds: dict[tirx.Var, Bounds] = field(default_factory=dict)
    memory: dict[tirx.Var, Memory] = field(default_factory=dict)
    analyzer: sym.Analyzer = field(default_factory=sym.Analyzer)
    lines: list[Line] = field(default_factory=list)
    depth: int = 1
    uses_barrier: bool = False
    _names: set[str] = field(default_factory=set)
    _known: list[dict[object, str]] = field(default_factory=lambda: [{}])

    def fail(self, reason: str) -> GreenccError:
        """The error that says why this kernel can't be emitted."""
        return GreenccError(f"vulkan: kernel '{self.kernel}': {reason}")

    def element(self, dtype: str) -> Element:
        """How this device holds a type; what its registers require is noted."""
        found = element(dtype, self.gpu.has_float16)
        if found.is_wide:
            self.need("int64")
        elif found.dtype == "float64":
            self.need("float64")
        elif found.register == "float16_t":
            self.need("float16")
        return found

    def need(self, feature: str) -> None:
        """Note that the kernel needs an optional feature of the device.

        Raises UserError when the device lacks it: the model needs another one.
        """
        missing = {"int64": not self.gpu.has_int64, "float64": not self.gpu.has_float64}
        if missing.get(feature, False):
            words = {"int64": "64-bit integers", "float64": "double precision"}
            raise UserError(f"--target vulkan: kernel '{self.kernel}' needs {words[feature]}, which the device lacks")
        self.requires.add(feature)

    def name(self, hint: str) -> str:
        """A new name. The prefix keeps it apart from GLSL's words and from the emitter's own."""
        clean = re.sub(r"[\W_]+", "_", f"v_{hint}", flags=re.ASCII).rstrip("_")
        found, count = clean, 0
        while found in self._names:
            count += 1
            found = f"{clean}_{count}"
        self._names.add(found)
        return found

    def helper(self, name: str, kind: str = "") -> str:
        """The name of a function of the library, which is defined in the shader from then on."""
        self.helpers.add((name, kind))
        return name

    def emit(self, text: str) -> None:
        """Add a line."""
        self.lines.append(Line(self.depth, text))

    def reserve(self) -> Line:
        """Add a line to be written later, or never."""
        line = Line(self.depth)
        self.lines.append(line)
        return line

    @contextmanager
    def nested(self) -> Iterator[None]:
        """One level deeper, for the body of a statement; what is known inside is forgotten behind."""
        self.depth += 1
        self._known.append({})
        try:
            yield
        finally:
            self._known.pop()
            self.depth -= 1

    @contextmanager
    def statement(self) -> Iterator[None]:
        """One statement: values that it loaded aren't used by the next."""
        outer, self._known = self._known, [{}]
        try:
            yield
        finally:
            self._known = outer

    @contextmanager
    def captured(self) -> Iterator[list[Line]]:
        """Lines that are emitted meanwhile, for what is evaluated under a condition."""
        outer, self.lines = self.lines, []
        self._known.append({})
        self.depth += 1
        try:
            yield self.lines
        finally:
            self.depth -= 1
            self._known.pop()
            self.lines = outer

    def once(self, key: object, make: Callable[[], str]) -> str:
        """What `make` gave for this key before in this statement, where that was evaluated in any case."""
        for known in self._known:
            if key in known:
                return known[key]
        made = make()
        self._known[-1][key] = made
        return made

    def temporary(self, register: str, code: str, hint: str = "t") -> str:
        """A variable that holds a value; the value itself if it is a name or a number."""
        if _SIMPLE.fullmatch(code):
            return code

        def declare() -> str:
            name = self.name(hint)
            self.emit(f"{register} {name} = {code};")
            return name

        return self.once((register, code), declare)
