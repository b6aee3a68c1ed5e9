"""An artifact run by a C++ program without Python."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import greencc
from greencc.artifact.format import read_artifact
from greencc.runtime.vulkan import find_sidecar

pytestmark = pytest.mark.vulkan

_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner, linked with TVM's runtime libraries only."""
    path = tmp_path_factory.mktemp("runner") / "runner"
    folders = []
    for package in ("tvm", "tvm_ffi"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folders.append(Path(spec.origin).parent)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(folders[1] / "include")]
    libraries = [flag for folder in folders for flag in (f"-L{folder}/lib", f"-Wl,-rpath,{folder}/lib")]
    link = ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-ldl"]
    source = Path(__file__).parent / "runner.cpp"
    subprocess.run([*command, str(source), "-o", str(path), *libraries, *link], check=True)
    return path


def network(path: Path) -> Path:
    """Two layers, an output in the middle, rows of any number."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w": (64, 128), "b": (128,), "v": (128, 32)}
    graph = onnx.parser.parse_graph(
        "network (float[N,64] x) => (float[N,32] y, float[N,128] h)"
        " { p = MatMul(x, w) q = Add(p, b) h = Relu(q) r = MatMul(h, v) y = Softmax(r) }"
    )
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_an_artifact_without_python(program: Path, tmp_path: Path) -> None:
    model = network(tmp_path / "network.onnx")
    artifact = tmp_path / "artifact"
    greencc.compile(model, artifact, target="vulkan", dynamic={"N": (1, 64)})
    for rows in (7, 64):
        x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
        (tmp_path / "x").write_bytes(x.tobytes())
        (tmp_path / "inputs").write_text(f"{tmp_path}/x {_KINDS['f']} 32 {rows} 64\n")
        done = subprocess.run(
            [str(program), str(find_sidecar()), str(artifact), str(tmp_path / "inputs"), str(tmp_path)],
            env={**os.environ, "GREENCC_VULKAN_VALIDATION": "sync"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        statistics, messages = (json.loads(line) for line in done.stdout.splitlines())
        assert messages == []
        assert (statistics["submits"], statistics["waits"]) == (1, 1)
        assert (statistics["uploads"], statistics["downloads"]) == (1, 2)
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        outputs = read_artifact(artifact).manifest.outputs
        for i, (spec, want) in enumerate(zip(outputs, session.run([o.name for o in outputs], {"x": x}), strict=True)):
            got = np.frombuffer((tmp_path / str(i)).read_bytes(), spec.dtype).reshape(want.shape)
            np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
