"""int8 with ranges from calibration data, from an ONNX file to an artifact's outputs, against numpy integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc import UserError, api, cli, load
from greencc.observers import OBSERVERS, Histogram
from greencc.passes.stored import quantize_channels

CHANNELS, SIZE, FILTERS, UNITS = 4, 6, 8, 10
DEPTH = FILTERS * SIZE * SIZE
PASSES = "fold-constants,prune-dead-nodes,quantize-int8{{measure=false,min-weights=1,ranges={},correct-bias={}}}"


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"filters": (FILTERS, CHANNELS, 3, 3), "w": (DEPTH, UNITS), "b": (UNITS,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def images(count: int, seed: int) -> np.ndarray:
    """Images whose values have tails."""
    return np.random.default_rng(seed).standard_t(4, (count, CHANNELS, SIZE, SIZE)).astype(np.float32) + 0.5


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution with a border, then a product with a bias."""
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w"], ["m"], "product"),
        helper.make_node("Add", ["m", "b"], ["y"], "bias"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, UNITS])
    constants = [numpy_helper.from_array(array, name) for name, array in weights().items()]
    graph = helper.make_graph(nodes, "network", [x], [y], constants)
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def windows(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


def hidden(x: np.ndarray) -> np.ndarray:
    """What the product reads, in single precision."""
    return np.maximum(np.einsum("ncyxrs,kcrs->nkyx", windows(x), weights()["filters"]), 0).reshape(len(x), -1)


def levels(x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.float32]:
    """Levels above the zero point, and what one is worth."""
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / float(scale))
    return np.clip(np.rint(x * (np.float32(1) / scale) + np.float32(zero)), 0, 255).astype(np.int64) - int(zero), scale


def simulated(x: np.ndarray, ranges: dict[str, tuple[float, float]]) -> np.ndarray:
    known = weights()
    (filters, a), (w, b) = quantize_channels(known["filters"], 0), quantize_channels(known["w"], 1)
    q, scale = levels(x, *ranges["conv"])
    sums = np.einsum("ncyxrs,kcrs->nkyx", windows(q), filters.astype(np.int64)).astype(np.float32)
    made = np.maximum(sums * (scale * a)[:, None, None], 0).reshape(len(x), -1)
    q, scale = levels(made, *ranges["product"])
    return (q @ w.astype(np.int64)).astype(np.float32) * (scale * b) + known["b"]


def compiled(model: Path, folder: Path, calib: Any, ranges: str, correct: str = "false") -> dict[str, Any]:
    report: dict[str, Any] = api.compile(model, folder, passes=PASSES.format(ranges, correct), calib=calib)
    return next(item for item in report["passes"] if item["name"] == "quantize-int8")


def test_min_max_is_what_numpy_simulates(network: Path, tmp_path: Path) -> None:
    seen, new = images(20, seed=1), images(5, seed=2)
    np.savez(tmp_path / "seen.npz", x=seen)
    report = compiled(network, tmp_path / "a", tmp_path / "seen.npz", "min-max")
    ranges = {item["node"]: (item["low"], item["high"]) for item in report["ranges"]}
    assert [item["observer"] for item in report["ranges"]] == ["min-max"] * 2
    assert ranges["conv"] == (seen.min(), seen.max())
    np.testing.assert_allclose(ranges["product"], (0, hidden(seen).max()), rtol=1e-6)
    model = load(tmp_path / "a")
    got = np.concatenate([model({"x": x[None]})["y"] for x in new])
    np.testing.assert_allclose(got, simulated(new, ranges), rtol=1e-6, atol=1e-5)


def test_an_observer_sees_what_an_iterator_gave_once(network: Path, tmp_path: Path) -> None:
    seen = images(400, seed=1)
    report = compiled(network, tmp_path / "a", ({"x": x[None]} for x in seen), "mse")
    found = {item["node"]: (item["observer"], item["low"], item["high"]) for item in report["ranges"]}
    conv, product = Histogram(), Histogram()
    conv.add(seen)
    product.add(hidden(seen))
    assert found["conv"] == ("mse", *OBSERVERS["mse"].range_of(conv))
    np.testing.assert_allclose(found["product"][1:], OBSERVERS["mse"].range_of(product), rtol=1e-5)
    assert found["conv"][2] < seen.max() - 0.1


def test_corrected_means_are_closer_to_those_of_single_precision(network: Path, tmp_path: Path) -> None:
    seen = np.abs(images(40, seed=1))
    runs = [{"x": x[None]} for x in seen]
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    wanted = np.mean([session.run(None, run)[0] for run in runs], axis=0)
    distances = {}
    for correct in ("false", "true"):
        # Five bits, so that the error of weights is the one that shows.
        passes = f"quantize-int8{{measure=false,min-weights=1,epsilon=0.15,correct-bias={correct}}}"
        api.compile(network, tmp_path / "a", passes=passes, calib=runs)
        model = load(tmp_path / "a")
        mean = np.mean([model(run)["y"] for run in runs], axis=0)
        distances[correct] = float(np.linalg.norm(mean - wanted) / np.linalg.norm(wanted))
    assert distances["true"] < 0.5 * distances["false"], distances


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "int8"}, "--observer mse: give inputs to find ranges on with --calib"),
        ({"calib": [{}]}, "--observer mse: it finds the ranges of --quantize int8"),
        ({"quantize": "int8", "calib": [{}], "observer": "median"}, "--observer median: unknown; known: min-max"),
        ({"quantize": "int8", "calib": [{"z": np.zeros(1)}]}, "run 0: the model's input 'x' is missing"),
        ({"quantize": "int8", "calib": iter([])}, "there is no sample"),
    ],
)
def test_requests_that_can_not_be_met(network: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        api.compile(network, tmp_path / "a", **({"observer": "mse"} | options))
    assert not (tmp_path / "a").exists()


def status(command: list[str]) -> int:
    """Exit status of the command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("use", [("--quantize", "int8"), ("--prune", "channels=0.5"), ("--max-drop", "0.1")])
def test_bad_data_are_one_line_in_every_use(
    network: Path, tmp_path: Path, use: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad.npz"
    bad = images(40, seed=3)
    bad[7, 1, 2, 3] = np.nan
    cases = {
        "'x' has NaN or infinity in sample 7": {"x": bad},
        "'z' is no input of the model": {"x": images(40, seed=3), "z": np.zeros(40)},
        "'x' is float32[40, 4, 6, 5]": {"x": images(40, seed=3)[..., :5]},
        "'x' is float64": {"x": images(40, seed=3).astype(np.float64)},
        "'x' is empty": {"x": images(0, seed=3)},
        "the model's input 'x' is missing": {"label.x": np.zeros(40)},
        "the arrays have different numbers of samples": {"x": images(40, seed=3), "label.y": np.zeros(39)},
    }
    for words, arrays in cases.items():
        np.savez(data, **arrays)
        command = ["compile", str(network), "-o", str(tmp_path / "a"), "--calib", str(data), *use]
        assert status(command) == 2
        problem = capfd.readouterr().err.strip().splitlines()[-1]
        assert f"--calib {data}: {words}" in problem, problem
        assert not (tmp_path / "a").exists()


def test_the_command_line_hands_the_observer_on(
    network: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", str(network), "-o", str(tmp_path / "a"), "--quantize", "int8", "--observer"]
    assert status([*command, "mse"]) == 2
    assert "--observer mse: give inputs to find ranges on with --calib" in capfd.readouterr().err
    assert status([*command, "median"]) == 2
    assert "'median' is not one of" in capfd.readouterr().err
