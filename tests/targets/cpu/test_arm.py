"""Artifacts for another architecture, run: cross-compiled code under QEMU with TVM's runtime libraries for aarch64.

The program that runs it (arm/runner.cpp) is cross-compiled as well; there is no Python on the other side.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from benchmarks import cache
from benchmarks.bert_onnx import BertSize, random_onnx
from greencc import UserError, api, load
from greencc.artifact.format import read_artifact
from greencc.targets.library import find_linker

TRIPLE = "aarch64-linux-gnu"
COMPILER, EMULATOR, SYSTEM = f"{TRIPLE}-g++", "qemu-aarch64", f"/usr/{TRIPLE}"
SMALL = BertSize(layers=2, hidden=64, heads=4, feed_forward=96, vocabulary=50, positions=64)
BATCH, LENGTH = 2, 13
SHAPES = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (BATCH, LENGTH))
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}

# CI says what must be there: then a missing tool is a failure, not a skip.
REQUIRED = "emulator" in os.environ.get("GREENCC_TESTS_REQUIRE", "").split(",")
needs_emulator = pytest.mark.skipif(
    not REQUIRED and (shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None),
    reason=f"{COMPILER} or {EMULATOR} is missing (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


def runtime_libraries() -> Path:
    """Folder with libtvm_runtime.so and libtvm_ffi.so for aarch64, of the installed versions."""
    packages = {name: importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")}
    wanted = {"libtvm_runtime.so", "libtvm_ffi.so"}

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as wheels:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            platform = ["--platform", "manylinux_2_28_aarch64", "--dest", wheels]
            requirements = [f"{name}=={version}" for name, version in packages.items()]
            subprocess.run([*command, *platform, *requirements], check=True)
            for wheel in Path(wheels).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    for member in archive.namelist():
                        if Path(member).name in wanted:
                            (folder / Path(member).name).write_bytes(archive.read(member))
        missing = wanted - {path.name for path in folder.iterdir()}
        assert not missing, f"the wheels hold no {', '.join(missing)}"

    return cache.entry(f"runtime-aarch64-{cache.key([json.dumps(packages, sort_keys=True)])}", fill)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cross-compiled runner."""
    import tvm_ffi

    path = tmp_path_factory.mktemp("runner") / "runner"
    libraries = runtime_libraries()
    include = Path(tvm_ffi.__file__).parent / "include"
    source = Path(__file__).parent / "arm" / "runner.cpp"
    link = [f"-L{libraries}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", f"-Wl,-rpath,{libraries}"]
    subprocess.run([COMPILER, "-std=c++17", f"-I{include}", str(source), "-o", str(path), *link], check=True)
    return path


def target_file(folder: Path, cpu: str, features: list[str]) -> str:
    path = folder / "arm.json"
    path.write_text(json.dumps({"kind": "cpu", "triple": TRIPLE, "cpu": cpu, "features": features, "threads": 2}))
    return str(path)


def run(program: Path, artifact: Path, inputs: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Outputs of an artifact under the emulator."""
    whole = read_artifact(artifact)
    lines = []
    arrays = [*(inputs[spec.name] for spec in whole.manifest.inputs), *whole.weights.values()]
    for i, array in enumerate(arrays):
        (folder / f"argument{i}").write_bytes(np.ascontiguousarray(array).tobytes())
        sizes = " ".join(map(str, array.shape))
        lines.append(f"{folder}/argument{i} {_KINDS[array.dtype.kind]} {array.dtype.itemsize * 8} {sizes}")
    (folder / "arguments").write_text("\n".join(lines) + "\n")
    emulated = [EMULATOR, "-cpu", "max", "-L", SYSTEM]
    command = [*emulated, str(program), str(whole.code), str(folder / "arguments"), str(folder)]
    subprocess.run(command, check=True, timeout=300)
    return {
        spec.name: np.frombuffer((folder / str(i)).read_bytes(), spec.dtype).reshape([int(dim) for dim in spec.shape])
        for i, spec in enumerate(whole.manifest.outputs)
    }


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SMALL.vocabulary, (BATCH, LENGTH))
    mask = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH // 2]])
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}


@needs_emulator
@pytest.mark.network
def test_an_encoder_in_float32(program: Path, tmp_path: Path) -> None:
    model = random_onnx(SMALL)
    target = target_file(tmp_path, "neoverse-n1", ["neon", "dotprod"])
    api.compile(model, tmp_path / "a", target=target, shapes=SHAPES)
    inputs = batch()
    got = run(program, tmp_path / "a", inputs, tmp_path)["last_hidden_state"]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(got, np.asarray(session.run(None, inputs)[0]), atol=1e-4, rtol=0)


@needs_emulator
@pytest.mark.network
@pytest.mark.parametrize(("cpu", "features"), [("neoverse-n1", ["dotprod"]), ("neoverse-v1", ["dotprod", "i8mm"])])
def test_an_encoder_in_int8(program: Path, cpu: str, features: list[str], tmp_path: Path) -> None:
    """The same bytes and scales as on this machine: what differs is the order of float sums around the products."""
    model = random_onnx(SMALL)
    # Calibration runs here, whatever the target is.
    options: dict[str, Any] = {"shapes": SHAPES, "quantize": "int8-all", "calib": [batch()]}
    api.compile(model, tmp_path / "arm", target=target_file(tmp_path, cpu, ["neon", *features]), **options)
    api.compile(model, tmp_path / "here", **options)
    inputs = batch()
    got = run(program, tmp_path / "arm", inputs, tmp_path)["last_hidden_state"]
    want = load(tmp_path / "here")(inputs)["last_hidden_state"]
    assert np.linalg.norm(got - want) <= 0.01 * np.linalg.norm(want)
    kinds = [call.arithmetic for call in read_artifact(tmp_path / "arm").manifest.calls]
    assert kinds.count("int8") == 4 * SMALL.layers


def convolutions(path: Path) -> Path:
    """A 3 x 3 filter with padding, whose zero point is not 0, and a strided one by words that are not full."""
    rng = np.random.default_rng(0)
    shapes = {"a": (24, 16, 3, 3), "b": (10, 24, 1, 1), "c": (8, 10, 3, 3)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.1, name)
        for name, shape in shapes.items()
    ]
    graph = onnx.parser.parse_graph(
        "convolutions (float[2,16,13,9] x) => (float[2,8,7,5] y) {"
        " p = Conv<pads=[1,1,1,1]>(x, a) q = Relu(p) r = Conv(q, b) y = Conv<pads=[1,1,1,1], strides=[2,2]>(r, c) }"
    )
    graph.initializer.extend(weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@needs_emulator
@pytest.mark.network
@pytest.mark.parametrize(("cpu", "features"), [("neoverse-n1", ["dotprod"]), ("neoverse-v1", ["dotprod", "i8mm"])])
def test_convolutions_in_int8(program: Path, cpu: str, features: list[str], tmp_path: Path) -> None:
    """The same sums as on this machine, whether bytes have a sign or not."""
    model = convolutions(tmp_path / "convolutions.onnx")
    options: dict[str, Any] = {"passes": "quantize-int8{min-weights=1,measure=false}"}
    api.compile(model, tmp_path / "arm", target=target_file(tmp_path, cpu, ["neon", *features]), **options)
    api.compile(model, tmp_path / "here", **options)
    inputs = {"x": np.random.default_rng(1).standard_normal((2, 16, 13, 9)).astype(np.float32) + np.float32(0.5)}
    got = run(program, tmp_path / "arm", inputs, tmp_path)["y"]
    want = load(tmp_path / "here")(inputs)["y"]
    assert np.linalg.norm(got - want) <= 0.01 * np.linalg.norm(want)
    kinds = [call.arithmetic for call in read_artifact(tmp_path / "arm").manifest.calls]
    assert kinds.count("int8") == 3


def test_a_missing_linker_is_named() -> None:
    with pytest.raises(UserError, match="riscv64-linux-gnu-g"):
        find_linker("riscv64-linux-gnu")
