"""model.safetensors of a Hugging Face directory, memory-mapped, one tensor copied at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tvm import ir, relax

from greencc.errors import ModelError

_FLOATS = frozenset({"F32", "F16", "F64"})


class Weights:
    """An open safetensors file whose tensors become float32 Relax constants.

    `prefix` is what stands before every name, for checkpoints that were saved with a task head.
    """

    def __init__(self, path: Path, file: Any, prefix: str) -> None:
        self._path = path
        self._file = file
        self._names = set(file.keys())
        with_prefix = any(name.startswith(prefix) for name in self._names)
        self._prefix = prefix if with_prefix else ""

    def has(self, name: str) -> bool:
        """Whether the file holds tensor `name`."""
        return self._prefix + name in self._names

    def vector(self, name: str, size: int) -> ir.GenericConst:
        """Tensor `name` of shape [size] as a float32 constant."""
        return self._constant(name, (size,), transposed=False)

    def table(self, name: str, rows: int, columns: int) -> ir.GenericConst:
        """Embedding table `name` of shape [rows, columns] as a float32 constant."""
        return self._constant(name, (rows, columns), transposed=False)

    def matrix(self, name: str, outputs: int, inputs: int) -> ir.GenericConst:
        """Linear layer's weight `name`, stored [outputs, inputs], as a float32 constant [inputs, outputs]."""
        return self._constant(name, (outputs, inputs), transposed=True)

    def _constant(self, name: str, shape: tuple[int, ...], *, transposed: bool) -> ir.GenericConst:
        full = self._prefix + name
        if full not in self._names:
            raise ModelError(f"{self._path}: tensor '{full}' is missing; config.json asks for it")
        # The header is compared before any data is read, so an absurd size in config.json costs nothing.
        header = self._file.get_slice(full)
        if tuple(header.get_shape()) != shape:
            found = header.get_shape()
            raise ModelError(f"{self._path}: tensor '{full}' is {found}, config.json asks for {list(shape)}")
        if header.get_dtype() not in _FLOATS:
            kinds = ", ".join(sorted(_FLOATS))
            raise ModelError(f"{self._path}: tensor '{full}' has element type {header.get_dtype()}; known: {kinds}")
        array = self._file.get_tensor(full)
        array = array.T if transposed else array
        return relax.const(np.ascontiguousarray(array, dtype=np.float32))


@contextmanager
def open_weights(path: Path, prefix: str) -> Iterator[Weights]:
    """Open `path` for the length of a `with` block.

    Raises:
        ModelError: it isn't a whole safetensors file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing; greencc reads unsharded safetensors weights from this name")
    try:
        with safe_open(path, framework="np") as file:
            yield Weights(path, file, prefix)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
