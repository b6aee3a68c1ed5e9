"""`greencc inspect`: what is in a model file, a Hugging Face folder or an artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greencc.artifact.manifest import MANIFEST, Manifest
from greencc.artifact.pack import artifact_folder
from greencc.artifact.verify import read_manifest
from greencc.errors import ModelError, UserError


def inspect_path(path: Path) -> dict[str, object]:
    """Describe an artifact, an .onnx file or a Hugging Face folder; the key `kind` says which.

    Raises:
        UserError: the path is none of these.
        ModelError: the model file is damaged.
        ArtifactError: the artifact's manifest is damaged.
    """
    folder = artifact_folder(path)
    if (folder / MANIFEST).exists():
        return _inspect_artifact(path, read_manifest(folder))
    if (path / "config.json").exists():
        return _inspect_huggingface(path)
    if path.suffix == ".onnx":
        return _inspect_onnx(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    raise UserError(
        f"{path}: neither a greencc artifact ({MANIFEST}), nor an .onnx file, nor a Hugging Face folder (config.json)"
    )


def _inspect_artifact(path: Path, manifest: Manifest) -> dict[str, object]:
    return {
        "kind": "artifact",
        "name": path.name,
        "source": {"name": manifest.source.name, "sha256": manifest.source.sha256},
        "versions": dict(manifest.versions),
        "target": dict(manifest.target),
        "inputs": [_spec(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs],
        "outputs": [_spec(spec.name, spec.dtype, spec.shape) for spec in manifest.outputs],
        "symbols": {name: list(bounds) for name, bounds in manifest.symbols.items()},
        "weights": len(manifest.weights),
        "members": {name: member.bytes for name, member in manifest.members.items()},
        "kernels": len(manifest.calls),
        "calls": [{"kernel": call.kernel, "nodes": list(call.nodes)} for call in manifest.calls],
        "report": dict(manifest.report),
    }


def _inspect_onnx(path: Path) -> dict[str, object]:
    from greencc.importers.onnx.reader import read_onnx

    file = read_onnx(path)
    graph = file.model.graph
    constants = {tensor.name for tensor in graph.initializer}
    operators = Counter(_operators(graph))
    return {
        "kind": "onnx",
        "name": path.name,
        "sha256": file.sha256,
        "producer": f"{file.model.producer_name} {file.model.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": version for domain, version in file.opsets.items()},
        "inputs": [_onnx_value(value) for value in graph.input if value.name not in constants],
        "outputs": [_onnx_value(value) for value in graph.output],
        "nodes": file.nodes,
        "edges": file.edges,
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "bytes": path.stat().st_size,
    }


def _operators(graph: Any) -> Iterator[str]:
    """Operator names of all nodes, nested graphs included, Constants not; foreign domains spelled out."""
    from greencc.importers.onnx.reader import subgraphs

    for node in graph.node:
        if node.op_type != "Constant":
            yield node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for nested in subgraphs(node):
            yield from _operators(nested)


def _onnx_value(value: Any) -> dict[str, object]:
    from onnx import helper

    tensor = value.type.tensor_type
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError):  # a sequence, a map, or no type at all
        dtype = value.type.WhichOneof("value") or "unknown"
    if not tensor.HasField("shape"):
        return {"name": value.name, "dtype": dtype, "shape": None}
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return _spec(value.name, dtype, tuple(shape))


def _inspect_huggingface(path: Path) -> dict[str, object]:
    config = _json_object(path / "config.json")
    tensors: list[dict[str, object]] = []
    size = 0
    for file in sorted(path.glob("*.safetensors")):
        tensors += _safetensors_entries(file)
        size += file.stat().st_size
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    return {
        "kind": "huggingface",
        "name": path.resolve().name,
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "config": {key: config[key] for key in (*sizes, "max_position_embeddings") if key in config},
        "tensors": len(tensors),
        "parameters": sum(_elements(entry["shape"]) for entry in tensors),
        "dtypes": dict(Counter(str(entry["dtype"]) for entry in tensors)),
        "bytes": size,
    }


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: not a JSON object")
    return content


def _safetensors_entries(file: Path) -> list[dict[str, object]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118 (not a mapping)
            return [{"dtype": part.get_dtype(), "shape": part.get_shape()} for part in slices]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: not a readable safetensors file ({error})") from error


def _elements(shape: object) -> int:
    count = 1
    for dim in shape if isinstance(shape, list) else ():
        count *= dim
    return count


def _spec(name: str, dtype: str, shape: tuple[int | str, ...]) -> dict[str, object]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}
