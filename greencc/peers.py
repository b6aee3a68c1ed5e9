"""Other runtimes on the same model, thread count and inputs: what `bench --vs` compares with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from greencc.artifact.bundle import Array
from greencc.errors import UserError

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Peer:
    """A runtime with the model loaded.

    Attributes:
        name: as `--vs` spells it.
        version: of its package.
        outputs: names of the outputs that `run` returns.
        run: runs the model once on the inputs that it was opened with.
    """

    name: str
    version: str
    outputs: tuple[str, ...]
    run: Callable[[], Outputs]


def open_peer(
    name: str, model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int
) -> Peer:
    """Load `model` in the runtime called `name`.

    Args:
        name: a key of `PEERS`.
        model: an .onnx file.
        inputs: arrays by input name; those that the peer's model does not have are left out.
        outputs: the artifact's outputs; the peer computes those that its model has too.
        threads: how many threads it may use.

    Raises:
        UserError: the runtime is unknown, not installed, or can't run the model on these inputs.
    """
    if name not in PEERS:
        raise UserError(f"--vs {name}: unknown runtime; known: {', '.join(PEERS)}")
    missing = missing_packages(name)
    if missing:
        raise UserError(f"--vs {name}: not installed: pip install {' '.join(missing)}")
    if model.suffix != ".onnx":
        raise UserError(f"--vs {name}: {model} is not an .onnx file: name one with --model FILE.onnx")
    if not model.is_file():
        raise UserError(f"--vs {name}: there is no file {model}")
    try:
        return PEERS[name](model, inputs, outputs, threads)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign runtime raises
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--vs {name}: {name} can't run {model}: {first_line[:300]}") from error


def missing_packages(name: str) -> list[str]:
    """What must be installed before the runtime called `name` can be opened."""
    needed = [name.partition("-")[0], *_ALSO_NEEDED.get(name, ())]
    return [package for package in needed if find_spec(package) is None]


def _open_onnxruntime(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = _common(model, outputs, [output.name for output in session.get_outputs()])
    feed = _feed(model, inputs, [value.name for value in session.get_inputs()])

    def run() -> Outputs:
        return dict(zip(names, session.run(list(names), feed), strict=True))

    return Peer("onnxruntime", package_version("onnxruntime"), names, run)


_ALSO_NEEDED = {"torch": ("onnx2torch",)}
"""What a runtime needs besides the package that it is named after."""

APPROXIMATE_PEERS = ("onnxruntime-int8",)
"""Peers whose outputs differ by design."""


def _open_onnxruntime_int8(
    model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int
) -> Peer:
    """ONNX Runtime on the model that its own tool makes with dynamic quantisation, all settings at their defaults.

    The tool looks for weights among initializers only. Where it doesn't find them, ONNX Runtime folds constants first.
    """
    quantization = import_module("onnxruntime.quantization")
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / model.name
        root.setLevel(logging.ERROR)  # the tool advises on the root logger
        try:
            quantization.quantize_dynamic(model, quantized)
        except ValueError:
            quantization.quantize_dynamic(_folded(model, Path(folder) / "folded.onnx"), quantized)
        finally:
            root.setLevel(level)
        return replace(_open_onnxruntime(quantized, inputs, outputs, threads), name="onnxruntime-int8")


def _folded(model: Path, file: Path) -> Path:
    """`file`, where ONNX Runtime wrote the model with its constants folded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return file


def _open_openvino(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    openvino = import_module("openvino")
    core = openvino.Core()
    network: Any = core.read_model(str(model))
    feed = _feed(model, inputs, [port.get_any_name() for port in network.inputs])
    network.reshape({name: list(array.shape) for name, array in feed.items()})
    # Single precision, as greencc computes: on some CPUs OpenVINO would take bfloat16 by itself.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(network, "CPU", settings)
    ports = {name: port for port in compiled.outputs for name in port.get_names()}
    names = _common(model, outputs, list(ports))
    request = compiled.create_infer_request()

    def run() -> Outputs:
        results = request.infer(feed)
        return {name: np.asarray(results[ports[name]]) for name in names}

    return Peer("openvino", package_version("openvino"), names, run)


def _open_torch(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    """torch.compile, at its defaults, on the module that onnx2torch makes of the model."""
    torch = import_module("torch")
    whole = import_module("onnx").load(model)
    wanted = [value for value in whole.graph.input if value.name in inputs]
    del whole.graph.input[:]  # old files list weights too
    whole.graph.input.extend(wanted)
    feed = _feed(model, inputs, [value.name for value in wanted])
    made = [value.name for value in whole.graph.output]
    names = _common(model, outputs, made)
    torch.set_num_threads(threads)
    compiled = torch.compile(import_module("onnx2torch").convert(whole).eval())
    tensors = [torch.from_numpy(np.array(array)) for array in feed.values()]

    def run() -> Outputs:
        with torch.inference_mode():
            results = compiled(*tensors)
        found = dict(zip(made, results if isinstance(results, (list, tuple)) else [results], strict=True))
        return {name: found[name].numpy() for name in names}

    run()  # this compiles it
    return Peer("torch", package_version("torch"), names, run)


def _common(model: Path, ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name for name in ours if name in theirs)
    if not names:
        raise UserError(
            f"{model} has none of the artifact's outputs ({', '.join(ours)}): "
            "name the model that it was compiled from with --model"
        )
    return names


def _feed(model: Path, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise UserError(f"{model} takes input {missing[0]!r}, which the artifact does not have")
    return {name: inputs[name] for name in wanted}


PEERS: dict[str, Callable[[Path, Mapping[str, Array], Sequence[str], int], Peer]] = {
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-int8": _open_onnxruntime_int8,
    "openvino": _open_openvino,
    "torch": _open_torch,
}
"""Every runtime that `bench --vs` knows, by the name of its package, and behind a dash a way to use it."""
