"""A Hugging Face directory (config.json + model.safetensors) of a BERT-family encoder, straight into Relax.

The graph is the one an exporter writes: plain matmuls, adds, normalisations and softmaxes with the paths of
the modules as node names. The fusing passes find attention and merged projections in it as they do in ONNX.

Formulas: Devlin et al., "BERT" (2018); Sanh et al., "DistilBERT" (2019).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tvm import IRModule, ir, relax, tirx

from greencc.errors import UserError
from greencc.importers.base import Imported
from greencc.importers.hf_config import EncoderConfig, read_config
from greencc.importers.hf_weights import Weights, open_weights
from greencc.ir import (
    INPUTS_ATTR,
    OUTPUTS_ATTR,
    SYMBOL_LOWER_ATTR,
    SYMBOL_UPPER_ATTR,
    count_graph,
    with_span,
)

LAST_HIDDEN_STATE = "last_hidden_state"
POOLER_OUTPUT = "pooler_output"
AXES = ("batch", "sequence")

Dim: TypeAlias = int | tirx.Var


def import_huggingface(
    directory: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dynamic: Mapping[str, tuple[int, int]],
    outputs: Sequence[str] = (LAST_HIDDEN_STATE,),
) -> Imported:
    """Build the encoder that `directory` holds.

    Inputs: `input_ids`, `attention_mask` and, where the model has token types, `token_type_ids`, each int64
    [batch, sequence]. Outputs: `last_hidden_state` float32 [batch, sequence, hidden] and, when asked for,
    `pooler_output` float32 [batch, hidden]. Token and type numbers outside the vocabulary are clipped to it.

    Args:
        directory: holds config.json and model.safetensors.
        shapes: sizes of whole inputs, by input name; one input settles all, for they share both dimensions.
        dynamic: (lowest, highest) size of "batch" and "sequence" where they stay symbolic. The model's number
            of positions bounds `sequence` in any case.
        outputs: names of the outputs, in order.

    Raises:
        ModelError: the directory's files are damaged or describe another kind of model.
        UserError: a shape, a bound or an output does not fit the model.
    """
    config = read_config(directory / "config.json")
    path = directory / "model.safetensors"
    with open_weights(path, config.family.prefix) as weights:
        _check_outputs(directory, config, weights, outputs)
        dims = _settle(config, shapes, dynamic)
        module = _Encoder(config, weights, dims).build(outputs, dynamic)
    nodes, edges = count_graph(module)
    return Imported(module, nodes, edges, directory.resolve().name, _digest(directory / "config.json", path))


def _inputs(config: EncoderConfig) -> tuple[str, ...]:
    return ("input_ids", "attention_mask") + (("token_type_ids",) if config.family.token_types else ())


def _check_outputs(directory: Path, config: EncoderConfig, weights: Weights, outputs: Sequence[str]) -> None:
    pooler = config.family.pooler
    known = [LAST_HIDDEN_STATE]
    if pooler is not None and weights.has(f"{pooler}.weight"):
        known.append(POOLER_OUTPUT)
    for name in outputs:
        if name not in known:
            raise UserError(f"--outputs {name}: {directory} has no such output; it has: {', '.join(known)}")


def _settle(
    config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]], dynamic: Mapping[str, tuple[int, int]]
) -> tuple[Dim, Dim]:
    """(batch, sequence) as integers where `shapes` fixes them, else as symbols."""
    names = _inputs(config)
    fixed: tuple[int, ...] | None = None
    for name, shape in shapes.items():
        text = f"--shape {name}={','.join(map(str, shape))}"
        if name not in names:
            raise UserError(f"{text}: the model has no such input; it has: {', '.join(names)}")
        if len(shape) != len(AXES) or min(shape) < 1:
            raise UserError(f"{text}: the input is [batch, sequence], both at least 1")
        if fixed not in (None, shape):
            raise UserError(f"{text}: another input is given {','.join(map(str, fixed or ()))}; all share one shape")
        if shape[1] > config.positions:
            raise UserError(f"{text}: the model has {config.positions} positions, so that is the longest sequence")
        fixed = shape
    for name, (low, high) in dynamic.items():
        text = f"--dynamic {name}={low}..{high}"
        if name not in AXES or fixed is not None:
            has = "none (--shape fixes every dimension)" if fixed is not None else ", ".join(AXES)
            raise UserError(f"{text}: the model has no such open dimension; it has: {has}")
        if low < 1 or high < low:
            raise UserError(f"{text}: bounds must satisfy 1 <= low <= high")
        if name == "sequence" and high > config.positions:
            raise UserError(f"{text}: the model has {config.positions} positions, so that is the highest bound")
    if fixed is not None:
        return fixed[0], fixed[1]
    return tirx.Var(AXES[0], "int64"), tirx.Var(AXES[1], "int64")


class _Encoder:
    """Emits one encoder, call by call.

    A BlockBuilder's own scopes warn on stderr when a damaged file ends them early, so the bindings are
    collected here. Values are float32 [batch, sequence, hidden] where nothing else is said.
    """

    def __init__(self, config: EncoderConfig, weights: Weights, dims: tuple[Dim, Dim]) -> None:
        self.config = config
        self.weights = weights
        self.batch, self.sequence = dims
        self.builder = relax.BlockBuilder()
        self.bindings: list[relax.VarBinding] = []

    def build(self, outputs: Sequence[str], dynamic: Mapping[str, tuple[int, int]]) -> IRModule:
        """The module with `main`."""
        names = _inputs(self.config)
        params = [relax.Var(name, relax.TensorType((self.batch, self.sequence), "int64")) for name in names]
        lower, upper = self._bounds(dynamic)
        attrs: dict[str, object] = {
            INPUTS_ATTR: list(names),
            OUTPUTS_ATTR: list(outputs),
            SYMBOL_LOWER_ATTR: lower,
            SYMBOL_UPPER_ATTR: upper,
        }
        hidden = self.embeddings(params[0], params[2] if self.config.family.token_types else None)
        mask = self.additive_mask(params[1])
        for number in range(self.config.layers):
            hidden = self.layer(self.config.family.layer.format(number), hidden, mask)
        made = {name: hidden if name == LAST_HIDDEN_STATE else self.pooler(hidden) for name in dict.fromkeys(outputs)}
        results = self.builder.normalize(relax.Tuple([made[name] for name in outputs]))
        result = relax.Var("outputs", results.ty)
        block = relax.DataflowBlock([*self.bindings, relax.VarBinding(result, results)])
        body = relax.SeqExpr([block], result)
        main = relax.Function(params, body, results.ty, attrs=ir.make_node("ir.DictAttrs", **attrs))
        module = IRModule({"main": main.with_attr("global_symbol", "main")})
        return relax.transform.Normalize()(module)  # types the body, which was put together by hand

    def embeddings(self, ids: relax.Var, token_types: relax.Var | None) -> relax.Expr:
        """The normalised sum of word, token type and position embeddings."""
        config, path = self.config, "embeddings."
        words = self.weights.table(f"{path}word_embeddings.weight", config.vocabulary, config.hidden)
        total = self.emit(relax.op.take(words, ids, axis=0, mode="clip"), f"{path}word_embeddings")
        if token_types is not None:
            types = self.weights.table(f"{path}token_type_embeddings.weight", config.token_types, config.hidden)
            name = f"{path}token_type_embeddings"
            total = self.add(total, self.emit(relax.op.take(types, token_types, axis=0, mode="clip"), name), name)
        total = self.add(total, self.positions(f"{path}position_embeddings"), f"{path}position_embeddings")
        return self.norm(total, f"{path}LayerNorm")

    def positions(self, name: str) -> relax.Expr:
        """The first `sequence` rows of the position table: [sequence, hidden]."""
        table = self.weights.table(f"{name}.weight", self.config.positions, self.config.hidden)
        if isinstance(self.sequence, int):
            return relax.const(np.ascontiguousarray(table.value.numpy()[: self.sequence]))
        # A slice with a symbolic end would get a shape of nested minima that no later shape equals.
        rows = self.emit(relax.op.arange(0, self.sequence, 1, "int64"), f"{name}/range")
        return self.emit(relax.op.take(table, rows, axis=0, mode="clip"), name)

    def additive_mask(self, mask: relax.Var) -> relax.Expr:
        """0 where `mask` is 1 and the lowest float32 where it is 0: [batch, 1, 1, sequence]."""
        spread = self.emit(relax.op.reshape(mask, (self.batch, 1, 1, self.sequence)), "attention_mask/reshape")
        kept = self.emit(relax.op.astype(spread, "float32"), "attention_mask/cast")
        dropped = self.emit(relax.op.subtract(_scalar(1.0), kept), "attention_mask/invert")
        lowest = _scalar(float(np.finfo(np.float32).min))
        return self.emit(relax.op.multiply(dropped, lowest), "attention_mask/scale")

    def layer(self, path: str, hidden: relax.Expr, mask: relax.Expr) -> relax.Expr:
        """One transformer layer: attention, then the feed-forward pair, each with its residual and norm."""
        config, names = self.config, self.config.family.names
        attended = self.attention(path, hidden, mask)
        attended = self.linear(attended, path + names.attention_out, config.hidden, config.hidden)
        attended = self.add(attended, hidden, path + names.attention_out + "/residual")
        attended = self.norm(attended, path + names.attention_norm)
        wide = self.linear(attended, path + names.feed_in, config.hidden, config.feed_forward)
        wide = self.emit(getattr(relax.op.nn, config.activation)(wide), path + names.feed_in + "/activation")
        narrow = self.linear(wide, path + names.feed_out, config.feed_forward, config.hidden)
        narrow = self.add(narrow, attended, path + names.feed_out + "/residual")
        return self.norm(narrow, path + names.out_norm)

    def attention(self, path: str, hidden: relax.Expr, mask: relax.Expr) -> relax.Expr:
        """softmax(Q K^T / sqrt(head) + mask) V, heads side by side again in the last axis."""
        names, size = self.config.family.names, self.config.hidden
        query, key, value = (
            self.heads(self.linear(hidden, path + name, size, size), path + name, axes)
            for name, axes in (
                (names.query, (0, 2, 1, 3)),
                (names.key, (0, 2, 3, 1)),
                (names.value, (0, 2, 1, 3)),
            )
        )
        node = path + names.query.rpartition(".")[0]
        scores = self.emit(relax.op.matmul(query, key), f"{node}/scores")
        scale = 1.0 / math.sqrt(size // self.config.heads)
        scores = self.emit(relax.op.multiply(scores, _scalar(scale)), f"{node}/scale")
        scores = self.add(scores, mask, f"{node}/mask")
        shares = self.emit(relax.op.nn.softmax(scores, axis=-1), f"{node}/softmax")
        mixed = self.emit(relax.op.matmul(shares, value), f"{node}/context")
        mixed = self.emit(relax.op.permute_dims(mixed, [0, 2, 1, 3]), f"{node}/transpose")
        return self.emit(relax.op.reshape(mixed, (self.batch, self.sequence, size)), f"{node}/merge")

    def heads(self, value: relax.Expr, node: str, axes: tuple[int, ...]) -> relax.Expr:
        """[batch, sequence, hidden] split into [batch, sequence, heads, head], then transposed by `axes`."""
        size = self.config.hidden // self.config.heads
        split = relax.op.reshape(value, (self.batch, self.sequence, self.config.heads, size))
        return self.emit(relax.op.permute_dims(self.emit(split, f"{node}/split"), list(axes)), f"{node}/transpose")

    def pooler(self, hidden: relax.Expr) -> relax.Expr:
        """The tanh of a linear layer over the first token: [batch, hidden]."""
        path, size = str(self.config.family.pooler), self.config.hidden
        first = self.emit(relax.op.take(hidden, relax.const(0, "int64"), axis=1, mode="clip"), f"{path}/first")
        return self.emit(relax.op.tanh(self.linear(first, path, size, size)), f"{path}/activation")

    def linear(self, value: relax.Expr, path: str, inputs: int, outputs: int) -> relax.Expr:
        """The sum x W + b: [batch, sequence, outputs], or [batch, outputs] over a pooled value."""
        product = relax.op.matmul(value, self.weights.matrix(f"{path}.weight", outputs, inputs))
        return self.add(self.emit(product, f"{path}/matmul"), self.weights.vector(f"{path}.bias", outputs), path)

    def norm(self, value: relax.Expr, path: str) -> relax.Expr:
        """Layer normalisation over the last axis."""
        gain = self.weights.vector(f"{path}.weight", self.config.hidden)
        shift = self.weights.vector(f"{path}.bias", self.config.hidden)
        return self.emit(relax.op.nn.layer_norm(value, gain, shift, axes=-1, epsilon=self.config.epsilon), path)

    def add(self, a: relax.Expr, b: relax.Expr, node: str) -> relax.Expr:
        """The sum a + b with broadcasting."""
        return self.emit(relax.op.add(a, b), f"{node}/add")

    def emit(self, call: relax.Call, node: str) -> relax.Expr:
        """Bind `call`, named after the source module `node`."""
        value = self.builder.normalize(with_span(call, node))
        var = relax.DataflowVar(f"v{len(self.bindings)}", value.ty)
        self.bindings.append(relax.VarBinding(var, value))
        return var

    def _bounds(self, dynamic: Mapping[str, tuple[int, int]]) -> tuple[dict[str, int], dict[str, int]]:
        """(lower, upper) bounds of the symbols by name."""
        if isinstance(self.sequence, int):
            return {}, {}
        lower = {name: low for name, (low, _) in dynamic.items()}
        upper = {name: high for name, (_, high) in dynamic.items()}
        upper.setdefault("sequence", self.config.positions)
        return lower, upper


def _scalar(value: float) -> ir.GenericConst:
    return relax.const(value, "float32")


def _digest(*paths: Path) -> str:
    """sha256 over the files' own digests, so that bytes can't move from one file to the next unnoticed."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            total.update(digest.digest())
    return total.hexdigest()
