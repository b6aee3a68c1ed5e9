"""`greencc.load`: an artifact as a callable, numpy arrays in and out by name.

Threads: a `Model` may be called from any thread. Several models may live in one process; those with the same
number of threads share one pool of workers and take turns (see `greencc.runtime.threads`). A model that was
loaded with one thread runs in its caller's thread, any number of calls at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

from greencc.artifact.bundle import Array, TensorSpec
from greencc.artifact.format import Artifact, read_artifact
from greencc.artifact.manifest import Manifest
from greencc.artifact.pack import artifact_folder
from greencc.errors import ArtifactError, GreenccError, InputError, UserError
from greencc.runtime.binding import aligned, bind_inputs
from greencc.runtime.devices import KINDS, Device, check_device, parse_device
from greencc.runtime.executable import Executable, Machine
from greencc.runtime.features import machine, missing_features, physical_cores
from greencc.runtime.threads import run_with_threads


def load(path: str | os.PathLike[str], threads: int | None = None, device: str | None = None) -> Model:
    """Load an artifact.

    Every byte is verified first, then the machine is compared with what the artifact was built for; only then
    is its code loaded. Weights are memory-mapped and used in place: processes share them.

    Args:
        path: the artifact's folder, or its packed form, which is expanded to the user's cache once.
        threads: how many threads one call uses. None means what the artifact was compiled for, at most this
            machine's physical cores; all of those when it was compiled for no particular number.
        device: which of several GPUs to run on, as in `vulkan:1`. None means the first one of the kind that the
            artifact was compiled for.

    Raises:
        ArtifactError: the artifact is damaged, of another version, or built for another machine or device.
        InputError: `threads` is not a positive integer.
        UserError: there is no such device, or no driver or runtime for it.
        GreenccError: TVM's runtime library is not installed.
    """
    return load_artifact(read_artifact(artifact_folder(Path(path))), threads, device)


def load_artifact(artifact: Artifact, threads: int | None = None, device: str | None = None) -> Model:
    """Load an artifact that has been read, and so verified, already; otherwise as `load`."""
    _check_machine(artifact)
    kind = str(artifact.manifest.target.get("kind"))
    chosen = Device(kind) if device is None else parse_device(device)
    if chosen.kind != kind:
        raise UserError(f"--device {device}: {artifact.path} was compiled for {kind}")
    check_device(chosen, artifact.manifest.target, str(artifact.path))
    return Model(artifact, _thread_count(artifact.manifest, threads), chosen)


class Model:
    """A loaded artifact. Made by `greencc.load`.

    Attributes:
        artifact: the verified artifact.
        threads: how many threads one call uses.
        device: what it runs on.
    """

    def __init__(self, artifact: Artifact, threads: int, device: Device) -> None:
        self.artifact = artifact
        self.threads = threads
        self.device = device
        try:
            self._executable = Executable(artifact.code.resolve(), artifact.kernels, device)
            self._weights = self._executable.place(list(artifact.weights.values()))
            # A VM runs one call at a time. Calls that overlap (one thread each) take one each from here.
            self._idle = [self.new_machine()]
        except GreenccError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise ArtifactError(f"{artifact.code} can't be loaded: {_first_line(error)}") from error
        ranges = [_byte_range(array) for array in artifact.weights.values()]
        self._weight_range = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (0, 0)

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
        where = f"threads={self.threads}" if self.device.kind == "cpu" else str(self.device)
        return f"<greencc.Model {self.artifact.path.name}: ({inputs}) -> ({outputs}), {where}>"

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

    def run_bound(self, arrays: Sequence[Array], machine: Machine | None = None) -> dict[str, Array]:
        """Run on arrays that `bind` returned.

        Args:
            arrays: the inputs, in call order.
            machine: one of `new_machine` that nothing else is using; None for one of the model's own.

        Raises:
            GreenccError: the machine code failed.
        """

        def work() -> list[Array]:
            chosen = self._take() if machine is None else machine
            results = chosen.run(arrays, self._weights)
            if machine is None:  # not reached after a failure: a VM that stopped half-way is not used again
                self._idle.append(chosen)
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

    def new_machine(self) -> Machine:
        """A VM over the artifact's code, with its own state."""
        return self._executable.new_machine()

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked to."""
        self._executable.synchronize()

    def _take(self) -> Machine:
        try:
            return self._idle.pop()
        except IndexError:
            return self.new_machine()


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
    if kind not in KINDS:
        raise ArtifactError(f"{where}: compiled for {kind!r}; this greencc runs artifacts for {', '.join(KINDS)}")
    triple = manifest.target.get("triple")
    built_for = str(triple).partition("-")[0] if triple else machine()
    if built_for != machine():
        raise ArtifactError(f"{where}: compiled for {built_for}, this machine is {machine()}: compile again for it")
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
