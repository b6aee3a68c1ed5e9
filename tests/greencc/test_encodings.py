"""Encodings of tensors: what is decoded is what was encoded, the bytes are as the module's docstring has them, and any
other bytes are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.artifact.encodings import KINDS, MOST_GROWTH, WIDTHS, decode, encodings
from greencc.errors import ArtifactError


@st.composite
def tensors(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """A width and numbers of it: from a pool of any size, a share of them zeros."""
    width = draw(st.sampled_from(WIDTHS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pool = rng.integers(0, 2 ** (8 * width) - 1, draw(st.integers(1, 600)), dtype=f"u{width}", endpoint=True)
    numbers = pool[rng.integers(0, pool.size, draw(st.integers(0, 700)))]
    numbers[rng.random(numbers.size) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    return width, numbers


@given(tensors())
def test_what_is_decoded_is_what_was_encoded(tensor: tuple[int, np.ndarray]) -> None:
    width, numbers = tensor
    data = numbers.view(np.uint8)
    ways = dict(encodings(data, width))
    assert next(iter(ways)) == "planes"
    for kind, parts in ways.items():
        written = np.concatenate(parts)
        assert written.dtype == np.uint8
        assert data.size <= MOST_GROWTH * written.size
        np.testing.assert_array_equal(decode(written, kind, width, data.size, "w"), data)


def written(numbers: np.ndarray) -> dict[str, list[int]]:
    ways = encodings(numbers.view(np.uint8), numbers.itemsize)
    return {kind: np.concatenate(parts).tolist() for kind, parts in ways}


def test_bytes_are_as_they_are_specified() -> None:
    a, b = 0x4F0A, 0x120B
    numbers = np.array([a, 0, 0, b, a, 0, 0, 0, 0, a], np.uint16)
    assert written(numbers) == {
        "planes": [0x0A, 0, 0, 0x0B, 0x0A, 0, 0, 0, 0, 0x0A, 0x4F, 0, 0, 0x12, 0x4F, 0, 0, 0, 0, 0x4F],
        # 0, b and a, in two bits each: the first of four is the lowest
        "codebook": [3, 0, 0, 0x0B, 0x0A, 0, 0x12, 0x4F, 0b01_00_00_10, 0b00_00_00_10, 0b10_00],
        "sparse planes": [0b00011001, 0b10, 0x0A, 0x0B, 0x0A, 0x0A, 0x4F, 0x12, 0x4F, 0x4F],
        "sparse codebook": [0b00011001, 0b10, 2, 0, 0x0B, 0x0A, 0x12, 0x4F, 0b1101],
    }


@pytest.mark.parametrize(("count", "bits"), [(2, 1), (4, 2), (16, 4), (17, 8), (256, 8), (257, 16), (4096, 16)])
def test_places_take_the_fewest_bits(count: int, bits: int) -> None:
    numbers = np.resize(np.arange(1, count + 1, dtype=np.uint32), max(count, 99))
    assert len(written(numbers)["codebook"]) == 2 + 4 * count + -(-bits * numbers.size // 8)


def test_many_values_have_no_codebook() -> None:
    assert "codebook" not in written(np.arange(1, 4098, dtype=np.int64))
    # of bytes there are never many, and a codebook makes them no shorter beyond 16
    assert "codebook" in written(np.resize(np.arange(1, 17, dtype=np.int8), 100))
    assert "codebook" not in written(np.resize(np.arange(1, 18, dtype=np.int8), 100))


def test_signs_of_zeros_and_payloads_of_nans_are_kept() -> None:
    numbers = np.array([-0.0, 0.0, np.nan, -np.nan, 0.0, 0.0, np.inf, 1e-45], np.float32)
    numbers.view(np.uint32)[2] ^= 0x1234
    for kind, parts in encodings(numbers.view(np.uint8), 4):
        assert decode(np.concatenate(parts), kind, 4, numbers.nbytes, "w").tobytes() == numbers.tobytes()


@given(
    content=st.binary(max_size=80),
    kind=st.sampled_from(KINDS),
    width=st.sampled_from(WIDTHS),
    count=st.integers(0, 100),
)
def test_any_bytes_are_numbers_or_refused(content: bytes, kind: str, width: int, count: int) -> None:
    encoded = np.frombuffer(content, np.uint8)
    try:
        made = decode(encoded, kind, width, count * width, "w")
    except ArtifactError:
        return
    assert (made.dtype, made.size) == (np.uint8, count * width)
    assert made.size <= MOST_GROWTH * encoded.size


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("planes", [1, 2, 3], "cut off"),
        ("planes", [1, 2, 3, 4, 5], "bytes follow"),
        ("codebook", [], "cut off"),
        ("codebook", [255, 255, 1, 2], "cut off"),
        ("codebook", [1, 0, 7, 7, 0b10], "none of its codebook's"),
        ("codebook", [0, 0, 0], "none of its codebook's"),
        ("sparse planes", [], "cut off"),
        ("sparse planes", [0b11, 1, 2, 3], "cut off"),
        ("sparse planes", [0b01, 1, 2, 3], "bytes follow"),
        ("sparse codebook", [0b11, 1, 0, 7, 7, 0b01], "none of its codebook's"),
    ],
)
def test_damage_is_named(kind: str, content: list[int], words: str) -> None:
    """Two numbers of two bytes."""
    with pytest.raises(ArtifactError, match=words):
        decode(np.array(content, np.uint8), kind, 2, 4, "w")
