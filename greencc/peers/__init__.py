"""Other runtimes on the same model, thread count and inputs: what `bench --vs` compares with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from greencc.artifact.bundle import Array
from greencc.errors import UserError
from greencc.peers.base import Outputs, Peer, Runtime
from greencc.peers.llama import open_llama
from greencc.peers.onnx import open_onnxruntime, open_onnxruntime_int8, open_openvino, open_torch

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime(open_onnxruntime, {"onnxruntime": "onnxruntime"}),
    "onnxruntime-int8": Runtime(open_onnxruntime_int8, {"onnxruntime": "onnxruntime"}, approximates=True),
    "openvino": Runtime(open_openvino, {"openvino": "openvino"}),
    "torch": Runtime(open_torch, {"torch": "torch", "onnx2torch": "onnx2torch"}),
    # Its activation functions are tables in half precision.
    "llama.cpp": Runtime(open_llama, {"llama_cpp": "llama-cpp-python"}, suffix=".gguf", approximates=True),
}
"""Every runtime that `bench --vs` knows."""


def open_peer(name: str, model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    """Load `model` in the runtime called `name`.

    Args:
        name: a key of `RUNTIMES`.
        model: a file of the kind that the runtime reads.
        inputs: arrays by input name; those that the peer's model does not have are left out.
        outputs: the artifact's outputs; the peer computes those that its model has too.
        threads: how many threads it may use.

    Raises:
        UserError: the runtime is unknown, not installed, or can't run the model on these inputs.
    """
    runtime = runtime_called(name)
    missing = missing_packages(name)
    if missing:
        raise UserError(f"--vs {name}: not installed: pip install {' '.join(missing)}")
    if model.suffix != runtime.suffix:
        kind = runtime.suffix
        article = "an" if kind == ".onnx" else "a"
        raise UserError(f"--vs {name}: {model} is not {article} {kind} file: name one with --model FILE{kind}")
    if not model.is_file():
        raise UserError(f"--vs {name}: there is no file {model}")
    try:
        return runtime.open(model, inputs, outputs, threads)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign runtime raises
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--vs {name}: {name} can't run {model}: {first_line[:300]}") from error


def runtime_called(name: str) -> Runtime:
    """The runtime that `--vs` calls `name`; a UserError lists the known ones."""
    if name not in RUNTIMES:
        raise UserError(f"--vs {name}: unknown runtime; known: {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def missing_packages(name: str) -> list[str]:
    """What must be installed before the runtime called `name` can be opened."""
    return [package for module, package in runtime_called(name).packages.items() if find_spec(module) is None]


__all__ = ["RUNTIMES", "Outputs", "Peer", "Runtime", "missing_packages", "open_peer", "runtime_called"]
