"""Models on a Vulkan device as users run them: from the command line, from threads, many times."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import greencc
from benchmarks.bert_onnx import INPUTS, BertSize, random_onnx
from greencc import GreenccError, UserError, cli
from greencc.npz import read_npz, write_npz
from greencc.optimize import UnboundedWarning
from greencc.runtime import vulkan
from greencc.runtime.profile import device_work, profile

pytestmark = pytest.mark.vulkan

SMALL = BertSize(layers=1, hidden=32, heads=2, feed_forward=64, vocabulary=50, positions=32)
OTHER = BertSize(layers=2, hidden=48, heads=3, feed_forward=96, vocabulary=50, positions=32)
SIZES = {"batch": (1, 1), "sequence": (1, 32)}
Compiled = Callable[..., Any]


def sentence(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, 50, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def expected(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]
    return result


@pytest.fixture(scope="module")
def small(compiled: Compiled) -> Any:
    return compiled(random_onnx(SMALL), target="vulkan", dynamic=SIZES)


def output(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = next(iter(model(inputs).values()))
    return result


def test_a_run_is_one_submit_and_one_wait(small: Any) -> None:
    inputs = sentence(7)
    work = device_work(small, inputs)
    assert work is not None
    assert (work["submits"], work["waits"]) == (1, 1)
    assert (work["uploads"], work["downloads"], work["copies"]) == (3, 1, 0)
    assert work["upload_bytes"] == sum(array.nbytes for array in inputs.values())
    assert work["download_bytes"] == 7 * 32 * 4
    assert work["dispatches"] == len(small.artifact.manifest.calls)


def test_a_profile_has_the_devices_times_under_the_users_names(small: Any) -> None:
    launches = profile(small, sentence(7), runs=2)
    assert [launch.call for launch in launches] == list(small.artifact.manifest.calls)
    assert all(launch.milliseconds > 0 for launch in launches)


def test_a_thousand_runs_need_no_more_memory(small: Any) -> None:
    inputs = sentence(9)
    for _ in range(50):
        small(inputs)
    process = psutil.Process()
    resident, allocated = process.memory_info().rss, vulkan.statistics()["allocated_bytes"]
    for _ in range(1000):
        small(inputs)
    assert vulkan.statistics()["allocated_bytes"] == allocated
    assert process.memory_info().rss - resident < 8 << 20


def test_two_threads_run_two_models(small: Any, compiled: Compiled) -> None:
    other_path = random_onnx(OTHER)
    models = [(small, random_onnx(SMALL)), (compiled(other_path, target="vulkan", dynamic=SIZES), other_path)]
    problems: list[str] = []

    def work(model: Any, path: Path) -> None:
        for length in (3, 17, 32, 5):
            inputs = sentence(length, seed=length)
            want = expected(path, inputs)
            for _ in range(10):
                if not np.allclose(output(model, inputs), want, atol=1e-5):
                    problems.append(f"{path} at {length}")

    threads = [threading.Thread(target=work, args=pair) for pair in models * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_sizes_that_nothing_bounds_are_checked_as_they_come(tmp_path: Path) -> None:
    """A tensor that a kernel can't be given whole is refused, with the number. Models with bounds are as they were."""
    x, z = (make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1024]) for name in "xz")
    nodes = [make_node("Relu", ["x"], ["y"]), make_node("Add", ["y", "x"], ["z"])]
    onnx.save(make_model(make_graph(nodes, "g", [x], [z]), opset_imports=[make_opsetid("", 17)]), tmp_path / "m.onnx")
    greencc.compile(tmp_path / "m.onnx", tmp_path / "bounded", target="vulkan", dynamic={"rows": (1, 64)})
    with pytest.warns(UnboundedWarning):
        greencc.compile(tmp_path / "m.onnx", tmp_path / "a", target="vulkan")
    tables = [json.loads((tmp_path / name / "kernels.json").read_text()) for name in ("bounded", "a")]
    assert [table.get("unbounded") for table in tables] == [None, True]
    model = greencc.load(tmp_path / "a")
    largest = vulkan.devices()[0]["limits"]["max_buffer_bytes"] // 4096
    if largest > 1 << 16:
        pytest.skip("too large a tensor for a test")
    array = np.random.default_rng(0).standard_normal((largest + 1, 1024), np.float32)
    np.testing.assert_array_equal(output(model, {"x": array[1:]}), np.maximum(array[1:], 0) + array[1:])
    with pytest.raises(GreenccError, match=rf"{(largest + 1) * 4096} bytes .* can be given at most {largest * 4096}"):
        model(x=array)


def test_outputs_outlive_their_model(tmp_path: Path) -> None:
    path = random_onnx(SMALL)
    greencc.compile(path, tmp_path / "a", target="vulkan", shapes=dict.fromkeys(INPUTS, (1, 4)))
    inputs = sentence(4)
    before = vulkan.statistics()["allocated_bytes"]
    model = greencc.load(tmp_path / "a")
    result = output(model, inputs)
    del model
    np.testing.assert_allclose(result, expected(path, inputs), atol=1e-5)
    assert vulkan.statistics()["allocated_bytes"] == before


def test_the_command_line_from_model_to_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert caught.value.code == 0, captured.err
        return captured.out

    path, artifact, inputs = random_onnx(SMALL), tmp_path / "a", sentence(6)
    shapes = [f"--shape={name}=1,6" for name in INPUTS]
    report = json.loads(run("compile", path, "-o", artifact, "--target", "vulkan", "--verify", "--json", *shapes))
    assert report["max_abs_error"] < 1e-5
    assert report["target"]["kind"] == "vulkan"
    assert {file.name for file in artifact.iterdir()} >= {"kernels.json", "kernels.spv"}
    write_npz(tmp_path / "in.npz", inputs)
    run("run", artifact, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz", "--device", "vulkan:0")
    (got,) = read_npz(tmp_path / "out.npz").values()
    np.testing.assert_allclose(got, expected(path, inputs), atol=1e-5)
    assert "every byte" in run("verify", artifact)
    run("pack", artifact, "-o", tmp_path / "a.pack")
    run("run", tmp_path / "a.pack", "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out2.npz")
    (packed,) = read_npz(tmp_path / "out2.npz").values()
    np.testing.assert_array_equal(packed, got)
    bench = json.loads(run("bench", artifact, "--profile", "--repeat", "3", "--json"))
    assert bench["device"] == "vulkan:0"
    assert bench["device_work"]["waits"] == 1
    assert "dispatches" in run("bench", artifact, "--profile", "--repeat", "3")
    listed = json.loads(run("devices", "--json"))["devices"]
    assert any(device["kind"] == "vulkan" and device["limits"]["max_threads"] for device in listed)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("vulkan:9", "there is no such GPU"),
        ("cpu", "was compiled for vulkan"),
        ("cuda:0", "was compiled for vulkan"),
        ("vulkan:x", "--device vulkan:x: write"),
    ],
)
def test_a_wrong_device_is_refused(small: Any, device: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        greencc.load(small.artifact.path, device=device)
