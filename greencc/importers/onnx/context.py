"""What a converter sees of one node: its inputs, attributes and the means to build its replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from tvm import relax

from greencc.importers.onnx.reader import node_label, tensor_array
from greencc.importers.onnx.values import Dim, Value, as_dim
from greencc.ir import constant

if TYPE_CHECKING:
    from greencc.importers.onnx.walker import GraphWalker

Result: TypeAlias = "relax.Expr | Value | Sequence[relax.Expr | Value]"
Converter: TypeAlias = "Callable[[NodeContext], Result]"


class Refused(Exception):
    """A node that can't be converted; the message is the reason that the user reads."""


class NodeContext:
    """One node on its way into Relax.

    Attributes:
        node: the ONNX node.
        inputs: its input values; None where an optional input is left out.
        op, domain, opset: operator type, domain ("" is the default one) and that domain's version in the model.
        label: the name by which the node is reported.
    """

    def __init__(self, walker: GraphWalker, node: onnx.NodeProto, inputs: list[Value | None]) -> None:
        self.walker = walker
        self.node = node
        self.inputs = inputs
        self.op = node.op_type
        self.domain = "" if node.domain == "ai.onnx" else node.domain
        self.opset = walker.opsets.get(self.domain, 0)
        self.label = node_label(node)
        self._attributes = {attribute.name: attribute for attribute in node.attribute}

    # -- inputs --------------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """Input `index`, which must be given."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Refused(f"input {index} is missing")
        return value

    def tensor(self, index: int) -> relax.Expr:
        """Input `index` as a tensor expression."""
        return self.walker.tensor(self.value(index), self.label)

    def constant(self, index: int) -> np.ndarray:
        """Contents of input `index`, which must be a compile-time constant."""
        value = self.value(index)
        if not value.is_constant or value.known is None:
            raise Refused(f"input {index} ('{value.name}') must be a constant")
        return value.known

    def dims(self, index: int) -> list[Dim]:
        """Contents of a one-dimensional integer input: integers, or TIR expressions of the symbolic dimensions."""
        value = self.value(index)
        if value.known is None:
            raise Refused(f"input {index} ('{value.name}') depends on data; it must follow from shapes")
        return [as_dim(item) for item in value.known.reshape(-1).tolist()]

    def ints(self, index: int) -> list[int]:
        """Contents of an integer input, which must be plain numbers."""
        return [int(item) for item in self.constant(index).reshape(-1)]

    def shape(self, index: int) -> list[Dim]:
        """Dimensions of input `index`, which must be known (they may be symbolic)."""
        shape = self.value(index).shape
        if shape is None:
            raise Refused(f"the shape of input {index} ('{self.value(index).name}') is unknown")
        return shape

    def rank(self, index: int) -> int:
        """Number of dimensions of input `index`."""
        return len(self.shape(index))

    def axis(self, name: str = "axis", default: int = 0, *, rank: int | None = None) -> int:
        """A non-negative axis from attribute `name`, checked against `rank` (default: input 0's)."""
        limit = self.rank(0) if rank is None else rank
        axis = int(self.attr(name, default))
        if not -limit <= axis < max(limit, 1):
            raise Refused(f"{name} {axis} is outside of rank {limit}")
        return axis % limit if limit else 0

    # -- attributes ----------------------------------------------------------------------------------------

    def has_attr(self, name: str) -> bool:
        """Whether the node sets attribute `name`."""
        return name in self._attributes

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute `name` as a Python value (str, int, float, list, numpy array, or graph), else `default`."""
        attribute = self._attributes.get(name)
        if attribute is None:
            return default
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, onnx.TensorProto):
            return tensor_array(self.walker.importer.file.path, value)
        if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            return list(value)
        if attribute.type == onnx.AttributeProto.STRINGS:
            return [item.decode("utf-8", "replace") for item in value]
        return value

    # -- results -------------------------------------------------------------------------------------------

    def emit(self, expr: relax.Expr, hint: str = "v") -> relax.Var:
        """Bind a call to a fresh variable; it carries this node's name."""
        return self.walker.emit(expr, self.label, hint)

    def const(self, value: Any, dtype: str) -> relax.Expr:
        """A constant tensor expression."""
        return constant(np.asarray(value, dtype=dtype))

    def as_values(self, result: Result) -> list[Value]:
        """A converter's result as values: expressions that aren't variables or constants are bound."""
        items = list(result) if isinstance(result, (list, tuple)) else [result]
        # A value that is passed through is copied: it gets another name here, and keeps its own elsewhere.
        return [replace(item) if isinstance(item, Value) else Value("", self._bound(item)) for item in items]

    def refuse(self, reason: str) -> Refused:
        """The exception to raise when the node can't be converted: `raise ctx.refuse("...")`."""
        return Refused(reason)

    def _bound(self, expr: relax.Expr) -> relax.Expr:
        return self.emit(expr) if isinstance(expr, (relax.Call, relax.TupleGetItem)) else expr
