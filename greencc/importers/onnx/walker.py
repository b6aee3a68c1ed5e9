"""Walks an ONNX graph node by node and builds the Relax module.

For every node, in order of preference: fold it (all inputs constant: the onnx package's reference evaluates the
single node), carry it symbolically (shape arithmetic), convert it (the converter tables of `convert/`), or expand
the function body that the ONNX schema gives for it. Whatever is left is unsupported; all such nodes are reported
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import tvm
from tvm import relax

from greencc.errors import GreenccError, ModelError, UnsupportedNode, UnsupportedOperators
from greencc.importers.base import Imported
from greencc.importers.onnx import folding, shape_arithmetic
from greencc.importers.onnx.agreement import ImpliedFact, settle
from greencc.importers.onnx.context import NodeContext, Refused
from greencc.importers.onnx.convert import CONVERTERS
from greencc.importers.onnx.functions import function_body, has_function_body
from greencc.importers.onnx.reader import OnnxFile, read_onnx, subgraphs, tensor_array
from greencc.importers.onnx.symbols import Implied, Symbols
from greencc.importers.onnx.values import SUPPORTED, Value, bounded
from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR, constant, with_span


def import_onnx(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
) -> Imported:
    """Import an ONNX file.

    Args:
        path: the .onnx file; external data are looked for in its folder only.
        shapes: fixed shapes by input name.
        dynamic: inclusive bounds by dimension name; the dimension stays symbolic.

    Raises:
        ModelError: the file is damaged or describes something impossible.
        UnsupportedOperators: some nodes can't be imported (all are listed).
        UserError: `shapes` or `dynamic` do not fit the model.
    """
    file = read_onnx(Path(path))
    implied = Implied()
    while True:
        symbols = Symbols(file.path, dict(shapes or {}), dict(dynamic or {}), implied)
        try:
            return _build(file, symbols)
        except ImpliedFact as fact:
            if not implied.learn(fact.symbol, fact.limit, fact.other):
                raise GreenccError(f"{path}: '{fact}' is learnt again; please report it") from fact


def _build(file: OnnxFile, symbols: Symbols) -> Imported:
    """The module, with what `symbols` settles about the inputs. Raises ImpliedFact when dimensions are related."""
    importer = ModuleBuilder(file)
    constants = {tensor.name for tensor in file.model.graph.initializer}
    params = symbols.parameters([info for info in file.model.graph.input if info.name not in constants])
    values = {param.name: Value(param.name, param) for param in params}
    walker = GraphWalker(importer, file.model.graph, values)
    with bounded(symbols.ranges()):
        outputs = walker.run()
        if importer.unsupported:
            raise UnsupportedOperators(str(file.path), tuple(importer.unsupported))
        names = [output.name for output in file.model.graph.output]
        results = []
        for value, name in zip(outputs, names, strict=True):
            try:
                results.append(walker.tensor(value, name))
            except Refused as refusal:
                opset = file.opsets.get("", 0)
                importer.unsupported.append(UnsupportedNode(name, "output", "", opset, str(refusal)))
        if importer.unsupported:
            raise UnsupportedOperators(str(file.path), tuple(importer.unsupported))
    attrs: dict[str, Any] = {INPUTS_ATTR: [param.name for param in params], OUTPUTS_ATTR: names}
    lower, upper = symbols.bounds()
    if lower:
        attrs[SYMBOL_LOWER_ATTR] = lower
    if upper:
        attrs[SYMBOL_UPPER_ATTR] = upper
    importer.add_function("main", walker.function(params, results).with_attrs(attrs), private=False)
    module = relax.transform.ConvertToDataflow(1)(importer.module)
    return Imported(module, file.nodes, file.edges, file.path.name, file.sha256)


class ModuleBuilder:
    """The module under construction, shared by the walkers of the main graph and of nested graphs."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.module = tvm.IRModule({})
        self.unsupported: list[UnsupportedNode] = []
        self._names: dict[str, int] = {}

    def add_function(self, name: str, function: relax.Function, *, private: bool) -> tvm.ir.GlobalVar:
        """Add a Relax function under a unique name."""
        self._names[name] = count = self._names.get(name, 0) + 1
        unique = name if count == 1 else f"{name}_{count}"
        if not private:
            function = function.with_attr("global_symbol", unique)
        gv = tvm.ir.GlobalVar(unique)
        relax.expr._update_type(gv, function.ty)  # calls of it are typed by this
        self.module.update_func(gv, function)
        return gv


class GraphWalker:
    """Converts one graph. `values` maps names to what is known of them; it is extended as nodes are converted."""

    def __init__(self, importer: ModuleBuilder, graph: onnx.GraphProto, values: dict[str, Value]) -> None:
        self.importer = importer
        self.graph = graph
        self.values = values
        self.opsets = importer.file.opsets  # a function body may be written for other versions than the model
        self._bindings: list[relax.VarBinding] = []
        self._normalizer = relax.BlockBuilder()

    # -- building ------------------------------------------------------------------------------------------

    def emit(self, expr: relax.Expr, node: str, hint: str = "v") -> relax.Var:
        """Bind `expr`, carrying the node's name, to a fresh variable."""
        if isinstance(expr, relax.Call):
            expr = settle(self, expr)
        value = self._normalizer.normalize(with_span(expr, node))
        var = relax.Var(hint, value.ty)
        self._bindings.append(relax.VarBinding(var, value))
        return var

    def emit_typed(self, expr: relax.Expr, ty: relax.Type, hint: str = "v") -> relax.Var:
        """Bind an expression whose type is known better than inference would find (an If loses symbolic sizes)."""
        var = relax.Var(hint, ty)
        self._bindings.append(relax.VarBinding(var, expr))
        return var

    def emit_cast(self, expr: relax.Expr, ty: relax.Type, hint: str = "v") -> relax.Var:
        """Assert at run time that `expr` has the type `ty` (which shape inference couldn't prove)."""
        var = relax.Var(hint, ty)
        self._bindings.append(relax.MatchCast(var, expr, ty))
        return var

    def tensor(self, value: Value, node: str) -> relax.Expr:
        """The value as a tensor expression; constants and symbolic integers are materialised once."""
        if value.expr is None:
            if value.known is None:
                raise Refused(f"'{value.name}' is no tensor")
            if value.is_constant:
                if value.dtype not in SUPPORTED:
                    raise Refused(f"'{value.name}' holds {value.dtype}, which greencc does not compute with")
                if not value.known.size:
                    raise Refused(f"'{value.name}' has no elements; code generation has no such constants")
                value.expr = constant(value.known)
            else:
                value.expr = shape_arithmetic.materialize(self, value, node)
        return value.expr

    def function(self, params: Sequence[relax.Var], results: Sequence[relax.Expr]) -> relax.Function:
        """The Relax function of what was converted so far; it returns a tuple of `results`."""
        result = relax.Var("result", self._normalizer.normalize(relax.Tuple(list(results))).ty)
        bindings = [*self._bindings, relax.VarBinding(result, relax.Tuple(list(results)))]
        body = self._normalizer.normalize(relax.SeqExpr([relax.BindingBlock(bindings)], result))
        return relax.Function(list(params), body, result.ty, is_pure=True)

    # -- walking -------------------------------------------------------------------------------------------

    def run(self) -> list[Value]:
        """Convert every node; the graph's outputs. After an unsupported node, what depends on it is skipped."""
        path = self.importer.file.path
        for tensor in self.graph.initializer:
            self.values[tensor.name] = Value(tensor.name, known=tensor_array(path, tensor))
        for sparse in self.graph.sparse_initializer:
            self.values[sparse.values.name] = Value(sparse.values.name, known=folding.dense_array(path, sparse))
        for node in self.graph.node:
            self.convert(node)
        if self.importer.unsupported:
            return []
        return [self.values[output.name] for output in self.graph.output]

    def convert(self, node: onnx.NodeProto) -> None:
        """Convert one node and record its outputs."""
        inputs = [self.values.get(name) if name else None for name in node.input]
        if any(name and value is None for name, value in zip(node.input, inputs, strict=True)):
            self._report_unknown(NodeContext(self, node, inputs))
            return  # depends on an unsupported node, which is reported already
        context = NodeContext(self, node, inputs)
        try:
            outputs = self._results(context)
        except Refused as refusal:
            self._refuse(context, str(refusal))
            return
        except ModelError:
            raise
        except (RuntimeError, GreenccError, ValueError, TypeError, LookupError, AttributeError) as error:
            self._refuse(context, f"conversion failed: {_one_line(error)}")
            return
        for name, value in zip(node.output, outputs, strict=False):
            if name and value.known is None and 0 in [dim for dim in value.shape or [] if isinstance(dim, int)]:
                self._refuse(context, f"'{name}' has no elements: there is nothing to compute")
                return
            if name:
                value.name = name
                self.values[name] = value

    def _results(self, context: NodeContext) -> Sequence[Value]:
        folded = folding.fold(context)
        if folded is not None:
            return folded
        carried = shape_arithmetic.carry(context)
        if carried is not None:
            return carried
        converter = CONVERTERS.get((context.domain, context.op))
        if converter is not None:
            return context.as_values(converter(context))
        body = function_body(context)
        if body is not None:
            return self._inline(context, body)
        raise Refused("no converter for this operator")

    def _inline(self, context: NodeContext, body: onnx.FunctionProto) -> Sequence[Value]:
        """Convert the function body that stands for a node; its nodes carry the outer node's name."""
        outer, opsets = self.values, self.opsets
        given = [*context.inputs, *[None] * (len(body.input) - len(context.inputs))]
        absent = {name for name, value in zip(body.input, given, strict=True) if value is None}
        self.values = {name: v for name, v in zip(body.input, given, strict=True) if v is not None}
        imports = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in body.opset_import}
        self.opsets = {**opsets, **imports}
        try:
            for inner in folding.bind_attributes(body, context.node):
                inner.name = context.label
                for index, name in enumerate(inner.input):
                    if name in absent:
                        inner.input[index] = ""
                before = len(self.importer.unsupported)
                self.convert(inner)
                if len(self.importer.unsupported) > before:
                    reason = self.importer.unsupported.pop().reason
                    raise Refused(f"its definition needs {inner.op_type}: {reason}")
            pairs = list(zip(context.node.output, body.output, strict=False))
            missing = [inner for name, inner in pairs if name and inner not in self.values]
            if missing:
                raise Refused(f"its definition leaves '{missing[0]}' undefined here")
            return [self.values[inner] if name else Value("") for name, inner in pairs]
        finally:
            self.values, self.opsets = outer, opsets

    def _report_unknown(self, context: NodeContext) -> None:
        """Report an operator that nothing handles, though its inputs are missing: the list is to be complete."""
        key = (context.domain, context.op)
        if key not in CONVERTERS and not shape_arithmetic.handles(*key) and not folding.handles(*key):
            if not has_function_body(context):
                self._refuse(context, "no converter for this operator")
            return
        for graph in subgraphs(context.node):
            inner = GraphWalker(self.importer, graph, {})
            for node in graph.node:
                inner._report_unknown(NodeContext(inner, node, []))

    def _refuse(self, context: NodeContext, reason: str) -> None:
        self.importer.unsupported.append(
            UnsupportedNode(context.label, context.op, context.domain, context.opset, reason)
        )


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[-1] if text else type(error).__name__)[:200]
