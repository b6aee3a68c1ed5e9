"""`greencc bench`: an artifact's latency and energy, alone or against other runtimes on the same model."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from greencc.artifact.bundle import Array, TensorSpec
from greencc.compare import Comparison, Tolerance, compare
from greencc.energy.meter import Meter, choose_meter
from greencc.errors import UserError
from greencc.limits import Limits, measure_limits
from greencc.npz import read_npz
from greencc.padding import TOKENS_SYMBOL, ElidedPadding
from greencc.peers import Peer, open_peer, runtime_called
from greencc.roofline import operations_of, rates, share_of_arithmetic, symbol_values
from greencc.runtime.features import cpu_name, physical_cores
from greencc.runtime.model import Model, load
from greencc.runtime.profile import device_work, profile
from greencc.sources import find_source
from greencc.timing import Series, measure, ratio_of

PEER_TOLERANCE = Tolerance(absolute=1e-4, relative=1e-4)
"""How far single-precision outputs of two runtimes may be apart."""

_OURS = "greencc"


def bench_artifact(
    artifact: Path,
    *,
    vs: Sequence[str],
    models: Sequence[Path],
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Path | None,
    threads: int | None,
    device: str | None,
    repeat: int | None,
    with_profile: bool,
    watts_per_core: float,
    progress: Callable[[str], None],
) -> dict[str, object]:
    """Measure; see `greencc.api.bench` for the arguments and docs/cli.md for the keys of the result."""
    if repeat is not None and repeat < 1:
        raise UserError(f"--repeat {repeat}: at least one run is needed")
    progress("loading the artifact")
    ours = load(artifact, threads=threads, device=device)
    if shapes and inputs is not None:
        raise UserError("bench: --shape and --inputs both say what to run on; give one of them")
    given = make_inputs(ours, shapes) if inputs is None else read_npz(inputs)
    elided = ElidedPadding.of(ours.artifact.manifest.report.get("elided_padding"))
    outputs = ours(given)  # first: it checks the inputs
    peer_threads = _peer_threads(ours, threads)
    peers = _open_peers(ours, given, vs, models, peer_threads, progress)
    progress("comparing the outputs")
    expected = {peer.name: peer.run() for peer in peers}
    if elided is not None:
        expected = {name: elided.blank(arrays, given) for name, arrays in expected.items()}
    comparisons = {name: compare(outputs, arrays, PEER_TOLERANCE) for name, arrays in expected.items()}
    choice = choose_meter(watts_per_core)
    programs = {_OURS: lambda: ours(given), **{peer.name: peer.run for peer in peers}}
    series = measure(programs, choice.meter, repeat, progress)
    symbols = symbol_values(ours.inputs, given)
    if elided is not None:
        symbols[TOKENS_SYMBOL] = elided.tokens(given)
    operations = operations_of(ours.artifact.manifest.calls, symbols)
    ratios = {peer.name: ratio_of(series[_OURS], series[peer.name]) for peer in peers}
    result: dict[str, object] = {
        "artifact": artifact.name,
        "source": ours.artifact.manifest.source.name,
        "threads": peer_threads,
        "device": str(ours.device),
        "approximated_by": ours.artifact.manifest.report.get("approximated_by", []),
        "inputs": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in given.items()},
        "elided_padding": None if elided is None else elided.as_json() | {"tokens": elided.tokens(given)},
        "operations": operations,
        "latency_ms": series[_OURS].summary(),
        "energy": _energy(series[_OURS], choice.meter) | {"note": _join(choice.meter.note, choice.reason)},
        "peers": {peer.name: _peer(peer, series[peer.name], choice.meter, comparisons[peer.name]) for peer in peers},
        "ratio": {name: ratio.value for name, ratio in ratios.items()},
        "ratio_interval_95": {name: [ratio.low, ratio.high] for name, ratio in ratios.items()},
        "environment": _environment(),
    }
    if with_profile:
        progress("profiling")
        launches = profile(ours, given)
        limits = _limits(ours, progress)
        share = None
        if limits is not None:
            share = share_of_arithmetic(operations, series[_OURS].summary()["median"], limits)
        result["limits"] = None if limits is None else asdict(limits)
        result["share_of_arithmetic"] = share
        result["device_work"] = device_work(ours, given)
        result["profile"] = [asdict(rate) for rate in rates(launches, symbols, limits)]
    return result


def _limits(ours: Model, progress: Callable[[str], None]) -> Limits | None:
    """The limits of the machine's CPU; those of GPUs are not measured."""
    if ours.device.is_gpu:
        return None
    progress("measuring the machine's limits")
    from greencc.targets.cpu.target import recorded_target  # loads the compiler, which nothing else here needs

    return measure_limits(recorded_target(ours.artifact.manifest.target, ours.threads))


def _open_peers(
    ours: Model,
    inputs: Mapping[str, Array],
    names: Sequence[str],
    models: Sequence[Path],
    threads: int,
    progress: Callable[[str], None],
) -> list[Peer]:
    outputs = [spec.name for spec in ours.outputs]
    peers = []
    for name in names:
        progress(f"loading {name}")
        suffix = runtime_called(name).suffix
        readable = [model for model in models if model.suffix == suffix] or list(models)
        original = readable[0] if readable else find_source(ours.artifact.manifest.source)
        peers.append(open_peer(name, original, inputs, outputs, threads))
    return peers


def _peer_threads(ours: Model, asked: int | None) -> int:
    """As many as the artifact uses; beside one that runs on a GPU, those that were asked for or all of the CPU."""
    return (asked or physical_cores()) if ours.device.is_gpu else ours.threads


def make_inputs(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The golden inputs, or generated ones in the shapes that were asked for.

    A shape settles the symbols of its input for all inputs; other symbols keep their golden values. Inputs
    called `*mask*` are all ones; other whole numbers are drawn from the golden input's range, so that they
    are valid ids; floating-point numbers are drawn from a normal distribution. The same request gives the
    same arrays.

    Raises:
        UserError: a shape names no input or does not fit the model.
    """
    golden = model.artifact.golden_inputs
    missing = [spec.name for spec in model.inputs if spec.name not in golden]
    if missing:
        raise UserError(f"{model.artifact.path}: its golden inputs lack {missing[0]!r}: compile it again")
    if not shapes:
        return dict(golden)
    specs = {spec.name: spec for spec in model.inputs}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise UserError(f"--shape {name}: there is no such input; known: {', '.join(specs)}")
        _settle(specs[name], shape, symbols)
    for spec in model.inputs:
        for dim, size in zip(spec.shape, golden[spec.name].shape, strict=True):
            if isinstance(dim, str):
                symbols.setdefault(dim, size)
    rng = np.random.default_rng(0)
    return {spec.name: _generate(spec, symbols, golden[spec.name], rng) for spec in model.inputs}


def _settle(spec: TensorSpec, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    wanted = f"--shape {spec.name}={','.join(map(str, shape))}"
    if len(shape) != len(spec.shape):
        raise UserError(f"{wanted}: the artifact takes {spec}")
    for dim, size in zip(spec.shape, shape, strict=True):
        fixed = symbols.setdefault(dim, size) if isinstance(dim, str) else dim
        if fixed != size:
            raise UserError(f"{wanted}: the artifact takes {spec}, and {dim} is {fixed}")


def _generate(spec: TensorSpec, symbols: Mapping[str, int], like: Array, rng: np.random.Generator) -> Array:
    shape = tuple(symbols[dim] if isinstance(dim, str) else dim for dim in spec.shape)
    dtype = np.dtype(spec.dtype)
    if "mask" in spec.name.lower() and dtype.kind in "iub":
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    low, high = (int(like.min()), int(like.max())) if like.size else (0, 1)
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def _peer(peer: Peer, series: Series, meter: Meter, comparison: Comparison) -> dict[str, object]:
    return {
        "version": peer.version,
        "latency_ms": series.summary(),
        "energy": _energy(series, meter),
        "outputs": list(peer.outputs),
        "max_abs_difference": comparison.max_abs_difference,
        "relative_l2": comparison.relative_l2,
        "agrees": comparison.agrees,
        "worst_output": comparison.worst,
        "tolerance": asdict(PEER_TOLERANCE),
    }


def _energy(series: Series, meter: Meter) -> dict[str, object]:
    return {"joules": series.joules_per_run, "method": meter.method}


def _join(note: str, reason: str | None) -> str:
    return note if reason is None else f"{note} ({reason})"


def _environment() -> dict[str, object]:
    return {
        "cpu": cpu_name(),
        "physical_cores": physical_cores(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
