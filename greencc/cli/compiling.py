"""`greencc compile`, and the options that say what becomes of a model before it is scheduled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from greencc.cli.shared import json_option, show, threads_option, working
from greencc.model_options import ModelOptions
from greencc.options import parse_bounds, parse_names, parse_shapes, parse_shares

Command = TypeVar("Command", bound=Callable[..., object])

_MODEL_OPTIONS = (
    click.option(
        "--target",
        default="cpu",
        metavar="cpu|vulkan[:N]|cuda[:N|:sm_NN]|FILE.json",
        help="This machine's CPU or GPU, an architecture, or what a file describes.",
    ),
    threads_option,
    click.option("--shape", "shapes", multiple=True, metavar="INPUT=D,D,...", help="Fix an input's shape."),
    click.option("--dynamic", multiple=True, metavar="DIM=LO..HI", help="Keep a dimension symbolic, bounded."),
    click.option("--outputs", metavar="A,B", help="Outputs to keep. [default: all]"),
    click.option("--passes", metavar="LIST", help="Passes to run: a,b{opt=1}. [default: the whole pipeline]"),
    click.option("--elide-padding", metavar="INPUT", help="Compute no padding: INPUT is 0 there, so are outputs."),
    click.option("--keep-layers", type=int, metavar="N", help="Keep the first N of the model's repeated layers."),
    click.option(
        "--prune",
        multiple=True,
        metavar="heads=F,channels=F,sparsity=F|2:4",
        help="Shares to remove of heads and of channels of layers, and of weights to set to 0.",
    ),
    click.option(
        "--quantize",
        default="none",
        type=click.Choice(["none", "int8", "int8-all", "int8-weights", "int4"]),
        help="Compute products and convolutions in int8: where that is faster, or all; "
        "or store weights in 8 or 4 bits.",
    ),
    click.option("--epsilon", type=float, metavar="F", help="Fewest bits that keep every weight closer than F."),
    click.option(
        "--observer",
        type=click.Choice(["min-max", "percentile", "entropy", "mse"]),
        help="Fix ranges of activations by --calib. [default: found at run time]",
    ),
    click.option(
        "--cluster-weights", type=int, metavar="BITS", help="Few distinct values (2 to 8 bits) for each weight."
    ),
    click.option("--calib", type=click.Path(path_type=Path), help="Inputs to learn from and measure on (.npz)."),
    click.option(
        "--max-drop", type=float, metavar="F", help="Find the cheapest model that loses at most F of the metric."
    ),
    click.option(
        "--metric",
        metavar="NAME",
        help="Of --max-drop: relative_l2, cosine, top1 or FILE.py:FUNCTION. [default: relative_l2]",
    ),
    click.option(
        "--cost",
        type=click.Choice(["latency", "energy"]),
        help="What --max-drop makes as low as possible. [default: latency]",
    ),
)


def model_options(command: Command) -> Command:
    """Give a command the options of a model and of its target."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def read_model_options(given: Mapping[str, Any]) -> ModelOptions:
    """What the arguments of a command with `model_options` ask for; `target` and `threads` are the command's own.

    Raises:
        UserError: one can't be read.
    """
    return ModelOptions(
        **{
            **given,
            "shapes": parse_shapes(given["shapes"]),
            "dynamic": parse_bounds(given["dynamic"]),
            "outputs": parse_names(given["outputs"], "--outputs"),
            "prune": parse_shares(given["prune"], "--prune"),
        }
    )


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="Artifact folder to write.")
@model_options
@click.option(
    "--tune-db", type=click.Path(path_type=Path), metavar="DIR", help="Schedule kernels as `greencc tune` found best."
)
@click.option("--verify", is_flag=True, help="Compare with the reference after every pass.")
@json_option
def compile_command(
    model: Path,
    out: Path,
    target: str,
    threads: int | None,
    tune_db: Path | None,
    verify: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Compile a model into an artifact.

    MODEL is an .onnx file or a Hugging Face folder (config.json + safetensors).
    """
    from greencc import api

    options = read_model_options(asked)
    with working() as progress:
        report = api.compile(
            model,
            out,
            target=target,
            threads=threads,
            tune_db=tune_db,
            verify=verify,
            progress=progress,
            **vars(options),
        )
    show(report, as_json, "compile_report")
