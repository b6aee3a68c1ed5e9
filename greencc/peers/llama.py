"""llama.cpp, which reads .gguf files: token ids in, the last hidden state out."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from greencc.artifact.bundle import Array
from greencc.errors import UserError
from greencc.peers.base import Outputs, Peer, inputs_for

# Names that exporters of encoders give the inputs and the output that llama.cpp has too.
_IDS, _MASK, _HIDDEN = "input_ids", "attention_mask", "last_hidden_state"


def open_llama(model: Path, inputs: Mapping[str, Array], outputs: Sequence[str], threads: int) -> Peer:
    """An encoder in llama.cpp. It computes the tokens that the mask keeps; rows of others are zeros."""
    llama: Any = import_module("llama_cpp")
    ids = inputs_for(model, inputs, [_IDS])[_IDS]
    kept = np.asarray(inputs[_MASK], bool) if _MASK in inputs else np.ones(ids.shape, bool)
    name = _HIDDEN if _HIDDEN in outputs else outputs[0]
    if len(outputs) > 1 and name != _HIDDEN:
        raise UserError(f"--vs llama.cpp: which of the outputs {', '.join(outputs)} is the last hidden state?")
    _silence(llama)
    context, width = _context(llama, model, int(kept.sum()), len(ids), threads)
    batch = _batch(llama, np.asarray(ids), kept)

    def run() -> Outputs:
        if llama.llama_encode(context, batch) != 0:
            raise UserError(f"--vs llama.cpp: it can't run {model} on {int(kept.sum())} tokens")
        found = np.ctypeslib.as_array(llama.llama_get_embeddings(context), (int(kept.sum()), width))
        hidden = np.zeros((*ids.shape, width), np.float32)
        hidden[kept] = found
        return {name: hidden}

    return Peer("llama.cpp", package_version("llama-cpp-python"), (name,), run)


def _context(llama: Any, model: Path, tokens: int, sequences: int, threads: int) -> tuple[Any, int]:
    """A context that gives every token's hidden state, and the width of those."""
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(str(model).encode(), llama.llama_model_default_params())
    if not loaded:
        raise UserError(f"--vs llama.cpp: it can't read {model}")
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = threads
    params.embeddings = True
    params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
    context = llama.llama_init_from_model(loaded, params)
    if not context:
        raise UserError(f"--vs llama.cpp: it can't make a context for {tokens} tokens of {model}")
    return context, int(llama.llama_model_n_embd(loaded))


def _batch(llama: Any, ids: Array, kept: Array) -> Any:
    """The kept tokens of all sequences, each at its place in its own."""
    batch = llama.llama_batch_init(int(kept.sum()), 0, 1)
    batch.n_tokens = int(kept.sum())
    for i, (sequence, position) in enumerate(np.argwhere(kept)):
        batch.token[i] = int(ids[sequence, position])
        batch.pos[i] = int(position)
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = int(sequence)
        batch.logits[i] = 1
    return batch


def _silence(llama: Any) -> None:
    """Keep its log off stderr."""
    _KEPT.append(llama.llama_log_callback(lambda level, text, data: None))
    llama.llama_log_set(_KEPT[-1], ctypes.c_void_p(0))


_KEPT: list[Any] = []
"""Callbacks that llama.cpp may still call."""
