"""The command line: arguments become calls of `greencc.api`, results become JSON or tables.

Exit status: 0 done; 1 a fault of greencc; 2 the user's input or request is wrong; 3 the accuracy budget could
not be met. An error is one line on stderr; GREENCC_DEBUG=1 adds the traceback. docs/cli.md is the contract.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from greencc import __version__
from greencc.errors import GreenccError
from greencc.options import parse_bounds, parse_names, parse_shapes, parse_shares

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_INTERRUPTED = 130

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout, nothing else.")
_threads = click.option(
    "--threads", type=int, metavar="N", help="Threads of one run. [default: physical cores]"
)
_device = click.option(
    "--device", metavar="KIND:N", help="Which of several GPUs to run on, as in vulkan:1. [default: the first]"
)


@click.group(context_settings=_CONTEXT, no_args_is_help=False)
@click.version_option(__version__, message="greencc %(version)s")
def cli() -> None:
    """Compile trained models into smaller, cheaper machine code, measured in joules."""


@cli.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="Artifact folder to write.")
@click.option(
    "--target",
    default="cpu",
    metavar="cpu|vulkan[:N]|cuda[:N|:sm_NN]|FILE.json",
    help="This machine's CPU or GPU, an architecture, or what a file describes.",
)
@_threads
@click.option("--shape", "shapes", multiple=True, metavar="INPUT=D,D,...", help="Fix an input's shape.")
@click.option("--dynamic", multiple=True, metavar="DIM=LO..HI", help="Keep a dimension symbolic, bounded.")
@click.option("--outputs", metavar="A,B", help="Outputs to keep. [default: all]")
@click.option("--passes", metavar="LIST", help="Passes to run: a,b{opt=1}. [default: the whole pipeline]")
@click.option("--elide-padding", metavar="INPUT", help="Compute no padding: INPUT is 0 there, so are outputs.")
@click.option("--keep-layers", type=int, metavar="N", help="Keep the first N of the model's repeated layers.")
@click.option(
    "--prune",
    multiple=True,
    metavar="heads=F,channels=F,sparsity=F|2:4",
    help="Shares to remove of heads and of channels of layers, and of weights to set to 0.",
)
@click.option(
    "--quantize",
    default="none",
    type=click.Choice(["none", "int8", "int8-all", "int8-weights", "int4"]),
    help="Compute products and convolutions in int8: where that is faster, or all; or store weights in 8 or 4 bits.",
)
@click.option("--epsilon", type=float, metavar="F", help="Fewest bits that keep every weight closer than F.")
@click.option(
    "--observer",
    type=click.Choice(["min-max", "percentile", "entropy", "mse"]),
    help="Fix ranges of activations by --calib. [default: found at run time]",
)
@click.option("--cluster-weights", type=int, metavar="BITS", help="Few distinct values (2 to 8 bits) for each weight.")
@click.option("--calib", type=click.Path(path_type=Path), help="Inputs to learn from and measure on (.npz).")
@click.option("--max-drop", type=float, metavar="F", help="Find the cheapest model that loses at most F of the metric.")
@click.option(
    "--metric",
    metavar="NAME",
    help="Of --max-drop: relative_l2, cosine, top1 or FILE.py:FUNCTION. [default: relative_l2]",
)
@click.option(
    "--cost",
    type=click.Choice(["latency", "energy"]),
    help="What --max-drop makes as low as possible. [default: latency]",
)
@click.option("--verify", is_flag=True, help="Compare with the reference after every pass.")
@_json
def compile_command(
    model: Path,
    out: Path,
    target: str,
    threads: int | None,
    shapes: Sequence[str],
    dynamic: Sequence[str],
    outputs: str | None,
    passes: str | None,
    elide_padding: str | None,
    keep_layers: int | None,
    prune: tuple[str, ...],
    quantize: str,
    epsilon: float | None,
    observer: str | None,
    cluster_weights: int | None,
    calib: Path | None,
    max_drop: float | None,
    metric: str | None,
    cost: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Compile a model into an artifact.

    MODEL is an .onnx file or a Hugging Face folder (config.json + safetensors).
    """
    from greencc import api

    with _working() as progress:
        report = api.compile(
            model,
            out,
            target=target,
            threads=threads,
            shapes=parse_shapes(shapes),
            dynamic=parse_bounds(dynamic),
            outputs=parse_names(outputs, "--outputs"),
            passes=passes,
            elide_padding=elide_padding,
            keep_layers=keep_layers,
            prune=parse_shares(prune, "--prune"),
            quantize=quantize,
            epsilon=epsilon,
            observer=observer,
            cluster_weights=cluster_weights,
            calib=calib,
            max_drop=max_drop,
            metric=metric,
            cost=cost,
            verify=verify,
            progress=progress,
        )
    _print(report, as_json, "compile_report")


@cli.command("run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--inputs", required=True, type=click.Path(path_type=Path), help="Arrays by input name (.npz).")
@click.option("--outputs", required=True, type=click.Path(path_type=Path), help="File to write (.npz).")
@_threads
@_device
def run_command(artifact: Path, inputs: Path, outputs: Path, threads: int | None, device: str | None) -> None:
    """Run an artifact on the arrays of an .npz file."""
    from greencc import api

    with _working() as progress:
        progress("running")
        api.run(artifact, inputs, outputs, threads=threads, device=device)


@cli.command("bench")
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
@_threads
@_device
@click.option("--watts-per-core", type=float, metavar="W", help="For estimates of energy. [default: 5]")
@_json
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

    with _working() as progress:
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
    _print(result, as_json, "bench_report")
    api.check_agreement(result)


@cli.command("inspect")
@click.argument("path", metavar="MODEL|ARTIFACT", type=click.Path(path_type=Path))
@_json
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what is in a model or an artifact."""
    from greencc import api

    with _working():
        result = api.inspect(path)
    _print(result, as_json, "inspection")


@cli.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Inputs and expected outputs, or samples for a budget (.npz)."
)
@click.option("--model", type=click.Path(path_type=Path), help="The original model. [default: the one compiled]")
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Where the script of the budget's metric lies.")
@_device
def verify_command(
    artifact: Path, data: Path | None, model: Path | None, metric: str | None, device: str | None
) -> None:
    """Prove that an artifact is whole and right.

    Every byte of ARTIFACT is checked, and its golden inputs must give its golden outputs. With --data, the expected
    outputs must come out, or the loss of accuracy is measured again.
    """
    from greencc import api

    with _working() as progress:
        progress("verifying")
        result = api.verify(artifact, data=data, model=model, metric=metric, device=device)
    _print(result, False, "verification")


@cli.command("pack")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="File to write.")
@_json
def pack_command(artifact: Path, out: Path, as_json: bool) -> None:
    """Write an artifact as one compressed file, to be shipped.

    It is smaller on the wire and on disk; it is expanded before it runs.
    """
    from greencc import api

    with _working() as progress:
        progress("compressing")
        result = api.pack(artifact, out)
    _print(result, as_json, "pack_report")


@cli.command("unpack")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="Artifact folder to write.")
def unpack_command(file: Path, out: Path) -> None:
    """Expand a packed artifact to a folder."""
    from greencc import api

    with _working() as progress:
        progress("expanding")
        api.unpack(file, out)


@cli.command("devices")
@click.option("--build-vulkan", is_flag=True, help="First compile the runtime for Vulkan devices.")
@_json
def devices_command(build_vulkan: bool, as_json: bool) -> None:
    """List devices, their limits, and what they would refuse."""
    from greencc import api

    if build_vulkan:
        with _working() as progress:
            api.build_vulkan(progress)
    _print(api.devices(), as_json, "device_list")


@cli.group("db", context_settings=_CONTEXT, no_args_is_help=False)
def db_group() -> None:
    """Keep tuning databases: folders that `greencc tune` writes to."""


_folders = click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))


@db_group.command("ls")
@_folders
@_json
def db_ls_command(folders: Sequence[Path], as_json: bool) -> None:
    """Show which kernels were tuned, for what, and what it brought."""
    from greencc import api

    with _working():
        result = api.db_ls(folders)
    _print(result, as_json, "database_list")


@db_group.command("merge")
@_folders
@click.option("-o", "out", type=click.Path(path_type=Path), help="Folder to unite them in. [default: the first]")
@_json
def db_merge_command(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Unite databases, and make one file of many."""
    from greencc import api

    with _working() as progress:
        progress("merging")
        result = api.db_merge(folders, out)
    _print(result, as_json, "merge_report")


@db_group.command("prune")
@_folders
@click.option("--keep", type=int, metavar="K", help="Plans of a kernel that stay, the fastest. [default: 64]")
@click.option("--failures", type=float, metavar="DAYS", help="How long failures stay. [default: 30]")
@click.option("--other-versions", is_flag=True, help="Also remove what other versions of TVM or greencc measured.")
@_json
def db_prune_command(
    folders: Sequence[Path], keep: int | None, failures: float | None, other_versions: bool, as_json: bool
) -> None:
    """Remove what is of little use, and say how much that was.

    The plans that a compilation takes stay.
    """
    from greencc import api

    with _working() as progress:
        progress("pruning")
        result = api.db_prune(folders, keep=keep, failures=failures, other_versions=other_versions)
    _print(result, as_json, "prune_report")


@db_group.command("export")
@_folders
@click.option("-o", "out", type=click.Path(path_type=Path), help="File to write. [default: stdout]")
@_json
def db_export_command(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Write the best plan of every kernel as one JSON object.

    The file can be named wherever a database is only read.
    """
    from greencc import api

    with _working():
        result = api.db_export(folders, out)
    _print(result, as_json or out is None, "export_report")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: run a command and exit with its status."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """The exit status of a command line."""
    try:
        outcome = cli.main(args=arguments, prog_name="greencc", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except GreenccError as error:
        return _fail(str(error), error.exit_status)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "greencc"
        return _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter's own flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last resort: a fault of ours still is one line
        kind, text = type(error).__name__, str(error)
        return _fail(f"{kind}: {text} (a fault of greencc; GREENCC_DEBUG=1 shows where)", 1)


def _fail(message: str, status: int) -> int:
    if os.environ.get("GREENCC_DEBUG") == "1":
        traceback.print_exc()
    print("greencc: error:", " ".join(message.split()), file=sys.stderr)
    return status


@contextmanager
def _working() -> Iterator[Callable[[str], None]]:
    """Show progress, and keep stdout clean: libraries that print get stderr instead."""
    from greencc.progress import Progress

    with _stdout_to_stderr(), warnings.catch_warnings(), Progress() as progress:
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _warn
        yield progress


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line, without the place in the source that raised it."""
    print("greencc: warning:", " ".join(str(message).split()), file=sys.stderr)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what Python and native code print to stdout meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _print(result: Mapping[str, Any], as_json: bool, view: str) -> None:
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        from greencc import render

        render.show(getattr(render, view)(result))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
