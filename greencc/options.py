"""Texts of the command line as values: shapes, bounds, lists of names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from greencc.errors import UserError

_BOUNDS = re.compile(r"(?P<name>.+)=(?P<low>\d+)\.\.(?P<high>\d+)")
_SHAPE = re.compile(r"(?P<name>.+)=(?P<dims>(\d+(,\d+)*)?)")
_PATTERN = re.compile(r"\d+:\d+")
_TIME = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smh]?)")
_LARGEST = 1 << 31


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`INPUT=D,D,...` as dimensions by input name; `INPUT=` is a scalar.

    Raises:
        UserError: a text has another form, a dimension is 0 or absurd, or an input occurs twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise UserError(f"--shape {text}: write INPUT=D,D,... with whole numbers, as in input_ids=1,128")
        name = match["name"]
        dims = tuple(int(dim) for dim in match["dims"].split(",")) if match["dims"] else ()
        if not all(1 <= dim <= _LARGEST for dim in dims):
            raise UserError(f"--shape {text}: a dimension must be from 1 to {_LARGEST}")
        if name in shapes:
            raise UserError(f"--shape {text}: input {name!r} has a shape already")
        shapes[name] = dims
    return shapes


def parse_bounds(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """`DIM=LO..HI` as bounds by dimension name.

    Raises:
        UserError: a text has another form, the range is empty or absurd, or a dimension occurs twice.
    """
    bounds: dict[str, tuple[int, int]] = {}
    for text in texts:
        match = _BOUNDS.fullmatch(text)
        if match is None:
            raise UserError(f"--dynamic {text}: write DIM=LO..HI with whole numbers, as in batch=1..16")
        low, high = int(match["low"]), int(match["high"])
        if not 1 <= low <= high <= _LARGEST:
            raise UserError(f"--dynamic {text}: bounds must be from 1 to {_LARGEST}, the lower one first")
        if match["name"] in bounds:
            raise UserError(f"--dynamic {text}: dimension {match['name']!r} has bounds already")
        bounds[match["name"]] = (low, high)
    return bounds


def parse_sizes(texts: Iterable[str], option: str) -> dict[str, tuple[int, ...]]:
    """`DIM=N,N,...` as sizes by dimension name, ascending.

    Raises:
        UserError: a text has another form, a size is 0 or absurd, or a dimension occurs twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        match = _SHAPE.fullmatch(text)
        sizes = [int(size) for size in match["dims"].split(",")] if match is not None and match["dims"] else []
        if match is None or not sizes or not all(1 <= size <= _LARGEST for size in sizes) or match["name"] in found:
            raise UserError(f"{option} {text}: write DIM=N,N,... with sizes from 1 on, each dimension once")
        found[match["name"]] = tuple(sorted(set(sizes)))
    return found


def parse_seconds(text: str | None, option: str) -> float | None:
    """`90s`, `10m` or `2h` as seconds; None stays None.

    Raises:
        UserError: the text has another form, or is no time.
    """
    if text is None:
        return None
    match = _TIME.fullmatch(text.strip())
    seconds = float(match["number"]) * {"s": 1, "m": 60, "h": 3600}[match["unit"] or "s"] if match else 0.0
    if not 0 < seconds < math.inf:
        raise UserError(f"{option} {text}: write a time above 0, as in 90s, 10m or 2h")
    return seconds


def parse_shares(texts: Iterable[str], option: str) -> dict[str, float | str]:
    """`A=F,B=N:M` as numbers by name, patterns N:M as they are.

    Raises:
        UserError: a text has another form, or a name occurs twice.
    """
    shares: dict[str, float | str] = {}
    for part in (part for text in texts for part in text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        share = value if _PATTERN.fullmatch(value) else _number(value)
        if not name or not equals or share is None or name in shares:
            text = ",".join(texts)
            raise UserError(f"{option} {text}: write NAME=F,NAME=F, each name once, as in heads=0.25,sparsity=2:4")
        shares[name] = share
    return shares


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def parse_names(text: str | None, option: str) -> tuple[str, ...] | None:
    """`A,B` as names; None stays None.

    Raises:
        UserError: a name is empty or occurs twice.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"{option} {text}: write names separated by commas, each once")
    return names
