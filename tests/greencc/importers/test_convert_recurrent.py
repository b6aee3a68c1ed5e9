from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Case, check, refusal


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * np.float32(0.3)


def cells(gates: int, directions: int = 1) -> dict[str, np.ndarray]:
    """Weights for 3 inputs and 4 hidden units."""
    return {
        "w": weights(directions, gates * 4, 3),
        "r": weights(directions, gates * 4, 4),
        "b": weights(directions, 2 * gates * 4),
    }


LSTM = [
    Case("plain", "(float[5,N,3] x) => (float y) { y = LSTM<hidden_size=4>(x, w, r) }", cells(4)),
    Case("bias, states, all outputs",
         "(float[5,N,3] x, float[1,N,4] h, float[1,N,4] c) => (float y, float yh, float yc)"
         "{ y, yh, yc = LSTM<hidden_size=4>(x, w, r, b, , h, c) }", cells(4)),
    Case("reverse", "(float[5,N,3] x) => (float y, float yh) { y, yh = LSTM<hidden_size=4, direction=\"reverse\">(x, w, r, b) }",
         cells(4)),
    Case("both ways", "(float[5,N,3] x) => (float y, float yh, float yc)"
         "{ y, yh, yc = LSTM<hidden_size=4, direction=\"bidirectional\">(x, w, r, b) }", cells(4, 2)),
    Case("lengths", "(float[5,3,3] x) => (float y, float yh, float yc)"
         "{ y, yh, yc = LSTM<hidden_size=4, direction=\"bidirectional\">(x, w, r, b, l) }",
         {**cells(4, 2), "l": np.array([5, 2, 3], np.int32)}),
    Case("peepholes", "(float[3,N,3] x) => (float y) { y = LSTM<hidden_size=4>(x, w, r, b, , , , p) }",
         {**cells(4), "p": weights(1, 12)}),
    Case("clip", "(float[3,N,3] x) => (float y) { y = LSTM<hidden_size=4, clip=0.2>(x, w, r, b) }", cells(4)),
    Case("activations", "(float[3,N,3] x) => (float y)"
         "{ y = LSTM<hidden_size=4, activations=[\"HardSigmoid\",\"Softsign\",\"Relu\"], activation_alpha=[0.3], activation_beta=[0.4]>(x, w, r, b) }",
         cells(4)),
    Case("one step", "(float[1,N,3] x, float[1,N,4] h, float[1,N,4] c) => (float y, float yh, float yc)"
         "{ y, yh, yc = LSTM<hidden_size=4>(x, w, r, b, , h, c) }", cells(4)),
]  # fmt: skip
GRU = [
    Case("plain", "(float[5,N,3] x) => (float y) { y = GRU<hidden_size=4>(x, w, r) }", cells(3)),
    Case("bias, state, all outputs", "(float[5,N,3] x, float[1,N,4] h) => (float y, float yh)"
         "{ y, yh = GRU<hidden_size=4>(x, w, r, b, , h) }", cells(3)),
    Case("linear before reset", "(float[5,N,3] x) => (float y) { y = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b) }",
         cells(3)),
    Case("both ways", "(float[5,N,3] x) => (float y, float yh)"
         "{ y, yh = GRU<hidden_size=4, direction=\"bidirectional\">(x, w, r, b) }", cells(3, 2)),
    Case("lengths", "(float[5,3,3] x) => (float y, float yh) { y, yh = GRU<hidden_size=4, direction=\"reverse\">(x, w, r, b, l) }",
         {**cells(3), "l": np.array([1, 5, 3], np.int32)}),
]  # fmt: skip
RNN = [
    Case("plain", "(float[5,N,3] x) => (float y) { y = RNN<hidden_size=4>(x, w, r) }", cells(1)),
    Case("relu, both ways", "(float[5,N,3] x) => (float y, float yh)"
         "{ y, yh = RNN<hidden_size=4, direction=\"bidirectional\", activations=[\"Relu\",\"Tanh\"]>(x, w, r, b) }", cells(1, 2)),
    Case("Affine", "(float[2,N,3] x) => (float y) { y = RNN<hidden_size=4, activations=[\"Affine\"], activation_alpha=[0.5], activation_beta=[0.1]>(x, w, r, b) }",
         cells(1)),
    Case("ThresholdedRelu", "(float[2,N,3] x) => (float y) { y = RNN<hidden_size=4, activations=[\"ThresholdedRelu\"], activation_alpha=[0.2]>(x, w, r, b) }",
         cells(1)),
    *[Case(name, f"(float[2,N,3] x) => (float y) {{ y = RNN<hidden_size=4, activations=[\"{name}\"]>(x, w, r, b) }}", cells(1))
      for name in ("LeakyRelu", "Elu", "Sigmoid")],
]  # fmt: skip
REFUSED = [
    (Case("open", "(float[S,N,3] x) => (float y) { y = LSTM<hidden_size=4>(x, w, r) }", cells(4)), "must be fixed"),
    (Case("size", "(float[2,N,3] x) => (float y) { y = LSTM<hidden_size=5>(x, w, r) }", cells(4)), "differs from"),
    (Case("long", "(float[600,N,3] x) => (float y) { y = RNN<hidden_size=4>(x, w, r) }", cells(1)), "600 steps"),
    (Case("function", "(float[2,N,3] x) => (float y) { y = RNN<hidden_size=4, activations=[\"Sinh\"]>(x, w, r) }", cells(1)),
     "activation 'Sinh'"),
    (Case("default", "(float[2,N,3] x) => (float y) { y = RNN<hidden_size=4, activations=[\"Affine\"]>(x, w, r, b) }", cells(1)),
     "runtimes disagree"),
]  # fmt: skip


@pytest.mark.parametrize("cases", [LSTM, GRU, RNN], ids=["LSTM", "GRU", "RNN"])
def test_recurrent_layers_agree_with_onnx_runtime(cases, tmp_path):
    check(cases, tmp_path, opset=14)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_is_not_unrolled_is_refused_with_a_reason(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=14)
