"""Exponentials, logarithms, powers and what is made of them in double precision, which GLSL lacks.

Largest errors on lavapipe, for normal results (tests/targets/vulkan/emitter/test_doubles.py):

    exp, exp2, exp10, log, erf 1 ulp    log2, log10, log1p, tanh, sinh, cosh, sigmoid, pow 2 ulp
    asinh, acosh, atanh 2.5 ulp

That is with division and square roots that are correctly rounded. A result below the smallest normal number may be 0.

Sources: the reductions are those of Cody and Waite (a multiple of ln 2 in two parts, the larger one so short that its
products are exact); log m is 2 artanh((m - 1) / (m + 1)) arranged as in FreeBSD's msun, so that m - 1 itself is the
leading term; log1p is Kahan's; pow carries log2 as a sum of two numbers with products by Dekker. The polynomials were
fitted for this project: interpolation at Chebyshev's nodes in 50 digits, of (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, of
(2 artanh(s) / s - 2) / s^2 for m in [sqrt(1/2), sqrt(2)), of erf(x) / x - 1 up to 1, and from there to 6 of
e^(x^2) (1 - erf(x)) over (x - 2.5) / (x + 2.5).
"""

from __future__ import annotations

from greencc.targets.vulkan.emitter.function import Function, calls, horner

_TYPE = "double"


def _polynomial(x: str, coefficients: tuple[float, ...]) -> str:
    return horner(x, coefficients, "lf")


def _calls(*names: str) -> tuple[tuple[str, str], ...]:
    return calls(*names, kind=_TYPE)


_IS_NAN = """bool is_nan(double x) {
  uvec2 b = unpackDouble2x32(x);
  uint high = b.y & 0x7fffffffu;
  return high > 0x7ff00000u || (high == 0x7ff00000u && b.x != 0u);
}"""
_COPY_SIGN = """double copy_sign(double x, double y) {
  uvec2 a = unpackDouble2x32(x), b = unpackDouble2x32(y);
  return packDouble2x32(uvec2(a.x, (a.y & 0x7fffffffu) | (b.y & 0x80000000u)));
}"""
# 2^n in two factors, so that neither overflows before the result does and only the last product rounds.
_SCALE = """double scale_by_power(double y, int n) {
  int half_n = n >> 1;
  return y * packDouble2x32(uvec2(0u, uint(half_n + 1023) << 20))
    * packDouble2x32(uvec2(0u, uint(n - half_n + 1023) << 20));
}"""
# x is split into m 2^e with m in [sqrt(1/2), sqrt(2)); subnormal numbers are scaled first.
_SPLIT = """double split_exponent(double x, out double e) {
  bool is_small = x < 2.2250738585072014e-308lf;
  uvec2 b = unpackDouble2x32(is_small ? x * 18014398509481984.0lf : x);
  int k = int((b.y - 0x3fe6a09eu) >> 20) - (b.y < 0x3fe6a09eu ? 4096 : 0);
  e = double(is_small ? k - 54 : k);
  return packDouble2x32(uvec2(b.x, b.y - (uint(k) << 20)));
}"""
# What a product has lost in rounding (Dekker): halves of 26 and 27 bits.
_PRODUCT_ERROR = """double product_error(double a, double b, double product) {
  uvec2 a_bits = unpackDouble2x32(a), b_bits = unpackDouble2x32(b);
  precise double a_high = packDouble2x32(uvec2(a_bits.x & 0xf8000000u, a_bits.y));
  precise double b_high = packDouble2x32(uvec2(b_bits.x & 0xf8000000u, b_bits.y));
  precise double a_low = a - a_high;
  precise double b_low = b - b_high;
  precise double lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
  return lost;
}"""

# e^(r + low) - 1 for |r| <= ln 2 / 2.
_EXP_SERIES = f"""double exp_series(double r, double low) {{
  double p = {
    _polynomial(
        "r",
        (
            2.0914686968086876e-9,
            2.5105217004720745e-8,
            2.75572736431103e-7,
            2.7557255400206422e-6,
            2.4801587325547743e-5,
            1.9841269874820627e-4,
            1.3888888888883748e-3,
            8.333333333326136e-3,
            4.166666666666667e-2,
            1.666666666666667e-1,
            0.5,
        ),
    )
};
  precise double sum = r + (r * r * p + low);
  return sum;
}}"""
_REDUCE_EXP = """double reduce_exp(double x, out int n, out double low) {
  precise double whole = roundEven(x * 1.4426950408889634lf);
  precise double high = x - whole * 0.6931471803691238lf;
  precise double rest = whole * 1.9082149292705877e-10lf;
  precise double r = high - rest;
  n = int(whole);
  low = (high - r) - rest;
  return r;
}"""
_EXP = """double math_exp(double x) {
  if (!(abs(x) < 800.0lf)) return is_nan(x) ? x : (x > 0.0lf ? DOUBLE_INFINITY : 0.0lf);
  int n;
  double low;
  double r = reduce_exp(x, n, low);
  return scale_by_power(1.0lf + exp_series(r, low), n);
}"""
# e^x - 1.
_EXPM1 = """double exp_minus_one(double x) {
  if (!(x < 50.0lf)) return math_exp(x);
  if (x < -50.0lf) return -1.0lf;
  int n;
  double low;
  double r = reduce_exp(x, n, low);
  double y = exp_series(r, low);
  double scale = packDouble2x32(uvec2(0u, uint(n + 1023) << 20));
  return n == 0 ? y : scale * y + (scale - 1.0lf);
}"""
_EXP2_SPLIT = """double exp2_split(double whole, double part) {
  precise double bounded = clamp(whole, -2000.0lf, 2000.0lf);
  precise double n = roundEven(bounded);
  precise double rest = bounded - n;
  precise double f = rest + part;
  precise double f_low = (rest - f) + part;
  precise double r = f * 0.6931471805599453lf;
  double low = product_error(f, 0.6931471805599453lf, r) + (f * 2.3190468138462996e-17lf
    + f_low * 0.6931471805599453lf);
  return scale_by_power(1.0lf + exp_series(r, low), int(n));
}"""
_EXP2 = """double math_exp2(double x) { return is_nan(x) ? x : exp2_split(x, 0.0lf); }"""
_EXP10 = """double math_exp10(double x) {
  if (!(abs(x) < 400.0lf)) return is_nan(x) ? x : (x > 0.0lf ? DOUBLE_INFINITY : 0.0lf);
  precise double n = roundEven(x * 3.321928094887362lf);
  precise double high = x - n * 0.3010299955494702lf;
  precise double rest = n * 1.1451100898021838e-10lf;
  precise double f = high - rest;
  precise double f_low = (high - f) - rest;
  precise double r = f * 2.302585092994046lf;
  double low = product_error(f, 2.302585092994046lf, r) + (f_low * 2.302585092994046lf
    - f * 2.1707562233822494e-16lf);
  return scale_by_power(1.0lf + exp_series(r, low), int(n));
}"""

# log(1 + f) + e ln 2.
_LOG_SERIES = f"""double log_series(double f, double e) {{
  precise double s = f / (2.0lf + f);
  precise double z = s * s;
  precise double half_square = 0.5lf * f * f;
  double p = z * {
    _polynomial(
        "z",
        (
            1.3086767009948175e-1,
            1.3268759668560612e-1,
            1.5386240205813478e-1,
            1.8181795630884753e-1,
            2.222222239180047e-1,
            2.857142857080323e-1,
            4.000000000000088e-1,
            6.666666666666666e-1,
        ),
    )
};
  precise double low = s * (half_square + p) + e * 1.9082149292705877e-10lf;
  precise double sum = e * 0.6931471803691238lf - ((half_square - low) - f);
  return sum;
}}"""


def _logarithm(name: str, result: str) -> Function:
    """A logarithm with the result for positive finite numbers, m 2^e."""
    source = f"""double math_{name}(double x) {{
  if (!(x > 0.0lf)) return x == 0.0lf ? -DOUBLE_INFINITY : DOUBLE_NOT_A_NUMBER;
  if (x == DOUBLE_INFINITY) return x;
  double e;
  double m = split_exponent(x, e);
  return {result};
}}"""
    return Function(source, _calls("split_exponent", "log_series"))


_LOG1P = """double math_log1p(double x) {
  precise double u = 1.0lf + x;
  precise double lost = u - 1.0lf;
  double y = math_log(u);
  // The quotient is 1 but for what the sum has lost.
  return u == 1.0lf || u == DOUBLE_INFINITY ? (u == 1.0lf ? x : u) : (u > 0.0lf ? y * (x / lost) : y);
}"""

# log2 |x| as a sum of two numbers, by the series of artanh((m - 1) / (m + 1)); times y, likewise; 2 to that power.
_POW = f"""double math_pow(double x, double y) {{
  if (y == 0.0lf || x == 1.0lf) return 1.0lf;
  if (is_nan(x) || is_nan(y)) return DOUBLE_NOT_A_NUMBER;
  bool is_whole = floor(y) == y;
  bool is_odd = is_whole && abs(y) < 9007199254740992.0lf && floor(0.5lf * y) != 0.5lf * y;
  bool is_negative = (unpackDouble2x32(x).y >> 31) != 0u;
  double a = abs(x);
  double sign = is_negative && is_odd ? -1.0lf : 1.0lf;
  if (a == 0.0lf || a == DOUBLE_INFINITY) {{
    return copy_sign((a == 0.0lf) == (y < 0.0lf) ? DOUBLE_INFINITY : 0.0lf, sign);
  }}
  if (abs(y) == DOUBLE_INFINITY) return a == 1.0lf ? 1.0lf : ((a > 1.0lf) == (y > 0.0lf) ? DOUBLE_INFINITY : 0.0lf);
  if (is_negative && !is_whole) return DOUBLE_NOT_A_NUMBER;
  double e;
  double m = split_exponent(a, e);
  precise double f = m - 1.0lf;
  precise double d = m + 1.0lf;
  precise double d_low = m - (d - 1.0lf);
  precise double s = f / d;
  precise double back = s * d;
  precise double s_low = (((f - back) - product_error(s, d, back)) - s * d_low) / d;
  double z = s * s;
  // 2 / ln 2 times s (1 + z / 3 + z^2 / 5 + ...), the first product in two parts.
  double series = z * s * {
    _polynomial(
        "z",
        (
            1.714230836664237e-1,
            1.6862374852558606e-1,
            1.9239260809784348e-1,
            2.219525022570025e-1,
            2.623081951971553e-1,
            3.2059889794120644e-1,
            4.121985831112304e-1,
            5.770780163555852e-1,
            9.617966939259756e-1,
        ),
    )
};
  precise double p = s * 2.8853900817779268lf;
  precise double p_low = product_error(s, 2.8853900817779268lf, p)
    + (s * 4.0710547481862066e-17lf + s_low * 2.8853900817779268lf) + series;
  precise double t = e + p;
  precise double t_low = (abs(e) > abs(p) ? (e - t) + p : (p - t) + e) + p_low;
  precise double sum = t + t_low;
  t_low = (t - sum) + t_low;
  precise double q = y * sum;
  if (!(abs(q) < 1100.0lf)) return copy_sign(q > 0.0lf ? DOUBLE_INFINITY : 0.0lf, sign);
  if (abs(q) < 1e-30lf) return sign;
  precise double q_low = product_error(y, sum, q) + y * t_low;
  return copy_sign(exp2_split(q, q_low), sign);
}}"""

_TANH = """double math_tanh(double x) {
  if (is_nan(x)) return x;
  double t = exp_minus_one(2.0lf * min(abs(x), 22.0lf));
  return copy_sign(t / (t + 2.0lf), x);
}"""
_SINH = """double math_sinh(double x) {
  double a = abs(x);
  if (a < 22.0lf) {
    double t = exp_minus_one(a);
    return copy_sign(0.5lf * (t + t / (t + 1.0lf)), x);
  }
  double h = math_exp(a < 700.0lf ? a : 0.5lf * a);
  return copy_sign(a < 700.0lf ? 0.5lf * h : 0.5lf * h * h, x);
}"""
_COSH = """double math_cosh(double x) {
  double a = abs(x);
  double h = math_exp(a < 700.0lf ? a : 0.5lf * a);
  return a < 700.0lf ? 0.5lf * h + 0.5lf / h : 0.5lf * h * h;
}"""
_ASINH = """double math_asinh(double x) {
  double a = abs(x);
  if (!(a < DOUBLE_INFINITY)) return x;
  double y = a < 1e9lf ? math_log1p(a + a * a / (1.0lf + sqrt(a * a + 1.0lf))) : math_log(a) + 0.6931471805599453lf;
  return copy_sign(y, x);
}"""
_ACOSH = """double math_acosh(double x) {
  if (!(x >= 1.0lf)) return DOUBLE_NOT_A_NUMBER;
  double t = x - 1.0lf;
  return x < 1e9lf ? math_log1p(t + sqrt(2.0lf * t + t * t)) : math_log(x) + 0.6931471805599453lf;
}"""
_ATANH = """double math_atanh(double x) {
  double a = abs(x);
  if (!(a <= 1.0lf)) return DOUBLE_NOT_A_NUMBER;
  double y = a == 1.0lf ? DOUBLE_INFINITY : 0.5lf * math_log1p(2.0lf * a / (1.0lf - a));
  return copy_sign(y, x);
}"""
_ERF = f"""double math_erf(double x) {{
  double a = abs(x);
  if (!(a < 6.0lf)) return is_nan(x) ? x : copy_sign(1.0lf, x);
  if (a < 1.0lf) {{
    double z = x * x;
    return x + x * {
    _polynomial(
        "z",
        (
            5.957176147748911e-11,
            -1.1372848856791674e-9,
            1.4659775274047436e-8,
            -1.6350312701054695e-7,
            1.6461000484121368e-6,
            -1.4925595266831182e-5,
            1.205533111164271e-4,
            -8.54832698083379e-4,
            5.2239776248180145e-3,
            -2.6866170645076792e-2,
            1.1283791670954879e-1,
            -3.761263890318375e-1,
            1.283791670955126e-1,
        ),
    )
};
  }}
  double u = (a - 2.5lf) / (a + 2.5lf);
  double p = {
    _polynomial(
        "u",
        (
            8.134380709229634e-8,
            -1.5625258507743158e-6,
            -2.2842173094341345e-6,
            7.48480117852628e-6,
            1.8609712314617464e-5,
            -3.4172229273553035e-5,
            -1.2887649615317198e-4,
            2.2837955896605415e-4,
            8.759154019168855e-4,
            -2.642365927759658e-3,
            -3.9937011641469865e-3,
            3.99225390747838e-2,
            -1.2503305237885554e-1,
            2.51713193217456e-1,
            -3.717367339489732e-1,
            2.1080636406114356e-1,
        ),
    )
};
  return copy_sign(1.0lf - math_exp(-a * a) * p, x);
}}"""

_SOURCES: dict[str, Function] = {
    "is_nan": Function(_IS_NAN),
    "copy_sign": Function(_COPY_SIGN),
    "scale_by_power": Function(_SCALE),
    "split_exponent": Function(_SPLIT),
    "product_error": Function(_PRODUCT_ERROR),
    "exp_series": Function(_EXP_SERIES),
    "reduce_exp": Function(_REDUCE_EXP),
    "math_exp": Function(_EXP, _calls("is_nan", "reduce_exp", "exp_series", "scale_by_power")),
    "exp_minus_one": Function(_EXPM1, _calls("math_exp", "reduce_exp", "exp_series")),
    "exp2_split": Function(_EXP2_SPLIT, _calls("exp_series", "scale_by_power", "product_error")),
    "math_exp2": Function(_EXP2, _calls("is_nan", "exp2_split")),
    "math_exp10": Function(_EXP10, _calls("is_nan", "exp_series", "scale_by_power", "product_error")),
    "log_series": Function(_LOG_SERIES),
    "math_log": _logarithm("log", "log_series(m - 1.0lf, e)"),
    "math_log2": _logarithm("log2", "log_series(m - 1.0lf, 0.0lf) * 1.4426950408889634lf + e"),
    "math_log10": _logarithm("log10", "log_series(m - 1.0lf, e) * 0.4342944819032518lf"),
    "math_log1p": Function(_LOG1P, _calls("math_log")),
    "math_pow": Function(_POW, _calls("is_nan", "copy_sign", "split_exponent", "product_error", "exp2_split")),
    "math_tanh": Function(_TANH, _calls("is_nan", "copy_sign", "exp_minus_one")),
    "math_sinh": Function(_SINH, _calls("copy_sign", "exp_minus_one", "math_exp")),
    "math_cosh": Function(_COSH, _calls("math_exp")),
    "math_asinh": Function(_ASINH, _calls("copy_sign", "math_log", "math_log1p")),
    "math_acosh": Function(_ACOSH, _calls("math_log", "math_log1p")),
    "math_atanh": Function(_ATANH, _calls("copy_sign", "math_log1p")),
    "math_erf": Function(_ERF, _calls("is_nan", "copy_sign", "math_exp")),
    "math_sigmoid": Function(
        "double math_sigmoid(double x) { return 1.0lf / (1.0lf + math_exp(-x)); }", _calls("math_exp")
    ),
}
DOUBLES = {(name, _TYPE): function for name, function in _SOURCES.items()}
