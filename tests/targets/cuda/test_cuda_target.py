"""The CUDA target: what the command line and a file may name, and what it says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greencc.errors import UserError
from greencc.runtime import cuda
from greencc.targets.cuda.architectures import ARCHITECTURES, capabilities_of, nearest
from greencc.targets.cuda.target import CudaTarget
from greencc.targets.gpu.capabilities import UnknownDeviceWarning
from greencc.targets.registry import make_target


def gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: int) -> None:
    """Let this machine have GPUs of these compute capabilities."""
    found: list[dict[str, Any]] = [
        {"index": i, "name": f"GPU {i}", "capability": capability} for i, capability in enumerate(capabilities)
    ]
    monkeypatch.setattr(cuda, "devices", lambda: found)


def no_driver() -> list[dict[str, Any]]:
    raise UserError("no NVIDIA driver on this machine")


def test_without_a_gpu_code_is_for_the_oldest_common_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", no_driver)
    with pytest.warns(UnknownDeviceWarning, match="no NVIDIA driver.*compiling for sm_80"):
        target = make_target("cuda")
    assert target == CudaTarget("sm_80", None)
    assert (target.runs_here, target.place, target.threads) == (False, "cuda:0", 1)
    with pytest.raises(UserError, match="no NVIDIA driver"):
        make_target("cuda:0")


def test_a_gpu_gets_code_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 86, 90)
    assert make_target("cuda") == CudaTarget("sm_86", 0)
    assert make_target("cuda:1") == CudaTarget("sm_90", 1)
    assert make_target("cuda:1").place == "cuda:1"
    with pytest.raises(UserError, match=r"--target cuda:2: this machine has 2 CUDA devices"):
        make_target("cuda:2")


def test_an_architecture_runs_on_the_first_gpu_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 86, 90)
    assert make_target("cuda:sm_90").place == "cuda:1"
    assert make_target("cuda:sm_90").runs_here
    assert not make_target("cuda:sm_120").runs_here


def test_a_gpu_that_is_unknown_gets_code_of_its_generation() -> None:
    assert nearest(82) == "sm_80"
    assert nearest(129) == "sm_121"
    with pytest.raises(UserError, match=r"compute capability 7\.0 runs code for none of sm_75"):
        nearest(70)


@pytest.mark.parametrize("name", ["cuda:sm_70", "cuda:sm_80a", "cuda:h100", "cuda:-1"])
def test_unknown_architectures_list_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="unknown; known: sm_75, sm_80"):
        make_target(name)


def test_threads_are_refused() -> None:
    with pytest.raises(UserError, match="--threads 2"):
        make_target("cuda:sm_80", 2)


def test_a_file_describes_a_target(tmp_path: Path) -> None:
    file = tmp_path / "target.json"
    file.write_text(json.dumps({"kind": "cuda", "arch": "sm_90a"}))
    assert make_target(str(file)) == CudaTarget("sm_90a")
    file.write_text(json.dumps({"kind": "cuda"}))
    with pytest.raises(UserError, match=r'a cuda target needs the text field "arch"'):
        make_target(str(file))
    file.write_text(json.dumps({"kind": "cuda", "arch": "sm_1"}))
    with pytest.raises(UserError, match="unknown; known"):
        make_target(str(file))


def test_what_the_manifest_says_is_enough_to_refuse_a_gpu() -> None:
    described = CudaTarget("sm_90").describe()
    assert cuda.refusal({"name": "GPU", "capability": 90}, described) is None
    assert cuda.refusal({"name": "GPU", "capability": 80}, described) is not None


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_capabilities_reach_tvm(capability: int) -> None:
    arch = f"sm_{capability}"
    gpu, target = capabilities_of(arch), CudaTarget(arch).tvm_target()
    assert gpu.has_tensor_bfloat16 is (capability >= 80)
    assert str(target.attrs["arch"]) == arch
    assert int(target.attrs["thread_warp_size"]) == gpu.subgroup == 32
    assert int(target.attrs["max_num_threads"]) == gpu.max_threads
    assert int(target.attrs["max_shared_memory_per_block"]) == gpu.shared_bytes
    assert target.host is not None
