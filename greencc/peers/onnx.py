"""Runtimes that read .onnx files."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from greencc.artifact.bundle import Array
from greencc.peers.base import Outputs, Peer, common_outputs, inputs_for


def open_onnxruntime(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    """ONNX Runtime, at its defaults."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = common_outputs(model, outputs, [output.name for output in session.get_outputs()])
    feed = inputs_for(model, inputs, [value.name for value in session.get_inputs()])

    def run() -> Outputs:
        return dict(zip(names, session.run(list(names), feed), strict=True))

    return Peer("onnxruntime", package_version("onnxruntime"), names, run)


def open_onnxruntime_int8(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
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
        return replace(open_onnxruntime(quantized, inputs, outputs, threads), name="onnxruntime-int8")


def _folded(model: Path, file: Path) -> Path:
    """`file`, where ONNX Runtime wrote the model with its constants folded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return file


def open_openvino(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    """OpenVINO, for the latency of single runs."""
    openvino = import_module("openvino")
    core = openvino.Core()
    network: Any = core.read_model(str(model))
    feed = inputs_for(model, inputs, [port.get_any_name() for port in network.inputs])
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
    names = common_outputs(model, outputs, list(ports))
    request = compiled.create_infer_request()

    def run() -> Outputs:
        results = request.infer(feed)
        return {name: np.asarray(results[ports[name]]) for name in names}

    return Peer("openvino", package_version("openvino"), names, run)


def open_torch(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    """torch.compile, at its defaults, on the module that onnx2torch makes of the model."""
    torch = import_module("torch")
    whole = import_module("onnx").load(model)
    wanted = [value for value in whole.graph.input if value.name in inputs]
    del whole.graph.input[:]  # old files list weights too
    whole.graph.input.extend(wanted)
    feed = inputs_for(model, inputs, [value.name for value in wanted])
    made = [value.name for value in whole.graph.output]
    names = common_outputs(model, outputs, made)
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx2torch indexes in ways that torch deprecates
        compiled = torch.compile(import_module("onnx2torch").convert(whole).eval())
    tensors = [torch.from_numpy(np.array(array)) for array in feed.values()]

    def run() -> Outputs:
        with torch.inference_mode():
            results = compiled(*tensors)
        found = dict(zip(made, results if isinstance(results, (list, tuple)) else [results], strict=True))
        return {name: found[name].numpy() for name in names}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()  # this compiles it
    return Peer("torch", package_version("torch"), names, run)
