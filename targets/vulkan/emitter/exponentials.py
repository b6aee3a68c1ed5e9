"""Exponentials, logarithms, powers and what is made of them, in single precision.

GLSL lacks erf, and what it has is allowed large errors: of its tanh and its pow most bits may be wrong, and its log may
be off by 2^-21 near 1. Largest errors (tests/targets/vulkan/emitter/test_mathematics.py):

    erf 1e-7 absolute    tanh 7 ulp    log, log1p, log2, log10, exp10, pow, sinh, cosh, asinh, acosh, atanh 3 ulp

`exp` and `exp2` are the device's own: Vulkan allows an error of 3 + 2 |x| ulp.

Sources of the coefficients: log, exp, exp10, sinh from the Cephes library; 2^f is a minimax fit made for this project;
tanh a rational approximation of degrees 13/6, as used by Eigen; erf the fits published by N. Juffa (a polynomial below
0.93, the logarithm of 1 - erf above). Only the numbers are taken over. log1p corrects log of the rounded sum (Kahan).
"""

from __future__ import annotations

from greencc.targets.vulkan.emitter.function import Function, calls, horner

# x is split into m 2^e with m in [sqrt(1/2), sqrt(2)); subnormal numbers are scaled first.
_SPLIT = """float split_exponent(float x, out float e) {
  float scale = x < 1.17549435e-38 ? 25.0 : 0.0;
  uint b = floatBitsToUint(scale > 0.0 ? x * 33554432.0 : x);
  int k = int((b - 0x3f3504f3u) >> 23) - (b < 0x3f3504f3u ? 512 : 0);
  e = float(k) - scale;
  return uintBitsToFloat(b - (uint(k) << 23));
}"""

_LOG_SERIES = f"""float log_series(float f, float e) {{
  precise float z = f * f;
  precise float y = {
    horner(
        "f",
        (
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ),
    )
} * f * z;
  y = y - 2.12194440e-4 * e - 0.5 * z;
  return (f + y) + 0.693359375 * e;
}}"""

_LOG = """float math_log(float x) {
  if (!(x > 0.0)) return x == 0.0 ? -INFINITY : NOT_A_NUMBER;
  if (x == INFINITY) return x;
  float e;
  float m = split_exponent(x, e);
  return log_series(m - 1.0, e);
}"""

_LOG1P = """float math_log1p(float x) {
  precise float u = 1.0 + x;
  precise float lost = u - 1.0;
  float y = math_log(u);
  // The quotient is 1 but for what the sum has lost.
  return u == 1.0 || u == INFINITY ? (u == 1.0 ? x : u) : (u > 0.0 ? y * (x / lost) : y);
}"""

_EXP2_SPLIT = f"""float exp2_split(float whole, float part) {{
  precise float n = roundEven(clamp(whole, -200.0, 200.0));
  precise float f = (clamp(whole, -200.0, 200.0) - n) + part;
  float y = {
    horner(
        "f",
        (
            1.534580806e-4,
            1.339993090e-3,
            9.618489072e-3,
            5.550328642e-2,
            2.402264625e-1,
            6.931471825e-1,
            1.0,
        ),
    )
};
  return scale_by_power(y, int(n));
}}"""

# What a product has lost in rounding (Dekker), as fma would give it if it were sure to round only once.
_PRODUCT_ERROR = """float product_error(float a, float b, float product) {
  precise float a_high = uintBitsToFloat(floatBitsToUint(a) & 0xfffff000u);
  precise float b_high = uintBitsToFloat(floatBitsToUint(b) & 0xfffff000u);
  precise float a_low = a - a_high;
  precise float b_low = b - b_high;
  precise float lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
  return lost;
}"""

# log2 |x| as a sum of two floats, by the series of artanh((m - 1) / (m + 1)); times y, likewise; 2 to that power.
_POW = f"""float math_pow(float x, float y) {{
  if (y == 0.0 || x == 1.0) return 1.0;
  if (is_nan(x) || is_nan(y)) return NOT_A_NUMBER;
  bool is_whole = floor(y) == y;
  bool is_odd = is_whole && abs(y) < 16777216.0 && (int(y) & 1) != 0;
  bool is_negative = (floatBitsToUint(x) >> 31) != 0u;
  float a = abs(x);
  float sign = is_negative && is_odd ? -1.0 : 1.0;
  if (a == 0.0 || a == INFINITY) return (a == 0.0) == (y < 0.0) ? sign * INFINITY : sign * 0.0;
  if (abs(y) == INFINITY) return a == 1.0 ? 1.0 : ((a > 1.0) == (y > 0.0) ? INFINITY : 0.0);
  if (is_negative && !is_whole) return NOT_A_NUMBER;
  float e;
  float m = split_exponent(a, e);
  precise float f = m - 1.0;
  precise float d = m + 1.0;
  precise float d_low = m - (d - 1.0);
  precise float s = f / d;
  precise float back = s * d;
  precise float s_low = (((f - back) - product_error(s, d, back)) - s * d_low) / d;
  float z = s * s;
  // 2 / ln 2 times s (1 + z / 3 + z^2 / 5 + ...), the first product in two parts.
  float series = z * s * {
    horner("z", (2.8853900818 / 11, 2.8853900818 / 9, 2.8853900818 / 7, 2.8853900818 / 5, 2.8853900818 / 3))
};
  precise float p = s * 2.885390043258667;
  precise float p_low = product_error(s, 2.885390043258667, p) + (s * 3.8519242e-8 + s_low * 2.8853900818) + series;
  precise float t = e + p;
  precise float t_low = (abs(e) > abs(p) ? (e - t) + p : (p - t) + e) + p_low;
  precise float sum = t + t_low;
  t_low = (t - sum) + t_low;
  precise float q = y * sum;
  precise float q_low = product_error(y, sum, q) + y * t_low;
  if (abs(q) > 200.0) return q > 0.0 ? sign * INFINITY : sign * 0.0;
  return sign * exp2_split(q, q_low);
}}"""

# 10^x and e^x as 2^n times a polynomial of the rest; the larger part of the constant has so few bits that its products
# with n are exact.
_EXP10 = f"""float math_exp10(float x) {{
  if (!(abs(x) < 60.0)) return is_nan(x) ? x : (x > 0.0 ? INFINITY : 0.0);
  precise float n = roundEven(x * 3.32192809);
  precise float r = (x - n * 0.30078125) - n * 2.48745663981195213739e-4;
  return scale_by_power(1.0 + r * {
    horner(
        "r",
        (
            2.063216740311022e-1,
            5.420251702225484e-1,
            1.171292686296281,
            2.034649854009453,
            2.650948748208892,
            2.302585167056758,
        ),
    )
}, int(n));
}}"""
_EXP_EXACT = f"""float exp_exact(float x) {{
  if (!(abs(x) < 120.0)) return is_nan(x) ? x : (x > 0.0 ? INFINITY : 0.0);
  precise float n = roundEven(x * 1.44269504);
  precise float r = (x - n * 0.693359375) + n * 2.12194440e-4;
  return scale_by_power(1.0 + (r + r * r * {
    horner(
        "r",
        (
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ),
    )
}), int(n));
}}"""
# 2^n in two factors, so that neither overflows before the result does.
_SCALE = """float scale_by_power(float y, int n) {
  int half_n = n >> 1;
  return y * uintBitsToFloat(uint(half_n + 127) << 23) * uintBitsToFloat(uint(n - half_n + 127) << 23);
}"""

# A polynomial for small arguments; beyond, 1 - e^p with a polynomial p that is log of 1 - erf.
_ERF = f"""float math_erf(float x) {{
  float t = min(abs(x), 4.0);
  float s = x * x;
  float small = x + x * {
    horner(
        "s",
        (
            -5.96761703e-4,
            4.99119423e-3,
            -2.67681349e-2,
            1.12819925e-1,
            -3.76125336e-1,
            1.28379166e-1,
        ),
    )
};
  float p = t * {
    horner(
        "t",
        (
            -1.72853470e-5,
            3.83197126e-4,
            -3.88396438e-3,
            2.42546219e-2,
            -1.06777877e-1,
            -6.34846687e-1,
            -1.28717512e-1,
        ),
    )
} - t;
  return is_nan(x) ? x : (t > 0.927734375 ? copy_sign(1.0 - exp(p), x) : small);
}}"""

_TANH = f"""float math_tanh(float x) {{
  float c = clamp(x, -9.2, 9.2);
  float s = c * c;
  float p = {
    horner(
        "s",
        (
            -2.76076847742355e-16,
            2.00018790482477e-13,
            -8.60467152213735e-11,
            5.12229709037114e-08,
            1.48572235717979e-05,
            6.37261928875436e-04,
            4.89352455891786e-03,
        ),
    )
};
  float q = {
    horner(
        "s",
        (
            1.19825839466702e-06,
            1.18534705686654e-04,
            2.26843463243900e-03,
            4.89352518554385e-03,
        ),
    )
};
  float y = clamp(c * p / q, -1.0, 1.0);
  return is_nan(x) || abs(x) < 4e-4 ? x : y;
}}"""

_SINH = f"""float math_sinh(float x) {{
  float a = abs(x);
  if (a < 1.0) {{
    float z = x * x;
    return x + x * z * {horner("z", (2.03721912945e-4, 8.33028376239e-3, 1.66667160211e-1))};
  }}
  float h = exp_exact(a < 80.0 ? a : 0.5 * a);
  float y = a < 80.0 ? 0.5 * h - 0.5 / h : 0.5 * h * h;
  return x < 0.0 ? -y : y;
}}"""

_COSH = """float math_cosh(float x) {
  float a = abs(x);
  float h = exp_exact(a < 80.0 ? a : 0.5 * a);
  return a < 80.0 ? 0.5 * h + 0.5 / h : 0.5 * h * h;
}"""

_ASINH = """float math_asinh(float x) {
  float a = abs(x);
  if (!(a < INFINITY)) return x;
  float y = a < 1e9 ? math_log1p(a + a * a / (1.0 + sqrt(a * a + 1.0))) : math_log(a) + 0.69314718;
  return copy_sign(y, x);
}"""

_ACOSH = """float math_acosh(float x) {
  if (!(x >= 1.0)) return NOT_A_NUMBER;
  float t = x - 1.0;
  return x < 1e9 ? math_log1p(t + sqrt(2.0 * t + t * t)) : math_log(x) + 0.69314718;
}"""

_ATANH = """float math_atanh(float x) {
  float a = abs(x);
  if (!(a <= 1.0)) return NOT_A_NUMBER;
  float y = a == 1.0 ? INFINITY : 0.5 * math_log1p(2.0 * a / (1.0 - a));
  return copy_sign(y, x);
}"""

EXPONENTIALS = {
    "is_nan": Function("bool is_nan(float x) { return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u; }"),
    "copy_sign": Function(
        "float copy_sign(float x, float y) { return uintBitsToFloat((floatBitsToUint(x) & 0x7fffffffu) | "
        "(floatBitsToUint(y) & 0x80000000u)); }"
    ),
    "split_exponent": Function(_SPLIT),
    "log_series": Function(_LOG_SERIES),
    "math_log": Function(_LOG, calls("split_exponent", "log_series")),
    "math_log2": Function(
        """float math_log2(float x) {
  if (!(x > 0.0)) return x == 0.0 ? -INFINITY : NOT_A_NUMBER;
  if (x == INFINITY) return x;
  float e;
  float m = split_exponent(x, e);
  return log_series(m - 1.0, 0.0) * 1.44269504 + e;
}""",
        calls("split_exponent", "log_series"),
    ),
    "math_log10": Function("float math_log10(float x) { return math_log(x) * 0.43429448; }", calls("math_log")),
    "math_log1p": Function(_LOG1P, calls("math_log")),
    "scale_by_power": Function(_SCALE),
    "product_error": Function(_PRODUCT_ERROR),
    "exp2_split": Function(_EXP2_SPLIT, calls("scale_by_power")),
    "exp_exact": Function(_EXP_EXACT, calls("is_nan", "scale_by_power")),
    "math_pow": Function(_POW, calls("is_nan", "split_exponent", "product_error", "exp2_split")),
    "math_exp10": Function(_EXP10, calls("is_nan", "scale_by_power")),
    "math_erf": Function(_ERF, calls("is_nan", "copy_sign")),
    "math_tanh": Function(_TANH, calls("is_nan")),
    "math_sinh": Function(_SINH, calls("exp_exact")),
    "math_cosh": Function(_COSH, calls("exp_exact")),
    "math_asinh": Function(_ASINH, calls("math_log", "math_log1p", "copy_sign")),
    "math_acosh": Function(_ACOSH, calls("math_log", "math_log1p")),
    "math_atanh": Function(_ATANH, calls("math_log1p", "copy_sign")),
    "math_sigmoid": Function("float math_sigmoid(float x) { return 1.0 / (1.0 + exp(-x)); }"),
}
