"""The runtime: checks before anything runs, memory that stays the caller's, threads, and what it imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import greencc
from greencc.artifact.bundle import TensorSpec
from greencc.errors import ArtifactError, GreenccError, InputError
from greencc.runtime import features, model, threads
from greencc.runtime.binding import aligned, aligned_empty, bind_inputs
from greencc.runtime.model import Model, load
from greencc.runtime.profile import profile

F32 = np.float32


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "affine"
    tiny_models.write(path, tiny_models.affine())
    return path


@pytest.fixture(scope="module")
def affine(artifact: Path) -> Model:
    return load(artifact, threads=1)


def assert_right(model: Model, batch: int, seed: int = 0) -> None:
    inputs = tiny_models.affine_inputs(batch, seed)
    np.testing.assert_allclose(model(inputs)["y"], tiny_models.affine_reference(inputs), rtol=1e-6, atol=1e-6)


# Running


def test_inputs_by_mapping_or_by_name(affine: Model) -> None:
    inputs = tiny_models.affine_inputs(3)
    expected = tiny_models.affine_reference(inputs)
    for outputs in (affine(inputs), affine(**inputs), affine({"x": inputs["x"]}, scale=inputs["scale"])):
        assert list(outputs) == ["y", "x_again", "w_again", "y_again"]
        np.testing.assert_allclose(outputs["y"], expected, rtol=1e-6, atol=1e-6)


def test_an_artifact_that_was_replaced_is_loaded_anew(tmp_path: Path) -> None:
    """The loader of the system knows libraries by name, and would give back the code that it has."""
    path = tmp_path / "model"
    tiny_models.write(path, tiny_models.affine())
    first = load(path, threads=1)
    tiny_models.write(path, tiny_models.affine(library=tiny_models.affine_library(negated=True)))
    assert_right(first, 2)
    inputs = tiny_models.affine_inputs(2)
    np.testing.assert_allclose(load(path, threads=1)(inputs)["y"], -tiny_models.affine_reference(inputs), rtol=1e-6)


def test_an_input_given_twice_is_refused(affine: Model) -> None:
    inputs = tiny_models.affine_inputs()
    with pytest.raises(InputError, match="given twice"):
        affine(inputs, x=inputs["x"])


@pytest.mark.parametrize("batch", range(1, 9))
def test_every_batch_within_the_bounds(affine: Model, batch: int) -> None:
    assert_right(affine, batch)


def test_outputs_stay_valid_and_are_the_callers(affine: Model) -> None:
    first_inputs = tiny_models.affine_inputs(4, seed=1)
    first = affine(first_inputs)
    kept = {name: array.copy() for name, array in first.items()}
    for seed in range(20):
        affine(tiny_models.affine_inputs(4, seed))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        array[...] = -1
    again = affine(first_inputs)
    for name, array in again.items():
        np.testing.assert_array_equal(array, kept[name])


def test_outputs_share_memory_with_nothing(affine: Model) -> None:
    inputs = {name: aligned(array) for name, array in tiny_models.affine_inputs(4).items()}
    outputs = affine(inputs)
    arrays = [*outputs.values(), *inputs.values(), *affine.artifact.weights.values()]
    for i, a in enumerate(arrays):
        for b in arrays[i + 1 :]:
            assert not np.shares_memory(a, b)
    assert all(array.flags.writeable for array in outputs.values())


def test_outputs_outlive_their_model(artifact: Path) -> None:
    inputs = tiny_models.affine_inputs(4)
    outputs = load(artifact, threads=1)(inputs)
    np.testing.assert_allclose(outputs["y"], tiny_models.affine_reference(inputs), rtol=1e-6, atol=1e-6)


def test_attributes_and_repr(affine: Model) -> None:
    assert affine.inputs[0] == TensorSpec("x", "float32", ("batch", 4))
    assert affine.outputs[0].name == "y"
    assert affine.symbols == {"batch": (1, 8)}
    assert "x: float32[batch, 4]" in repr(affine)


def test_a_failing_kernel_says_where(affine: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine, "bind", lambda given: [np.zeros((2, 5), F32), np.zeros((2, 1), F32)])
    with pytest.raises(GreenccError, match="the run failed") as caught:
        affine({})
    assert "affine" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert_right(affine, 2)


# Checks


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": None}, "input 'x' is missing: the model takes x: float32[batch, 4], scale: float32[batch, 1]"),
        ({"z": np.zeros(1)}, "there is no input 'z': the model takes x: float32[batch, 4], scale"),
        ({"x": np.zeros((2, 4))}, "input 'x' is float64, the model takes float32: convert it with .astype"),
        ({"x": np.zeros((2, 4), ">f4")}, "input 'x' is >f4"),
        ({"x": np.zeros((2, 4), object)}, "input 'x' is object"),
        ({"x": [[1.0], [1.0, 2.0]]}, "input 'x' is not an array"),
        ({"x": "text"}, "input 'x' is <U4"),
        ({"x": np.zeros(4, F32)}, "input 'x' has shape [4], the model takes [batch, 4]"),
        ({"x": np.zeros((2, 5), F32)}, "shape [2, 5], the model takes [batch, 4]: dimension 1 must be 4"),
        ({"x": np.zeros((9, 4), F32)}, "shape [9, 4], the model takes [batch, 4]: batch must be from 1 to 8"),
        ({"x": np.zeros((0, 4), F32)}, "batch must be from 1 to 8"),
        ({"scale": np.zeros((3, 1), F32)}, "batch is 3 here and 2 in input 'x'"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(
    affine: Model, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], reason: str
) -> None:
    monkeypatch.setattr(model, "run_with_threads", lambda *_: pytest.fail("it ran"))
    given = {**tiny_models.affine_inputs(2), **changes}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        affine(given)
    assert "\n" not in str(caught.value)


def test_a_symbol_without_an_upper_bound() -> None:
    specs = (TensorSpec("x", "float32", ("n", "n")),)
    arrays = bind_inputs(specs, {"n": (2, None)}, {"x": np.zeros((300, 300), F32)})
    assert arrays[0].shape == (300, 300)
    with pytest.raises(InputError, match="n must be at least 2"):
        bind_inputs(specs, {"n": (2, None)}, {"x": np.zeros((1, 1), F32)})
    with pytest.raises(InputError, match="n is 4 here and 3 in input 'x'"):
        bind_inputs(specs, {"n": (2, None)}, {"x": np.zeros((3, 4), F32)})


def _misaligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + 65, np.uint8)
    start = -raw.ctypes.data % 64 + 1
    moved = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def _read_only(array: np.ndarray) -> np.ndarray:
    array = aligned(array).copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "lay_out",
    [
        _misaligned,
        _read_only,
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=0)[::2],
        lambda array: array[::-1].copy()[::-1],
        lambda array: array.tolist() and np.array(array.tolist(), F32),
    ],
)
def test_any_layout_gives_the_same_answer(affine: Model, lay_out: Callable[[np.ndarray], np.ndarray]) -> None:
    inputs = tiny_models.affine_inputs(4)
    expected = affine(inputs)
    actual = affine({name: lay_out(array) for name, array in inputs.items()})
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, strict=True)


def test_aligned_arrays_are_used_in_place_and_others_copied() -> None:
    inside = aligned_empty((3, 5), "float32")
    assert inside.ctypes.data % 64 == 0
    assert aligned(inside) is inside
    for other in (_misaligned(inside), _read_only(inside), inside[:, ::2], inside.T):
        copy = aligned(other)
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.c_contiguous
        assert copy.flags.writeable
        np.testing.assert_array_equal(copy, other)
    assert aligned_empty((), "int64").shape == ()
    assert aligned_empty((0, 4), "int64").shape == (0, 4)


# The machine


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"kind": "metal"}, "compiled for 'metal'; this greencc runs artifacts for cpu, cuda, vulkan"),
        ({"kind": "cpu", "triple": "riscv64-unknown-linux-gnu"}, "compiled for riscv64, this machine is"),
        ({"kind": "cpu", "features": ["sse2", "time-travel"]}, "needs time-travel, which this machine's CPU"),
    ],
)
def test_code_for_another_machine_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, object], reason: str
) -> None:
    compiled = tiny_models.affine(target=target, library=b"not even code")
    greencc.artifact.format.write_artifact(  # type: ignore[attr-defined]
        tmp_path / "a", compiled, source=tiny_models.SOURCE, golden_inputs={}, run=None
    )
    with pytest.raises(ArtifactError, match=re.escape(reason)):
        load(tmp_path / "a")


def test_code_that_is_no_library_is_refused(tmp_path: Path) -> None:
    from greencc.artifact.format import write_artifact

    compiled = tiny_models.affine(library=b"\x7fELF" + bytes(100))
    write_artifact(tmp_path / "a", compiled, source=tiny_models.SOURCE, golden_inputs={}, run=None)
    with pytest.raises(ArtifactError, match=r"code\.so can't be loaded"):
        load(tmp_path / "a")


def test_another_tvm_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "package_version", lambda name: "0.31.2")
    with pytest.raises(ArtifactError, match=r"built with TVM 0\.27.*, here is 0\.31\.2"):
        load(artifact)


def test_features_have_one_spelling() -> None:
    for spelling in ("avx512_vnni", "AVX512VNNI", "+avx512vnni", "avx512-vnni"):
        assert features.canonical_feature(spelling) == "avx512vnni"
    assert features.canonical_feature("pni") == "sse3"
    assert features.canonical_feature("sse4_1") == features.canonical_feature("sse4.1")
    assert features.canonical_feature("asimddp") == "dotprod"


def test_this_machine_is_described() -> None:
    present = features.host_features()
    assert features.missing_features([]) == ()
    if present is not None and features.machine() == "x86_64":
        assert "sse2" in present
        assert features.missing_features(["sse2", "no-such-thing"]) == ("no-such-thing",)
    assert 1 <= features.physical_cores() <= features.logical_cpus()
    assert features.cpu_name()


def test_unknown_features_refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "host_features", lambda: None)
    assert features.missing_features(["no-such-thing"]) == ()


def test_container_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/sys/fs/cgroup/cpu.max": "150000 100000"}
    monkeypatch.setattr(features, "_read", lambda file: answers.get(str(file), ""))
    assert features._cgroup_quota() == 1.5
    answers["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert features._cgroup_quota() is None
    answers.clear()
    answers["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "200000"
    answers["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert features._cgroup_quota() == 2


def test_hyperthreads_are_not_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 5})
    siblings = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2,6", 3: "3,7"}
    monkeypatch.setattr(
        features,
        "_read",
        lambda file: next((siblings[n] for n in siblings if f"/cpu{n}/topology" in str(file)), ""),
    )
    assert features._linux_cores() == 4


# Threads


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
def test_thread_counts_that_mean_nothing_are_refused(artifact: Path, count: object) -> None:
    with pytest.raises(InputError, match="threads must be a positive integer"):
        load(artifact, threads=count)  # type: ignore[arg-type]


@pytest.mark.parametrize(("compiled_for", "expected"), [(None, 3), (2, 2), (64, 3)])
def test_default_thread_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_for: int | None, expected: int
) -> None:
    monkeypatch.setattr(model, "physical_cores", lambda: 3)
    target = {"kind": "cpu", "threads": compiled_for}
    tiny_models.write(tmp_path / "a", tiny_models.affine(target=target))
    assert load(tmp_path / "a").threads == expected
    assert load(tmp_path / "a", threads=5).threads == 5


def test_calls_from_many_threads_are_right(artifact: Path) -> None:
    """One model of one thread, two of several: sixteen callers mix them."""
    models = [load(artifact, threads=count) for count in (1, 2, 3)]
    errors: list[BaseException] = []

    def call(seed: int) -> None:
        try:
            for turn in range(30):
                assert_right(models[(seed + turn) % 3], 1 + (seed + turn) % 8, seed)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert errors == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_run_has_the_threads_that_were_asked_for(count: int) -> None:
    available = threads.load_library().function("runtime.NumThreads")
    assert threads.run_with_threads(count, available) == count
    seen: list[int] = []
    caller = threading.Thread(target=lambda: seen.append(threads.run_with_threads(count, available)))
    caller.start()
    caller.join()
    assert seen == [count]


def run_python(code: str, *arguments: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(greencc.__file__).parents[1])}
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_main_thread_pools_grow_elsewhere_and_the_callers_affinity_stays() -> None:
    out = run_python(
        """
import os
from greencc.runtime.threads import load_library, run_with_threads
before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
import threading
available = load_library().function("runtime.NumThreads")
where = lambda: (available(), threading.current_thread() is threading.main_thread())
print([run_with_threads(n, where) for n in (2, 1, 2, 4, 2, 1)])
assert before == (os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None)
"""
    )
    assert out.strip() == "[(2, True), (1, True), (2, True), (4, False), (2, True), (1, True)]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX only")
def test_a_forked_child_can_run_models(artifact: Path) -> None:
    out = run_python(
        """
import os, sys, numpy as np, greencc
models = [greencc.load(sys.argv[1], threads=n) for n in (1, 2, 3)]
inputs = {"x": np.ones((2, 4), np.float32), "scale": np.ones((2, 1), np.float32)}
expected = [model(inputs)["y"] for model in models]
child = os.fork()
if child == 0:
    same = all(np.array_equal(model(inputs)["y"], y) for model, y in zip(models, expected))
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
        str(artifact),
    )
    assert out.strip() == "0"


# What is imported


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_running_a_model_imports_neither_tvm_nor_onnx_nor_torch(artifact: Path) -> None:
    out = run_python(
        """
import json, sys, time
started = time.perf_counter()
import numpy as np, greencc
light = sorted(name for name in sys.modules if name.partition(".")[0] in ("tvm_ffi", "numpy.testing", "onnx"))
model = greencc.load(sys.argv[1], threads=2)
seconds = time.perf_counter() - started
model(x=np.ones((2, 4), np.float32), scale=np.ones((2, 1), np.float32))
roots = {name.partition(".")[0] for name in sys.modules}
heavy = roots & {"tvm", "onnx", "torch", "onnxruntime", "safetensors", "click", "rich", "scipy"}
with open("/proc/self/maps") as maps:
    libraries = {line.split("/")[-1].strip() for line in maps if "libtvm" in line}
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
print(json.dumps([light, sorted(heavy), sorted(libraries), seconds, peak]))
""",
        str(artifact),
    )
    light, heavy, libraries, seconds, peak_mb = json.loads(out)
    print(f"import and load: {seconds:.2f} s; peak memory: {peak_mb:.0f} MB")
    assert light == []
    assert heavy == []
    # tvm_ffi brings its own test library along.
    assert set(libraries) - {"libtvm_ffi_testing.so"} == {"libtvm_ffi.so", "libtvm_runtime.so"}
    assert seconds < 10
    assert peak_mb < 150


def test_importing_greencc_imports_nothing_heavy() -> None:
    out = run_python(
        "import sys, greencc; print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'tvm', 'tvm_ffi', 'onnx', 'numpy', 'click', 'rich'}), dir(greencc))"
    )
    assert out.startswith("[] [")
    assert "'load'" in out


def test_the_version_is_the_packages() -> None:
    text = (Path(greencc.__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{greencc.__version__}"' in text


def test_unknown_names_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = greencc.nonsense


def test_torch_stays_importable_where_it_is_installed() -> None:
    """`tvm_ffi` is imported without torch, but nothing is left behind that hides it."""
    out = run_python(
        """
import sys, types, importlib.machinery
class Finder:
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torch" else None
    def create_module(self, spec): return types.ModuleType(spec.name)
    def exec_module(self, module): module.real = True
sys.meta_path.append(Finder())
from greencc.runtime.library import load_library
load_library()
print("torch" in sys.modules)
import torch
print(torch.real)
"""
    )
    assert out.split() == ["False", "True"]


# Profiles


def test_a_profile_names_the_users_nodes(affine: Model) -> None:
    launches = profile(affine, tiny_models.affine_inputs(4), runs=3)
    assert [launch.call.kernel for launch in launches] == ["matmul", "add", "relu", "multiply"]
    assert [launch.call.nodes for launch in launches] == [
        ("/layer/MatMul",),
        ("/layer/Add",),
        ("/Relu",),
        ("/Mul",),
    ]
    assert all(launch.milliseconds > 0 for launch in launches)
    assert_right(affine, 4)
