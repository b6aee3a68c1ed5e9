from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_cases import Case, check, refusal

CUBE = "(float[N,3,H,W] x) => (float y)"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


SLICES = [
    Case("from the end of a symbolic axis", CUBE + "{ y = Slice(x, s, e, a) }",
         {"s": ints(-3), "e": ints(1 << 62), "a": ints(2)}),
    Case("up to the end but one", CUBE + "{ y = Slice(x, s, e, a) }", {"s": ints(1, 0), "e": ints(-1, 2), "a": ints(2, 1)}),
    Case("end beyond a symbolic axis", CUBE + "{ y = Slice(x, s, e, a) }", {"s": ints(2), "e": ints(1000), "a": ints(3)}),
    Case("start beyond a symbolic axis", CUBE + "{ y = Slice(x, s, e, a) }", {"s": ints(50), "e": ints(1000), "a": ints(3)}),
    Case("every second", CUBE + "{ y = Slice(x, s, e, a, t) }",
         {"s": ints(1, 0), "e": ints(1 << 31, 3), "a": ints(2, 1), "t": ints(2, 2)}),
    Case("backwards over a symbolic axis", CUBE + "{ y = Slice(x, s, e, a, t) }",
         {"s": ints(-1), "e": ints(-(1 << 62)), "a": ints(2), "t": ints(-1)}),
    Case("backwards with steps", CUBE + "{ y = Slice(x, s, e, a, t) }",
         {"s": ints(100, 2), "e": ints(1, -100), "a": ints(3, 1), "t": ints(-3, -2)}),
    Case("bounds from a shape", "(float[N,3,H,W] x, float[S,2] z) => (float y) { n = Shape<start=0, end=1>(z) s = Constant<value_ints=[0]>() a = Constant<value_ints=[3]>() y = Slice(x, s, n, a) }"),
    Case("half", CUBE + "{ n = Shape<start=3, end=4>(x) two = Constant<value_ints=[2]>() h = Div(n, two) s = Constant<value_ints=[0]>() a = Constant<value_ints=[3]>() y = Slice(x, s, h, a) }"),
]  # fmt: skip

SHAPES = [
    Case("reshape infers", CUBE + "{ y = Reshape(x, s) }", {"s": ints(0, 3, -1)}),
    Case("reshape by shape arithmetic", CUBE + "{ n = Shape<start=0, end=1>(x) m = Constant<value_ints=[-1]>() s = Concat<axis=0>(n, m) y = Reshape(x, s) }"),
    Case("flatten", CUBE + "{ y = Flatten<axis=2>(x) }"),
    Case("flatten nothing", CUBE + "{ y = Flatten<axis=0>(x) }"),
    Case("squeeze, unsqueeze", "(float[N,1,H] x) => (float y, float z) { y = Squeeze(x, a) z = Unsqueeze(x, b) }",
         {"a": ints(1), "b": ints(-1, 0)}),
    Case("expand to another's shape", "(float[N,1,H] x, float[N,S,H] z) => (float y) { s = Shape(z) y = Expand(x, s) }"),
    Case("expand by symbols and numbers", "(float[1,H] x, float[N] z) => (float y) { n = Shape(z) one = Constant<value_ints=[1,1]>() s = Concat<axis=0>(n, one) y = Expand(x, s) }"),
    Case("range", "(float[N,H] x) => (int64 y) { i = Constant<value_int=1>() h = Gather(s, i) z = Constant<value_int=0>() s = Shape(x) y = Range(z, h, i) }"),
    Case("range in steps", "(float[N,H] x) => (int64 y) { i = Constant<value_int=1>() s = Shape(x) h = Gather(s, i) t = Constant<value_int=3>() y = Range(i, h, t) }"),
    Case("constant of shape", "(float[N,H] x) => (float y) { s = Shape(x) c = ConstantOfShape(s) y = Add(x, c) }"),
    Case("eye like", "(float[N,H] x) => (float y) { y = EyeLike<k=1>(x) }"),
    Case("size", "(float[N,H] x) => (int64 y) { y = Size(x) }"),
    Case("tile", "(float[N,2] x) => (float y) { y = Tile(x, r) }", {"r": ints(2, 3)}),
    Case("concat", "(float[N,2] x, float[N,S] z) => (float y) { y = Concat<axis=-1>(x, z) }"),
    Case("split", "(float[N,7] x) => (float a, float b, float c) { a, b, c = Split<axis=1>(x, s) }", {"s": ints(2, 1, 4)}),
    Case("split unevenly", "(float[N,7] x) => (float a, float b, float c) { a, b, c = Split<axis=1, num_outputs=3>(x) }"),
    Case("depth to space", "(float[N,8,H,W] x) => (float y, float z) { y = DepthToSpace<blocksize=2>(x) z = DepthToSpace<blocksize=2, mode=\"CRD\">(x) }"),
    Case("space to depth", "(float[N,2,4,6] x) => (float y) { y = SpaceToDepth<blocksize=2>(x) }"),
    Case("triangles", "(float[N,H,W] x) => (float y, float z) { y = Trilu(x) z = Trilu<upper=0>(x, k) }", {"k": ints(-1)[0]}),
    Case("center crop pad", "(float[10,7] x) => (float y) { y = CenterCropPad(x, s) }", {"s": ints(6, 9)}),
]  # fmt: skip

PADS = [
    *(Case(f"pad {mode}", CUBE + f"{{ y = Pad<mode=\"{mode}\">(x, p) }}", {"p": ints(0, 1, 2, 3, 0, 0, 1, 2)})
      for mode in ("constant", "reflect", "edge", "wrap")),
    Case("pad with a value", CUBE + "{ v = Constant<value_float=1.5>() y = Pad(x, p, v, a) }",
         {"p": ints(1, 2), "a": ints(-1)}),
    Case("crop", CUBE + "{ y = Pad(x, p) }", {"p": ints(0, 0, -1, 2, 0, 0, 1, -2)}),
    Case("pad integers", "(int64[N,3] x) => (int64 y) { v = Constant<value_int=7>() y = Pad(x, p, v) }",
         {"p": ints(0, 1, 1, 0)}),
]  # fmt: skip

SELECTIONS = [
    Case("negative indices at run time", "(float[5,N] x, int64[3] i) => (float y) { y = Gather(x, i) }",
         feeds={"i": ints(-1, 0, -5)}),
    Case("negative constant index", "(float[N,H] x) => (float y) { y = Gather<axis=1>(x, i) }", {"i": ints(-2)[0]}),
    Case("gather elements", "(float[4,3] x, int64[2,3] i) => (float y) { y = GatherElements(x, i) }",
         feeds={"i": ints(0, -1, 2, 3, 1, -4).reshape(2, 3)}),
    Case("gather n-d", "(float[2,3,4] x, int64[2,2] i) => (float y) { y = GatherND(x, i) }",
         feeds={"i": ints(0, -1, 1, 2).reshape(2, 2)}),
    Case("gather n-d in batches", "(float[2,3,4] x, int64[2,1] i) => (float y) { y = GatherND<batch_dims=1>(x, i) }",
         feeds={"i": ints(2, -3).reshape(2, 1)}),
    *(Case(f"scatter elements {how}", f"(float[4,3] x, int64[2,3] i, float[2,3] u) => (float y) {{ y = ScatterElements<axis=0, reduction=\"{how}\">(x, i, u) }}",
           feeds={"i": ints(0, -1, 2, 1, 1, -4).reshape(2, 3)}) for how in ("none", "add", "mul", "max", "min")),
    *(Case(f"scatter n-d {how}", f"(float[4,3] x, int64[3,1] i, float[3,3] u) => (float y) {{ y = ScatterND<reduction=\"{how}\">(x, i, u) }}",
           feeds={"i": ints(1, -1, 0).reshape(3, 1)}) for how in ("none", "add", "mul", "max", "min")),
    Case("scatter n-d over a symbolic axis", "(float[N,3] x, int64[2,1] i, float[2,3] u) => (float y) { y = ScatterND(x, i, u) }",
         feeds={"i": ints(1, 0).reshape(2, 1)}),
    Case("one hot", "(int64[N,3] i, float[2] v) => (float y) { y = OneHot<axis=1>(i, d, v) }", {"d": ints(5)[0]},
         feeds={"i": ints(0, 1, -1, 4, 7, 2).reshape(2, 3)}),
    Case("reverse sequence", "(float[5,3] x, int64[3] n) => (float y) { y = ReverseSequence(x, n) }", feeds={"n": ints(1, 5, 3)}),
    Case("compress", "(float[N,4] x) => (float y) { y = Compress<axis=1>(x, c) }", {"c": np.array([True, False, True])}),
    Case("sequences", "(float[4,3] x, float[2,3] z) => (float y, int64 n) { s = SequenceConstruct(x, z) n = SequenceLength(s) y = ConcatFromSequence<axis=0>(s) }"),
    Case("split to a sequence", "(float[4,3] x) => (float y) { s = SplitToSequence<axis=0>(x, p) i = Constant<value_int=-1>() y = SequenceAt(s, i) }", {"p": ints(3)[0]}),
]  # fmt: skip


@pytest.mark.parametrize("cases", [SLICES, SHAPES, PADS, SELECTIONS], ids=["slices", "shapes", "pads", "selections"])
def test_movement_agrees_with_onnxruntime(cases: list[Case], tmp_path: Path) -> None:
    check(cases, tmp_path, opset=19)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[4] x) => (int64 y) { y = NonZero(x) }", "depends on data"),
        (
            "(float[4] x) => (float y) { s = Constant<value_ints=[3]>() e = Constant<value_ints=[1]>() y = Slice(x, s, e) }",
            "has no elements",
        ),
        ("(float[4] x, int64[2] s) => (float y) { y = Reshape(x, s) }", "depends on data"),
        ("(float[N,4] x, float[S,4] z) => (float y) { s = Shape(z) y = Expand(x, s) }", "only known at run time"),
        (
            "(float[N,4] x) => (float a, float b) { a, b = Split<axis=0, num_outputs=2>(x) }",
            "symbolic size in equal parts",
        ),
        ("(float[4] x, int64[1] k) => (float v, int64 i) { v, i = TopK(x, k) }", "depends on data"),
    ],
)
def test_what_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(Case("refused", text), tmp_path, opset=19)
