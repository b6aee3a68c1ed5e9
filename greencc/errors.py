"""Every error that greencc raises on purpose, and the exit status each one means on the command line."""

from __future__ import annotations

from dataclasses import dataclass


class GreenccError(Exception):
    """A fault of greencc itself: a pass that broke the IR, a kernel that does not build.

    The message is one line that says what failed, where (node name, operator, file) and what to do.
    """

    exit_status = 1


class UserError(GreenccError):
    """The user's input or request is wrong. Nothing has been written.

    Names that come from files may hold anything: what can't be printed is escaped, so that a message stays one line.
    """

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ModelError(UserError):
    """A model file that can't be read: not ONNX, truncated, cyclic, or with absurd declarations."""


class ArtifactError(UserError):
    """An artifact that is damaged, of another version, or built for another machine."""


class InputError(UserError):
    """Arrays that do not fit the model's inputs: a missing name, another dtype, a shape out of bounds."""


class BudgetError(GreenccError):
    """No candidate fits the accuracy budget. Nothing has been written."""

    exit_status = 3


@dataclass(frozen=True)
class UnsupportedNode:
    """One node that the importer refuses.

    Attributes:
        node: the node's name in the source model (its first output's name when it has none).
        op: operator type.
        domain: operator domain, empty for the default ONNX domain.
        opset: version of that domain's operator set that the model imports.
        reason: what about this node is not supported.
    """

    node: str
    op: str
    domain: str
    opset: int
    reason: str

    def __str__(self) -> str:
        domain = self.domain or "ai.onnx"
        return f"{self.op} '{self.node}' ({domain} opset {self.opset}): {self.reason}"


class UnsupportedOperators(ModelError):
    """The model uses operators that can't be imported; all of them are listed at once."""

    def __init__(self, source: str, nodes: tuple[UnsupportedNode, ...]) -> None:
        self.nodes = nodes
        listing = "; ".join(str(node) for node in nodes)
        super().__init__(f"{source}: {len(nodes)} unsupported node(s): {listing}")
