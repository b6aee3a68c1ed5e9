"""Device functions to cubin and PTX, on a machine with neither GPU nor toolkit."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from device_kernels import device, elementwise, threads_only
from tvm import s_tir, te, tirx

from greencc.caching import cache_folder
from greencc.errors import GreenccError, UserError
from greencc.targets.cuda import nvrtc
from greencc.targets.cuda.compile import compile_kernels
from greencc.targets.cuda.elf import read_cubin

ARCHS = ("sm_75", "sm_80", "sm_90", "sm_120")
GROW = elementwise("float32", lambda x: tirx.exp(x) + tirx.const(1, "float32"), "grow")
TRIPLE = elementwise("int64", lambda x: x * 3, "triple")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_cubin_for_the_architecture_with_every_kernel(arch: str) -> None:
    kernels = device(GROW, TRIPLE, arch=arch)
    members = compile_kernels(kernels, arch)
    assert set(members) == {"kernels.json", "kernels.cubin", "kernels.ptx"}
    cubin = read_cubin(members["kernels.cubin"])
    assert cubin.kernels == ("grow_kernel", "triple_kernel")
    assert cubin.capability == int(arch[3:])
    assert f".target {arch}\n".encode() in members["kernels.ptx"]
    functions = {
        name: {"arguments": ["handle", "handle", "int64"], "launch": ["blockIdx.x", "threadIdx.x"]}
        for name in cubin.kernels
    }
    assert json.loads(members["kernels.json"]) == {"version": 1, "arch": arch, "functions": functions}


def test_the_same_bytes_every_time_and_no_path_in_them() -> None:
    made = []
    for kernels in (device(GROW, TRIPLE), device(TRIPLE, GROW)):
        made.append(compile_kernels(kernels, "sm_80"))
        shutil.rmtree(cache_folder() / "cuda")
    assert made[0] == made[1]
    assert not any(str(cache_folder()).encode() in data for data in made[0].values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "float64", "bool"])
def test_every_type_of_element(dtype: str) -> None:
    def body(x: tirx.Expr) -> tirx.Expr:
        return tirx.Not(x) if dtype == "bool" else x + x

    members = compile_kernels(device(elementwise(dtype, body)), "sm_80")
    assert read_cubin(members["kernels.cubin"]).kernels == ("unary_kernel",)


def test_inputs_may_be_called_anything() -> None:
    n = tirx.Var("n", "int64")
    names = ("gpu_0/data_0", "gpu_0/data_0:1", "p_a_b", "a b", "ж")
    operands = [te.placeholder((n,), "float32", name=name) for name in names]
    total = te.compute((n,), lambda i: sum(x[i] for x in operands), name="total")
    func = te.create_prim_func([*operands, total]).with_attrs({"global_symbol": "add", "tirx.noalias": True})
    schedule = s_tir.Schedule(tvm.IRModule({"add": func}))
    threads_only(schedule, schedule.get_sblock("total", "add"))
    members = compile_kernels(device(schedule.mod["add"]), "sm_80")
    assert json.loads(members["kernels.json"])["functions"]["add_kernel"]["arguments"] == [*["handle"] * 6, "int64"]


def test_bytes_multiplied_four_at_a_time() -> None:
    dot = elementwise("int32", lambda x: tirx.call_extern("int32", "__dp4a", x, x, tirx.IntImm("int32", 1)), "dot")
    assert b"dp4a.s32.s32" in compile_kernels(device(dot), "sm_80")["kernels.ptx"]


def test_a_compiled_source_is_kept_and_a_damaged_one_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    headers = next(cache_folder().glob("cuda-headers-*"), None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if headers is not None:  # unpacking them takes a second
        (tmp_path / "greencc").mkdir()
        (tmp_path / "greencc" / headers.name).symlink_to(headers)
    calls = []
    compiler = nvrtc.find_compiler()

    def counted(source: str, arch: str) -> nvrtc.Binary:
        calls.append(arch)
        return compiler.compile(source, arch)

    monkeypatch.setattr("greencc.targets.cuda.compile.find_compiler", lambda: replace(compiler, compile=counted))
    kernels = device(GROW)
    first = compile_kernels(kernels, "sm_80")
    assert compile_kernels(kernels, "sm_80") == first
    assert calls == ["sm_80"]
    compile_kernels(kernels, "sm_90")
    assert calls == ["sm_80", "sm_90"]
    (kept,) = [p for p in tmp_path.rglob("kernels.cubin") if p.read_bytes() == first["kernels.cubin"]]
    kept.write_bytes(first["kernels.cubin"][:1000])
    assert compile_kernels(kernels, "sm_80") == first
    assert calls == ["sm_80", "sm_90", "sm_80"]
    assert kept.read_bytes() == first["kernels.cubin"]


def test_a_missing_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = compile_kernels(device(TRIPLE), "sm_80")
    empty = nvrtc.Compiler("empty", lambda source, arch: nvrtc.Binary(other["kernels.cubin"], b""))
    monkeypatch.setattr("greencc.targets.cuda.compile.find_compiler", lambda: empty)
    with pytest.raises(GreenccError, match=r"^kernels\.cubin for sm_80: kernel\(s\) missing: grow_kernel$"):
        compile_kernels(device(GROW), "sm_80")


def test_code_for_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = compile_kernels(device(GROW), "sm_90")
    wrong = nvrtc.Compiler("wrong", lambda source, arch: nvrtc.Binary(other["kernels.cubin"], b""))
    monkeypatch.setattr("greencc.targets.cuda.compile.find_compiler", lambda: wrong)
    with pytest.raises(GreenccError, match="compiled for sm_80, but holds code for sm_90"):
        compile_kernels(device(GROW), "sm_80")


def test_source_in_place_of_machine_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = nvrtc.Compiler("none", lambda source, arch: nvrtc.Binary(source.encode(), b""))
    monkeypatch.setattr("greencc.targets.cuda.compile.find_compiler", lambda: source)
    with pytest.raises(GreenccError, match=r"kernels\.cubin for sm_80: not an ELF file"):
        compile_kernels(device(GROW), "sm_80")


@pytest.mark.parametrize("arch", ["sm_70", "sm_999", "80", "sm_80a", "SM_80", ""])
def test_an_unknown_architecture_lists_the_known_ones(arch: str) -> None:
    with pytest.raises(UserError, match=r"unknown; known: sm_75, sm_80, .*sm_90, .*sm_120") as caught:
        compile_kernels(device(GROW), arch)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("missing", ["package", "library"])
def test_without_nvrtc_the_message_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLibrary:
        @staticmethod
        def nvrtcVersion() -> None:
            raise RuntimeError("libnvrtc.so.13 not found\nsearched: everywhere")

    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None if missing == "package" else NoLibrary)
    monkeypatch.delenv("GREENCC_NVCC", raising=False)
    with pytest.raises(UserError, match=r"pip install 'greencc\[cuda\]'$") as caught:
        compile_kernels(device(GROW), "sm_80")
    assert "\n" not in str(caught.value)


def test_source_that_does_not_compile_gives_its_first_error() -> None:
    with pytest.raises(GreenccError, match=r"NVRTC, sm_80: generated code doesn't compile: .*error: .*undefined"):
        nvrtc.find_compiler().compile("__global__ void f() { g(); }", "sm_80")


def test_a_user_may_choose_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in that hands on what NVRTC made, since few machines have a toolkit.
    members = compile_kernels(device(GROW), "sm_80")
    for name, data in members.items():
        (tmp_path / name).write_bytes(data)
    program = tmp_path / "nvcc"
    program.write_text(
        f"""#!{sys.executable}
import pathlib, shutil, sys
if "--version" in sys.argv:
    print("Built on some day\\nBuild cuda_13.9")
    raise SystemExit
kind = sys.argv[1].removeprefix("--")
assert "-arch=sm_80" in sys.argv and "grow_kernel" in pathlib.Path(sys.argv[-1]).read_text()
shutil.copy({str(tmp_path)!r} + "/kernels." + kind, sys.argv[sys.argv.index("-o") + 1])
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("GREENCC_NVCC", str(program))
    assert nvrtc.find_compiler().identity == "nvcc Build cuda_13.9"
    assert compile_kernels(device(GROW), "sm_80") == members
    monkeypatch.setenv("GREENCC_NVCC", "no-such-program")
    with pytest.raises(UserError, match="GREENCC_NVCC=no-such-program: no such program"):
        nvrtc.find_compiler()


def test_an_argument_that_can_not_be_passed_is_named() -> None:
    module = device(GROW)
    ((gv, func),) = module.functions_items()
    byte = tirx.Var("flag", "int8")
    wrong = tirx.PrimFunc([*func.params, byte], func.body, attrs=func.attrs)
    with pytest.raises(GreenccError, match=r"kernel 'grow_kernel': .* argument of type int8"):
        compile_kernels(tvm.IRModule({gv: wrong}), "sm_80")
