"""Drops against their definitions in numpy, and their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from greencc import UserError
from greencc.compress.metrics import METRICS, make_metric

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal((50, 4, 6)).astype(np.float32)
CANDIDATE = REFERENCE + 0.1 * RNG.standard_normal(REFERENCE.shape).astype(np.float32)


def drop_of(name, reference, candidate, labels=None, run=5):
    """The drop of outputs that come in runs."""
    metric, labels = make_metric(name), labels or {}
    starts = range(0, len(reference), run)
    parts = [
        metric.statistics(
            {"y": reference[i : i + run]},
            {"y": candidate[i : i + run]},
            {key: array[i : i + run] for key, array in labels.items()},
        )
        for i in starts
    ]
    return metric.drop(parts)


def test_relative_l2_is_that_of_all_samples_together():
    wanted = np.linalg.norm(CANDIDATE - REFERENCE) / np.linalg.norm(REFERENCE)
    drop = drop_of("relative_l2", REFERENCE, CANDIDATE)
    assert drop.value == pytest.approx(wanted, rel=1e-6)
    assert drop.samples == 50
    assert drop.low < drop.value < drop.bound < drop.high
    assert drop.value == drop_of("relative_l2", REFERENCE, CANDIDATE, run=1).value


def test_cosine_is_the_mean_over_samples():
    a, b = REFERENCE.reshape(50, -1), CANDIDATE.reshape(50, -1)
    wanted = 1 - np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert drop_of("cosine", REFERENCE, CANDIDATE).value == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_equal_outputs_lose_nothing(name):
    zeros = np.zeros((9, 3), np.float32)
    for array in (REFERENCE, zeros):
        drop = drop_of(name, array, array)
        assert (drop.value, drop.low, drop.high, drop.bound) == (0, 0, 0, 0)


def test_the_worst_output_counts():
    metric = make_metric("relative_l2")
    outputs = {"good": REFERENCE, "bad": REFERENCE}
    wanted = drop_of("relative_l2", REFERENCE, CANDIDATE).value
    drop = metric.drop([metric.statistics(outputs, {"good": REFERENCE, "bad": CANDIDATE}, {})])
    assert drop.value == pytest.approx(wanted)


def test_top1_is_against_labels_or_the_reference():
    scores = np.eye(10, dtype=np.float32)[np.arange(40) % 10]
    labels = np.arange(40) % 10
    labels[:8] = 11  # the reference is wrong on 8 of 40
    worse = scores.copy()
    worse[30:40] = np.roll(worse[30:40], 1, axis=1)
    assert drop_of("top1", scores, worse).value == pytest.approx(0.25)
    assert drop_of("top1", scores, worse, {"label.y": labels}).value == pytest.approx(0.25)
    luckier = scores.copy()
    luckier[:4] = np.roll(luckier[:4], 1, axis=1)
    labels[:4] = (np.arange(4) + 1) % 10
    assert drop_of("top1", scores, luckier, {"label.y": labels}).value == pytest.approx(-0.1)
    with pytest.raises(UserError, match=r"labels are \[5, 2\], the output has places \[5\]"):
        drop_of("top1", scores, scores, {"label.y": np.zeros((40, 2), int)})


def test_the_interval_covers_what_fresh_samples_say():
    """Of 200 data sets from one distribution, about 95% have the true value in their interval and under the bound."""
    rng = np.random.default_rng(1)
    inside = below = 0
    for _ in range(200):
        noise = rng.standard_normal((80, 12)) * rng.exponential(0.1, (80, 1))
        reference = rng.standard_normal((80, 12))
        drop = drop_of("relative_l2", reference, reference + noise, run=80)
        true = np.sqrt(2 * 0.1**2)  # E[s^2] of an exponential scale is twice its mean squared
        inside += drop.low <= true <= drop.high
        below += true <= drop.bound
    assert 0.88 <= inside / 200 <= 0.99
    assert 0.86 <= below / 200 <= 0.99


def script(folder: Path, body: str) -> str:
    file = folder / "score.py"
    file.write_text(f"import numpy as np\n\ndef score(outputs, labels):\n    {body}\n")
    return f"{file}:score"


def test_a_script_sees_all_samples_with_their_labels(tmp_path: Path):
    name = script(tmp_path, "return (outputs['y'][:, 0, 0] > labels['label.t']).astype(float)")
    metric = make_metric(name)
    assert metric.sees_all
    assert metric.name == "score.py:score"  # artifacts hold no paths
    labels = {"label.t": np.zeros(50)}
    wanted = np.mean(REFERENCE[:, 0, 0] > 0) - np.mean(-REFERENCE[:, 0, 0] > 0)
    drop = metric.drop([metric.statistics({"y": REFERENCE}, {"y": -REFERENCE}, labels)])
    assert drop.value == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1.0", r"it must give 50 finite scores, one for each sample, not \[\]"),
        ("return np.full(50, np.nan)", "finite scores"),
        ("return outputs['z']", "it raised KeyError: 'z'"),
        ("return 'text'", "it raised ValueError"),
    ],
)
def test_a_script_that_gives_no_scores_is_the_users_mistake(tmp_path: Path, body: str, words: str):
    metric = make_metric(script(tmp_path, body))
    with pytest.raises(UserError, match=words):
        metric.statistics({"y": REFERENCE}, {"y": REFERENCE}, {})


def test_metrics_that_do_not_exist_are_named(tmp_path: Path):
    (tmp_path / "broken.py").write_text("1 +\n")
    (tmp_path / "empty.py").write_text("")
    for text, words in (
        ("accuracy", "write relative_l2, cosine, top1, or FILE.py:FUNCTION"),
        ("missing.py:f", "there is no file missing.py"),
        (f"{tmp_path}/broken.py:f", "raised SyntaxError"),
        (f"{tmp_path}/empty.py:f", "has no function 'f'"),
    ):
        with pytest.raises(UserError, match=words):
            make_metric(text)


def test_whole_numbers_count_where_there_are_no_others():
    metric = make_metric("relative_l2")
    ids, other = np.array([3, 4, 0]), np.array([3, 4, 1])
    for extra, wanted in (({}, 0.2), ({"y": REFERENCE[:3]}, 0.0)):
        drop = metric.drop([metric.statistics({"i": ids, **extra}, {"i": other, **extra}, {})])
        assert drop.value == pytest.approx(wanted)
