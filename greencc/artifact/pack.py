"""A packed artifact: one file to ship, whose members are compressed without loss.

It saves bytes on the wire and on disk. It saves none when the model runs: a packed artifact is expanded to a folder
once, and weights are read from there as they are.

The file begins with a magic number and the length of a header. The header is JSON: for each member its name, its size
and SHA-256 as in the manifest, and its pieces. A piece is a large tensor, or what lies between two: how its bytes are
written (`greencc.artifact.encodings`), the bytes of a number, its size, its size as written, and that of its compressed
stream. The streams (Zstandard, RFC 8878) follow in that order. Each piece is written and compressed in the way that
makes it smallest (docs/decisions/0013).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard

from greencc.artifact.bundle import Array
from greencc.artifact.encodings import KINDS, MOST_GROWTH, PLANES, WIDTHS, Bytes, decode, encodings
from greencc.artifact.format import GOLDEN, WEIGHTS, check_destination, take_place
from greencc.artifact.manifest import KERNELS, MANIFEST, members_for
from greencc.artifact.tensors import tensor_spans
from greencc.artifact.verify import verify_members
from greencc.caching import cache_folder
from greencc.errors import ArtifactError, UserError
from greencc.files import check_writable

MAGIC = b"greencc pack 2\n\x00"
_LENGTH_BYTES = 8
_MOST_HEADER = 1 << 24
# No member of an artifact is larger than 1 TB.
_MOST_MEMBER = 1 << 40
# Smaller tensors are compressed together with their neighbours.
_LARGE = 4096
# The first level tells whether repetitions pay; the second one looks for them thoroughly.
_QUICK_LEVEL, _LEVEL = 3, 12
# Looks for hardly any repetition: in numbers without structure, one that is found by chance costs more than it saves.
_LITERALS = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=6, window_log=17)
# A block of Zstandard holds at most 128 kB, and takes at least 4 bytes.
_MOST_EXPANSION = (128 << 10) // 4
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What a packed artifact may hold, in order: the members of one for a CPU, or for a kind of GPU.
_NAMES = [[MANIFEST, *members_for({"kind": kind})] for kind in ("cpu", *KERNELS)]


@dataclass(frozen=True)
class Piece:
    """A part of a member. Sizes are in bytes.

    Attributes:
        kind: how it is written, one of `greencc.artifact.encodings.KINDS`.
        width: of one of its numbers.
        size: of the part.
        encoded: of what is written of it.
        packed: of the compressed stream of that.
    """

    kind: str
    width: int
    size: int
    encoded: int
    packed: int

    @property
    def is_sane(self) -> bool:
        """Whether sizes fit each other: nothing expands beyond what its stream can hold."""
        sizes = (self.width, self.size, self.encoded, self.packed)
        return (
            all(type(size) is int and 0 <= size <= _MOST_MEMBER for size in sizes)
            and self.kind in KINDS
            and self.width in WIDTHS
            and self.size % self.width == 0
            and self.size <= MOST_GROWTH * self.encoded
            and self.encoded <= _MOST_EXPANSION * self.packed
        )


@dataclass(frozen=True)
class Member:
    """A file of the artifact: its name, its size and its hash, and the pieces that it is made of."""

    name: str
    bytes: int
    sha256: str
    pieces: tuple[Piece, ...]

    @staticmethod
    def of(entry: dict[str, Any]) -> Member:
        """A member from its entry in the header; nothing has been checked."""
        return Member(entry["name"], entry["bytes"], entry["sha256"], tuple(Piece(*piece) for piece in entry["pieces"]))

    @property
    def is_sane(self) -> bool:
        """Whether the hash has the form of one, and the pieces make up the member."""
        return (
            isinstance(self.sha256, str)
            and _SHA256.fullmatch(self.sha256) is not None
            and all(piece.is_sane for piece in self.pieces)
            and self.bytes == sum(piece.size for piece in self.pieces) <= _MOST_MEMBER
        )


def pack(artifact: Path, file: Path) -> dict[str, int]:
    """Write the packed form of an artifact; gives the bytes of each member in it.

    Raises:
        ArtifactError: the artifact is damaged.
        UserError: the file can't be written.
    """
    check_writable(file)
    verified = verify_members(artifact)
    contents = {MANIFEST: np.frombuffer((artifact / MANIFEST).read_bytes(), np.uint8), **verified.data}
    members: list[Member] = []
    streams: list[bytes] = []
    for name, data in contents.items():
        made = [_packed(data[begin:end], width) for begin, end, width in _parts(data, name)]
        digest = hashlib.sha256(data.data).hexdigest()
        members.append(Member(name, data.size, digest, tuple(piece for piece, _ in made)))
        streams.extend(stream for _, stream in made)
    entries = [{**vars(member), "pieces": [astuple(piece) for piece in member.pieces]} for member in members]
    header = json.dumps({"members": entries}, separators=(",", ":"), sort_keys=True).encode()
    staged = file.parent / f".{file.name}.{secrets.token_hex(8)}.tmp"
    try:
        with staged.open("wb") as out:
            out.write(MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header)
            for stream in streams:
                out.write(stream)
            out.flush()
            os.fsync(out.fileno())
        staged.replace(file)
    except OSError as error:
        raise UserError(f"{file}: can't be written: {error}") from error
    finally:
        staged.unlink(missing_ok=True)
    return {member.name: sum(piece.packed for piece in member.pieces) for member in members}


def unpack(file: Path, artifact: Path) -> None:
    """Expand a packed artifact to a folder; what comes out is byte for byte what was packed.

    Raises:
        ArtifactError: the file is no packed artifact, damaged, or not of this version. Nothing has been written.
        UserError: the folder can't be written.
    """
    destination = check_destination(artifact)
    staged = destination.parent / f".{destination.name}.{secrets.token_hex(8)}.tmp"
    try:
        staged.mkdir()
        _expand_members(file, staged)
        verify_members(staged)
        take_place(staged, destination)
    except OSError as error:
        raise UserError(f"{artifact}: can't write the artifact: {error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def artifact_folder(path: Path) -> Path:
    """The folder of an artifact: `path` itself, or what the packed file `path` is expanded to. Raises as `expanded`."""
    return expanded(path) if is_packed(path) else path


def expanded(file: Path) -> Path:
    """The folder in the user's cache that a packed artifact has been expanded to; it is, if it has not been.

    Raises:
        ArtifactError: the file is damaged.
        UserError: the cache can't be written.
    """
    try:
        with file.open("rb") as stream:
            key = _header(stream, file)[0].sha256
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read: {error}") from error
    folder = cache_folder() / "artifacts" / key
    manifest = folder / MANIFEST
    if not manifest.is_file() or hashlib.sha256(manifest.read_bytes()).hexdigest() != key:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{file}: can't be expanded to {folder.parent}: {error}") from error
        unpack(file, folder)
    return folder


def is_packed(path: Path) -> bool:
    """Whether a path is a file that begins like a packed artifact."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _expand_members(file: Path, folder: Path) -> None:
    """Write every member to a folder, each checked against the header. An OSError is one of writing."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read: {error}") from error
    with stream:
        for member in _header(stream, file):
            where = f"{file}: {member.name}"
            digest = hashlib.sha256()
            with (folder / member.name).open("wb") as out:
                for piece in member.pieces:
                    data = _unpacked(_read(stream, piece.packed, file), piece, where)
                    digest.update(data.data)
                    out.write(data.data)
            if digest.hexdigest() != member.sha256:
                raise ArtifactError(f"{where} is damaged: its SHA-256 is not the header's")


def _read(stream: BinaryIO, count: int, file: Path) -> bytes:
    try:
        return stream.read(count)
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read: {error}") from error


def _header(stream: BinaryIO, file: Path) -> list[Member]:
    """The header's entries: exactly the members of an artifact, in order, with sane sizes that make up the file."""
    if _read(stream, len(MAGIC), file) != MAGIC:
        raise ArtifactError(f"{file}: not a packed artifact of this version")
    length = int.from_bytes(_read(stream, _LENGTH_BYTES, file), "little")
    if not 2 <= length <= _MOST_HEADER:
        raise ArtifactError(f"{file}: its header's length is wrong")
    try:
        members = [Member.of(entry) for entry in json.loads(_read(stream, length, file))["members"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{file}: its header is damaged ({type(error).__name__})") from error
    if [member.name for member in members] not in _NAMES or not all(member.is_sane for member in members):
        raise ArtifactError(f"{file}: its header does not list an artifact's members")
    missing = sum(piece.packed for member in members for piece in member.pieces) - _left(stream)
    if missing:
        raise ArtifactError(f"{file}: {'it is cut off' if missing > 0 else 'bytes follow the last member'}")
    return members


def _left(stream: BinaryIO) -> int:
    """Bytes of a file behind what has been read."""
    return os.fstat(stream.fileno()).st_size - stream.tell()


def _parts(data: Array, name: str) -> Iterator[tuple[int, int, int]]:
    """(begin, end, bytes of a number) of a member's pieces: its large tensors, and what lies before and between."""
    place = 0
    for begin, end, width in tensor_spans(data, name) if name in (WEIGHTS, GOLDEN) else ():
        if end - begin >= _LARGE:
            if begin > place:
                yield place, begin, 0
            yield begin, end, width
            place = end
    if place < data.size:
        yield place, data.size, 0


def _packed(data: Array, width: int) -> tuple[Piece, bytes]:
    """A piece and its stream, in the way that makes it smallest. A width of 0 stands for bytes that are no tensor."""
    ways = dict(encodings(data, width)) if width else {PLANES: [data.view(np.uint8)]}
    streams = {kind: _compressed(parts) for kind, parts in ways.items()}
    kind = min(streams, key=lambda kind: len(streams[kind]))
    encoded = sum(part.size for part in ways[kind])
    return Piece(kind, width or 1, data.size, encoded, len(streams[kind])), streams[kind]


def _compressed(parts: list[Bytes]) -> bytes:
    """The smallest stream of some bytes; repetitions are looked for where there are any that pay."""
    literals = _literals(parts)
    whole = np.concatenate(parts).data
    quick, thorough = (zstandard.ZstdCompressor(level=level) for level in (_QUICK_LEVEL, _LEVEL))
    if len(quick.compress(whole)) >= len(literals):
        return literals
    return min(literals, bytes(thorough.compress(whole)), key=len)


def _literals(parts: list[Bytes]) -> bytes:
    """A stream in which no block, and so no table of codes, is shared by two parts."""
    compressor = zstandard.ZstdCompressor(compression_params=_LITERALS).compressobj()
    flushes = (compressor.compress(part.data) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for part in parts)
    return b"".join((*flushes, compressor.flush()))


def _unpacked(content: bytes, piece: Piece, where: str) -> Bytes:
    """The bytes of a piece from its stream. Never more are made than the piece declares, whatever the stream claims."""
    try:
        return decode(_expanded(content, piece.encoded, where), piece.kind, piece.width, piece.size, where)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ArtifactError(f"{where} is damaged: {error}") from error


def _expanded(content: bytes, size: int, where: str) -> Bytes:
    made = np.empty(size, np.uint8)
    filled = 0
    with zstandard.ZstdDecompressor().stream_reader(content) as reader:
        while filled < size:
            count = reader.readinto(made[filled : filled + (1 << 24)].data)
            if count == 0:
                raise ArtifactError(f"{where} is damaged: its stream is too short")
            filled += count
        if reader.read(1):
            raise ArtifactError(f"{where} is damaged: its stream is too long")
    return made
