"""The ONNX node suite as files: generated once by the onnx package, kept in a cache folder outside the tree.

Some operators take their shapes, axes or counts as inputs. A compiler needs those at compile time;
`bind_controls` makes such inputs constants, and the suite counts the cases that needed it apart.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.cache import entry

# Inputs that say how to compute and not what: operator -> input positions (shapes, axes, counts, sizes).
CONTROL_INPUTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "STFT": (1, 3),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}


@dataclass(frozen=True)
class Case:
    """One case of the suite.

    Attributes:
        name: the onnx package's name, "test_...".
        op: operator under test; "Op (expanded)" for a case that spells the operator's function body.
        folder: holds model.onnx, input_N.pb, output_N.pb.
        rtol, atol: tolerances for floating-point outputs.
        tensors: whether every input and output is a tensor of numbers.
    """

    name: str
    op: str
    folder: Path
    rtol: float
    atol: float
    tensors: bool

    def inputs(self) -> list[np.ndarray]:
        """Input arrays, in the order of the graph's inputs."""
        return self._arrays("input")

    def outputs(self) -> list[np.ndarray]:
        """Expected arrays, in the order of the graph's outputs."""
        return self._arrays("output")

    def _arrays(self, kind: str) -> list[np.ndarray]:
        count = len(list(self.folder.glob(f"{kind}_*.pb")))
        files = (self.folder / f"{kind}_{index}.pb" for index in range(count))
        return [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]


def cache_folder() -> Path:
    """Where generated cases and the peer's results are kept; the first call generates them."""
    return entry(f"node-suite-{onnx.__version__}", _generate)


def load_cases() -> list[Case]:
    """All cases, sorted by name."""
    folder = cache_folder()
    rows = json.loads((folder / "index.json").read_text())
    return [Case(folder=folder / row["name"], **row) for row in rows]


def bind_controls(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[str]:
    """Turn the graph inputs that feed control inputs into initializers, in place; their names."""
    producers = {name: node for node in model.graph.node for name in node.output}
    given = {info.name: array for info, array in zip(model.graph.input, inputs, strict=False)}
    wanted = [
        node.input[position]
        for node in model.graph.node
        for position in CONTROL_INPUTS.get(node.op_type, ())
        if position < len(node.input)
    ]
    bound: dict[str, None] = {}
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        if name in given:
            bound[name] = None
        elif name in producers and producers[name].op_type not in ("Shape", "Size"):
            wanted.extend(producers[name].input)
    # An array of real data is never a control input, whatever it flows into; one without elements has none.
    names = [name for name, array in given.items() if (name in bound and array.size <= 64) or not array.size]
    kept = [info for info in model.graph.input if info.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(given[name]), name) for name in names)
    return names


def _generate(folder: Path) -> None:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = sorted(load_model_tests(kind="node"), key=lambda case: case.name)
    operators = {case.name: case.model.graph.node[0].op_type for case in cases if len(case.model.graph.node) == 1}
    rows = []
    for case in cases:
        here = folder / case.name
        here.mkdir(parents=True, exist_ok=True)
        (here / "model.onnx").write_bytes(case.model.SerializeToString())
        inputs, outputs = case.data_sets[0]
        is_tensor = all(_write(here / f"input_{i}.pb", value) for i, value in enumerate(inputs))
        is_tensor = all([_write(here / f"output_{i}.pb", value) for i, value in enumerate(outputs)]) and is_tensor
        base = case.name.split("_expanded")[0]
        expanded = " (expanded)" if base != case.name else ""
        op = operators.get(base) or case.model.graph.node[0].op_type
        rows.append(
            {
                "name": case.name,
                "op": op + expanded,
                "rtol": case.rtol,
                "atol": case.atol,
                "tensors": is_tensor,
            }
        )
    (folder / "index.json").write_text(json.dumps(rows, indent=0))


def _write(path: Path, value: object) -> bool:
    """Store a tensor; False for sequences, optionals and strings, which greencc has no inputs of."""
    if isinstance(value, onnx.TensorProto):
        path.write_bytes(value.SerializeToString())
        return True
    if value is None or isinstance(value, (list, dict)):
        return False
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "US":
        return False
    path.write_bytes(numpy_helper.from_array(array).SerializeToString())
    return True
