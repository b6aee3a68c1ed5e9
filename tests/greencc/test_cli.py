"""The command line's contract: exit statuses, one line of error, one JSON object, whole files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_pipeline
import numpy as np
import pytest
import tiny_models
from command_lines import Greencc, Outcome

import greencc
from greencc import api
from greencc.artifact.manifest import MANIFEST
from greencc.errors import BudgetError
from greencc.npz import read_npz, write_npz
from greencc.runtime.features import physical_cores


@pytest.fixture(autouse=True)
def fake_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setitem(sys.modules, "greencc.pipeline", fake_pipeline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    fake_pipeline.calls.clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "affine.onnx"
    file.write_bytes(fake_pipeline.affine_onnx())
    return file


@pytest.fixture
def artifact(tmp_path: Path, model: Path, run_cli: Greencc) -> Path:
    path = tmp_path / "artifact"
    assert run_cli("compile", model, "-o", path)[0] == 0
    return path


def assert_error(outcome: Outcome, status: int, *parts: str) -> None:
    code, out, err = outcome
    assert code == status, err
    assert out == ""
    line = [line for line in err.splitlines() if line.startswith("greencc: error: ")]
    assert len(line) == 1, err
    assert err.rstrip("\n").endswith(line[0])
    for part in parts:
        assert part in line[0]


# compile


def test_compile_hands_over_every_option(run_cli: Greencc, model: Path, tmp_path: Path) -> None:
    code, out, _ = run_cli(
        "compile", model, "-o", tmp_path / "a", "--target", "cpu", "--threads", "1", "--shape", "x=2,4",
        "--shape", "scale=2,1", "--dynamic", "batch=1..8", "--outputs", "y,x_again", "--passes", "a,b{opt=1}",
        "--verify", "--json",
    )  # fmt: skip
    assert code == 0
    (call,) = fake_pipeline.calls
    assert call["model"] == model
    assert call["shapes"] == {"x": (2, 4), "scale": (2, 1)}
    assert call["dynamic"] == {"batch": (1, 8)}
    assert call["outputs"] == ("y", "x_again")
    assert call["passes"] == "a,b{opt=1}"
    assert call["verify"] is True
    assert call["target"].threads == 1  # type: ignore[attr-defined]
    report = json.loads(out)
    assert report.keys() >= {
        "nodes_before", "nodes_after", "edges_before", "edges_after", "kernels", "arena_bytes", "bytes_before",
        "bytes_after", "passes", "seconds", "max_abs_error",
    }  # fmt: skip
    assert report["kernels"] == 4
    assert report["max_abs_error"] == 1.5e-6
    assert report["passes"][0] == {"name": "prune-dead-nodes", "rewrites": 3, "refused": 0}
    assert report["bytes_after"] == sum(
        (tmp_path / "a" / name).stat().st_size for name in os.listdir(tmp_path / "a") if name != MANIFEST
    )


def test_compile_reports_to_people(run_cli: Greencc, model: Path, tmp_path: Path) -> None:
    code, out, err = run_cli("compile", model, "-o", tmp_path / "a")
    assert code == 0
    assert "nodes            12 -> 4" in out
    assert "prune-dead-nodes" in out
    assert "not verified" in out
    assert "a library that prints" in err
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_compile_without_verify_leaves_the_error_out(run_cli: Greencc, model: Path, tmp_path: Path) -> None:
    _, out, _ = run_cli("compile", model, "-o", tmp_path / "a", "--json")
    assert "max_abs_error" not in json.loads(out)


@pytest.mark.parametrize("prune", [["heads=0.25, sparsity=2:4"], ["heads=0.25", "sparsity=2:4"]])
def test_what_is_pruned_and_clustered_is_handed_on(
    run_cli: Greencc, model: Path, tmp_path: Path, prune: list[str]
) -> None:
    options = (*(part for text in prune for part in ("--prune", text)), "--cluster-weights", 4)
    assert run_cli("compile", model, "-o", tmp_path / "a", *options)[0] == 0
    assert fake_pipeline.calls[-1]["prune"] == {"heads": 0.25, "sparsity": "2:4"}
    assert fake_pipeline.calls[-1]["cluster_weights"] == 4


def test_a_warning_is_one_line_on_stderr(run_cli: Greencc, model: Path, tmp_path: Path) -> None:
    model.write_bytes(b"warns")
    code, out, err = run_cli("compile", model, "-o", tmp_path / "a", "--json")
    assert code == 0
    json.loads(out)
    assert "greencc: warning: dimension batch stays unbounded\n" in err


def test_compiling_twice_gives_the_same_bytes_and_one_folder(run_cli: Greencc, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        assert run_cli("compile", model, "-o", tmp_path / name)[0] == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "b", "affine.onnx"}


def test_code_for_another_machine_has_no_golden_outputs(
    run_cli: Greencc, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"kind": "cpu", "triple": "riscv64-linux-gnu", "features": [], "threads": 4}
    compiled = tiny_models.affine(target=target)
    monkeypatch.setattr(tiny_models, "affine", lambda **_: compiled)
    assert run_cli("compile", model, "-o", tmp_path / "a")[0] == 0
    code, out, _ = run_cli("verify", tmp_path / "a")
    assert code == 0
    assert "not run" in out
    np.savez(tmp_path / "data.npz", y=np.zeros((2, 3), np.float32))
    outcome = run_cli("verify", tmp_path / "a", "--data", tmp_path / "data.npz")
    assert_error(outcome, 2, "compiled for riscv64, this machine is")
    assert_error(run_cli("bench", tmp_path / "a"), 2, "compiled for riscv64, this machine is")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"not a model", 2, "not an ONNX model"),
        (b"breaks a pass", 1, "pass fuse-nothing broke the IR"),
        (b"breaks everything", 1, "ZeroDivisionError: no idea (a fault of greencc; GREENCC_DEBUG=1"),
    ],
)
def test_a_failed_compilation_is_one_line_and_writes_nothing(
    run_cli: Greencc, tmp_path: Path, content: bytes, status: int, message: str
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    for flags in ([], ["--json"]):
        assert_error(run_cli("compile", tmp_path / "m.onnx", "-o", tmp_path / "a", *flags), status, message)
        assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_a_missed_budget_exits_with_3(
    run_cli: Greencc, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise BudgetError("no candidate loses less than 0.1%")

    monkeypatch.setattr(fake_pipeline, "compile_model", fail)
    assert_error(run_cli("compile", model, "-o", tmp_path / "a"), 3, "no candidate")


def test_debug_shows_the_traceback(run_cli: Greencc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(b"breaks everything")
    monkeypatch.setenv("GREENCC_DEBUG", "1")
    code, _, err = run_cli("compile", tmp_path / "m.onnx", "-o", tmp_path / "a")
    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing command"),
        (("fly",), "No such command 'fly'"),
        (("compile",), "Missing argument 'MODEL'"),
        (("compile", "MODEL"), "Missing option '-o'"),
        (("compile", "missing.onnx", "-o", "OUT"), "missing.onnx: there is no such file"),
        (("compile", "MODEL", "-o", "OUT", "--quantize", "int2"), "'int2' is not one of"),
        (("compile", "MODEL", "-o", "OUT", "--target", "abacus"), "--target abacus: unknown target"),
        (("compile", "MODEL", "-o", "OUT", "--target", "missing.json"), "missing.json"),
        (("compile", "MODEL", "-o", "OUT", "--threads", "0"), "--threads 0: at least one"),
        (("compile", "MODEL", "-o", "OUT", "--threads", "x"), "'x' is not a valid integer"),
        (("compile", "MODEL", "-o", "OUT", "--shape", "x"), "--shape x: write INPUT=D,D"),
        (("compile", "MODEL", "-o", "OUT", "--shape", "x=1,-2"), "--shape x=1,-2: write INPUT=D,D"),
        (("compile", "MODEL", "-o", "OUT", "--shape", "x=0"), "--shape x=0: a dimension must be"),
        (("compile", "MODEL", "-o", "OUT", "--shape", "x=99999999999"), "a dimension must be from 1"),
        (("compile", "MODEL", "-o", "OUT", "--shape", "x=1", "--shape", "x=2"), "has a shape already"),
        (("compile", "MODEL", "-o", "OUT", "--dynamic", "batch"), "--dynamic batch: write DIM=LO..HI"),
        (("compile", "MODEL", "-o", "OUT", "--dynamic", "batch=4..2"), "the lower one first"),
        (
            ("compile", "MODEL", "-o", "OUT", "--dynamic", "b=1..2", "--dynamic", "b=1..3"),
            "has bounds already",
        ),
        (("compile", "MODEL", "-o", "OUT", "--prune", "heads"), "--prune heads: write NAME=F,NAME=F"),
        (("compile", "MODEL", "-o", "OUT", "--prune", "heads=nan"), "--prune heads=nan: write NAME=F,NAME=F"),
        (("compile", "MODEL", "-o", "OUT", "--prune", "sparsity=2:"), "--prune sparsity=2:: write NAME=F"),
        (("compile", "MODEL", "-o", "OUT", "--prune", "heads=.1,heads=.2"), "each name once"),
        (("compile", "MODEL", "-o", "OUT", "--cluster-weights", "x"), "'x' is not a valid integer"),
        (("compile", "MODEL", "-o", "OUT", "--outputs", "a,,b"), "--outputs a,,b: write names"),
        (("compile", "MODEL", "-o", "OUT", "--outputs", "a,a"), "--outputs a,a: write names"),
        (("compile", "MODEL", "-o", "MODEL"), "is not a greencc artifact"),
        (("compile", "MODEL", "-o", "missing/OUT"), "is not a folder"),
        (("run", "missing", "--inputs", "i.npz", "--outputs", "o.npz"), "i.npz: there is no such file"),
        (("bench", "missing"), "missing: does not exist"),
        (("verify", "missing"), "missing: does not exist"),
        (("inspect", "missing"), "missing: there is no such file"),
        (("inspect", "."), "neither a greencc artifact"),
        (("devices", "--json", "extra"), "Got unexpected extra argument"),
    ],
)
def test_a_wrong_request_exits_with_2_and_writes_nothing(
    run_cli: Greencc, model: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(model.parent)
    names = {"MODEL": model.name}
    assert_error(run_cli(*(names.get(argument, argument) for argument in arguments)), 2, message)
    assert [entry.name for entry in model.parent.iterdir()] == [model.name]
    assert fake_pipeline.calls == []


def test_help_is_no_error(run_cli: Greencc) -> None:
    for command in ([], ["compile"], ["run"], ["bench"], ["inspect"], ["verify"], ["devices"]):
        code, out, err = run_cli(*command, "--help")
        assert code == 0
        assert out.startswith("Usage: greencc")
        assert err == ""
    assert run_cli("--version")[1] == f"greencc {greencc.__version__}\n"


# run


def test_run_writes_all_outputs(run_cli: Greencc, artifact: Path, tmp_path: Path) -> None:
    inputs = tiny_models.affine_inputs(3)
    write_npz(tmp_path / "in.npz", inputs)
    code, out, _ = run_cli(
        "run", artifact, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz", "--threads", "2"
    )
    assert (code, out) == (0, "")
    outputs = read_npz(tmp_path / "out.npz")
    assert list(outputs) == ["y", "x_again", "w_again", "y_again"]
    np.testing.assert_allclose(outputs["y"], tiny_models.affine_reference(inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npz"),
        (b"PK\x03\x04 rubbish", "not a readable .npz"),
        (None, "one array without a name"),
    ],
)
def test_run_refuses_what_is_no_npz(
    run_cli: Greencc, artifact: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "in.npz"
    if content is None:
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        file.write_bytes(content)
    outcome = run_cli("run", artifact, "--inputs", file, "--outputs", tmp_path / "out.npz")
    assert_error(outcome, 2, message)
    assert not (tmp_path / "out.npz").exists()


def test_run_refuses_pickles(run_cli: Greencc, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([{}], object))
    outcome = run_cli("run", artifact, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")
    assert_error(outcome, 2, "in.npz", "allow_pickle")


def test_a_failed_run_leaves_the_old_outputs(run_cli: Greencc, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 5), np.float32), scale=np.zeros((2, 1), np.float32))
    (tmp_path / "out.npz").write_bytes(b"precious")
    outcome = run_cli("run", artifact, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")
    assert_error(outcome, 2, "input 'x' has shape [2, 5]")
    assert (tmp_path / "out.npz").read_bytes() == b"precious"


def test_run_checks_the_destination_first(run_cli: Greencc, artifact: Path, tmp_path: Path) -> None:
    for outputs in (tmp_path, tmp_path / "missing" / "out.npz"):
        assert_error(run_cli("run", artifact, "--inputs", "none.npz", "--outputs", outputs), 2, "folder")


def test_npz_holds_names_that_numpy_can_not(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "/a/b:0": np.zeros((2, 0), np.int8), "n.npy": np.float32(2.5)}
    write_npz(tmp_path / "a.npz", arrays)
    write_npz(tmp_path / "b.npz", arrays)
    read = read_npz(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for name in ("file", "/a/b:0"):
        np.testing.assert_array_equal(read[name], arrays[name], strict=True)


# verify


def test_verify_reruns_the_golden_pair(run_cli: Greencc, artifact: Path) -> None:
    code, out, _ = run_cli("verify", artifact)
    assert code == 0
    assert "every byte of manifest.json" in out
    assert "agrees: largest difference 0.0e+00, allowed 1e-05 + 1e-05 x |expected|" in out


def test_verify_names_a_damaged_member(run_cli: Greencc, artifact: Path) -> None:
    data = bytearray((artifact / "code.so").read_bytes())
    data[1000] ^= 1
    # A new file: this process has run the old one, and what is mapped changes with the file under it.
    (artifact / "code.so").unlink()
    (artifact / "code.so").write_bytes(data)
    assert_error(run_cli("verify", artifact), 2, "code.so is damaged")
    assert_error(run_cli("bench", artifact), 2, "code.so is damaged")


def test_verify_with_data(run_cli: Greencc, artifact: Path, tmp_path: Path) -> None:
    inputs = tiny_models.affine_inputs(5, seed=3)
    good = {**inputs, "y": tiny_models.affine_reference(inputs)}
    write_npz(tmp_path / "good.npz", good)
    code, out, _ = run_cli("verify", artifact, "--data", tmp_path / "good.npz")
    assert code == 0
    assert "data" in out
    write_npz(tmp_path / "bad.npz", {**good, "y": good["y"] + 0.5})
    outcome = run_cli("verify", artifact, "--data", tmp_path / "bad.npz")
    assert_error(outcome, 1, "output 'y' differs", "by 0.5", "allowed: 0.0001 + 0.0001")
    write_npz(tmp_path / "odd.npz", {**good, "z": good["y"]})
    assert_error(run_cli("verify", artifact, "--data", tmp_path / "odd.npz"), 2, "'z' is neither")
    write_npz(tmp_path / "none.npz", inputs)
    assert_error(run_cli("verify", artifact, "--data", tmp_path / "none.npz"), 2, "it holds no outputs")


def test_verify_finds_code_that_computes_something_else(tmp_path: Path, run_cli: Greencc) -> None:
    wrong = {"y": np.ones((2, 3), np.float32)}
    greencc.artifact.format.write_artifact(  # type: ignore[attr-defined]
        tmp_path / "a",
        tiny_models.affine(),
        source=tiny_models.SOURCE,
        golden_inputs=tiny_models.affine_inputs(),
        run=lambda staged, inputs: wrong,
    )
    assert_error(run_cli("verify", tmp_path / "a"), 1, "output 'y' differs from its golden pair")


# bench


def test_bench_alone(run_cli: Greencc, artifact: Path) -> None:
    code, out, _ = run_cli("bench", artifact, "--repeat", "3", "--json", "--watts-per-core", "2.5")
    assert code == 0
    result = json.loads(out)
    assert result["latency_ms"]["median"] >= result["latency_ms"]["min"] > 0
    assert result["latency_ms"]["runs"] == 3
    assert result["peers"] == {}
    assert result["threads"] == physical_cores()
    assert result["energy"]["method"] in ("rapl", "estimate")
    if result["energy"]["method"] == "estimate":
        assert result["energy"]["joules"] > 0
        assert "2.5 W" in result["energy"]["note"]
    assert "profile" not in result


def test_bench_against_onnxruntime(run_cli: Greencc, artifact: Path) -> None:
    arguments = ("bench", artifact, "--vs", "onnxruntime", "--repeat", "4", "--threads", "1")
    code, out, _ = run_cli(*arguments, "--json")
    assert code == 0
    result = json.loads(out)
    peer = result["peers"]["onnxruntime"]
    assert result["threads"] == 1
    assert peer["agrees"] is True
    assert peer["max_abs_difference"] < 1e-5
    assert peer["outputs"] == ["y", "x_again"]
    assert result["ratio"]["onnxruntime"] == pytest.approx(
        result["latency_ms"]["median"] / peer["latency_ms"]["median"]
    )
    low, high = result["ratio_interval_95"]["onnxruntime"]
    assert low <= result["ratio"]["onnxruntime"] <= high
    code, out, _ = run_cli(*arguments)
    assert code == 0
    assert "onnxruntime" in out
    assert "agree" in out
    assert "estimate" in out or "rapl" in out.lower()


def test_bench_profiles_by_the_users_nodes(run_cli: Greencc, artifact: Path) -> None:
    arguments = ("bench", artifact, "--repeat", "1", "--profile")
    result = json.loads(run_cli(*arguments, "--json")[1])
    assert result["profile"][0]["nodes"] == ["/layer/MatMul"]
    assert all(limit > 1e8 for limit in result["limits"].values())
    assert "/layer/MatMul" in run_cli(*arguments)[1]


def test_bench_generates_inputs_of_a_shape(run_cli: Greencc, artifact: Path) -> None:
    _, out, _ = run_cli("bench", artifact, "--repeat", "1", "--shape", "x=7,4", "--json")
    assert json.loads(out)["inputs"]["scale"]["shape"] == [7, 1]
    for shape, message in (
        ("z=7,4", "there is no such input"),
        ("x=7", "the artifact takes x: float32[batch, 4]"),
        ("x=7,5", "and 4 is 4"),
        ("x=9,4", "batch must be from 1 to 8"),
    ):
        assert_error(run_cli("bench", artifact, "--shape", shape), 2, message)


def test_bench_says_when_outputs_differ(
    run_cli: Greencc, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: array + 1 for name, array in tiny_models.affine_weights().items()}
    monkeypatch.setattr(tiny_models, "affine_weights", lambda: weights)
    (tmp_path / "other.onnx").write_bytes(fake_pipeline.affine_onnx())
    arguments = (
        "bench",
        artifact,
        "--vs",
        "onnxruntime",
        "--model",
        tmp_path / "other.onnx",
        "--repeat",
        "1",
    )
    code, out, err = run_cli(*arguments, "--json")
    assert code == 1
    assert json.loads(out)["peers"]["onnxruntime"]["agrees"] is False
    assert "output 'y' differs from onnxruntime's by" in err
    assert "DIFFER" in run_cli(*arguments)[1]


def test_bench_needs_the_original_model(
    run_cli: Greencc, artifact: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vs = ("bench", artifact, "--vs", "onnxruntime", "--repeat", "1")
    moved = model.rename(tmp_path / "moved.onnx")
    assert_error(run_cli(*vs), 2, "is gone: name the model with --model FILE")
    assert run_cli(*vs, "--model", moved)[0] == 0
    model.write_bytes(b"something else")
    assert_error(run_cli(*vs), 2, "has changed since")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert_error(run_cli(*vs), 2, "was not compiled on this machine: name the model with --model FILE")
    assert_error(run_cli(*vs, "--model", tmp_path / "no.onnx"), 2, "there is no file")
    assert_error(run_cli(*vs, "--model", model), 2, "onnxruntime can't run")
    assert_error(run_cli(*vs, "--model", artifact), 2, "is not an .onnx file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vs", "tensorflow"), "--vs tensorflow: unknown runtime; known: onnxruntime, onnxruntime-int8, openvino"),
        (("--repeat", "0"), "--repeat 0: at least one run"),
        (("--threads", "0"), "threads must be a positive integer"),
        (("--watts-per-core", "-1"), "watts per core must be a positive number"),
    ],
)
def test_bench_refuses_what_means_nothing(
    run_cli: Greencc, artifact: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert_error(run_cli("bench", artifact, *arguments), 2, message)


def test_an_unwritable_cache_is_no_error(
    run_cli: Greencc, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run_cli("compile", model, "-o", tmp_path / "a")[0] == 0


@pytest.mark.parametrize("content", ["", "[]", '{"x": 3}', "{" * 10000])
def test_a_damaged_cache_is_as_good_as_none(
    run_cli: Greencc, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "greencc").mkdir(parents=True)
    (tmp_path / "cache" / "greencc" / "sources.json").write_text(content)
    assert_error(run_cli("bench", artifact, "--vs", "onnxruntime"), 2, "was not compiled on this machine")


# inspect and devices


def test_inspect_an_onnx_file(run_cli: Greencc, model: Path) -> None:
    result = json.loads(run_cli("inspect", model, "--json")[1])
    assert result["kind"] == "onnx"
    assert result["nodes"] == 5
    assert result["opsets"] == {"ai.onnx": 17}
    assert result["operators"] == {"Add": 1, "Identity": 1, "MatMul": 1, "Mul": 1, "Relu": 1}
    assert result["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["batch", 4]}
    assert result["producer"] == "tests"
    out = run_cli("inspect", model)[1]
    assert "x: float32 [batch, 4]" in out
    assert "MatMul" in out


def test_inspect_a_damaged_onnx_file(run_cli: Greencc, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
    assert_error(run_cli("inspect", tmp_path / "m.onnx"), 2, "m.onnx")


def test_inspect_an_artifact(run_cli: Greencc, artifact: Path) -> None:
    result = json.loads(run_cli("inspect", artifact, "--json")[1])
    assert result["kind"] == "artifact"
    assert result["source"]["name"] == "affine.onnx"
    assert result["symbols"] == {"batch": [1, 8]}
    assert result["calls"][0] == {"kernel": "matmul", "nodes": ["/layer/MatMul"]}
    out = run_cli("inspect", artifact)[1]
    assert "batch from 1 to 8" in out
    assert "/layer/MatMul" in out
    assert "prune-dead-nodes" in out
    (artifact / MANIFEST).write_text("{}")
    assert_error(run_cli("inspect", artifact), 2, MANIFEST)


def test_inspect_a_hugging_face_folder(run_cli: Greencc, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "vocab_size": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"w": np.zeros((3, 5), np.float32)}, tmp_path / "model.safetensors")
    result = json.loads(run_cli("inspect", tmp_path, "--json")[1])
    assert result["kind"] == "huggingface"
    assert result["parameters"] == 15
    assert result["dtypes"] == {"F32": 1}
    assert "bert" in run_cli("inspect", tmp_path)[1]
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    assert_error(run_cli("inspect", tmp_path), 2, "model.safetensors")
    (tmp_path / "config.json").write_text("[]")
    assert_error(run_cli("inspect", tmp_path), 2, "config.json")


def test_devices(run_cli: Greencc) -> None:
    result = json.loads(run_cli("devices", "--json")[1])
    cpu = result["devices"][0]
    assert cpu["kind"] == "cpu"
    assert cpu["threads"] == cpu["physical_cores"] == physical_cores()
    assert cpu["energy"]["method"] in ("rapl", "estimate")
    assert "physical" in run_cli("devices")[1]


# The process


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(Path(greencc.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **paths, **environment},
        check=False,
    )


def test_the_module_is_a_command() -> None:
    done = _python("-m", "greencc", "--version")
    assert (done.returncode, done.stdout) == (0, f"greencc {greencc.__version__}\n")
    done = _python("-m", "greencc", "inspect", "missing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "greencc: error: missing: there is no such file or folder\n"


def test_commands_that_compile_nothing_load_no_compiler(artifact: Path) -> None:
    code = (
        "import sys\nfrom greencc.cli.main import _run\nstatus = _run(sys.argv[1:])\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'tvm', 'onnx'}), file=sys.stderr)\n"
    )
    for arguments in (["verify", str(artifact)], ["inspect", str(artifact)], ["devices"]):
        done = _python("-c", code, *arguments)
        assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_a_closed_pipe_is_no_traceback(artifact: Path) -> None:
    command = f"{sys.executable} -m greencc inspect {artifact} --json | true"
    paths = {"PYTHONPATH": str(Path(greencc.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, **paths}, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_progress_is_shown_for_long_work_only(
    run_cli: Greencc, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("verify", artifact)[2] == ""
    from greencc import progress

    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    _, out, err = run_cli("bench", artifact, "--repeat", "2", "--json")
    json.loads(out)
    assert "measuring: block 2 of 2" in err


def test_the_api_does_what_the_commands_do(model: Path, tmp_path: Path) -> None:
    report = greencc.compile(model, tmp_path / "a", verify=True)
    assert report["max_abs_error"] == 1.5e-6
    inputs = tiny_models.affine_inputs(2)
    np.savez(tmp_path / "in.npz", **inputs)
    greencc.run(tmp_path / "a", tmp_path / "in.npz", tmp_path / "out.npz")
    assert greencc.inspect(tmp_path / "a")["kind"] == "artifact"
    assert greencc.verify(tmp_path / "a")["golden"] is not None
    assert greencc.bench(tmp_path / "a", repeat=1, threads=1)["threads"] == 1
    assert greencc.devices()["devices"]
    assert set(api.__dict__) >= {"compile", "run", "bench", "inspect", "verify", "devices"}
