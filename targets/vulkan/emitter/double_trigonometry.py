"""Trigonometric functions of double precision.

Largest errors on lavapipe (tests/targets/vulkan/emitter/test_doubles.py):

    sin, cos 1 ulp, for every argument    tan, acos, atan 2 ulp    asin 2.5 ulp    atan2 3 ulp

An argument is reduced by multiples of pi / 2 to a sum of two numbers: up to 10^6 with pi / 2 in three parts (Cody and
Waite), beyond by the integer product of its mantissa with the bits of 2 / pi that matter (Payne and Hanek). The
polynomials were fitted for this project: interpolation at Chebyshev's nodes in 50 digits, for |r| <= pi / 4, of
(sin(r) / r - 1) / r^2 and of (cos(r) - 1 + r^2 / 2) / r^4, and up to tan(pi / 8)
of (atan(t) / t - 1) / t^2.
"""

from __future__ import annotations

from greencc.targets.vulkan.emitter.function import Function, calls, horner

# The bits of 2 / pi, with two words of zeros before them.
_TWO_OVER_PI = (
    0, 0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB, 0xDEBBC561, 0xB7246E3A,
    0x424DD2E0, 0x06492EEA, 0x09D1921C, 0xFE1DEB1C, 0xB129A73E, 0xE88235F5, 0x2EBB4484, 0xE99C7026, 0xB45F7E41,
    0x3991D639, 0x835339F4, 0x9C845F8B, 0xBDF9283B, 0x1FF897FF, 0xDE05980F, 0xEF2F118B, 0x5A0A6D1F, 0x6D367ECF,
    0x27CB09B7, 0x4F463F66, 0x9E5FEA2D, 0x7527BAC7, 0xEBE5F17B, 0x3D0739F7, 0x8A5292EA, 0x6BFB5FB1, 0x1F8D5D08,
    0x56033046, 0xFC7B6BAB,
)  # fmt: skip

_REDUCE_LARGE = f"""double reduce_large(double a, out int quadrant, out double low) {{
  const uint bits[{len(_TWO_OVER_PI)}] = uint[{len(_TWO_OVER_PI)}]({", ".join(f"{word}u" for word in _TWO_OVER_PI)});
  uvec2 b = unpackDouble2x32(a);
  uint mantissa_high = (b.y & 0xfffffu) | 0x100000u;
  // Bits before this one are multiples of 4 in the product.
  int start = int(b.y >> 20) - 1075 + 62;
  int first = start >> 5, shift = start & 31;
  uint word[6], product[6];
  for (int i = 0; i < 6; ++i) {{
    word[i] = shift == 0 ? bits[first + i] : (bits[first + i] << shift) | (bits[first + i + 1] >> (32 - shift));
  }}
  uint high_word, low_word, carry, above = 0u;
  for (int i = 5; i >= 0; --i) {{
    umulExtended(b.x, word[i], high_word, low_word);
    product[i] = uaddCarry(low_word, above, carry);
    above = high_word + carry;
  }}
  above = 0u;
  for (int i = 4; i >= 0; --i) {{
    umulExtended(mantissa_high, word[i + 1], high_word, low_word);
    low_word = uaddCarry(low_word, above, carry);
    above = high_word + carry;
    product[i] = uaddCarry(product[i], low_word, carry);
    above += carry;
  }}
  // Two bits in front of the point, 190 behind it; more than a half counts from the next quadrant.
  quadrant = int(product[0] >> 30);
  bool is_above = (product[0] & 0x20000000u) != 0u;
  uint flip = is_above ? 0xffffffffu : 0u;
  quadrant += is_above ? 1 : 0;
  precise double p = double((product[0] ^ flip) & 0x3fffffffu) * {2.0**-30!r}lf;
  precise double q = double(product[1] ^ flip) * {2.0**-62!r}lf;
  precise double s = p + q;
  precise double t = ((p - s) + q)
    + (double(product[2] ^ flip) * {2.0**-94!r}lf + double(product[3] ^ flip) * {2.0**-126!r}lf);
  precise double f = s + t;
  precise double f_low = (s - f) + t;
  precise double r = f * 1.5707963267948966lf;
  precise double r_low = product_error(f, 1.5707963267948966lf, r)
    + (f * 6.123233995736766e-17lf + f_low * 1.5707963267948966lf);
  low = is_above ? -r_low : r_low;
  return is_above ? -r : r;
}}"""

# pi / 2 in parts of 33, 33 and 53 bits: the products with the first two are exact.
_REDUCE = """double reduce_angle(double x, out int quadrant, out double low) {
  double a = abs(x);
  quadrant = 0;
  low = 0.0lf;
  if (!(a < DOUBLE_INFINITY)) return DOUBLE_NOT_A_NUMBER;
  precise double r;
  if (a > 1e6lf) {
    r = reduce_large(a, quadrant, low);
  } else {
    precise double n = roundEven(a * 0.6366197723675814lf);
    precise double first = a - n * 1.5707963267341256lf;
    precise double second = n * 6.077100506303966e-11lf;
    precise double s = first - second;
    precise double back = s - first;
    precise double rest = ((first - (s - back)) - (second + back)) - n * 2.0222662487959506e-21lf;
    r = s + rest;
    precise double r_low = (s - r) + rest;
    low = r_low;
    quadrant = int(n);
  }
  quadrant = x < 0.0lf ? -quadrant : quadrant;
  low = x < 0.0lf ? -low : low;
  return x < 0.0lf ? -r : r;
}"""

_SINE = f"""double sine_series(double r, double low) {{
  double z = r * r;
  double p = {
    horner(
        "z",
        (
            -7.586685070091267e-13,
            1.605853141458901e-10,
            -2.5052106231157904e-8,
            2.7557319219335453e-6,
            -1.984126984126506e-4,
            8.333333333333331e-3,
            -1.6666666666666666e-1,
        ),
        "lf",
    )
};
  precise double sum = r + (r * z * p + low * (1.0lf - 0.5lf * z));
  return sum;
}}"""
_COSINE = f"""double cosine_series(double r, double low) {{
  precise double z = r * r;
  double p = {
    horner(
        "z",
        (
            4.7458652037874553e-14,
            -1.1470460773969325e-11,
            2.0876755790363397e-9,
            -2.755731922140076e-7,
            2.4801587301584645e-5,
            -1.3888888888888887e-3,
            4.1666666666666664e-2,
        ),
        "lf",
    )
};
  precise double half_square = 0.5lf * z;
  precise double w = 1.0lf - half_square;
  precise double sum = w + (((1.0lf - w) - half_square) + (z * z * p - r * low));
  return sum;
}}"""
_SIN = """double math_sin(double x) {
  int q;
  double low;
  double r = reduce_angle(x, q, low);
  double y = (q & 1) != 0 ? cosine_series(r, low) : sine_series(r, low);
  return (q & 2) != 0 ? -y : (x == 0.0lf ? x : y);
}"""
_COS = """double math_cos(double x) {
  int q;
  double low;
  double r = reduce_angle(x, q, low);
  double y = (q & 1) != 0 ? sine_series(r, low) : cosine_series(r, low);
  return ((q + 1) & 2) != 0 ? -y : y;
}"""
_TAN = """double math_tan(double x) {
  int q;
  double low;
  double r = reduce_angle(x, q, low);
  double s = sine_series(r, low), c = cosine_series(r, low);
  return (q & 1) != 0 ? -c / s : (x == 0.0lf ? x : s / c);
}"""

# atan(t) = start + atan of the rest, where start is 0, pi / 4 or pi / 2 and the rest at most tan(pi / 8).
_ATAN = f"""double math_atan(double x) {{
  if (is_nan(x)) return x;
  double a = abs(x);
  bool is_large = a > 2.414213562373095lf, is_middle = !is_large && a > 0.41421356237309503lf;
  double start = is_large ? 1.5707963267948966lf : (is_middle ? 0.7853981633974483lf : 0.0lf);
  double start_low = is_large ? 6.123233995736766e-17lf : (is_middle ? 3.061616997868383e-17lf : 0.0lf);
  double t = is_large ? -1.0lf / a : (is_middle ? (a - 1.0lf) / (a + 1.0lf) : a);
  double z = t * t;
  double p = {
    horner(
        "z",
        (
            -1.3916943217800841e-2,
            3.063443323901452e-2,
            -4.104381417807643e-2,
            4.719381457895137e-2,
            -5.2580394289794816e-2,
            5.881925033877732e-2,
            -6.666642004996545e-2,
            7.692306735321475e-2,
            -9.09090906699066e-2,
            1.1111111110754406e-1,
            -1.4285714285711515e-1,
            1.9999999999999993e-1,
            -3.333333333333333e-1,
        ),
        "lf",
    )
};
  precise double y = start + (t + (t * z * p + start_low));
  return copy_sign(y, x);
}}"""
_ATAN2 = """double math_atan2(double y, double x) {
  if (is_nan(x) || is_nan(y)) return DOUBLE_NOT_A_NUMBER;
  double a = abs(x), b = abs(y);
  bool is_steep = b > a;
  double t = a == b ? (a == 0.0lf ? 0.0lf : 1.0lf) : (is_steep ? a / b : b / a);
  precise double angle = math_atan(t);
  if (is_steep) angle = 1.5707963267948966lf - (angle - 6.123233995736766e-17lf);
  if ((unpackDouble2x32(x).y >> 31) != 0u) angle = 3.141592653589793lf - (angle - 1.2246467991473532e-16lf);
  return copy_sign(angle, y);
}"""
_ASIN = """double math_asin(double x) {
  double a = abs(x);
  if (!(a <= 1.0lf)) return DOUBLE_NOT_A_NUMBER;
  double y = a == 1.0lf ? 1.5707963267948966lf : math_atan(a / sqrt((1.0lf - a) * (1.0lf + a)));
  return copy_sign(y, x);
}"""
_ACOS = """double math_acos(double x) {
  if (!(abs(x) <= 1.0lf)) return DOUBLE_NOT_A_NUMBER;
  return x == -1.0lf ? 3.141592653589793lf : 2.0lf * math_atan(sqrt((1.0lf - x) / (1.0lf + x)));
}"""

_SERIES = calls("reduce_angle", "sine_series", "cosine_series", kind="double")
DOUBLE_TRIGONOMETRY = {
    ("reduce_large", "double"): Function(_REDUCE_LARGE, calls("product_error", kind="double")),
    ("reduce_angle", "double"): Function(_REDUCE, calls("reduce_large", kind="double")),
    ("sine_series", "double"): Function(_SINE),
    ("cosine_series", "double"): Function(_COSINE),
    ("math_sin", "double"): Function(_SIN, _SERIES),
    ("math_cos", "double"): Function(_COS, _SERIES),
    ("math_tan", "double"): Function(_TAN, _SERIES),
    ("math_atan", "double"): Function(_ATAN, calls("is_nan", "copy_sign", kind="double")),
    ("math_atan2", "double"): Function(_ATAN2, calls("is_nan", "copy_sign", "math_atan", kind="double")),
    ("math_asin", "double"): Function(_ASIN, calls("copy_sign", "math_atan", kind="double")),
    ("math_acos", "double"): Function(_ACOS, calls("math_atan", kind="double")),
}
