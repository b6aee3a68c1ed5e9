"""Trigonometric functions of single precision: those of GLSL may be off by 2^-11, and for large arguments anyhow.

Largest errors (tests/targets/vulkan/emitter/test_mathematics.py): sin, cos 2^-23 absolute for every argument; tan,
asin, acos, atan, atan2 4 ulp.

An argument is reduced by multiples of pi / 2: up to 8192 with pi / 2 in three parts (Cody and Waite), beyond by the
integer product of its mantissa with the bits of 2 / pi that matter (Payne and Hanek). Coefficients from the Cephes
library; only the numbers are taken over.
"""

from __future__ import annotations

from greencc.targets.vulkan.emitter.function import Function, calls, horner

# The fractional bits of 2 / pi, with a word of zeros before them.
_TWO_OVER_PI = (0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB)

_REDUCE_LARGE = f"""float reduce_large(float a, out int quadrant) {{
  const uint bits[8] = uint[8]({", ".join(f"{word}u" for word in _TWO_OVER_PI)});
  uint b = floatBitsToUint(a);
  uint mantissa = ((b & 0x7fffffu) | 0x800000u) << 8;
  int e = int(b >> 23) - 128;
  int first = e >> 5;
  int shift = e & 31;
  uint word[3];
  for (int i = 0; i < 3; ++i) {{
    word[i] = shift == 0 ? bits[first + i] : (bits[first + i] << shift) | (bits[first + i + 1] >> (32 - shift));
  }}
  // The lowest 64 bits in front of the point of mantissa * word * 2^-64, and those behind it.
  uint high, low, middle_high, middle_low, carry;
  umulExtended(mantissa, word[2], high, low);
  umulExtended(mantissa, word[1], middle_high, middle_low);
  low = uaddCarry(high, middle_low, carry);
  high = mantissa * word[0] + middle_high + carry;
  quadrant = int(high >> 30);
  high &= 0x3fffffffu;
  if ((high & 0x20000000u) != 0u) {{
    quadrant += 1;
    uint borrow;
    low = usubBorrow(0u, low, borrow);
    high = 0x40000000u - high - borrow;
    return (float(high) * 4294967296.0 + float(low)) * -3.406121580086554e-19;
  }}
  return (float(high) * 4294967296.0 + float(low)) * 3.406121580086554e-19;
}}"""

_REDUCE = """float reduce_angle(float x, out int quadrant) {
  float a = abs(x);
  if (!(a < INFINITY)) { quadrant = 0; return NOT_A_NUMBER; }
  precise float r;
  if (a > 8192.0) {
    r = reduce_large(a, quadrant);
  } else {
    precise float n = roundEven(a * 0.636619772);
    r = a - n * 1.5703125;
    r = r - n * 4.837512969970703125e-4;
    r = r - n * 7.54978995489188216e-8;
    quadrant = int(n);
  }
  quadrant = x < 0.0 ? -quadrant : quadrant;
  return x < 0.0 ? -r : r;
}"""

_SINE = f"""float sine_series(float r) {{
  float z = r * r;
  return r + r * z * {horner("z", (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))};
}}"""
_COSINE = f"""float cosine_series(float r) {{
  float z = r * r;
  return 1.0 - 0.5 * z + z * z * {horner("z", (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))};
}}"""

_SIN = """float math_sin(float x) {
  int q;
  float r = reduce_angle(x, q);
  float y = (q & 1) != 0 ? cosine_series(r) : sine_series(r);
  return (q & 2) != 0 ? -y : (x == 0.0 ? x : y);
}"""
_COS = """float math_cos(float x) {
  int q;
  float r = reduce_angle(x, q);
  float y = (q & 1) != 0 ? sine_series(r) : cosine_series(r);
  return ((q + 1) & 2) != 0 ? -y : y;
}"""
_TAN = """float math_tan(float x) {
  int q;
  float r = reduce_angle(x, q);
  float s = sine_series(r), c = cosine_series(r);
  return (q & 1) != 0 ? -c / s : (x == 0.0 ? x : s / c);
}"""

_ASIN_SERIES = f"""float arcsine_series(float x) {{
  float z = x * x;
  return x + x * z * {
    horner(
        "z",
        (
            4.2163199048e-2,
            2.4181311049e-2,
            4.5470025998e-2,
            7.4953002686e-2,
            1.6666752422e-1,
        ),
    )
};
}}"""
_ASIN = """float math_asin(float x) {
  float a = abs(x);
  if (!(a <= 1.0)) return NOT_A_NUMBER;
  float y = a > 0.5 ? 1.57079633 - 2.0 * arcsine_series(sqrt(0.5 * (1.0 - a))) : arcsine_series(a);
  return copy_sign(y, x);
}"""
_ACOS = """float math_acos(float x) {
  float a = abs(x);
  if (!(a <= 1.0)) return NOT_A_NUMBER;
  if (a <= 0.5) return 1.57079633 - (arcsine_series(x) + 4.371139e-8);
  float y = 2.0 * arcsine_series(sqrt(0.5 * (1.0 - a)));
  return x < 0.0 ? 3.14159265 - y : y;
}"""
_ATAN = f"""float math_atan(float x) {{
  if (is_nan(x)) return x;
  float a = abs(x);
  float start = a > 2.414213562373095 ? 1.57079633 : (a > 0.4142135623730950 ? 0.785398163 : 0.0);
  float t = a > 2.414213562373095 ? -1.0 / a : (a > 0.4142135623730950 ? (a - 1.0) / (a + 1.0) : a);
  float z = t * t;
  float y = start + (t + t * z * {
    horner(
        "z",
        (
            8.05374449538e-2,
            -1.38776856032e-1,
            1.99777106478e-1,
            -3.33329491539e-1,
        ),
    )
});
  return copy_sign(y, x);
}}"""
_ATAN2 = """float math_atan2(float y, float x) {
  if (is_nan(x) || is_nan(y)) return NOT_A_NUMBER;
  float a = abs(x), b = abs(y);
  bool is_steep = b > a;
  float t = a == b ? (a == 0.0 ? 0.0 : 1.0) : (is_steep ? a / b : b / a);
  float angle = math_atan(t);
  angle = is_steep ? 1.57079633 - angle : angle;
  angle = (floatBitsToUint(x) >> 31) != 0u ? 3.14159265 - angle : angle;
  return copy_sign(angle, y);
}"""

TRIGONOMETRY = {
    "reduce_large": Function(_REDUCE_LARGE),
    "reduce_angle": Function(_REDUCE, calls("reduce_large")),
    "sine_series": Function(_SINE),
    "cosine_series": Function(_COSINE),
    "math_sin": Function(_SIN, calls("reduce_angle", "sine_series", "cosine_series")),
    "math_cos": Function(_COS, calls("reduce_angle", "sine_series", "cosine_series")),
    "math_tan": Function(_TAN, calls("reduce_angle", "sine_series", "cosine_series")),
    "arcsine_series": Function(_ASIN_SERIES),
    "math_asin": Function(_ASIN, calls("arcsine_series", "copy_sign")),
    "math_acos": Function(_ACOS, calls("arcsine_series")),
    "math_atan": Function(_ATAN, calls("is_nan", "copy_sign")),
    "math_atan2": Function(_ATAN2, calls("is_nan", "copy_sign", "math_atan")),
}
