"""What every runtime that `bench --vs` knows is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from greencc.artifact.bundle import Array
from greencc.errors import UserError

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Peer:
    """A runtime with the model loaded.

    Attributes:
        name: as `--vs` spells it.
        version: of its package.
        outputs: names of the outputs that `run` returns.
        run: runs the model once on the inputs that it was opened with.
    """

    name: str
    version: str
    outputs: tuple[str, ...]
    run: Callable[[], Outputs]


Opener = Callable[[Path, Mapping[str, Array], Sequence[str], int], Peer]
"""Loads a model for some inputs, wanted outputs and a number of threads."""


@dataclass(frozen=True)
class Runtime:
    """A runtime that may be installed.

    Attributes:
        open: loads a model in it.
        packages: what has to be installed: the names that pip knows, by the names to import.
        suffix: of the model files that it reads.
        approximates: whether its outputs differ from the model's by design.
    """

    open: Opener
    packages: Mapping[str, str]
    suffix: str = ".onnx"
    approximates: bool = False


def common_outputs(model: Path, ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    """The outputs of the artifact that the model has too."""
    names = tuple(name for name in ours if name in theirs)
    if not names:
        raise UserError(
            f"{model} has none of the artifact's outputs ({', '.join(ours)}): "
            "name the model that it was compiled from with --model"
        )
    return names


def inputs_for(model: Path, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
    """The arrays for the inputs `wanted`, in that order."""
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise UserError(f"{model} takes input {missing[0]!r}, which the artifact does not have")
    return {name: inputs[name] for name in wanted}
