"""Rounding, remainders and classification: what C has and GLSL lacks or leaves open."""

from __future__ import annotations

from greencc.targets.vulkan.emitter.function import Function, calls

# Long division by bits: every difference is exact, so the result is, whatever the quotient.
_FMOD = """float math_fmod(float x, float y) {
  float r = abs(x), d = abs(y);
  if (!(r < INFINITY) || is_nan(d) || d == 0.0) return NOT_A_NUMBER;
  while (r >= d) {
    int k = int(floatBitsToUint(r) >> 23) - int(floatBitsToUint(d) >> 23);
    float s = uintBitsToFloat(floatBitsToUint(d) + (uint(k) << 23));
    if (s > r) s = uintBitsToFloat(floatBitsToUint(d) + (uint(k - 1) << 23));
    r -= s;
  }
  return copy_sign(r, x);
}"""
_ROUND = """float math_round(float x) {
  float t = trunc(x);
  return abs(x - t) >= 0.5 ? t + (x < 0.0 ? -1.0 : 1.0) : t;
}"""
_HYPOT = """float math_hypot(float x, float y) {
  float a = max(abs(x), abs(y)), b = min(abs(x), abs(y));
  if (a == 0.0 || a == INFINITY) return a;
  float t = b / a;
  return a * sqrt(1.0 + t * t);
}"""

ROUNDING = {
    ("math_fmod", "float"): Function(_FMOD, calls("is_nan", "copy_sign")),
    ("math_round", "float"): Function(_ROUND),
    ("math_hypot", "float"): Function(_HYPOT),
    ("math_copysign", "float"): Function(
        "float math_copysign(float x, float y) { return copy_sign(x, y); }", calls("copy_sign")
    ),
    ("is_nan", "double"): Function("bool is_nan(double x) { return x != x; }"),
    ("math_round", "double"): Function(
        "double math_round(double x) { double t = trunc(x); return abs(x - t) >= 0.5lf ? t + sign(x) : t; }"
    ),
    ("math_fmod", "double"): Function(
        "double math_fmod(double x, double y) { double r = abs(x), d = abs(y); "
        "r = r - floor(r / d) * d; r = r < 0.0lf ? r + d : r; return x < 0.0lf ? -r : r; }"
    ),
}
