"""The reader of cubins: damaged and foreign files give an error, and nothing else."""

import random
import sys
from pathlib import Path

import pytest
from device_kernels import device, elementwise

from greencc.errors import GreenccError
from greencc.targets.cuda.compile import compile_kernels
from greencc.targets.cuda.elf import read_cubin


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return compile_kernels(device(elementwise("float32", lambda x: -x, "negate")), "sm_90")["kernels.cubin"]


def test_kernels_and_architecture(cubin: bytes) -> None:
    found = read_cubin(cubin)
    assert (found.capability, found.kernels) == (90, ("negate_kernel",))


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"// PTX", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_elf_file(data: bytes) -> None:
    with pytest.raises(GreenccError, match="ELF file"):
        read_cubin(data)


def test_a_program_of_the_host_is_refused() -> None:
    with pytest.raises(GreenccError, match="for machine"):
        read_cubin(Path(sys.executable).resolve().read_bytes())


def test_every_cut_and_a_thousand_changes_give_an_error_or_names(cubin: bytes) -> None:
    for length in range(0, len(cubin), 97):
        with pytest.raises(GreenccError):
            read_cubin(cubin[:length])
    chance = random.Random(1)
    for _ in range(1000):
        data = bytearray(cubin)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(64)] = chance.randrange(256)
        try:
            read_cubin(bytes(data))
        except GreenccError:
            continue
