"""Several threads on one device, and streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from vulkan_rig import ADD, SCALE, Rig, module, normal

from greencc.runtime import vulkan

pytestmark = pytest.mark.vulkan

N = 4096


def together(*work: Callable[[], Any]) -> list[Any]:
    """Run functions in threads of their own that start at the same time."""
    start = threading.Barrier(len(work))

    def one(function: Callable[[], Any]) -> Any:
        start.wait()
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(one, function) for function in work]]


def test_two_threads_run_two_models(rig: Rig) -> None:
    """Each with kernels of its own, and weights that both read."""
    weights = rig.upload(normal(N))
    rig.synchronize()

    def run(seed: int) -> None:
        own = module(add=ADD, scale=SCALE)
        array = normal(N, seed=seed)
        expected = ((array + normal(N)) * np.float32(0.5) + normal(N)) * np.float32(0.5)
        for _ in range(100):
            a, b = rig.upload(array), rig.empty((N,))
            rig.add(own, a, weights, b, N)
            rig.scale(own, b, N, 0.5)
            rig.add(own, b, weights, a, N)
            rig.scale(own, a, N, 0.5)
            np.testing.assert_array_equal(rig.read(a)[0], expected)

    together(lambda: run(1), lambda: run(2))


def test_what_one_thread_made_another_one_reads(rig: Rig, kernels: Any) -> None:
    """Nobody waits: the reader's command does, for the writer's."""
    a = rig.upload(np.ones(N, np.float32))

    def make() -> Any:
        b = rig.empty((N,))
        for _ in range(10):
            rig.add(kernels, a, a, b, N)
            rig.scale(kernels, a, N, 2.0)
        return b

    for _ in range(5):
        (b,) = together(make)
        rig.add(kernels, b, b, b, N)
        assert rig.read(b)[0][0] == 2 * rig.read(a)[0][0]


def test_a_thread_that_is_alive_is_waited_for(rig: Rig, kernels: Any) -> None:
    b, ready, done = rig.empty((N,)), threading.Event(), threading.Event()
    a = rig.upload(np.ones(N, np.float32))
    rig.synchronize()

    def make() -> None:
        rig.add(kernels, a, a, b, N)
        ready.set()
        done.wait()

    writer = threading.Thread(target=make)
    writer.start()
    ready.wait()
    result = rig.read(b)[0]
    done.set()
    writer.join()
    np.testing.assert_array_equal(result, np.full(N, 2, np.float32))


def test_a_writer_waits_for_readers_of_other_threads(rig: Rig, kernels: Any) -> None:
    a, b, ready, done = rig.upload(np.ones(N, np.float32)), rig.empty((N,)), threading.Event(), threading.Event()
    rig.synchronize()

    def read() -> None:
        rig.add(kernels, a, a, b, N)
        ready.set()
        done.wait()

    reader = threading.Thread(target=read)
    reader.start()
    ready.wait()
    rig.upload(np.full(N, 100, np.float32), a)
    rig.synchronize()
    done.set()
    reader.join()
    assert rig.read(b)[0][0] == 2


def test_threads_leave_nothing_behind(rig: Rig, kernels: Any) -> None:
    def run() -> None:
        a = rig.upload(normal(N))
        rig.scale(kernels, a, N, 2.0)
        np.testing.assert_array_equal(rig.read(a)[0], 2 * normal(N))

    together(run, run)
    before = rig.counts()
    for _ in range(20):
        together(run, run)
    after = rig.counts()
    for name in ("allocated_bytes", "reserved_bytes", "staging_bytes"):
        assert after[name] == before[name]


def test_a_stream_of_its_own(rig: Rig, kernels: Any) -> None:
    function = rig.library.function
    stream = function("runtime.Device_StreamCreate")(rig.device)
    a = rig.upload(np.ones(N, np.float32))
    rig.scale(kernels, a, N, 3.0)
    function("runtime.Device_SetStream")(rig.device, stream)
    try:
        rig.scale(kernels, a, N, 5.0)
        there = rig.begin_read(a)
        function("runtime.Device_StreamSync")(rig.device, stream)
    finally:
        function("runtime.Device_SetStream")(rig.device, 0)
    function("runtime.Device_StreamFree")(rig.device, stream)
    np.testing.assert_array_equal(there, np.full(N, 15, np.float32))


def test_a_thread_gets_the_times_of_its_own_kernels(rig: Rig, kernels: Any) -> None:
    a, b = rig.upload(normal(N)), rig.upload(normal(N))
    rig.synchronize()
    on, off, ran = threading.Event(), threading.Event(), threading.Event()

    def profiled() -> list[str]:
        vulkan.profile(True)
        on.set()
        ran.wait()
        rig.scale(kernels, a, N, 1.0)
        rig.synchronize()
        vulkan.profile(False)
        names = [each["kernel"] for each in vulkan.profile_results()]
        off.set()
        return names

    def other() -> list[str]:
        on.wait()
        rig.add(kernels, b, b, b, N)
        rig.synchronize()
        ran.set()
        off.wait()
        return [each["kernel"] for each in vulkan.profile_results()]

    assert together(profiled, other) == [["scale"], []]
    assert vulkan.times_kernels(0) is vulkan.devices()[0]["features"]["timestamps"]
