from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Case, check, refusal

TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def scales(*values: float) -> dict[str, np.ndarray]:
    return {"s": np.array(values, np.float32)}


def sizes(*values: int) -> dict[str, np.ndarray]:
    return {"z": np.array(values, np.int64)}


def by_scales(attributes: str, shape: str = "1,2,5,6") -> str:
    return f"(float[{shape}] x) => (float y) {{ y = Resize<{attributes}>(x, , s) }}"


def by_sizes(attributes: str, shape: str = "1,2,5,6") -> str:
    return f"(float[{shape}] x) => (float y) {{ y = Resize<{attributes}>(x, , , z) }}"


def attributes(mode: str, transform: str, rest: str = "") -> str:
    return f'mode="{mode}", coordinate_transformation_mode="{transform}"{rest}'


STATIC = [
    Case(f"{mode} {transform} {name}", text(attributes(mode, transform)), constants)
    for mode in ("nearest", "linear", "cubic")
    for transform in TRANSFORMS
    for name, text, constants in (
        ("up", by_scales, scales(1, 1, 2.6, 1.5)),
        ("down", by_scales, scales(1, 1, 0.6, 0.8)),
        ("sizes", by_sizes, sizes(1, 2, 3, 9)),
        ("to one", by_sizes, sizes(1, 2, 1, 4)),
    )
    if not (transform == "align_corners" and text is by_scales)
]
STATIC += [
    Case(f"nearest {rounding} {transform}",
         by_scales(attributes("nearest", transform, f', nearest_mode="{rounding}"')), scales(1, 1, 1.5, 0.5))
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    for transform in ("half_pixel", "asymmetric")
]  # fmt: skip
STATIC += [
    Case("cubic, outside excluded", by_scales(attributes("cubic", "half_pixel", ", exclude_outside=1, cubic_coeff_a=-0.5")),
         scales(1, 1, 1.7, 0.7)),
    Case("linear antialias", by_scales(attributes("linear", "half_pixel", ", antialias=1")), scales(1, 1, 0.6, 0.4)),
    Case("cubic antialias", by_scales(attributes("cubic", "half_pixel", ", antialias=1")), scales(1, 1, 0.6, 0.4)),
    Case("crop", "(float[1,1,6,6] x) => (float y) { y = Resize<" + attributes("linear", "tf_crop_and_resize", ", extrapolation_value=7.0") + ">(x, r, , z) }",
         {**sizes(1, 1, 4, 5), "r": np.array([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.3], np.float32)}),
    Case("axes", "(float[1,2,5,6] x) => (float y) { y = Resize<mode=\"linear\", axes=[3,2]>(x, , , z) }", sizes(9, 4)),
    Case("not larger", "(float[1,2,5,6] x) => (float y) { y = Resize<mode=\"linear\", axes=[2,3], keep_aspect_ratio_policy=\"not_larger\">(x, , , z) }",
         sizes(9, 9)),
    Case("not smaller", "(float[1,2,5,6] x) => (float y) { y = Resize<mode=\"nearest\", axes=[2,3], keep_aspect_ratio_policy=\"not_smaller\">(x, , , z) }",
         sizes(9, 9)),
    Case("three axes", "(float[1,1,3,4,5] x) => (float y) { y = Resize<mode=\"linear\">(x, , s) }", scales(1, 1, 2, 1.5, 0.6)),
    Case("integers", "(uint8[1,1,4,4] x) => (uint8 y) { y = Resize<mode=\"nearest\">(x, , s) }", scales(1, 1, 2, 2)),
]  # fmt: skip
SYMBOLIC = [
    Case(f"{mode} {transform} {name}", text(attributes(mode, transform), "N,2,H,W"), constants)
    for mode in ("nearest", "linear")
    for transform in TRANSFORMS
    for name, text, constants in (
        ("up", by_scales, scales(1, 1, 2, 2)),
        ("down", by_scales, scales(1, 1, 0.5, 0.75)),
    )
    if not (transform == "align_corners" and name == "down")
]
SYMBOLIC += [
    Case("doubled size", "(float[N,2,H,W] x) => (float y)"
         "{ i = Shape<start=2>(x) two = Constant<value_int=2>() d = Mul(i, two) j = Shape<end=2>(x) k = Concat<axis=0>(j, d) y = Resize<mode=\"linear\">(x, , , k) }"),
    Case("like another", "(float[N,2,H,W] x, float[N,2,S,T] o) => (float y) { i = Shape(o) y = Resize<mode=\"nearest\">(x, , , i) }"),
]  # fmt: skip
REFUSED = [
    (Case("cubic open", by_scales(attributes("cubic", "half_pixel"), "N,2,H,W"), scales(1, 1, 2, 2)), "static size"),
    (Case("align", by_scales(attributes("linear", "align_corners")), scales(1, 1, 0.5, 1)), "not settled"),
    (
        Case("align open", by_scales(attributes("linear", "align_corners"), "1,2,H,W"), scales(1, 1, 0.5, 1)),
        "not settled",
    ),
    (
        Case("odd scale", by_scales(attributes("linear", "half_pixel"), "1,2,H,W"), scales(1, 1, 2.6, 1)),
        "can't be known",
    ),
    (Case("mode", by_scales('mode="spline"'), scales(1, 1, 2, 2)), "'spline'"),
    (Case("transform", by_scales(attributes("linear", "odd")), scales(1, 1, 2, 2)), "'odd' is unknown"),
    (Case("scales", by_scales('mode="linear"'), scales(2, 2)), "do not fit"),
    (Case("nothing", "(float[1,2,5,6] x) => (float y) { y = Resize(x) }"), "neither scales nor sizes"),
]


def test_static_resizing_agrees_with_onnx_runtime(tmp_path):
    check(STATIC, tmp_path, opset=19)


def test_symbolic_resizing_agrees_with_onnx_runtime(tmp_path):
    check(SYMBOLIC, tmp_path, opset=19)


def test_upsample_agrees_with_onnx_runtime(tmp_path):
    text = '(float[1,2,H,5] x) => (float y) {{ y = Upsample<mode="{}">(x, s) }}'
    check([Case(mode, text.format(mode), scales(1, 1, 2, 3)) for mode in ("nearest", "linear")], tmp_path, opset=9)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_is_not_exact_is_refused_with_a_reason(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=19)
