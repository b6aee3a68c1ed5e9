from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from greencc.tuning.program import Contents, Operand, Program, ProgramError, random_array

DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool")
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
weights = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, shapes))


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    sizes = draw(st.integers(1, 3))
    operand = st.builds(Operand, st.sampled_from(DTYPES), st.tuples(*[shapes] * sizes))
    return Contents(
        draw(st.binary(max_size=100)),
        tuple(draw(st.lists(weights, max_size=3))),
        draw(st.integers(1, 9)),
        tuple(draw(st.lists(operand, max_size=3))),
        sizes,
        draw(st.dictionaries(st.sampled_from(("kernels.json", "kernels.spv")), st.binary(max_size=50))),
    )


@given(contents())
@settings(deadline=None, max_examples=60)
def test_what_is_packed_comes_out_again(given: Contents) -> None:
    program = Program.pack(given)
    found = Program(program.data).unpack()
    for ours, theirs in zip(found.weights, given.weights, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    fields = ("code", "copies", "operands", "sizes", "kernels")
    assert [getattr(found, name) for name in fields] == [getattr(given, name) for name in fields]
    assert Program.pack(found).data == program.data
    assert Program.pack(found).digest == program.digest


def small() -> Program:
    return Program.pack(Contents(b"code" * 30, (np.arange(12.0),), 2, (Operand("float32", ((3,),)),)))


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damage_is_told_and_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(small().data)
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = Program(bytes(whole)).unpack()
    except ProgramError:
        return
    # A bit of a date or a permission, that nobody reads.
    assert found.code == b"code" * 30


def test_another_version_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("program.json", json.dumps({"version": 2}))
    with pytest.raises(ProgramError, match="a program of version 2: this greencc reads 1"):
        Program(stream.getvalue()).unpack()


def test_no_python_objects_are_read() -> None:
    stream, member = io.BytesIO(), io.BytesIO()
    np.save(member, np.array([{}], dtype=object), allow_pickle=True)
    header = {"version": 1, "copies": 1, "sizes": 1, "weights": 1, "operands": []}
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("program.json", json.dumps(header))
        archive.writestr("code.so", b"")
        archive.writestr("weights/0.npy", member.getvalue())
    with pytest.raises(ProgramError, match="Object arrays cannot be loaded"):
        Program(stream.getvalue()).unpack()


def test_every_operand_needs_a_shape_for_every_size() -> None:
    with pytest.raises(ValueError, match="every operand has a shape for every size"):
        Contents(b"", (), 1, (Operand("float32", ((1,), (2,))),), sizes=1)


def test_inputs_are_the_same_everywhere_and_fit_what_they_may_be() -> None:
    operands = tuple(Operand(dtype, ((4, 100), (7,))) for dtype in DTYPES)
    made = Contents(b"", (), 1, operands, 2)
    for size, shape in enumerate([(4, 100), (7,)]):
        first, again = made.inputs(size), Program.pack(made).unpack().inputs(size)
        for operand, a, b in zip(operands, first, again, strict=True):
            assert (a.shape, str(a.dtype)) == (shape, operand.dtype)
            np.testing.assert_array_equal(a, b)
    by_dtype = dict(zip(DTYPES, made.inputs(0), strict=True))
    assert abs(by_dtype["float32"].mean()) < 0.2
    assert 0.8 < by_dtype["float32"].std() < 1.2
    # All that bytes hold, but of weights: those may be levels of 4 bits.
    assert by_dtype["int8"].min() < -100
    assert by_dtype["int8"].max() > 100
    assert by_dtype["uint8"].max() > 240
    small = random_array((1000,), "int8", np.random.default_rng(0))
    assert (small.min(), small.max()) == (-8, 7)
    assert not by_dtype["int32"].any() | by_dtype["int64"].any() | by_dtype["bool"].any()


def test_scalars_are_operands_too() -> None:
    assert random_array((), "float32", np.random.default_rng(0)).shape == ()
