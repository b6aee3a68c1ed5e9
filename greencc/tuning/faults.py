"""What goes wrong where candidates are built and run: everything that code of others may raise, told in a line."""

from __future__ import annotations

from greencc.errors import GreenccError

FAULTS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    OSError,
    MemoryError,
    GreenccError,
)
"""TVM's errors are RuntimeErrors, but for those that it names like Python's."""


def one_line(error: BaseException) -> str:
    """The last line of an error's text, which is the one that says what was wrong."""
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):
        return "out of memory"
    text = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    name = "" if isinstance(error, GreenccError) else f"{type(error).__name__}: "
    return f"{name}{text}"[:300]
