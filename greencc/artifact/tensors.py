"""safetensors files whose tensors can be used where they lie: each starts at a multiple of 64 bytes.

The safetensors library orders tensors by element type, then by name, and packs them tightly. Tensors that
are used in place must each start at a multiple of 64 (DLPack consumers and vector loads refuse less), which
takes padding between neighbours, whatever their names. So greencc writes the container itself: eight bytes
of header length, a JSON header, the data. The format forbids holes: the gaps are byte tensors named
`__pad.N`, and the header ends in the spaces that the format allows. Any safetensors reader opens these
files; the tests hold this writer and the reader below against the library.

Format: https://huggingface.co/docs/safetensors (header, offsets, no holes, no duplicate names).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import BinaryIO, TypeGuard

import numpy as np

from greencc.artifact.bundle import Array
from greencc.errors import ArtifactError, GreenccError

ALIGNMENT = 64
PAD_PREFIX = "__pad."
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit on a header."""

_CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _CODES.items()}


def write_tensors(file: BinaryIO, tensors: Mapping[str, Array]) -> None:
    """Write `tensors` as a safetensors file, in the mapping's order, each tensor at a multiple of 64 bytes.

    Args:
        file: open for writing, at its start.
        tensors: C-contiguous arrays of the types in `greencc.artifact.bundle.DTYPES`.

    Raises:
        GreenccError: a name is reserved, or an element type has no safetensors code.
    """
    header: dict[str, dict[str, object]] = {}
    gaps: list[int] = []
    offset = 0
    for name, array in tensors.items():
        if name == "__metadata__" or name.startswith(PAD_PREFIX):
            raise GreenccError(f"tensor name {name!r} is reserved by the artifact's format: rename it")
        if array.dtype.name not in _CODES:
            raise GreenccError(f"tensor {name!r} has element type {array.dtype}, which artifacts can't hold")
        header[name] = _entry(_CODES[array.dtype.name], array.shape, offset, array.nbytes)
        offset += array.nbytes
        gap = -offset % ALIGNMENT
        gaps.append(gap)
        if gap:
            header[f"{PAD_PREFIX}{len(gaps) - 1}"] = _entry("U8", (gap,), offset, gap)
            offset += gap
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array, gap in zip(tensors.values(), gaps, strict=True):
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        file.write(little.reshape(-1).view(np.uint8).data)
        file.write(bytes(gap))


def map_tensors(data: Array, member: str) -> dict[str, Array]:
    """The tensors of a safetensors file as views of its bytes, in file order, padding left out.

    Args:
        data: the whole file, uint8[bytes], starting at a multiple of 64 (a memory map does).
        member: the file's name, for messages.

    Raises:
        ArtifactError: the file breaks the format, or a tensor is not aligned.
    """
    header, start = _parse_header(data, member)
    tensors: dict[str, Array] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, span = _parse_entry(entry, name, member)
        begin, stop = span
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or start + stop > data.size:
            raise ArtifactError(f"{member}: tensor {name!r} has offsets that don't fit its shape or the file")
        end = stop
        if name.startswith(PAD_PREFIX):
            continue
        if (start + begin) % ALIGNMENT:
            raise ArtifactError(f"{member}: tensor {name!r} does not start at a multiple of {ALIGNMENT} bytes")
        try:
            tensors[name] = data[start + begin : start + stop].view(dtype).reshape(shape)
        except (ValueError, OverflowError) as error:  # too many dimensions, or an absurd one beside a zero
            raise ArtifactError(f"{member}: tensor {name!r} has an impossible shape ({error})") from error
    if start + end != data.size:
        raise ArtifactError(f"{member}: {data.size - start - end} bytes follow the last tensor")
    return tensors


def tensor_spans(data: Array, member: str) -> list[tuple[int, int, int]]:
    """(begin, end, bytes of a number) of every tensor in a file, in order.

    Raises:
        ArtifactError: see `map_tensors`.
    """
    start = data.__array_interface__["data"][0]
    return [
        (begin, begin + array.nbytes, array.itemsize)
        for array in map_tensors(data, member).values()
        for begin in [array.__array_interface__["data"][0] - start]
    ]


def _entry(code: str, shape: tuple[int, ...], offset: int, size: int) -> dict[str, object]:
    return {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}


def _parse_header(data: Array, member: str) -> tuple[dict[str, object], int]:
    """The JSON header, in file order, and the offset at which the data section starts."""
    length = int.from_bytes(data[:8].tobytes(), "little") if data.size >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER_BYTES, data.size - 8):
        raise ArtifactError(f"{member}: not a safetensors file (its header's length is wrong)")
    try:
        header = json.loads(data[8 : 8 + length].tobytes().decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{member}: the safetensors header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{member}: the safetensors header is not a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _parse_entry(
    entry: object, name: str, member: str
) -> tuple[np.dtype[np.generic], tuple[int, ...], tuple[int, int]]:
    fields = entry if isinstance(entry, dict) else {}
    dtype = _DTYPES.get(str(fields.get("dtype")))
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if dtype is None or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ArtifactError(f"{member}: tensor {name!r} has an unreadable entry in the header")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of non-negative integers (a JSON true is not one)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
