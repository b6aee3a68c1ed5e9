"""Named arrays in .npz files: read without pickle, written whole or not at all."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from greencc.artifact.bundle import Array
from greencc.errors import InputError
from greencc.files import written_whole

_READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,  # a header that declares an absurd shape
    NotImplementedError,  # a compression method that this Python lacks
    RuntimeError,  # an encrypted member
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on damaged files."""


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file by name.

    Raises:
        InputError: the file is missing, not an .npz, damaged, or holds Python objects.
    """
    try:
        with path.open("rb") as stream:  # opened here: numpy leaves files that are no archive open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: one array without a name; write an .npz with numpy.savez(FILE, NAME=ARRAY)")
            return {name: np.asarray(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except _READ_ERRORS as error:
        raise InputError(f"{path}: not a readable .npz file: {error}") from error


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays under their names, whatever those are (numpy.savez can't write one called `file`).

    The same arrays give the same bytes.

    Raises:
        UserError: the file can't be written; what was there is left as it was.
    """
    with written_whole(path) as staged, zipfile.ZipFile(staged, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # a fixed date, so that equal content is equal bytes
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
