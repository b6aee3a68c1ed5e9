"""Which kernels of a model are tuned, at which sizes, and what they take at least."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import perceptron

from greencc import ModelOptions, UserError
from greencc.limits import Limits
from greencc.optimize import optimize_model
from greencc.targets.cpu.target import host_target
from greencc.tuning.tasks import Task, extract_tasks, guard_points, tuning_points

LIMITS = Limits(float32=1e11, int8=4e11, bandwidth=1e10)


def tasks_of(
    model: Path,
    limits: Limits | None = LIMITS,
    tune_at: dict[str, tuple[int, ...]] | None = None,
    **options: object,
) -> list[Task]:
    target = host_target(2)
    module = optimize_model(model, ModelOptions(**options), target=target).result.module  # type: ignore[arg-type]
    return extract_tasks(module, target, tune_at or {}, limits)[0]


def test_layers_of_one_shape_are_one_task(tmp_path: Path) -> None:
    tasks = tasks_of(perceptron(tmp_path, layers=3, width=64, rows=8))
    products = [task for task in tasks if "cpu-matmul" in task.spaces]
    assert [(task.launches, task.sizes) for task in products] == [(3, {})]
    assert products[0].text.endswith("8x64 * 64x64")
    assert products[0].nodes


def test_the_limit_is_the_longer_of_arithmetic_and_reading_the_constants(tmp_path: Path) -> None:
    (task,) = (t for t in tasks_of(perceptron(tmp_path, layers=1, width=64, rows=8)) if "cpu-matmul" in t.spaces)
    assert task.limits is not None
    assert task.limits[0] == pytest.approx(4 * (64 * 64 + 64) / LIMITS.bandwidth)
    (task,) = (t for t in tasks_of(perceptron(tmp_path, layers=1, width=64, rows=4096)) if "cpu-matmul" in t.spaces)
    assert task.limits is not None
    assert task.limits[0] == pytest.approx(2 * 4096 * 64 * 64 / LIMITS.float32, rel=0.1)


def test_without_limits_none_are_made_up(tmp_path: Path) -> None:
    assert all(task.limits is None for task in tasks_of(perceptron(tmp_path, rows=8), limits=None))


def test_keys_don_t_depend_on_names_or_weights_but_on_shapes(tmp_path: Path) -> None:
    def keys(**sizes: int) -> set[str]:
        return {task.key for task in tasks_of(perceptron(tmp_path, **sizes))}

    assert keys(layers=2, width=64, rows=8) == keys(layers=1, width=64, rows=8, seed=5)
    assert keys(layers=1, width=64, rows=8).isdisjoint(keys(layers=1, width=64, rows=9))


def test_open_sizes_are_tuned_where_asked_and_guarded_in_between(tmp_path: Path) -> None:
    model = perceptron(tmp_path, layers=1, width=64, rows="tokens")
    (task,) = (
        t
        for t in tasks_of(model, tune_at={"tokens": (16, 128)}, dynamic={"tokens": (1, 512)})
        if "cpu-matmul" in t.spaces
    )
    assert task.sizes == {"s0": (16, 128)}
    assert task.points == 2
    assert [task.point(i) for i in range(2)] == [{task.kernel.symbols[0]: 16}, {task.kernel.symbols[0]: 128}]
    assert sorted(guard[0] for guard in task.guards) == [1, 8, 45, 192]
    assert task.limits is not None
    assert len(task.limits) == 2


def test_points_are_all_combinations_and_usual_ones_where_none_are_named(tmp_path: Path) -> None:
    model = perceptron(tmp_path, layers=1, width=64, rows="tokens")
    module = optimize_model(model, ModelOptions(dynamic={"tokens": (1, 100)}), target=host_target(2)).result.module
    assert tuning_points(module, {}) == [{"tokens": 16}, {"tokens": 100}]
    assert {"tokens": 40} in guard_points(module, {})
    batch = optimize_model(model, ModelOptions(dynamic={"tokens": (2, 8)}), target=host_target(2)).result.module
    assert tuning_points(batch, {}) == [{"tokens": 2}]


@pytest.mark.parametrize(
    ("tune_at", "problem"),
    [
        ({"length": (16,)}, "no such open dimension; it has tokens"),
        ({"tokens": (16, 1024)}, "tokens=1024: the dimension goes from 1 to 512"),
    ],
)
def test_sizes_that_the_model_doesn_t_have_are_refused(
    tmp_path: Path, tune_at: dict[str, tuple[int, ...]], problem: str
) -> None:
    model = perceptron(tmp_path, layers=1, width=64, rows="tokens")
    with pytest.raises(UserError, match=problem):
        tasks_of(model, tune_at=tune_at, dynamic={"tokens": (1, 512)})
