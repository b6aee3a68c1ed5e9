"""config.json of a Hugging Face directory: which encoder it describes and how its weights are named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from greencc.errors import ModelError


@dataclass(frozen=True)
class LayerNames:
    """Module paths inside one transformer layer, relative to the layer's own path."""

    query: str
    key: str
    value: str
    attention_out: str
    attention_norm: str
    feed_in: str
    feed_out: str
    out_norm: str


@dataclass(frozen=True)
class Family:
    """How one model type spells its configuration and its module paths.

    Attributes:
        prefix: what a checkpoint with a task head puts before every tensor of the encoder.
        layer: path of layer number `{}`.
        names: paths of the modules inside a layer.
        keys: names in config.json of hidden size, layers, heads, feed-forward size and activation.
        token_types: whether the model has token types, and with them the input `token_type_ids`.
        pooler: path of the pooler's dense layer, or None when the family has no pooler.
    """

    prefix: str
    layer: str
    names: LayerNames
    keys: tuple[str, str, str, str, str]
    token_types: bool
    pooler: str | None


FAMILIES = {
    "bert": Family(
        prefix="bert.",
        layer="encoder.layer.{}.",
        names=LayerNames(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ),
        keys=("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        token_types=True,
        pooler="pooler.dense",
    ),
    "distilbert": Family(
        prefix="distilbert.",
        layer="transformer.layer.{}.",
        names=LayerNames(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        ),
        keys=("dim", "n_layers", "n_heads", "hidden_dim", "activation"),
        token_types=False,
        pooler=None,
    ),
}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Relax operator (in relax.op.nn) of each activation that config.json may name."""


@dataclass(frozen=True)
class EncoderConfig:
    """The part of config.json that decides the encoder's graph. Sizes are counts of elements."""

    family: Family
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    activation: str
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float


def read_config(path: Path) -> EncoderConfig:
    """The encoder that `path` describes.

    Raises:
        ModelError: the file is missing or not JSON, describes a model that isn't a BERT-family encoder, or
            holds a value of the wrong kind.
    """
    fields = _read_object(path)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(
            f"{path}: model_type {kind!r} is not supported (known: {', '.join(FAMILIES)}); export the model to ONNX"
        )
    _refuse_variants(path, fields)
    family = FAMILIES[kind]
    hidden, layers, heads, feed_forward = (_size(path, fields, key) for key in family.keys[:4])
    if hidden % heads:
        raise ModelError(f"{path}: {family.keys[0]} {hidden} is not a multiple of {family.keys[2]} {heads}")
    activation = fields.get(family.keys[4], "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(f"{path}: {family.keys[4]} {activation!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    epsilon = fields.get("layer_norm_eps", 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
        raise ModelError(f"{path}: layer_norm_eps must be a number of at least 0 and below 1, not {epsilon!r}")
    return EncoderConfig(
        family=family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=feed_forward,
        activation=ACTIVATIONS[activation],
        vocabulary=_size(path, fields, "vocab_size"),
        positions=_size(path, fields, "max_position_embeddings"),
        token_types=_size(path, fields, "type_vocab_size") if family.token_types else 0,
        epsilon=float(epsilon),
    )


def _read_object(path: Path) -> dict[str, object]:
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror}); a Hugging Face directory needs it") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: must hold a JSON object, not a {type(fields).__name__}")
    return fields


def _refuse_variants(path: Path, fields: dict[str, object]) -> None:
    """Options that change the graph and that the builder doesn't know."""
    kind = fields.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ModelError(f"{path}: position_embedding_type {kind!r} is not supported, only 'absolute'")
    for flag in ("is_decoder", "add_cross_attention"):
        if fields.get(flag):
            raise ModelError(f"{path}: {flag} is set; greencc reads encoders only from Hugging Face directories")


def _size(path: Path, fields: dict[str, object], key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or not 1 <= value < 2**31:
        raise ModelError(f"{path}: {key} must be a positive integer, not {value!r}")
    return value
