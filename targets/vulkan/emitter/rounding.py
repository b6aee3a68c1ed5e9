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
_FMOD_DOUBLE = """double remainder_of_normal(double r, double d) {
  while (r >= d) {
    uvec2 divisor = unpackDouble2x32(d);
    uint k = (unpackDouble2x32(r).y >> 20) - (divisor.y >> 20);
    double s = packDouble2x32(uvec2(divisor.x, divisor.y + (k << 20)));
    r -= s > r ? 0.5lf * s : s;
  }
  return r;
}"""
# A divisor near the smallest numbers is scaled, and what is divided brought near it first, so that it can be scaled.
_FMOD_ANY_DOUBLE = """double math_fmod(double x, double y) {
  double r = abs(x), d = abs(y);
  if (!(r < DOUBLE_INFINITY) || is_nan(y) || d == 0.0lf) return DOUBLE_NOT_A_NUMBER;
  if (d >= 1e-290lf) return copy_sign(remainder_of_normal(r, d), x);
  d *= 4.149515568880993e180lf;
  r = remainder_of_normal(r, d) * 4.149515568880993e180lf;
  return copy_sign(remainder_of_normal(r, d) * 2.409919865102884e-181lf, x);
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
_HYPOT_DOUBLE = """double math_hypot(double x, double y) {
  double a = max(abs(x), abs(y)), b = min(abs(x), abs(y));
  if (a == 0.0lf || a == DOUBLE_INFINITY) return a;
  double t = b / a;
  return a * sqrt(1.0lf + t * t);
}"""

ROUNDING = {
    ("math_fmod", "float"): Function(_FMOD, calls("is_nan", "copy_sign")),
    ("math_round", "float"): Function(_ROUND),
    ("math_hypot", "float"): Function(_HYPOT),
    ("math_copysign", "float"): Function(
        "float math_copysign(float x, float y) { return copy_sign(x, y); }", calls("copy_sign")
    ),
    ("math_round", "double"): Function(
        "double math_round(double x) { double t = trunc(x); return abs(x - t) >= 0.5lf ? t + sign(x) : t; }"
    ),
    ("remainder_of_normal", "double"): Function(_FMOD_DOUBLE),
    ("math_fmod", "double"): Function(
        _FMOD_ANY_DOUBLE, calls("is_nan", "copy_sign", "remainder_of_normal", kind="double")
    ),
    ("math_hypot", "double"): Function(_HYPOT_DOUBLE),
    ("math_copysign", "double"): Function(
        "double math_copysign(double x, double y) { return copy_sign(x, y); }", calls("copy_sign", kind="double")
    ),
}
