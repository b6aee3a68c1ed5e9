"""`--verify`: the outputs are compared with the reference after every pass, so that a wrong pass is named.

The reference of an ONNX model is ONNX Runtime on the original file; of other sources, the module as imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from greencc.errors import GreenccError, UserError
from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, PADDING_ATTR
from greencc.padding import ElidedPadding
from greencc.passes.registry import PASSES
from greencc.runtime.binding import aligned
from greencc.runtime.devices import parse_device
from greencc.runtime.executable import Executable
from greencc.targets.base import Code
from greencc.targets.lower import lower

if TYPE_CHECKING:
    import tvm

    from greencc.artifact.bundle import Compiled
    from greencc.targets.base import Target

# Largest deviation that is still rounding: relative to the largest magnitude of the output, at least to 1.
TOLERANCE = 1e-3


class Verifier:
    """Compares modules on one input against the reference."""

    def __init__(
        self,
        model: Path,
        module: tvm.IRModule,
        target: Target,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...] | None,
    ) -> None:
        self._target = target
        self._inputs = inputs
        self._kept = outputs
        self._history: list[str] = []
        self._reference = open_reference(model, module, target)(inputs)
        self._original = self._reference
        self._compare("the importer", run_module(module, target, inputs))

    def after_pass(self, name: str, module: tvm.IRModule) -> None:
        """Observer of the pass pipeline. Raises GreenccError when the outputs moved.

        After a pass that approximates, what follows is held to the outputs that it gave. Where padding is elided, zeros
        are what is right.
        """
        outputs = run_module(module, self._target, self._inputs)
        elided = ElidedPadding.of(module["main"].attrs.get(PADDING_ATTR))
        if elided is not None:
            self._reference = elided.blank(self._reference, self._inputs)
            self._original = elided.blank(self._original, self._inputs)
        if PASSES[name].approximates:
            self._reference = outputs
        else:
            self._compare(f"pass {name}", outputs)
        self._history.append(name)

    def after_build(self, compiled: Compiled) -> float:
        """Largest absolute deviation of the final code from the original model."""
        outputs = BuiltProgram(compiled, self._target)(self._inputs)
        self._compare("code generation", outputs)
        return max((deviation(outputs[n], a) for n, a in self._original.items() if n in outputs), default=0.0)

    def _compare(self, culprit: str, outputs: Mapping[str, np.ndarray]) -> float:
        worst = 0.0
        for name, wanted in self._reference.items():
            if name not in outputs:
                if self._kept is not None and name not in self._kept:
                    continue
                raise GreenccError(f"{culprit} lost the output '{name}'")
            got = outputs[name]
            if got.shape != wanted.shape:
                raise GreenccError(f"{culprit} gives '{name}' the shape {got.shape} instead of {wanted.shape}")
            error = deviation(got, wanted)
            scale = max(1.0, float(np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0.0)))
            if not error <= TOLERANCE * scale:
                before = ", ".join(self._history) or "none"
                raise GreenccError(f"{culprit} changed the output '{name}' by {error:.3g}; passes before it: {before}")
            worst = max(worst, error)
        return worst


def deviation(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference; NaN and infinity must be at the same places (else the result is NaN)."""
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(np.max(np.abs(np.where(same, 0.0, a - b)), initial=0.0))


Reference = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""Computes the original model's outputs by name, in single precision."""


def open_reference(model: Path, module: tvm.IRModule, target: Target) -> Reference:
    """ONNX Runtime on an .onnx file; of other sources the module as imported, compiled for `target`."""
    return _onnxruntime(model) if model.suffix == ".onnx" else Program(module, target)


class Runnable:
    """Machine code and weights, loaded in this process."""

    def __init__(
        self, code: Code, weights: Mapping[str, np.ndarray], inputs: list[str], outputs: list[str], target: Target
    ) -> None:
        self._library = Library(code, weights, target.place)
        self._inputs, self._outputs = inputs, outputs
        self._threads = target.threads
        self.weight_bytes = sum(array.nbytes for array in weights.values())

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return dict(zip(self._outputs, self._library([inputs[name] for name in self._inputs]), strict=True))

    def seconds(self, inputs: Mapping[str, np.ndarray], runs: int) -> float:
        """Wall time of so many runs with the target's threads, one after the other."""
        from greencc.runtime.threads import run_with_threads

        return run_with_threads(
            self._threads, lambda: self._library.seconds([inputs[name] for name in self._inputs], runs)
        )


class BuiltProgram(Runnable):
    """What an artifact will hold, to be run here several times."""

    def __init__(self, compiled: Compiled, target: Target) -> None:
        inputs, outputs = [spec.name for spec in compiled.inputs], [spec.name for spec in compiled.outputs]
        super().__init__(Code(compiled.library, compiled.kernels), compiled.weights, inputs, outputs, target)


class Program(Runnable):
    """A Relax module compiled for `target`, to be run here several times."""

    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        lowered = lower(module, target)
        attrs = module["main"].attrs
        inputs, outputs = ([str(name) for name in attrs[key]] for key in (INPUTS_ATTR, OUTPUTS_ATTR))
        super().__init__(target.build(lowered.module), lowered.weights, inputs, outputs, target)


def run_module(module: tvm.IRModule, target: Target, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a Relax module by name, compiled for `target` and run here once."""
    return Program(module, target)(inputs)


class Library:
    """Compiled code and its weights, loaded in this process.

    Args:
        code: what a target built.
        weights: in call order.
        device: of the target: `cpu`, or a GPU as in `vulkan:1`.
    """

    def __init__(self, code: Code, weights: Mapping[str, np.ndarray], device: str = "cpu") -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "code.so"
            path.write_bytes(code.library)
            executable = Executable(path, code.kernels, parse_device(device))
        self._machine = executable.new_machine()
        self._weights = executable.place([aligned(array) for array in weights.values()])

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs in order."""
        return [output.copy() for output in self._machine.run([aligned(array) for array in inputs], self._weights)]

    def seconds(self, inputs: list[np.ndarray], runs: int) -> float:
        """Wall time of so many runs."""
        return self._machine.seconds([aligned(array) for array in inputs], self._weights, runs)


def _onnxruntime(model: Path) -> Reference:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("the reference is ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds of errors have no common base
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{model}: the reference, ONNX Runtime, can't load it: {reason}") from error
    names = [output.name for output in session.get_outputs()]
    taken = [item.name for item in session.get_inputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {name: inputs[name] for name in taken}), strict=True))

    return run
