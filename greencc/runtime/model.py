"""`greencc.load`: an artifact as a callable, numpy arrays in and out by name.

Threads: a `Model` may be called from any thread. Several models may live in one process; those with the same
number of threads share one pool of workers and take turns (see `greencc.runtime.threads`). A model that was
loaded with one thread runs in its caller's thread, any number of calls at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from greencc.artifact.bundle import Array, TensorSpec
from greencc.artifact.format import Artifact, read_artifact
from greencc.artifact.manifest import Manifest
from greencc.artifact.pack import artifact_folder
from greencc.errors import ArtifactError, GreenccError, InputError
from greencc.runtime.binding import aligned, bind_inputs
from greencc.runtime.features import machine, missing_features, physical_cores
from greencc.runtime.library import load_library
from greencc.runtime.threads import run_with_threads

_CPU = 1
"""kDLCPU of DLPack."""
_POOLED = 2
"""The VM's allocator that keeps freed buffers for the next call."""


def load(path: str | os.PathLike[str], threads: int | None = None) -> Model:
    """Load an artifact.

    Every byte is verified first, then the machine is compared with what the artifact was built for; only then
    is its code loaded. Weights are memory-mapped and used in place: processes share them.

    Args:
        path: the artifact's folder, or its packed form, which is expanded to the user's cache once.
        threads: how many threads one call uses. None means what the artifact was compiled for, at most this
            machine's physical cores; all of those when it was compiled for no particular number.

    Raises:
        ArtifactError: the artifact is damaged, of another version, or built for another machine.
        InputError: `threads` is not a positive integer.
        GreenccError: TVM's runtime library is not installed.
    """
    return load_artifact(read_artifact(artifact_folder(Path(path))), threads)


def load_artifact(artifact: Artifact, threads: int | None = None) -> Model:
    """Load an artifact that has been read, and so verified, already; otherwise as `load`."""
    _check_machine(artifact)
    return Model(artifact, _thread_count(artifact.manifest, threads))


class Model:
    """A loaded artifact. Made by `greencc.load`.

    Attributes:
        artifact: the verified artifact.
        threads: how many threads one call uses.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.artifact = artifact
        self.threads = threads
        self._ffi = load_library().ffi
        try:
            self._module = _load_code(self._ffi, artifact.code.resolve())
        except (RuntimeError, OSError) as error:
            raise ArtifactError(f"{artifact.code} can't be loaded: {_first_line(error)}") from error
        self._weights = [self._ffi.from_dlpack(array) for array in artifact.weights.values()]
        ranges = [_byte_range(array) for array in artifact.weights.values()]
        self._weight_range = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (0, 0)
        # A VM runs one call at a time. Calls that overlap (one thread each) take one each from here.
        self._idle = [self.new_vm()["main"]]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, in order."""
        return self.artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs, in order."""
        return self.artifact.manifest.outputs

    @property
    def symbols(self) -> Mapping[str, tuple[int, int | None]]:
        """Lowest and highest value (None: no limit) of every symbolic dimension."""
        return self.artifact.manifest.symbols

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<greencc.Model {self.artifact.path.name}: ({inputs}) -> ({outputs}), threads={self.threads}>"

    def __call__(self, inputs: Mapping[str, object] | None = None, /, **named: object) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: arrays by input name.
            named: the same as keywords, for names that are identifiers.

        Returns:
            Arrays by output name. They are the caller's: later calls don't touch them, and writing to them
            changes nothing else.

        Raises:
            InputError: the arrays don't fit the model's inputs; nothing has run.
            GreenccError: the machine code failed.
        """
        given = {**(inputs or {}), **named}
        if len(given) != len(inputs or {}) + len(named):
            raise InputError("an input is given twice, in the mapping and as a keyword")
        return self.run_bound(self.bind(given))

    def bind(self, given: Mapping[str, object]) -> list[Array]:
        """Check `given` against the model's inputs and lay it out: what `run_bound` takes.

        Raises:
            InputError: the arrays don't fit the model's inputs.
        """
        return [aligned(array) for array in bind_inputs(self.inputs, self.symbols, given)]

    def run_bound(self, arrays: Sequence[Array], vm: Any = None) -> dict[str, Array]:
        """Run on arrays that `bind` returned.

        Args:
            arrays: the inputs, in call order.
            vm: a VM of `new_vm` that nothing else is using; None for one of the model's own.

        Raises:
            GreenccError: the machine code failed.
        """
        tensors = [self._ffi.from_dlpack(array) for array in arrays]

        def work() -> list[Array]:
            main = self._take() if vm is None else vm["main"]
            results: list[Array] = [np.from_dlpack(tensor) for tensor in main(*tensors, *self._weights)]
            if vm is None:  # not reached after a failure: a VM that stopped half-way is not used again
                self._idle.append(main)
            return results

        try:
            results = run_with_threads(self.threads, work)
        except GreenccError:
            raise
        except Exception as error:
            raise GreenccError(f"{self.artifact.path}: the run failed: {_first_line(error)}") from error
        if len(results) != len(self.outputs):
            raise GreenccError(
                f"{self.artifact.path}: the code returned {len(results)} outputs, "
                f"the manifest lists {len(self.outputs)}: compile it again"
            )
        owned = _Owned([self._weight_range, *map(_byte_range, arrays)])
        return {spec.name: owned.take(array) for spec, array in zip(self.outputs, results, strict=True)}

    def new_vm(self) -> Any:
        """A new VM over the artifact's code, with its own state."""
        vm = self._module["vm_load_executable"]()
        vm["vm_initialization"](_CPU, 0, _POOLED)
        return vm

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self.new_vm()["main"]


class _Owned:
    """Gives each output memory of its own.

    A model may return an input or a weight as it is, or one tensor twice; whoever then writes to that output
    would change the model or another array.
    """

    def __init__(self, taken: list[tuple[int, int]]) -> None:
        self._taken = taken

    def take(self, array: Array) -> Array:
        begin, end = _byte_range(array)
        if not array.flags.writeable or any(begin < stop and start < end for start, stop in self._taken):
            array = array.copy()
        self._taken.append((begin, end))
        return array


def _byte_range(array: Array) -> tuple[int, int]:
    """Addresses of a contiguous array's first byte and of the byte after its last."""
    start: int = array.__array_interface__["data"][0]
    return start, start + array.nbytes


def _load_code(ffi: Any, path: Path) -> Any:
    """Load a shared library, the one that lies at `path` now.

    The system's loader knows libraries by name: an artifact that was replaced since this process loaded it would
    come back as it was, and meet the new one's weights. So every load has a name of its own.
    """
    with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
        name = Path(folder) / path.name
        name.symlink_to(path)
        return ffi.load_module(str(name))


def _thread_count(manifest: Manifest, threads: int | None) -> int:
    if threads is None:
        compiled_for = manifest.target.get("threads")
        limit = physical_cores()
        return min(compiled_for, limit) if isinstance(compiled_for, int) and compiled_for > 0 else limit
    if type(threads) is not int or threads < 1:
        raise InputError(f"threads must be a positive integer, not {threads!r}")
    return threads


def _check_machine(artifact: Artifact) -> None:
    """Refuse code that this machine, or the TVM runtime on it, can't run, before any of it is loaded."""
    manifest, where = artifact.manifest, artifact.path
    kind = manifest.target.get("kind")
    if kind != "cpu":
        raise ArtifactError(f"{where}: compiled for {kind!r}; this greencc runs artifacts for 'cpu'")
    triple = manifest.target.get("triple")
    built_for = str(triple).partition("-")[0] if triple else machine()
    if built_for != machine():
        raise ArtifactError(
            f"{where}: compiled for {built_for}, this machine is {machine()}: compile again for it"
        )
    features = manifest.target.get("features")
    missing = missing_features(map(str, features)) if isinstance(features, list) else ()
    if missing:
        raise ArtifactError(
            f"{where}: needs {', '.join(missing)}, which this machine's CPU lacks: compile it for this CPU"
        )
    try:
        installed = package_version("apache-tvm")
    except PackageNotFoundError as error:
        raise GreenccError("apache-tvm is not installed: pip install apache-tvm==0.27.*") from error
    built_with = manifest.versions.get("tvm", "an unknown version")
    if built_with.split(".")[:2] != installed.split(".")[:2]:
        raise ArtifactError(f"{where}: built with TVM {built_with}, here is {installed}: compile it again")


def _first_line(error: BaseException) -> str:
    """One line of a message that may span many, cut where it stops helping."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
