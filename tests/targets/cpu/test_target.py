"""Descriptions of CPUs that files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greencc import UserError
from greencc.targets.registry import make_target


def described(folder: Path, **fields: Any) -> Path:
    file = folder / "target.json"
    file.write_text(json.dumps({"triple": "x86_64-linux-gnu", "cpu": "haswell", **fields}))
    return file


@pytest.mark.parametrize(
    ("features", "bits"),
    [([], 128), (["sse4.2"], 128), (["fma", "avx2"], 256), (["avxvnni"], 256), (["avx512vnni"], 512)],
)
def test_a_feature_brings_what_it_implies(tmp_path: Path, features: list[str], bits: int) -> None:
    target = make_target(str(described(tmp_path, features=features, threads=2)))
    assert set(features) <= set(target.features)
    assert target.vector_bits == bits
    assert ("avx" in target.features) == (bits > 128)
    assert target.threads == 2


@pytest.mark.parametrize("features", ["avx2", 5, [5], ["avx3"]])
def test_features_are_a_list_of_known_names(tmp_path: Path, features: Any) -> None:
    with pytest.raises(UserError, match="feature"):
        make_target(str(described(tmp_path, features=features)))
