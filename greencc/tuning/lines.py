"""Format 1 of a tuning record file: lines of JSON, each with a checksum of itself as its last field.

    {"format":1,"scope":{"target":{...},"tvm":"0.27.0","greencc":"0.1.0"},"crc":"..."}
    {"workload":"9f...","text":"matmul 128x384x1536 float32","launches":6,"traits":{...},"limit":1e-4,"crc":"..."}
    {"trial":"9f...","sizes":{},"rule":"...","plan":{...},"seconds":[...],"spread":[...],"reference":[...],
     "device":"...","at":"2026-01-31T12:00:00.000+00:00","crc":"..."}
    {"trial":"9f...","sizes":{"batch":[1,8]},"rule":"...","plan":{...},"error":"...","device":"...","at":"...","crc":"..."}

The checksum is the CRC-32 of the line up to the comma before it, so that a line that was cut, joined to another or
garbled is told from a whole one. A checksum doesn't keep out what is written on purpose: fields are checked as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, NoReturn, TypeAlias
from zlib import crc32

from greencc.errors import UserError
from greencc.tuning.records import Failed, Measured, Scope, Trial, WorkloadNote

FORMAT = 1
MOST_BYTES = 1 << 20
"""A longer line is a damaged one."""

Line: TypeAlias = Trial | WorkloadNote

_CRC = b',"crc":"%08x"}'
_CRC_BYTES = len(_CRC % 0)
_LONGEST_REASON = 1000
_LONGEST_INTEGER = 1 << 63
_DEEPEST = 5
_TIME_LENGTH = len("2026-01-31T12:00:00.000+00:00")


def header_line(scope: Scope) -> bytes:
    """The first line of a file."""
    return _line({"format": FORMAT, "scope": scope.as_json})


def line_of(item: Line) -> bytes:
    """A record as a line. A reason of several lines becomes one, and is cut where it is very long.

    Raises:
        ValueError: it couldn't be read back.
    """
    line = _line(note_json(item) if isinstance(item, WorkloadNote) else trial_json(item))
    if len(line) > MOST_BYTES or parse_line(line) is None:
        raise ValueError(f"no record that can be read back: {item}")
    return line


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial, as JSON holds it."""
    outcome = trial.outcome
    plan = None if trial.plan is None else dict(sorted(trial.plan.items()))
    measured = (
        {"error": " ".join(outcome.reason.split())[:_LONGEST_REASON]}
        if isinstance(outcome, Failed)
        else {name: list(getattr(outcome, name)) for name in ("seconds", "spread", "reference")}
    )
    sizes = {name: list(values) for name, values in sorted(trial.sizes.items())}
    key = {"trial": trial.workload, "sizes": sizes, "rule": trial.rule, "plan": plan}
    careful = {"thorough": True} if trial.thorough else {}
    return {**key, **measured, **careful, "device": trial.device, "at": trial.at}


def note_json(note: WorkloadNote) -> dict[str, Any]:
    """A note, as JSON holds it."""
    traits = {name: float(value) for name, value in sorted(note.traits.items())}
    fields = {"text": note.text, "launches": note.launches, "traits": traits, "limit": note.limit}
    return {"workload": note.workload, **fields}


def parse_header(line: bytes, where: str) -> Scope | None:
    """The scope that a file's first line names, or None where the line is damaged.

    Raises:
        UserError: the file is of a newer format; `where` names it.
    """
    try:
        document = _DECODER.decode(line.decode("ascii"))
        if isinstance(document, dict) and type(document.get("format")) is int and document["format"] > FORMAT:
            raise UserError(
                f"{where}: a tuning record file of format {document['format']}, this greencc reads {FORMAT}: "
                "use the greencc that wrote it, or a newer one"
            )
        return scope_of(_checked(line)["scope"])
    except (ValueError, KeyError, RecursionError):
        return None


def parse_line(line: bytes) -> Line | None:
    """The record of a line, or None where it is damaged."""
    try:
        document = _checked(line)
        return trial_of(document) if "trial" in document else note_of(document)
    except (ValueError, KeyError, RecursionError):
        return None


def scope_of(document: Any) -> Scope:
    """A scope from JSON.

    Raises:
        ValueError, KeyError: it isn't one.
    """
    fields = _object(document)
    target = _object(fields["target"])
    _check_plain(target, _DEEPEST)
    return Scope(target, _text(fields["tvm"]), _text(fields["greencc"]))


def trial_of(document: Mapping[str, Any]) -> Trial:
    """A trial from JSON.

    Raises:
        ValueError, KeyError: it isn't one.
    """
    outcome: Measured | Failed
    sizes = {name: _integers(values) for name, values in _object(document["sizes"]).items()}
    if "error" in document:
        outcome = Failed(_text(document["error"]))
    else:
        seconds, spread, reference = (_numbers(document[name]) for name in ("seconds", "spread", "reference"))
        outcome = Measured(seconds, spread, reference)
    points = {len(values) for values in sizes.values()} or {1}
    if isinstance(outcome, Measured):
        points.add(len(outcome.seconds))
    if len(points) > 1:
        raise ValueError("sizes and seconds don't go together")
    plan = document["plan"]
    if plan is not None:
        for value in _object(plan).values():
            if type(value) is not str:
                _integer(value)
    at = _text(document["at"])
    if len(at) != _TIME_LENGTH or datetime.fromisoformat(at).utcoffset() != timedelta(0):
        raise ValueError("no time as `now` writes it")
    kernel, rule, device = (_text(document[name]) for name in ("trial", "rule", "device"))
    return Trial(kernel, sizes, rule, plan, outcome, device, at, document.get("thorough") is True)


def note_of(document: Mapping[str, Any]) -> WorkloadNote:
    """A note from JSON.

    Raises:
        ValueError, KeyError: it isn't one.
    """
    traits, limit = _object(document["traits"]), document["limit"]
    values = _numbers(list(traits.values()))
    return WorkloadNote(
        _text(document["workload"]),
        _text(document["text"]),
        _integer(document["launches"]),
        dict(zip(traits, values, strict=True)),
        None if limit is None else _numbers([limit])[0],
    )


def decode(text: str) -> Any:
    """JSON without NaN, infinities and numbers that have no end.

    Raises:
        ValueError, RecursionError: it isn't JSON, or is nested too deeply.
    """
    return _DECODER.decode(text)


def _line(document: Mapping[str, Any]) -> bytes:
    body = json.dumps(document, separators=(",", ":"), allow_nan=False)[:-1].encode("ascii")
    return body + _CRC % crc32(body) + b"\n"


def _checked(line: bytes) -> dict[str, Any]:
    line = line.rstrip(b"\r\n")
    body = line[:-_CRC_BYTES]
    if line[-_CRC_BYTES:] != _CRC % crc32(body):
        raise ValueError("the checksum is another")
    return _object(_DECODER.decode(line.decode("ascii")))


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("no object")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("no text")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -_LONGEST_INTEGER <= value < _LONGEST_INTEGER:
        raise ValueError("no integer")
    return value


def _integers(values: Any) -> tuple[int, ...]:
    if type(values) is not list or not values:
        raise ValueError("no list of integers")
    return tuple(map(_integer, values))


def _numbers(values: Any) -> tuple[float, ...]:
    if type(values) is not list:
        raise ValueError("no list of numbers")
    for value in values:
        if type(value) is not float:
            _integer(value)
    return tuple(map(float, values))


def _check_plain(value: Any, depth: int) -> None:
    """Raise ValueError where a value is nested too deeply, or a number in it can't be shown."""
    if depth == 0:
        raise ValueError("nested too deeply")
    if type(value) is int:
        _integer(value)
    elif type(value) is float and not isfinite(value):
        raise ValueError("no number")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, depth - 1)
