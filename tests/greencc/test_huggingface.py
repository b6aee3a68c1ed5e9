"""The Hugging Face importer against an independent float64 BERT in numpy, and against damaged directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from safetensors.numpy import save_file
from tvm import relax

from greencc.errors import ModelError, UserError
from greencc.importers import import_model
from greencc.importers.huggingface import import_huggingface
from greencc.ir import bindings_of, shape_of, span_of

CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_act": "gelu",
    "vocab_size": 101,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
DISTIL = {
    "model_type": "distilbert",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "activation": "gelu",
    "vocab_size": 101,
    "max_position_embeddings": 40,
}
BERT_PATHS = (
    "encoder.layer.{}.attention.self.query",
    "encoder.layer.{}.attention.self.key",
    "encoder.layer.{}.attention.self.value",
    "encoder.layer.{}.attention.output.dense",
    "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layer.{}.intermediate.dense",
    "encoder.layer.{}.output.dense",
    "encoder.layer.{}.output.LayerNorm",
)
DISTIL_PATHS = (
    "transformer.layer.{}.attention.q_lin",
    "transformer.layer.{}.attention.k_lin",
    "transformer.layer.{}.attention.v_lin",
    "transformer.layer.{}.attention.out_lin",
    "transformer.layer.{}.sa_layer_norm",
    "transformer.layer.{}.ffn.lin1",
    "transformer.layer.{}.ffn.lin2",
    "transformer.layer.{}.output_layer_norm",
)
Tensors = dict[str, np.ndarray]


def random_tensors(paths: tuple[str, ...], *, token_types: bool, pooler: bool) -> Tensors:
    """Weights of a two-layer encoder with hidden size 32 and feed-forward size 64."""
    rng = np.random.default_rng(7)
    tensors: Tensors = {}

    def put(name: str, *shape: int, mean: float = 0.0) -> None:
        tensors[name] = (mean + 0.2 * rng.standard_normal(shape)).astype(np.float32)

    def norm(path: str) -> None:
        put(f"{path}.weight", 32, mean=1.0)
        put(f"{path}.bias", 32)

    put("embeddings.word_embeddings.weight", 101, 32)
    put("embeddings.position_embeddings.weight", 40, 32)
    if token_types:
        put("embeddings.token_type_embeddings.weight", 2, 32)
    norm("embeddings.LayerNorm")
    for layer in range(2):
        for index, path in enumerate(path.format(layer) for path in paths):
            if index in (4, 7):
                norm(path)
                continue
            outputs, inputs = {5: (64, 32), 6: (32, 64)}.get(index, (32, 32))
            put(f"{path}.weight", outputs, inputs)
            put(f"{path}.bias", outputs)
    if pooler:
        put("pooler.dense.weight", 32, 32)
        put("pooler.dense.bias", 32)
    return tensors


def write_model(directory: Path, config: Mapping[str, object], tensors: Tensors, prefix: str = "") -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    save_file({prefix + name: array for name, array in tensors.items()}, directory / "model.safetensors")
    return directory


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_model(tmp_path, CONFIG, random_tensors(BERT_PATHS, token_types=True, pooler=True))


ERF = np.vectorize(math.erf)
ACTIVATION = {
    "gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def reference(
    tensors: Tensors, paths: tuple[str, ...], activation: str, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(last hidden state, pooled first token) of a two-layer, four-head post-norm encoder, in float64."""
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}

    def dense(x: np.ndarray, path: str) -> np.ndarray:
        return x @ weights[f"{path}.weight"].T + weights[f"{path}.bias"]

    def norm(x: np.ndarray, path: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{path}.weight"] + weights[f"{path}.bias"]

    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    batch, sequence = ids.shape
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][:sequence]
    if "token_type_ids" in arrays:
        x = x + weights["embeddings.token_type_embeddings.weight"][arrays["token_type_ids"]]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(2):
        query, key, value, out, out_norm, feed_in, feed_out, feed_norm = (path.format(layer) for path in paths)
        q, k, v = (dense(x, p).reshape(batch, sequence, 4, 8) for p in (query, key, value))
        scores = np.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(8)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("bhij,bjhd->bihd", shares, v).reshape(batch, sequence, 32)
        x = norm(dense(mixed, out) + x, out_norm)
        x = norm(dense(ACTIVATION[activation](dense(x, feed_in)), feed_out) + x, feed_norm)
    if "pooler.dense.weight" not in weights:
        return x, x
    return x, np.tanh(dense(x[:, 0], "pooler.dense"))


def arrays_for(batch: int, sequence: int, *, token_types: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch * 100 + sequence)
    lengths = rng.integers(1, sequence + 1, batch)
    arrays = {
        "input_ids": rng.integers(0, 101, (batch, sequence)),
        "attention_mask": (np.arange(sequence) < lengths[:, None]).astype(np.int64),
    }
    if token_types:
        arrays["token_type_ids"] = rng.integers(0, 2, (batch, sequence))
    return arrays


def runner(module: tvm.IRModule) -> Any:
    executable = tvm.compile(module, tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())

    def run(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [out.numpy() for out in machine["main"](*(tvm.runtime.tensor(a) for a in arrays.values()))]

    return run


def test_symbolic_matches_numpy(bert: Path) -> None:
    tensors = random_tensors(BERT_PATHS, token_types=True, pooler=True)
    imported = import_huggingface(bert, shapes={}, dynamic={}, outputs=("last_hidden_state", "pooler_output"))
    run = runner(imported.module)
    for batch, sequence in ((1, 1), (1, 7), (3, 40)):
        arrays = arrays_for(batch, sequence)
        for actual, wanted in zip(run(arrays), reference(tensors, BERT_PATHS, "gelu", arrays), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-5)


def test_outputs_that_are_asked_for_reach_the_importer(bert: Path) -> None:
    imported = import_model(bert, shapes={}, dynamic={}, outputs=("pooler_output",))
    assert [str(name) for name in imported.module["main"].attrs["greencc.outputs"]] == ["pooler_output"]


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_static_matches_numpy(tmp_path: Path, activation: str) -> None:
    tensors = random_tensors(BERT_PATHS, token_types=True, pooler=False)
    # A checkpoint saved with a task head has every tensor under the model's name.
    directory = write_model(tmp_path, {**CONFIG, "hidden_act": activation}, tensors, prefix="bert.")
    imported = import_huggingface(directory, shapes={"input_ids": (2, 9)}, dynamic={})
    arrays = arrays_for(2, 9)
    (actual,) = runner(imported.module)(arrays)
    np.testing.assert_allclose(actual, reference(tensors, BERT_PATHS, activation, arrays)[0], rtol=0, atol=2e-5)


def test_distilbert_matches_numpy(tmp_path: Path) -> None:
    tensors = random_tensors(DISTIL_PATHS, token_types=False, pooler=False)
    imported = import_huggingface(
        write_model(tmp_path, DISTIL, tensors), shapes={}, dynamic={"batch": (1, 4), "sequence": (1, 40)}
    )
    assert [param.name for param in imported.module["main"].params] == ["input_ids", "attention_mask"]
    arrays = arrays_for(2, 11, token_types=False)
    (actual,) = runner(imported.module)(arrays)
    np.testing.assert_allclose(actual, reference(tensors, DISTIL_PATHS, "gelu", arrays)[0], rtol=0, atol=2e-5)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    tensors = {
        name: array.astype(np.float16)
        for name, array in random_tensors(BERT_PATHS, token_types=True, pooler=False).items()
    }
    imported = import_huggingface(write_model(tmp_path, CONFIG, tensors), shapes={"input_ids": (1, 5)}, dynamic={})
    arrays = arrays_for(1, 5)
    (actual,) = runner(imported.module)(arrays)
    np.testing.assert_allclose(actual, reference(tensors, BERT_PATHS, "gelu", arrays)[0], rtol=0, atol=2e-5)


def test_module_keeps_the_conventions(bert: Path) -> None:
    imported = import_huggingface(bert, shapes={}, dynamic={"batch": (1, 8)})
    main = imported.module["main"]
    assert list(main.attrs["greencc.inputs"]) == ["input_ids", "attention_mask", "token_type_ids"]
    assert list(main.attrs["greencc.outputs"]) == ["last_hidden_state"]
    assert dict(main.attrs["tir_var_upper_bound"]) == {"batch": 8, "sequence": 40}
    assert dict(main.attrs["tir_var_lower_bound"]) == {"batch": 1}
    calls = [binding.value for binding in bindings_of(main) if isinstance(binding.value, relax.Call)]
    assert imported.nodes == len(calls)
    names = [span_of(call) for call in calls]
    assert None not in names
    assert len(set(names)) == len(names)
    assert "encoder.layer.1.attention.self.query/matmul" in names
    assert all(shape_of(call.ty) is not None for call in calls)
    assert isinstance(main.body.ty, relax.TupleType)


def test_ids_outside_the_vocabulary_are_clipped(bert: Path) -> None:
    run = runner(import_huggingface(bert, shapes={"input_ids": (1, 4)}, dynamic={}).module)
    inside = arrays_for(1, 4) | {"input_ids": np.array([[0, 100, 100, 3]])}
    outside = inside | {"input_ids": np.array([[-5, 101, 1 << 40, 3]])}
    np.testing.assert_array_equal(run(inside)[0], run(outside)[0])


def test_source_hash_follows_the_content(bert: Path) -> None:
    first = import_huggingface(bert, shapes={}, dynamic={})
    assert import_huggingface(bert, shapes={}, dynamic={}).source_sha256 == first.source_sha256
    config = bert / "config.json"
    config.write_text(config.read_text() + " ")
    assert import_huggingface(bert, shapes={}, dynamic={}).source_sha256 != first.source_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": ["bert"]}, "is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, not '32'"),
        ({"hidden_size": True}, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"num_hidden_layers": 3}, "tensor 'encoder.layer.2.attention.self.query.weight' is missing"),
        ({"num_hidden_layers": 10**9}, "tensor 'encoder.layer.2.attention.self.query.weight' is missing"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"vocab_size": 2**30}, "is [101, 32], config.json asks for [1073741824, 32]"),
        ({"vocab_size": 10**30}, "vocab_size must be a positive integer"),
        ({"intermediate_size": 65}, "is [64, 32], config.json asks for [65, 32]"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; known: gelu"),
        ({"hidden_act": {}}, "hidden_act {} is not supported"),
        ({"layer_norm_eps": -1}, "layer_norm_eps must be a number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a number"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type 'relative_key' is not supported",
        ),
        ({"is_decoder": True}, "is_decoder is set"),
    ],
)
def test_bad_config_is_refused_in_one_line(bert: Path, change: dict[str, object], message: str) -> None:
    (bert / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ModelError) as caught:
        import_huggingface(bert, shapes={}, dynamic={})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_no_json_object_is_refused(bert: Path, text: bytes) -> None:
    (bert / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"config\.json: "):
        import_huggingface(bert, shapes={}, dynamic={})


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: can't be read"):
        import_huggingface(tmp_path, shapes={}, dynamic={})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"model\.safetensors: missing"):
        import_huggingface(tmp_path, shapes={}, dynamic={})


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_truncated_weights_are_refused(bert: Path, keep: int) -> None:
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
        import_huggingface(bert, shapes={}, dynamic={})


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.weight"])
def test_missing_tensor_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    tensors = random_tensors(BERT_PATHS, token_types=True, pooler=True)
    del tensors[name]
    with pytest.raises(ModelError, match=f"tensor '{name}' is missing"):
        import_huggingface(write_model(tmp_path, CONFIG, tensors), shapes={}, dynamic={})
    assert capfd.readouterr().err == ""


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(BERT_PATHS, token_types=True, pooler=True)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(32, np.int32)
    with pytest.raises(ModelError, match=r"'embeddings\.LayerNorm\.bias' has element type I32"):
        import_huggingface(write_model(tmp_path, CONFIG, tensors), shapes={}, dynamic={})


@pytest.mark.parametrize(
    ("shapes", "dynamic", "outputs", "message"),
    [
        ({"ids": (1, 4)}, {}, ("last_hidden_state",), "--shape ids=1,4: the model has no such input"),
        ({"input_ids": (1, 4, 1)}, {}, ("last_hidden_state",), r"the input is \[batch, sequence\]"),
        ({"input_ids": (0, 4)}, {}, ("last_hidden_state",), "both at least 1"),
        ({"input_ids": (1, 41)}, {}, ("last_hidden_state",), "the model has 40 positions"),
        (
            {"input_ids": (1, 4), "attention_mask": (1, 5)},
            {},
            ("last_hidden_state",),
            "another input is given 1,4",
        ),
        ({}, {"sequence": (1, 41)}, ("last_hidden_state",), "the model has 40 positions"),
        ({}, {"sequence": (5, 4)}, ("last_hidden_state",), "1 <= low <= high"),
        ({}, {"tokens": (1, 4)}, ("last_hidden_state",), "no such open dimension; it has: batch, sequence"),
        ({"input_ids": (1, 4)}, {"batch": (1, 4)}, ("last_hidden_state",), "--shape fixes every dimension"),
        (
            {},
            {},
            ("logits",),
            "--outputs logits: .* has no such output; it has: last_hidden_state, pooler_output",
        ),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    bert: Path,
    shapes: dict[str, tuple[int, ...]],
    dynamic: dict[str, tuple[int, int]],
    outputs: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        import_huggingface(bert, shapes=shapes, dynamic=dynamic, outputs=outputs)
