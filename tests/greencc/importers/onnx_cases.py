"""Many small ONNX graphs, compiled as one module and compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import numpy_helper
from tvm import relax

from greencc.errors import UnsupportedOperators
from greencc.importers.onnx import import_onnx
from greencc.kernels import legalize as legalize_kernel
from greencc.targets.cpu.legalize import legalize

# Sizes that named dimensions have when the cases run; every symbol has one size in all cases of a module.
SIZES = {"N": 2, "H": 7, "W": 9, "S": 5, "T": 6, "D": 8}


@dataclass(frozen=True)
class Case:
    """One graph in ONNX's text syntax: `(float[N,3] x) => (float y) { y = Relu(x) }`.

    Attributes:
        name: what it shows.
        text: the graph; named dimensions are symbolic.
        constants: initializers by name.
        feeds: inputs by name; the others are random.
        atol, rtol: tolerance for floating-point outputs; integers have to be equal.
        expected: outputs, where ONNX Runtime has no kernel for the graph.
    """

    name: str
    text: str
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    feeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    atol: float = 1e-5
    rtol: float = 1e-5
    expected: Sequence[np.ndarray] | None = None

    def graph(self) -> onnx.GraphProto:
        graph = onnx.parser.parse_graph(f"g_{_identifier(self.name)} {self.text}")
        for name, array in self.constants.items():
            graph.initializer.append(numpy_helper.from_array(array, name))
        return graph


def check(cases: Iterable[Case], folder: Path, *, opset: int, contrib: bool = False) -> None:
    """Compile all cases as one module and compare every output with ONNX Runtime's."""
    cases = list(cases)
    assert len({case.name for case in cases}) == len(cases)
    merged = onnx.GraphProto(name="cases")
    graphs = [_prefixed(case.graph(), f"c{index}_") for index, case in enumerate(cases)]
    for graph in graphs:
        for part in ("node", "input", "output", "initializer"):
            getattr(merged, part).extend(getattr(graph, part))
    model = graph_model(merged, opset, contrib)
    path = folder / "cases.onnx"
    onnx.save(model, path)
    module = import_onnx(path).module
    feeds = {}
    for index, (case, graph) in enumerate(zip(cases, graphs, strict=True)):
        rng = np.random.default_rng(index)
        for info in graph.input:
            feeds[info.name] = case.feeds.get(info.name.split("_", 1)[1], _random(info, rng))
    got = iter(run(module, [feeds[name] for name in module["main"].attrs["greencc.inputs"]]))
    wrong = []
    for case, graph in zip(cases, graphs, strict=True):
        ours = [next(got) for _ in graph.output]
        reference = case.expected if case.expected is not None else _reference(graph, feeds, opset, contrib)
        for a, b in zip(ours, reference, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                wrong.append(f"{case.name}: {a.dtype}{a.shape} instead of {b.dtype}{b.shape}")
            elif reason := _difference(a, b, case.rtol, case.atol):
                wrong.append(f"{case.name}: {reason}")
    assert not wrong, "\n".join(wrong)


def refusal(case: Case, folder: Path, *, opset: int, contrib: bool = False) -> str:
    """The reason with which the importer refuses the case's one unsupported node."""
    path = folder / "refused.onnx"
    onnx.save(graph_model(case.graph(), opset, contrib), path)
    with pytest.raises(UnsupportedOperators) as refused:
        import_onnx(path)
    (node,) = refused.value.nodes
    return node.reason


def run(module: tvm.IRModule, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a module compiled without schedules."""
    lowered = legalize(relax.transform.LegalizeOps({"greencc.kernel": legalize_kernel})(module))
    executable = tvm.compile(lowered, tvm.target.Target({"kind": "llvm", "opt-level": 1}))
    vm = relax.VirtualMachine(executable, tvm.cpu())
    return [output.numpy() for output in vm["main"](*[tvm.runtime.tensor(np.asarray(f, order="C")) for f in feeds])]


def _difference(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> str | None:
    exact = a.dtype.kind != "f"
    with np.errstate(invalid="ignore"):
        if np.allclose(a, b, 0 if exact else rtol, 0 if exact else atol, equal_nan=True):
            return None
        return f"max error {np.nanmax(np.abs(a.astype('f8') - b.astype('f8'))):.3g}"


def _reference(graph: onnx.GraphProto, feeds: Mapping[str, np.ndarray], opset: int, contrib: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        graph_model(graph, opset, contrib).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {info.name: feeds[info.name] for info in graph.input})


def graph_model(graph: onnx.GraphProto, opset: int, contrib: bool) -> onnx.ModelProto:
    opsets = [onnx.helper.make_opsetid("", opset)]
    if contrib:
        opsets.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _prefixed(graph: onnx.GraphProto, prefix: str) -> onnx.GraphProto:
    """All names of the graph (and of graphs nested in it) behind a prefix; named dimensions stay shared."""
    copy = onnx.GraphProto.FromString(graph.SerializeToString())
    for info in (*copy.input, *copy.output):
        info.name = prefix + info.name
    for tensor in copy.initializer:
        tensor.name = prefix + tensor.name
    for node in copy.node:
        node.name = prefix + (node.name or node.output[0])
        for names in (node.input, node.output):
            renamed = [prefix + name if name else "" for name in names]
            del names[:]
            names.extend(renamed)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                attribute.g.CopyFrom(_prefixed(attribute.g, prefix))
    return copy


def _random(info: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    tensor = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = [dim.dim_value if dim.HasField("dim_value") else SIZES[dim.dim_param] for dim in tensor.shape.dim]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    low, high = (-100, 100) if dtype == np.int8 else (0, 200) if dtype == np.uint8 else (0, 5)
    return rng.integers(low, high, shape).astype(dtype)


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
