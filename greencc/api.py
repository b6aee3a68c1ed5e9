"""Everything that the command line does, as functions. Results are plain values that JSON can hold.

Arguments mean what the options of the same name mean in docs/cli.md. `progress` is told, in words, what is
being done; errors are those of `greencc.errors`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from greencc.artifact.bundle import Array
from greencc.artifact.format import check_destination, read_artifact, write_artifact
from greencc.artifact.manifest import Source
from greencc.artifact.pack import artifact_folder
from greencc.artifact.pack import pack as write_pack
from greencc.artifact.pack import unpack as read_pack
from greencc.compare import Tolerance, compare
from greencc.energy.estimate import DEFAULT_WATTS_PER_CORE
from greencc.energy.meter import choose_meter
from greencc.errors import BudgetError, GreenccError, InputError, UserError
from greencc.files import check_writable
from greencc.model_options import ModelOptions
from greencc.npz import read_npz, write_npz
from greencc.padding import ElidedPadding
from greencc.peers import RUNTIMES
from greencc.runtime.devices import GPU_KINDS, driver, has_device
from greencc.runtime.features import (
    cpu_name,
    known_features,
    logical_cpus,
    machine,
    missing_features,
    physical_cores,
)
from greencc.runtime.model import Model, load, load_artifact
from greencc.sources import find_source, remember_source
from greencc.tuning.api import db_export, db_ls, db_merge, db_prune, serve_device, tune

__all__ = [
    "bench",
    "build_vulkan",
    "check_agreement",
    "compile",
    "db_export",
    "db_ls",
    "db_merge",
    "db_prune",
    "devices",
    "inspect",
    "pack",
    "run",
    "serve_device",
    "tune",
    "unpack",
    "verify",
]

AnyPath = str | PathLike[str]
Progress = Callable[[str], None]

GOLDEN_TOLERANCE = Tolerance(absolute=1e-5, relative=1e-5)
"""For the golden outputs, which the artifact's own code computed on the machine that compiled it."""
GPU_TOLERANCE = Tolerance(absolute=1e-3, relative=1e-3)
"""For those of an artifact for a GPU: another one than the compiling machine's adds in another order."""
DATA_TOLERANCE = Tolerance(absolute=1e-4, relative=1e-4)
"""For outputs that the user brings, computed by another runtime."""


def _silent(message: str) -> None:
    pass


def compile(
    model: AnyPath,
    out: AnyPath,
    *,
    target: str = "cpu",
    threads: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    outputs: Sequence[str] | None = None,
    passes: str | None = None,
    elide_padding: str | None = None,
    keep_layers: int | None = None,
    prune: Mapping[str, float | str] | None = None,
    quantize: str = "none",
    epsilon: float | None = None,
    observer: str | None = None,
    cluster_weights: int | None = None,
    calib: AnyPath | Iterable[Mapping[str, Array]] | None = None,
    max_drop: float | None = None,
    metric: str | None = None,
    cost: str | None = None,
    tune_db: AnyPath | None = None,
    verify: bool = False,
    progress: Progress = _silent,
) -> dict[str, object]:
    """Compile a model into an artifact.

    Args:
        model: an .onnx file or a Hugging Face folder.
        out: the folder to write; a greencc artifact that is there is replaced.
        target: `cpu`, `vulkan` or `cuda` for this machine's, `vulkan:1` for a certain GPU, `cuda:sm_90` for an
            architecture, or the path of a JSON file that describes another CPU or GPU.
        threads: how many threads a run will use; None for the target's physical cores. Of no meaning for GPUs.
        shapes: fixed shapes by input name.
        dynamic: bounds by name of a dimension that stays symbolic.
        outputs: the outputs to keep; None for all.
        passes: the pipeline as text; None for the default one.
        elide_padding: the input [batch, sequence] that is 0 where a token is padding and 1 elsewhere: padding is not
            computed, and outputs are zeros there. None elides only what no output depends on.
        keep_layers: how many of the model's repeated layers stay, the first ones; None for all.
        prune: the shares of `heads` of attention, and of `channels` of feed-forward layers and convolutions, that go,
            the least important first: by `calib`, or by their weights; and of each output's weights that become 0
            (`sparsity`; "2:4" for two of every four). Outputs change.
        quantize: `none`, or `int8` to compute products and convolutions with constant weights in int8 where that is
            measured to be faster, or `int8-all` to do so everywhere; `int8-weights` or `int4` to store weights of
            products in 8 or 4 bits and compute in float32. Outputs then differ from the model's by more than rounding.
        epsilon: store every large weight in the fewest bits that keep it closer than this to its value, and compute
            with bytes; the report lists both of each. Weights that 8 bits don't keep stay in float32.
        observer: how `quantize` finds the range of activations: `min-max`, `percentile`, `entropy` or `mse` take one
            for each operator from `calib`; None finds one for every row, and every image, when the model runs.
        cluster_weights: give every large weight at most 2 to the power of this distinct values (2 to 8), by k-means: a
            packed artifact stores their numbers. Runs compute in float32 as before.
        calib: inputs like those that the model is made for, for `quantize`, `prune` and `max_drop`: an .npz whose
            arrays have a first axis of samples, or an iterable of inputs by name, a mapping for each run. An iterable
            is iterated over for each question, one mapping in memory at a time; what can be iterated over only once is
            kept in a temporary file. `max_drop` keeps all of it in memory.
        max_drop: the largest loss of accuracy: the cheapest assignment of precisions within it, measured on `calib`,
            is searched for.
        metric: what the loss of `max_drop` is of: `relative_l2` (None), `cosine`, `top1`, or FILE.py:FUNCTION.
        cost: what the search makes as low as possible: `latency` (None) or `energy`.
        tune_db: a tuning database: kernels that it knows for this target are scheduled as was found best.
        verify: compare the outputs with the reference after every pass.
        progress: told what is being done.

    Returns:
        The report that `compile --json` prints.

    Raises:
        UserError: the model, a request or the destination is wrong. Nothing has been written.
        BudgetError: nothing is within `max_drop`. Nothing has been written.
        GreenccError: a fault of greencc. Nothing has been written.
    """
    started = time.perf_counter()
    model, out = Path(model), Path(out)
    check_destination(out)
    if not model.exists():
        raise UserError(f"{model}: there is no such file or folder")
    from greencc.pipeline import compile_model
    from greencc.targets.registry import make_target

    chosen = make_target(target, threads)
    options = ModelOptions(
        shapes=dict(shapes or {}),
        dynamic=dict(dynamic or {}),
        outputs=None if outputs is None else tuple(outputs),
        passes=passes,
        elide_padding=elide_padding,
        keep_layers=keep_layers,
        prune=dict(prune or {}),
        quantize=quantize,
        epsilon=epsilon,
        observer=observer,
        cluster_weights=cluster_weights,
        calib=Path(calib) if isinstance(calib, str | PathLike) else calib,
        max_drop=max_drop,
        metric=metric,
        cost=cost,
    )
    plans = None
    if tune_db is not None:
        from greencc.tuning.plans import recorded_plans

        plans = recorded_plans(Path(tune_db), chosen)
    result = compile_model(model, target=chosen, options=options, plans=plans, verify=verify, progress=progress)
    progress("writing the artifact")
    source = Source(*result.source)
    manifest = write_artifact(
        out,
        result.compiled,
        source=source,
        golden_inputs=result.golden_inputs,
        run=_run_staged if _runs_here(result.compiled.target) else None,
    )
    remember_source(source, model)
    report: dict[str, object] = {
        "artifact": str(out),
        "kernels": len(manifest.calls),
        "bytes_after": sum(member.bytes for member in manifest.members.values()),
        **result.report,
        "target": dict(manifest.target),
        "seconds": time.perf_counter() - started,
    }
    if result.max_abs_error is not None:
        report["max_abs_error"] = result.max_abs_error
    return report


def run(
    artifact: AnyPath,
    inputs: AnyPath,
    outputs: AnyPath,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> None:
    """Run an artifact on the arrays of one .npz file and write its outputs to another.

    Raises:
        UserError: the artifact, the inputs or the destination is wrong. Nothing has been written.
        GreenccError: the run failed. Nothing has been written.
    """
    check_writable(Path(outputs))
    given = read_npz(Path(inputs))
    write_npz(Path(outputs), load(artifact, threads=threads, device=device)(given))


def bench(
    artifact: AnyPath,
    *,
    vs: Sequence[str] = (),
    model: AnyPath | Sequence[AnyPath] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: AnyPath | None = None,
    threads: int | None = None,
    device: str | None = None,
    repeat: int | None = None,
    profile: bool = False,
    watts_per_core: float | None = None,
    progress: Progress = _silent,
) -> dict[str, object]:
    """Measure an artifact's latency and energy, and other runtimes' beside it.

    Args:
        artifact: the artifact's folder.
        vs: other runtimes, by the names in `greencc.peers.RUNTIMES`.
        model: the model for them, a file or several of the kinds that they read; none for the one that the artifact
            was compiled from.
        shapes: shapes by input name, for artifacts with symbolic dimensions; None for the golden inputs.
        inputs: an .npz with arrays by input name, instead of `shapes`.
        threads: how many threads each may use; None as in `greencc.load`.
        device: which GPU the artifact runs on; None as in `greencc.load`.
        repeat: timed runs of each; None for two seconds' worth.
        profile: also time every kernel.
        watts_per_core: what an estimate of energy rests on, where the hardware has no counters; None for
            `greencc.energy.estimate.DEFAULT_WATTS_PER_CORE`.
        progress: told what is being done.

    Returns:
        What `bench --json` prints. `peers.NAME.agrees` says whether the outputs agree.

    Raises:
        UserError: the artifact or a request is wrong, or a peer can't run the model.
    """
    from greencc.benchmark import bench_artifact

    return bench_artifact(
        Path(artifact),
        vs=vs,
        models=[Path(model)] if isinstance(model, str | PathLike) else [Path(one) for one in model],
        shapes=shapes or {},
        inputs=None if inputs is None else Path(inputs),
        threads=threads,
        device=device,
        repeat=repeat,
        with_profile=profile,
        watts_per_core=DEFAULT_WATTS_PER_CORE if watts_per_core is None else watts_per_core,
        progress=progress,
    )


def check_agreement(bench_result: Mapping[str, Any]) -> None:
    """Raise GreenccError when a `bench` result says that a peer's outputs differ from the artifact's.

    Where the artifact, or the peer, computes approximately by design, a difference is no fault.
    """
    if bench_result["approximated_by"]:
        return
    for name, peer in bench_result["peers"].items():
        if not peer["agrees"] and not RUNTIMES[name].approximates:
            size = peer["max_abs_difference"]
            apart = "beyond comparison" if size is None else f"by {size:g}"
            raise GreenccError(
                f"{bench_result['artifact']}: output {peer['worst_output']!r} differs from {name}'s {apart}: "
                "either the artifact is wrong, or --model names another model"
            )


def inspect(path: AnyPath) -> dict[str, object]:
    """Describe a model or an artifact; see `greencc.inspection.inspect_path`."""
    from greencc.inspection import inspect_path

    return inspect_path(Path(path))


def verify(
    artifact: AnyPath,
    *,
    data: AnyPath | None = None,
    model: AnyPath | None = None,
    metric: str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> dict[str, object]:
    """Prove that an artifact is whole and still computes what it did when it was compiled.

    Args:
        artifact: the artifact's folder.
        data: an .npz with the model's inputs and expected outputs, all under their names; for an artifact compressed
            within an accuracy budget, samples without outputs, on which the loss is measured again.
        model: the original model for that; None for the one that the artifact was compiled from.
        metric: where the script of the budget's metric lies, FILE.py:FUNCTION; None where it is in this folder.
        threads: how many threads to run with; None as in `greencc.load`.
        device: which GPU to run on; None as in `greencc.load`.

    Returns:
        Sizes of the verified members, and for `golden` and `data` the largest difference and the tolerance.
        `drop` is the loss of accuracy where that was measured again, with the budget's `max_drop` and `metric`.
        `golden` is None where nothing could be run: an artifact for another kind of machine than this one,
        or one without golden outputs because the compiling machine was of another kind.

    Raises:
        ArtifactError: a member is damaged, or `data` is given and this machine can't run the artifact.
        InputError: `data` does not fit the model.
        BudgetError: the loss of accuracy is beyond the budget.
        GreenccError: outputs differ by more than the tolerance.
    """
    whole = read_artifact(artifact_folder(Path(artifact)))
    result: dict[str, object] = {
        "artifact": str(artifact),
        "members": {name: member.bytes for name, member in whole.manifest.members.items()},
        "golden": None,
        "data": None,
        "drop": None,
    }
    if data is None and not _runs_here(whole.manifest.target):
        return result
    loaded = load_artifact(whole, threads, device)
    if whole.golden_outputs:
        outputs = loaded(whole.golden_inputs)
        tolerance = GPU_TOLERANCE if loaded.device.is_gpu else GOLDEN_TOLERANCE
        result["golden"] = _compared(str(artifact), outputs, whole.golden_outputs, tolerance, "its golden pair")
    record = whole.manifest.report.get("compression")
    if data is not None:
        given = read_npz(Path(data))
        if isinstance(record, Mapping) and not any(spec.name in given for spec in loaded.outputs):
            original = find_source(whole.manifest.source) if model is None else Path(model)
            result["drop"] = _drop_again(loaded, record, metric, original, Path(data))
            return result
        inputs = {spec.name: given[spec.name] for spec in loaded.inputs if spec.name in given}
        expected = {spec.name: given[spec.name] for spec in loaded.outputs if spec.name in given}
        unknown = sorted(given.keys() - inputs.keys() - expected.keys())
        if unknown or not expected:
            problem = f"{unknown[0]!r} is neither an input nor an output" if unknown else "it holds no outputs"
            names = ", ".join(spec.name for spec in (*loaded.inputs, *loaded.outputs))
            raise InputError(f"{data}: {problem} of the model; it has {names}")
        elided = ElidedPadding.of(whole.manifest.report.get("elided_padding"))
        if elided is not None:
            expected = elided.blank(expected, inputs)
        result["data"] = _compared(str(artifact), loaded(inputs), expected, DATA_TOLERANCE, str(data))
    return result


def _drop_again(
    model: Model, record: Mapping[str, Any], metric: str | None, original: Path, data: Path
) -> dict[str, object]:
    """The loss of accuracy of a compressed artifact on other data; BudgetError where it is beyond the budget."""
    from greencc.compress.again import measure_again

    if metric is not None and Path(metric).name != record["metric"]:
        raise UserError(f"--metric {metric}: the artifact's budget is one of {record['metric']}")
    drop = measure_again(model, metric or record["metric"], original, data)
    if drop.value > record["max_drop"]:
        raise BudgetError(
            f"{data}: the loss of {record['metric']} is {drop.value:.4g}, beyond the budget of {record['max_drop']:g}"
        )
    return {"max_drop": record["max_drop"], "metric": record["metric"], **drop.as_json()}


def pack(artifact: AnyPath, out: AnyPath) -> dict[str, object]:
    """Write an artifact as one file with compressed members, to be shipped.

    Returns:
        `bytes_before` and `bytes_after`, of all members and of the file, and `members`: both of each.

    Raises:
        ArtifactError: the artifact is damaged.
        UserError: the file can't be written.
    """
    folder, file = Path(artifact), Path(out)
    packed = write_pack(folder, file)
    sizes = {name: (folder / name).stat().st_size for name in packed}
    return {
        "file": str(file),
        "bytes_before": sum(sizes.values()),
        "bytes_after": file.stat().st_size,
        "members": {name: {"bytes_before": sizes[name], "bytes_after": count} for name, count in packed.items()},
    }


def unpack(file: AnyPath, out: AnyPath) -> None:
    """Expand a packed artifact to a folder, byte for byte what was packed.

    Raises:
        ArtifactError: the file is damaged.
        UserError: the folder can't be written.
    """
    read_pack(Path(file), Path(out))


def devices() -> dict[str, object]:
    """The devices of this machine and what greencc would use of them."""
    choice = choose_meter()
    cpu = {
        "kind": "cpu",
        "name": cpu_name(),
        "architecture": machine(),
        "features": list(known_features()),
        "physical_cores": physical_cores(),
        "logical_cpus": logical_cpus(),
        "threads": physical_cores(),
        "energy": {"method": choice.meter.method, "note": choice.meter.note, "reason": choice.reason},
    }
    found, absent = [cpu], {}
    for kind in GPU_KINDS:
        try:
            found += [{"kind": kind, **device} for device in driver(kind).devices()]
        except GreenccError as error:
            absent[kind] = str(error)
    return {"devices": found, "absent": absent}


def build_vulkan(progress: Progress = _silent) -> dict[str, object]:
    """Compile greencc's runtime for Vulkan devices into the user's cache, where every process finds it.

    Returns:
        `library`, the file, and `seconds`.

    Raises:
        UserError: there is no C++ compiler, or the headers of Vulkan are missing.
    """
    from greencc.runtime.vulkan_build import build_sidecar

    started = time.perf_counter()
    library = build_sidecar(progress)
    return {"library": str(library), "seconds": time.perf_counter() - started}


def _runs_here(target: Mapping[str, Any]) -> bool:
    """Whether this machine can run what was compiled, and so compute its golden outputs."""
    architecture = str(target.get("triple") or machine()).partition("-")[0]
    if architecture != machine():
        return False
    if target.get("kind") == "cpu":
        return not missing_features(map(str, target.get("features") or ()))
    return has_device(target)


def _run_staged(staged: Path, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return load(staged)(inputs)


def _compared(
    artifact: str,
    outputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    tolerance: Tolerance,
    reference: str,
) -> dict[str, object]:
    found = compare(outputs, expected, tolerance)
    if not found.agrees:
        size = "beyond comparison" if found.max_abs_difference is None else f"by {found.max_abs_difference:g}"
        raise GreenccError(f"{artifact}: output {found.worst!r} differs from {reference} {size} (allowed: {tolerance})")
    return {"max_abs_difference": found.max_abs_difference, "tolerance": str(tolerance)}
