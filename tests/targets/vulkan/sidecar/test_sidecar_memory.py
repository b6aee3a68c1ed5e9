"""Device memory: addresses, blocks, reuse."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
from vulkan_rig import Rig, normal

from greencc.runtime import vulkan

pytestmark = pytest.mark.vulkan

MIB = 1 << 20


def address(tensor: Any) -> int:
    """Of the tensor's first byte, out of its DLTensor."""
    pointer: int = tensor.data_ptr() if callable(getattr(tensor, "data_ptr", None)) else 0
    assert pointer
    return pointer


def test_addresses_are_no_addresses_of_the_host(rig: Rig) -> None:
    tensors = [rig.empty((size,), "uint8") for size in (1, 255, 256, 257, 5000)]
    addresses = [address(tensor) for tensor in tensors]
    assert all(a >= 1 << 60 and a % 256 == 0 for a in addresses)
    ends = [a + tensor.shape[0] for a, tensor in zip(addresses, tensors, strict=True)]
    spans = sorted(zip(addresses, ends, strict=True))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_small_tensors_share_a_block_and_large_ones_have_their_own(rig: Rig) -> None:
    kept = rig.empty((1,), "uint8")
    before = rig.counts()
    small = [rig.empty((MIB,), "uint8") for _ in range(4)]
    assert rig.counts()["reserved_bytes"] - before["reserved_bytes"] in (0, 64 * MIB)
    middle = rig.counts()["reserved_bytes"]
    large = rig.empty((100 * MIB,), "uint8")
    assert rig.counts()["reserved_bytes"] - middle == 100 * MIB
    assert rig.counts()["allocated_bytes"] - before["allocated_bytes"] == 104 * MIB
    assert rig.counts()["peak_bytes"] >= rig.counts()["allocated_bytes"]
    del large
    assert rig.counts()["reserved_bytes"] == middle
    del small, kept


def test_memory_that_kernels_still_use_is_not_given_away(rig: Rig, kernels: Any) -> None:
    count = 1 << 16
    results = []
    for i in range(20):
        a = rig.upload(np.full(count, i, np.float32))
        c = rig.empty((count,))
        rig.add(kernels, a, a, c, count)
        results.append(c)
        del a  # its kernel has not run; the next upload must not land here
    for i, result in enumerate(rig.read(*results)):
        np.testing.assert_array_equal(result, np.full(count, 2 * i, np.float32))


def test_a_result_that_is_freed_before_it_arrives_arrives(rig: Rig, kernels: Any) -> None:
    a = rig.upload(np.full(1024, 4, np.float32))
    rig.scale(kernels, a, 1024, 2.0)
    there = rig.begin_read(a)
    del a
    others = [rig.upload(np.zeros(1024, np.float32)) for _ in range(8)]
    rig.synchronize()
    np.testing.assert_array_equal(there, np.full(1024, 8, np.float32))
    del others


def test_freed_memory_is_used_again(rig: Rig) -> None:
    rig.synchronize()
    tensor = rig.empty((12345,))
    first = address(tensor)
    del tensor
    assert address(rig.empty((12345,))) == first


def test_many_sizes_come_and_go(rig: Rig) -> None:
    """Blocks fill up, break up and grow together again; contents stay what they were."""
    rng = np.random.default_rng(1)
    live: list[tuple[Any, np.ndarray]] = []
    before = rig.counts()["allocated_bytes"]
    for _ in range(300):
        if live and rng.random() < 0.45:
            tensor, array = live.pop(int(rng.integers(len(live))))
            np.testing.assert_array_equal(rig.read(tensor)[0], array)
            del tensor
        else:
            array = rng.integers(0, 256, int(rng.integers(1, 1 << int(rng.integers(1, 20)))), np.uint8)
            live.append((rig.upload(array), array))
    for tensor, array in live:
        np.testing.assert_array_equal(rig.read(tensor)[0], array)
    del tensor
    live.clear()
    assert rig.counts()["allocated_bytes"] == before


def test_more_than_the_device_gives_at_once_is_refused_with_numbers(rig: Rig) -> None:
    limit = min(vulkan.devices()[0]["limits"]["max_allocation_bytes"], vulkan.devices()[0]["memory_bytes"])
    with pytest.raises(RuntimeError, match=rf"were asked for at once; the device gives at most .* \({limit} bytes\)"):
        rig.empty((limit + 1,), "uint8")


def test_memory_that_was_freed_is_found_out(rig: Rig, kernels: Any) -> None:
    alone = rig.empty((100 * MIB,), "uint8")
    stale = ctypes.c_void_p(address(alone))
    del alone
    good = rig.upload(normal(64))
    with pytest.raises(RuntimeError, match="a pointer is not to memory of this device, or the memory was freed"):
        kernels["add"](stale, good, good, 64, 1, 64)
    with pytest.raises(RuntimeError, match="there is no device vulkan:7"):
        kernels["add"](ctypes.c_void_p((1 << 60) + (7 << 52)), good, good, 64, 1, 64)
