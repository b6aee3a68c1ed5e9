"""Functions of single precision that GLSL lacks, or has with too large errors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """A function and the others that it calls, each with its type."""

    source: str
    calls: tuple[tuple[str, str], ...] = ()


_IS_NAN = "bool is_nan(float x) { return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u; }"
_ERF = """float math_erf(float x) {
  float c = clamp(x, -3.925724783138660, 3.925724783138660);
  float s = c * c;
  float p = -2.72614225801306e-10;
  p = p * s + 2.77068142495902e-08;
  p = p * s + -2.10102402082508e-06;
  p = p * s + -5.69250639462346e-05;
  p = p * s + -7.34990630326855e-04;
  p = p * s + -2.95459980854025e-03;
  p = p * s + -1.60960333262415e-02;
  float q = -1.45660718464996e-05;
  q = q * s + -2.13374055278905e-04;
  q = q * s + -1.68282697438203e-03;
  q = q * s + -7.37332916720468e-03;
  q = q * s + -1.42647390514189e-02;
  float y = clamp(c * (p / q), -1.0, 1.0);
  y = abs(x) > 3.925724783138660 ? (x < 0.0 ? -1.0 : 1.0) : y;
  return is_nan(x) ? x : y;
}"""
_TANH = """float math_tanh(float x) {
  float c = clamp(x, -9.2, 9.2);
  float s = c * c;
  float p = -2.76076847742355e-16;
  p = p * s + 2.00018790482477e-13;
  p = p * s + -8.60467152213735e-11;
  p = p * s + 5.12229709037114e-08;
  p = p * s + 1.48572235717979e-05;
  p = p * s + 6.37261928875436e-04;
  p = p * s + 4.89352455891786e-03;
  float q = 1.19825839466702e-06;
  q = q * s + 1.18534705686654e-04;
  q = q * s + 2.26843463243900e-03;
  q = q * s + 4.89352518554385e-03;
  float y = clamp(c * p / q, -1.0, 1.0);
  return is_nan(x) || abs(x) < 4e-4 ? x : y;
}"""

FUNCTIONS = {
    ("is_nan", "float"): Function(_IS_NAN),
    ("math_erf", "float"): Function(_ERF, (("is_nan", "float"),)),
    ("math_tanh", "float"): Function(_TANH, (("is_nan", "float"),)),
}
