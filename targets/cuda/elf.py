"""Reads as much of a cubin as a check needs: which kernels it holds, and for which architecture.

A cubin is an ELF file of 64 bits, little-endian, for machine 190 (EM_CUDA). Offsets and sizes are checked before
they are followed, so that damaged bytes give an error and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from greencc.errors import GreenccError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_EM_CUDA = 190
_SHT_SYMTAB = 2
_SHT_NOBITS = 8
_STT_FUNC = 2
_STB_GLOBAL = 1
_CUDA_13_ABI = 0x41
"""OSABI byte of what the compilers of CUDA 13 write; older ones have another, and the architecture elsewhere."""


@dataclass(frozen=True)
class Cubin:
    """What a cubin says about itself.

    Attributes:
        capability: ten times the compute capability that its code is for: 80 for sm_80.
        kernels: names of its global functions, sorted.
    """

    capability: int
    kernels: tuple[str, ...]


def read_cubin(data: bytes) -> Cubin:
    """The architecture and the kernels of a cubin.

    Raises:
        GreenccError: the bytes aren't an ELF file for CUDA, or one that is cut short.
    """
    if data[:4] != b"\x7fELF":
        raise GreenccError(f"not an ELF file: it begins with {data[:4]!r}")
    fields = _HEADER.unpack(_slice(data, 0, _HEADER.size))
    ident, _, machine, _, _, segments, sections, flags, _, segment_bytes, segment_count, entry_bytes, count, _ = fields
    if ident[4:6] != b"\x02\x01" or machine != _EM_CUDA:
        raise GreenccError(f"an ELF file for machine {machine}, not a 64-bit one for CUDA ({_EM_CUDA})")
    if count and entry_bytes != _SECTION.size:
        raise GreenccError(f"an ELF file whose section headers have {entry_bytes} bytes, not {_SECTION.size}")
    headers = list(_SECTION.iter_unpack(_slice(data, sections, count * _SECTION.size)))
    _slice(data, segments, segment_bytes * segment_count)
    found = []
    for _, kind, _, _, offset, size, link, _, _, _ in headers:
        if kind != _SHT_NOBITS:
            _slice(data, offset, size)
        if kind == _SHT_SYMTAB:
            if link >= len(headers):
                raise GreenccError("an ELF file whose symbol table names a section that it doesn't have")
            names = _slice(data, headers[link][4], headers[link][5])
            symbols = _slice(data, offset, size - size % _SYMBOL.size)
            found += [
                _text(names, name)
                for name, info, _, _, _, _ in _SYMBOL.iter_unpack(symbols)
                if info & 0xF == _STT_FUNC and info >> 4 == _STB_GLOBAL
            ]
    capability = flags >> 8 & 0xFF if ident[7] == _CUDA_13_ABI else flags & 0xFF
    return Cubin(capability, tuple(sorted(found)))


def _slice(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise GreenccError("an ELF file that is cut short")
    return data[offset : offset + size]


def _text(names: bytes, start: int) -> str:
    end = names.find(b"\0", start)
    if not 0 <= start <= end:
        raise GreenccError("an ELF file with a symbol's name outside its table of names")
    return names[start:end].decode("utf-8", "replace")
