from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from greencc.targets.cpu.target import host_target
from greencc.targets.registry import make_target
from greencc.targets.tuning.alone import Kernel
from greencc.tuning import builders
from greencc.tuning.builders import Build, Builders, BuildFailed, Task
from greencc.tuning.building import weight_array
from greencc.tuning.devices import LocalDevice
from greencc.tuning.program import Program
from tests.greencc.tuning.odd_target import odd_target
from tests.greencc.tuning.small_programs import COUNT, KERNELS, symbolic_product


@pytest.fixture(scope="module")
def makers() -> Iterator[Builders]:
    found = Builders(2)
    yield found
    found.close()


@pytest.fixture(scope="module")
def odd() -> Task:
    return Task.of(Kernel(KERNELS["product"], frozenset({1}), 1), odd_target(), copies=3)


def build(task: Task, deed: str) -> Build:
    return Build(task, "odd", {"do": deed})


def test_outcomes_are_in_order_and_failures_are_told(makers: Builders, odd: Task) -> None:
    deeds = ["build", "decline", "raise", "crash", "build", "build"]
    found = makers.build_all([build(odd, deed) for deed in deeds])
    assert [None if isinstance(built, Program) else built.reason for built in found] == [
        None,
        "not this one",
        "ValueError: the plan is odd",
        "the compiler: crashed with SIGSEGV",
        None,
        None,
    ]
    # Equal plans are equal bytes, and so are the weights that their process made up.
    assert found[0] == found[4] == found[5]


def test_a_program_is_what_was_asked_for(makers: Builders, odd: Task) -> None:
    (program,) = makers.build_all([Build(odd, "odd")])
    assert isinstance(program, Program)
    contents = program.unpack()
    assert contents.copies == 3
    assert [operand.shapes for operand in contents.operands] == [((COUNT,),)]
    (weight,) = contents.weights
    np.testing.assert_array_equal(weight, weight_array((COUNT,), "float32", 1))


def test_unknown_rules_are_told(makers: Builders, odd: Task) -> None:
    assert makers.build_all([Build(odd, "even")]) == [BuildFailed("the target has no rule 'even'")]


def test_builds_that_never_end_are_ended_and_the_next_one_is_built(
    makers: Builders, odd: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers.build_all([build(odd, "build")])
    with monkeypatch.context() as patch:
        patch.setattr(makers._builders[0], "_timeout", 1.0)
        assert makers.build_all([build(odd, "hang")]) == [BuildFailed("the compiler: no result within 1 s")]
    assert isinstance(makers.build_all([build(odd, "build")])[0], Program)


def test_an_iteration_that_is_left_leaves_nothing_behind(makers: Builders, odd: Task) -> None:
    running = makers.build_each([build(odd, deed) for deed in ("build", "build", "hang", "hang", "hang")])
    next(running)
    running.close()
    assert all(builder._child is None for builder in makers._builders)
    assert not [p for p in psutil.Process().children() if "greencc.tuning.building" in p.cmdline()]
    assert isinstance(makers.build_all([build(odd, "build")])[0], Program)


def test_one_process_builds_several_tasks_by_turns(makers: Builders, odd: Task) -> None:
    plain = Task.of(Kernel(KERNELS["product"], frozenset({1}), 1), host_target(1), copies=1)
    found = makers.build_all([Build(plain), Build(odd), Build(plain), Build(odd)])
    copies = [built.unpack().copies for built in found if isinstance(built, Program)]
    assert copies == [1, 3, 1, 3]


def test_no_process_is_an_error(odd: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "BUILDER", "tests.greencc.tuning.no_such_module")
    makers = Builders(2)
    with pytest.raises(builders.GreenccError, match="candidates can't be built: the compiler: ended with status 1"):
        makers.build_all([build(odd, "build")] * 3)


def test_a_kernel_of_several_sizes_is_measured_at_all_of_them(makers: Builders) -> None:
    kernel = Kernel(symbolic_product, frozenset(), 1)
    task = Task.of(kernel, host_target(1), [{"n": 16}, {"n": 1 << 20}])
    (program,) = makers.build_all([Build(task)])
    assert isinstance(program, Program)
    device = LocalDevice(host_target(1))
    try:
        found = device.measure(program, program)
    finally:
        device.close()
    assert len(found.seconds) == 2
    assert found.seconds[0] < found.seconds[1]


@pytest.mark.parametrize(("count", "copies"), [(1000, 8), (100_000, 3), (1 << 20, 2)])
def test_a_run_of_large_kernels_has_few_launches(makers: Builders, count: int, copies: int) -> None:
    task = Task.of(Kernel(symbolic_product, frozenset(), 1), host_target(1), [{"n": 5}, {"n": count}])
    (program,) = makers.build_all([Build(task)])
    assert isinstance(program, Program)
    assert program.unpack().copies == copies


@pytest.mark.parametrize("shape", [(), (7,), (300,), (200, 150), (64, 32, 3, 3), (0, 4)])
def test_weights_are_positive_periodic_and_the_same_every_time(shape: tuple[int, ...]) -> None:
    first = weight_array(shape, "float32", 3)
    assert first.shape == shape
    np.testing.assert_array_equal(first, weight_array(shape, "float32", 3))
    assert (first > 0).all()
    if shape == (200, 150):
        np.testing.assert_array_equal(first[61:], first[:-61])
        assert len(np.unique(first[:61, :61])) > 3000


def test_weights_of_integers_are_small_or_zeros() -> None:
    assert np.abs(weight_array((90, 90), "int8", 0).astype(int)).max() <= 8
    assert not weight_array((90,), "int64", 0).any()


@pytest.mark.vulkan
def test_kernels_of_a_gpu_are_built_and_measured(makers: Builders) -> None:
    gpu = make_target("vulkan")
    task = Task.of(Kernel(symbolic_product, frozenset(), 1), gpu, [{"n": 4096}])
    (program,) = makers.build_all([Build(task)])
    assert isinstance(program, Program)
    assert set(program.unpack().kernels) == {"kernels.json", "kernels.spv"}
    device = LocalDevice(gpu)
    try:
        found = device.measure(program, program)
    finally:
        device.close()
    assert found.seconds[0] > 0
