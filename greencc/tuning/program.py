"""One kernel as a program that can be sent to a device and timed there: its code, its weights, what it is given."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from greencc.artifact.bundle import Array
from greencc.errors import GreenccError
from greencc.runtime.binding import aligned_empty

MOST_COPIES = 8
"""Launches of a program."""
_VERSION = 1
_HEADER, _CODE = "program.json", "code.so"
_KERNELS, _WEIGHTS = "kernels/", "weights/"
# Weights that a tuner makes repeat themselves, and deflate well even at the fastest level.
_LEVEL = 1
_READ_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class ProgramError(GreenccError):
    """Bytes that are no program, or one of another version."""


@dataclass(frozen=True)
class Operand:
    """What a program is given beside its weights.

    Attributes:
        dtype: element type, in numpy's names.
        shapes: one for each size that the program is timed at.
    """

    dtype: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Contents:
    """What is in a program.

    Attributes:
        code: the shared library; its `main` takes the operands, then the weights of each launch in turn.
        weights: of one launch, as they lie in memory.
        copies: how often `main` launches the kernel.
        operands: what it is given.
        sizes: how many sizes it is timed at.
        kernels: what a device needs besides, by name of the artifact's member.
    """

    code: bytes
    weights: tuple[Array, ...]
    copies: int
    operands: tuple[Operand, ...]
    sizes: int = 1
    kernels: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.copies < 1 or self.sizes < 1 or any(len(o.shapes) != self.sizes for o in self.operands):
            raise ValueError("a program is launched at least once, and every operand has a shape for every size")

    def inputs(self, size: int, seed: int = 0) -> list[Array]:
        """Operands for one of the sizes: the same ones wherever they are made."""
        rng = np.random.default_rng((seed, size))
        return [random_array(operand.shapes[size], operand.dtype, rng, wide=True) for operand in self.operands]


@dataclass(frozen=True)
class Program:
    """A program as the bytes that are sent. Equal contents are equal bytes."""

    data: bytes

    @classmethod
    def pack(cls, contents: Contents) -> Program:
        """The program of these contents."""
        header = {
            "version": _VERSION,
            "copies": contents.copies,
            "sizes": contents.sizes,
            "weights": len(contents.weights),
            "operands": [{"dtype": o.dtype, "shapes": o.shapes} for o in contents.operands],
        }
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            members = {_HEADER: json.dumps(header, sort_keys=True).encode(), _CODE: contents.code}
            members |= {_KERNELS + name: data for name, data in sorted(contents.kernels.items())}
            members |= {f"{_WEIGHTS}{i}.npy": _npy(array) for i, array in enumerate(contents.weights)}
            for name, data in members.items():
                # An entry without a date, so that equal contents are equal bytes.
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, _LEVEL)
        return cls(stream.getvalue())

    @cached_property
    def digest(self) -> str:
        """What tells it from every other program."""
        return hashlib.blake2b(self.data, digest_size=16).hexdigest()

    def unpack(self) -> Contents:
        """What is in it.

        Raises:
            ProgramError: it is damaged, or of another version.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                header = json.loads(archive.read(_HEADER))
                if header["version"] != _VERSION:
                    raise ProgramError(f"a program of version {header['version']}: this greencc reads {_VERSION}")
                names = [name for name in archive.namelist() if name.startswith(_KERNELS)]
                operands = (
                    Operand(str(o["dtype"]), tuple(tuple(map(int, shape)) for shape in o["shapes"]))
                    for o in header["operands"]
                )
                weights = (
                    np.load(io.BytesIO(archive.read(f"{_WEIGHTS}{i}.npy")), allow_pickle=False)
                    for i in range(header["weights"])
                )
                return Contents(
                    archive.read(_CODE),
                    tuple(weights),
                    int(header["copies"]),
                    tuple(operands),
                    int(header["sizes"]),
                    {name.removeprefix(_KERNELS): archive.read(name) for name in names},
                )
        except _READ_ERRORS as error:
            raise ProgramError(f"not a program to be timed: {error}") from error


def random_array(shape: Sequence[int], dtype: str, rng: np.random.Generator, *, wide: bool = False) -> Array:
    """An operand: floats are normally distributed, narrow integers small, or where they are `wide` all that bytes hold.

    Wide integers and truth values are zeros, because they may be indices, or say what is computed.
    """
    kind = np.dtype(dtype)
    array = aligned_empty(shape, kind)
    if kind.kind == "f":
        array[...] = rng.standard_normal(array.shape, np.float32)
    elif kind.kind in "iu" and kind.itemsize <= 2:
        # Small ones are levels of 4 bits, too.
        low, high = (-8, 8) if kind.kind == "i" else (0, 16)
        array[...] = rng.integers(*((16 * low, 16 * high) if wide else (low, high)), array.shape)
    else:
        array[...] = 0
    return array


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    return stream.getvalue()
