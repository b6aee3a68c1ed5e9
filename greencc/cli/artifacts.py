"""Commands on artifacts: run, bench, inspect, verify, pack, unpack; and devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from greencc.cli.shared import device_option, json_option, show, threads_option, working
from greencc.options import parse_names, parse_shapes


@click.command("run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--inputs", required=True, type=click.Path(path_type=Path), help="Arrays by input name (.npz).")
@click.option("--outputs", required=True, type=click.Path(path_type=Path), help="File to write (.npz).")
@threads_option
@device_option
def run_command(artifact: Path, inputs: Path, outputs: Path, threads: int | None, device: str | None) -> None:
    """Run an artifact on the arrays of an .npz file."""
    from greencc import api

    with working() as progress:
        progress("running")
        api.run(artifact, inputs, outputs, threads=threads, device=device)


@click.command("bench")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--vs", metavar="NAMES", help="Runtimes to compare with: onnxruntime,openvino.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The .onnx (or .gguf) for them. [default: the one compiled]",
)
@click.option("--shape", "shapes", multiple=True, metavar="INPUT=D,D,...", help="Generate inputs of a shape.")
@click.option("--inputs", type=click.Path(path_type=Path), help="Arrays by input name (.npz), instead of --shape.")
@click.option("--repeat", type=int, metavar="N", help="Timed runs of each. [default: two seconds' worth]")
@click.option("--profile", is_flag=True, help="Time every kernel, too.")
@threads_option
@device_option
@click.option("--watts-per-core", type=float, metavar="W", help="For estimates of energy. [default: 5]")
@json_option
def bench_command(
    artifact: Path,
    vs: str | None,
    models: Sequence[Path],
    shapes: Sequence[str],
    inputs: Path | None,
    repeat: int | None,
    profile: bool,
    threads: int | None,
    device: str | None,
    watts_per_core: float | None,
    as_json: bool,
) -> None:
    """Measure latency and energy.

    ARTIFACT is timed alone, or with --vs against other runtimes on the same model, inputs and threads.
    """
    from greencc import api

    with working() as progress:
        result = api.bench(
            artifact,
            vs=parse_names(vs, "--vs") or (),
            model=models,
            shapes=parse_shapes(shapes),
            inputs=inputs,
            threads=threads,
            device=device,
            repeat=repeat,
            profile=profile,
            watts_per_core=watts_per_core,
            progress=progress,
        )
    show(result, as_json, "bench_report")
    api.check_agreement(result)


@click.command("inspect")
@click.argument("path", metavar="MODEL|ARTIFACT", type=click.Path(path_type=Path))
@json_option
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what is in a model or an artifact."""
    from greencc import api

    with working():
        result = api.inspect(path)
    show(result, as_json, "inspection")


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Inputs and expected outputs, or samples for a budget (.npz)."
)
@click.option("--model", type=click.Path(path_type=Path), help="The original model. [default: the one compiled]")
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Where the script of the budget's metric lies.")
@device_option
def verify_command(
    artifact: Path, data: Path | None, model: Path | None, metric: str | None, device: str | None
) -> None:
    """Prove that an artifact is whole and right.

    Every byte of ARTIFACT is checked, and its golden inputs must give its golden outputs. With --data, the expected
    outputs must come out, or the loss of accuracy is measured again.
    """
    from greencc import api

    with working() as progress:
        progress("verifying")
        result = api.verify(artifact, data=data, model=model, metric=metric, device=device)
    show(result, False, "verification")


@click.command("pack")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="File to write.")
@json_option
def pack_command(artifact: Path, out: Path, as_json: bool) -> None:
    """Write an artifact as one compressed file, to be shipped.

    It is smaller on the wire and on disk; it is expanded before it runs.
    """
    from greencc import api

    with working() as progress:
        progress("compressing")
        result = api.pack(artifact, out)
    show(result, as_json, "pack_report")


@click.command("unpack")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="Artifact folder to write.")
def unpack_command(file: Path, out: Path) -> None:
    """Expand a packed artifact to a folder."""
    from greencc import api

    with working() as progress:
        progress("expanding")
        api.unpack(file, out)


@click.command("devices")
@click.option("--build-vulkan", is_flag=True, help="First compile the runtime for Vulkan devices.")
@json_option
def devices_command(build_vulkan: bool, as_json: bool) -> None:
    """List devices, their limits, and what they would refuse."""
    from greencc import api

    if build_vulkan:
        with working() as progress:
            api.build_vulkan(progress)
    show(api.devices(), as_json, "device_list")
