"""Models that ONNX Runtime's tools quantised run as integers, and give what ONNX Runtime gives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import greencc
from greencc.passes.registry import default_pipeline
from greencc.runtime.model import Model

SHAPE = (2, 3, 8, 8)
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (16, 8, 1, 1), "w3": (256, 32), "w4": (32, 16)}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions, pooling and products, all of them with what usually follows."""
    weights = {name: normal(*shape) / np.float32(np.prod(shape[1:]) ** 0.5) for name, shape in WEIGHTS.items()}
    biases = {f"b{i}": normal(size, seed=i) for i, size in ((1, 8), (2, 16), (3, 32))}
    lines = """
        c = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r = Relu(c)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        d = Conv(p, w2, b2)
        s = Relu(d)
        f = Flatten(s)
        g = Gemm(f, w3, b3)
        t = Relu(g)
        y = MatMul(t, w4)
    """
    graph = onnx.parser.parse_graph(f"net (float[2,3,8,8] x) => (float[2,16] y) {{ {lines} }}")
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in (weights | biases).items())
    for node in graph.node:
        node.name = node.output[0]
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = iter([{"x": normal(*SHAPE, seed=i)} for i in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The tools recommend preparations that have nothing to do with what is tested."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def compiled(path: Path) -> Model:
    greencc.compile(path, path.with_suffix(".artifact"))
    return greencc.load(path.with_suffix(".artifact"))


def by_onnx_runtime(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def assert_runs_in_integers(model: Model, products: int) -> None:
    """All products and convolutions ran in int8, and their weights take a byte each."""
    calls = model.artifact.manifest.calls
    integer = [call.kernel for call in calls if call.arithmetic == "int8"]
    assert len(integer) == products
    assert all("int8_matmul" in name or "int8_convolution" in name for name in integer)
    assert not any("conv2d" in call.kernel for call in calls)
    sizes = {array.dtype.name: 0 for array in model.artifact.weights.values()}
    for array in model.artifact.weights.values():
        sizes[array.dtype.name] += array.size
    count = sum(int(np.prod(shape)) for shape in WEIGHTS.values())
    narrow = sum(size for kind, size in sizes.items() if kind in ("int8", "int16"))  # packed with a few zeros
    assert count <= narrow <= 1.5 * count
    assert sizes.get("float32", 0) < 200


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("kind", "per_channel"), [(QuantType.QUInt8, True), (QuantType.QInt8, False)], ids=["uint8", "int8"]
)
def test_static_quantization(
    network: Path, tmp_path: Path, form: QuantFormat, kind: QuantType, per_channel: bool
) -> None:
    path = tmp_path / "model.onnx"
    quantize_static(
        network, path, Samples(), quant_format=form, per_channel=per_channel, activation_type=kind,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    model = compiled(path)
    assert_runs_in_integers(model, len(WEIGHTS))
    # Between the input and the output all is levels: pooling too.
    names = [call.kernel.rstrip("0123456789") for call in model.artifact.manifest.calls]
    assert names.count("quantize") == 1
    assert names.count("max_pool") == 1
    (scale,) = (
        numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer if tensor.name == "y_scale"
    )
    for seed in range(10, 16):
        x = normal(*SHAPE, seed=seed)
        (wanted,), got = by_onnx_runtime(path, {"x": x}), model({"x": x})["y"]
        # Outputs are levels times a scale, so that equal levels are equal values.
        if form == QuantFormat.QOperator:
            np.testing.assert_array_equal(got, wanted)
        else:
            # Sums in float32 round where integers don't: a tie may fall on the other side, in one of many values.
            levels = np.rint(got / scale) - np.rint(wanted / scale)
            assert np.abs(levels).max() <= 1
            assert np.count_nonzero(levels) <= 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization(network: Path, tmp_path: Path, per_channel: bool) -> None:
    path = tmp_path / "model.onnx"
    quantize_dynamic(network, path, weight_type=QuantType.QInt8, per_channel=per_channel)
    model = compiled(path)
    assert_runs_in_integers(model, len(WEIGHTS))
    for seed in range(10, 16):
        x = normal(*SHAPE, seed=seed)
        (wanted,) = by_onnx_runtime(path, {"x": x})
        np.testing.assert_allclose(model({"x": x})["y"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("activations", "weights", "w_zero"), [("uint8", "int8", 0), ("int8", "uint8", 128)])
def test_integer_operators_bit_for_bit(tmp_path: Path, activations: str, weights: str, w_zero: int) -> None:
    rng = np.random.default_rng(3)
    info = np.iinfo(weights)
    w, f = (rng.integers(info.min, info.max + 1, s).astype(weights) for s in ((30, 20), (6, 5, 3, 3)))
    za, zy = np.array(-7 if activations == "int8" else 120, activations), np.array(11, activations)
    sa, sw, sy = (np.float32(value) for value in (0.02, 0.013, 0.9))
    bias = rng.integers(-9999, 9999, 6).astype(np.int32)
    text = f"""net ({activations}[4,30] a, {activations}[2,5,7,9] i, {activations} z)
        => (int32[4,20] m, {activations}[4,20] q, int32[2,6,7,9] c, {activations}[2,6,7,9] r) {{
        m = MatMulInteger(a, w, z, zw)
        q = QLinearMatMul(a, sa, za, w, sw, zw, sy, zy)
        c = ConvInteger<pads=[1,1,1,1]>(i, f, z, zw)
        r = QLinearConv<pads=[1,1,1,1]>(i, sa, za, f, sw, zw, sy, zy, b)
    }}"""
    graph = onnx.parser.parse_graph(text)
    constants = {
        "w": w,
        "f": f,
        "zw": np.array(w_zero, weights),
        "za": za,
        "zy": zy,
        "sa": sa,
        "sw": sw,
        "sy": sy,
        "b": bias,
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    model = compiled(path)
    assert [call.arithmetic for call in model.artifact.manifest.calls].count("int8") == 4
    kind = np.iinfo(activations)
    feeds = {
        "a": rng.integers(kind.min, kind.max + 1, (4, 30)).astype(activations),
        "i": rng.integers(kind.min, kind.max + 1, (2, 5, 7, 9)).astype(activations),
        "z": np.array(5, activations),
    }

    def product(zero: int) -> np.ndarray:
        return (feeds["a"].astype(np.int64) - zero) @ (w.astype(np.int64) - w_zero)

    def convolution(zero: int) -> np.ndarray:
        image = np.pad(feeds["i"].astype(np.int64) - zero, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
        return np.einsum("ncyxrq,kcrq->nkyx", windows, f.astype(np.int64) - w_zero)

    def rescaled(sums: np.ndarray) -> np.ndarray:
        levels = np.rint(sums.astype(np.float32) * (sa * sw / sy)) + int(zy)
        return np.clip(levels, kind.min, kind.max).astype(activations)

    wanted = {
        "m": product(5).astype(np.int32),
        "q": rescaled(product(int(za))),
        "c": convolution(5).astype(np.int32),
        "r": rescaled(convolution(int(za)) + bias.reshape(6, 1, 1)),
    }
    got = model(feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].dtype == array.dtype
    # ONNX Runtime has no kernels for some of the mixtures of types.
    if activations == "uint8":
        for array, reference in zip(wanted.values(), by_onnx_runtime(path, feeds), strict=True):
            np.testing.assert_array_equal(reference, array)


def test_the_pass_precedes_what_makes_floats_of_bytes() -> None:
    names = [item.name for item in default_pipeline()]
    assert names.index("fuse-integer-products") < names.index("fold-constants")
