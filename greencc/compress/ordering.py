"""In which order a search takes candidates, and what of those it has taken is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from greencc.compress.candidates import Assessed, Candidate

# Added squares of errors below this are equal.
_TINY = 1e-24


def in_effect(items: Iterable[Assessed]) -> list[Assessed]:
    """What of `items` is done: the last of an operator's precisions, and nothing to operators that are gone."""
    found = list(items)
    gone = {node for item in found for node in item.candidate.inside}
    last = {_place(item.candidate): item for item in found if item.candidate.inside or item.candidate.node not in gone}
    return list(last.values())


def order(items: Sequence[Assessed]) -> tuple[list[Assessed], list[Assessed]]:
    """Items in the order that a search takes them in, what saves most for its error first; and those passed over.

    Squares of errors add up, so that the gain over the square of the error says what an item is worth. An operator has
    one precision: of those on offer each replaces the one before, and counts by what it adds to that one's gain and
    error. Precisions that save less for their error than the way from one below to one above are passed over; they are
    what may still fit when the one above does not.
    """
    groups: dict[object, list[Assessed]] = {}
    for item in items:
        groups.setdefault(_place(item.candidate), []).append(item)
    taken: list[tuple[float, Assessed]] = []
    for group in groups.values():
        taken += _replacements(group)
    taken.sort(key=lambda pair: pair[0], reverse=True)
    first = [item for _, item in taken]
    rest = [item for item in items if item not in first]
    return first, sorted(rest, key=lambda item: _worth(item, None), reverse=True)


def _replacements(group: Sequence[Assessed]) -> list[tuple[float, Assessed]]:
    """(worth, item) of the upper hull of gains over squares of errors: worth falls from each item to the next."""
    hull: list[tuple[float, Assessed]] = []
    for item in sorted(group, key=lambda item: (item.sensitivity, -item.gain)):
        if hull and item.gain <= hull[-1][1].gain:
            continue
        while hull and _worth(item, hull[-1][1]) >= hull[-1][0]:
            hull.pop()
        hull.append((_worth(item, hull[-1][1] if hull else None), item))
    return hull


def _worth(item: Assessed, before: Assessed | None) -> float:
    """Gain over the square of the error, of what `item` adds to `before`."""
    gain, square = (0.0, 0.0) if before is None else (before.gain, before.sensitivity**2)
    return (item.gain - gain) / max(item.sensitivity**2 - square, _TINY)


def _place(candidate: Candidate) -> tuple[str, str]:
    """What candidates share of which one at most is done."""
    return candidate.node, "precision" if candidate.is_precision else candidate.label
