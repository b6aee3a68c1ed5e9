"""How the numbers of a tensor are written before they are compressed: without loss, so that little is left to write.

A number is `width` bytes, whatever they mean; it is 0 when all of its bits are. There are four ways:

    planes            all first bytes of the numbers, then all second ones: signs and exponents stand side by side
    codebook          the distinct numbers, and for each number its place among them
    sparse planes     for each number whether it is 0, then those that are not, as planes
    sparse codebook   for each number whether it is 0, then those that are not, by a codebook

Whether a number is 0 is a bit, eight to a byte, the first one lowest. A codebook is the count of distinct numbers (two
bytes), these as planes, ascending as unsigned integers, and places in the fewest bits of 1, 2, 4, 8 and 16 that tell
them apart: several to a byte, the first one lowest, or planes of two bytes. All integers are little endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from greencc.artifact.bundle import Array
from greencc.errors import ArtifactError

Bytes: TypeAlias = npt.NDArray[np.uint8]
Numbers: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

PLANES, CODEBOOK = "planes", "codebook"
SPARSE_PLANES, SPARSE_CODEBOOK = "sparse planes", "sparse codebook"
KINDS = (PLANES, CODEBOOK, SPARSE_PLANES, SPARSE_CODEBOOK)
WIDTHS = (1, 2, 4, 8)
MOST_GROWTH = 64
"""So many times the bytes of what is written may numbers take: one of 8 bytes takes a bit at least."""

_MOST_VALUES = 4096
# Of bytes there are never many; with more values than this, places are no shorter than they are.
_MOST_BYTE_VALUES = 16
# So many numbers, from all over a tensor, tell whether it may have few distinct ones.
_SAMPLED = 4 * _MOST_VALUES


def encodings(data: Array, width: int) -> Iterator[tuple[str, list[Bytes]]]:
    """(kind, parts) of the ways to write a tensor that may be small; the first one, planes, is always there.

    The bytes are those of the parts, one behind the other. Bytes of one part are alike: they are best compressed
    together, and apart from those of the others.

    Args:
        data: uint8, a multiple of `width` long.
        width: bytes of a number, one of WIDTHS.
    """
    numbers: Numbers = data.view(f"<u{width}")
    yield PLANES, _planes(numbers)
    is_set = numbers != 0
    kept = numbers[is_set]
    values = _distinct(kept, _MOST_BYTE_VALUES if width == 1 else _MOST_VALUES)
    if values is not None:
        zero = np.zeros(int(kept.size < numbers.size), numbers.dtype)
        yield CODEBOOK, _with_codebook(numbers, np.concatenate([zero, values]))
    bits = np.packbits(is_set, bitorder="little")
    if bits.size < (numbers.size - kept.size) * width:
        yield SPARSE_PLANES, [bits, *_planes(kept)]
        if values is not None:
            yield SPARSE_CODEBOOK, [bits, *_with_codebook(kept, values)]


def decode(encoded: Bytes, kind: str, width: int, size: int, where: str) -> Bytes:
    """The bytes of a tensor, uint8 [size], from the bytes of what `encodings` gave.

    Nothing is allocated that is more than MOST_GROWTH times as large as `encoded`.

    Args:
        encoded: uint8.
        kind: one of KINDS.
        width: one of WIDTHS.
        size: a multiple of `width`.
        where: what this is, for messages.

    Raises:
        ArtifactError: the bytes are not such an encoding.
    """
    reader = _Reader(encoded, where)
    count = size // width
    read = _read_codebook if kind in (CODEBOOK, SPARSE_CODEBOOK) else _read_planes
    if kind in (PLANES, CODEBOOK):
        numbers = read(reader, count, width)
    else:
        bits = np.unpackbits(reader.take(-(-count // 8)), bitorder="little")
        is_set = bits[:count].view(np.bool_)
        kept = read(reader, int(np.count_nonzero(is_set)), width)
        numbers = np.zeros(count, kept.dtype)
        numbers[is_set] = kept
    reader.finish()
    return np.ascontiguousarray(numbers).view(np.uint8)


class _Reader:
    """Hands out the bytes of an encoding, never more than there are."""

    def __init__(self, data: Bytes, where: str) -> None:
        self._data, self._where, self._place = data, where, 0

    def take(self, count: int) -> Bytes:
        """The next `count` bytes."""
        if count > self._data.size - self._place:
            raise self.damaged("its numbers are cut off")
        self._place += count
        return self._data[self._place - count : self._place]

    def finish(self) -> None:
        """Hold that nothing is left."""
        if self._place != self._data.size:
            raise self.damaged("bytes follow its numbers")

    def damaged(self, how: str) -> ArtifactError:
        """What to raise when an encoding is wrong."""
        return ArtifactError(f"{self._where} is damaged: {how}")


def _planes(numbers: Numbers) -> list[Bytes]:
    return list(np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, numbers.itemsize).T))


def _read_planes(reader: _Reader, count: int, width: int) -> Numbers:
    planes = reader.take(count * width).reshape(width, count)
    return np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")


def _distinct(numbers: Numbers, most: int) -> Numbers | None:
    """The distinct numbers, ascending; None where there are more than `most`."""
    if np.unique(numbers[:: -(-numbers.size // _SAMPLED) or 1]).size > most:
        return None
    values = np.unique(numbers)
    return values if values.size <= most else None


def _with_codebook(numbers: Numbers, values: Numbers) -> list[Bytes]:
    bits = _place_bits(values.size)
    places = np.searchsorted(values, numbers)
    if bits > 8:
        written = _planes(places.astype("<u2"))
    else:
        each = 8 // bits
        rows = np.zeros((-(-places.size // each), each), np.uint8)
        rows.reshape(-1)[: places.size] = places
        written = [np.bitwise_or.reduce(rows << _shifts(bits), axis=1)]
    book = [np.array([values.size], "<u2").view(np.uint8), *_planes(values)]
    return [np.concatenate(book), *written]


def _read_codebook(reader: _Reader, count: int, width: int) -> Numbers:
    values = _read_planes(reader, int(reader.take(2).view("<u2")[0]), width)
    bits = _place_bits(values.size)
    if bits > 8:
        places = _read_planes(reader, count, 2)
    else:
        written = reader.take(-(-count // (8 // bits)))
        rows = (written[:, None] >> _shifts(bits)) & np.uint8(2**bits - 1)
        places = rows.reshape(-1)[:count]
    if count and places.max() >= values.size:
        raise reader.damaged("a number is none of its codebook's")
    return values[places]


def _place_bits(values: int) -> int:
    """Bits that a place among so many values takes."""
    return next((bits for bits in (1, 2, 4, 8) if values <= 1 << bits), 16)


def _shifts(bits: int) -> Bytes:
    """Where the places of a byte begin."""
    return np.arange(0, 8, bits, dtype=np.uint8)
