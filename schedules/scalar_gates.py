"""GELU in its two forms, x·(½ + h(x)), with one polynomial for the odd function h.

erf and tanh themselves need two ranges and an exponential; here an error that is small beside x is
enough, which one polynomial in x² gives: below 1e-6, or 3e-7 of results below 1. Past its reach, x
times the last value of the polynomial is ½ or more, so h is cut off exactly where it saturates.
"""

from __future__ import annotations

from tvm import tirx

from schedules.interface import PrimExpr
from schedules.scalar_math import f32, let, polynomial

# Fitted to h(x) / x in t = 2x² / reach² − 1 by least squares with weights that even out the largest
# errors of x·h(x) (Lawson's algorithm, 1961).
_ERF_REACH = 5.2
_ERF = (0.1359499841928482, -0.06774377077817917, 0.05002601817250252, -0.03992656245827675,
        0.03196445852518082, -0.024752100929617882, 0.018116610124707222, -0.012399828992784023,
        0.008073992095887661, -0.004976380150765181, 0.0025453241541981697, -0.0010628554737195373,
        0.0007044996600598097, -0.0005325751844793558, 0.00016702244465705007)  # fmt: skip
_TANH_REACH = 5.0
_TANH = (0.1413785219192505, -0.0703657940030098, 0.051655758172273636, -0.04054322838783264,
         0.03137326240539551, -0.02299625240266323, 0.01586465910077095, -0.010558041743934155,
         0.006330988835543394, -0.002865246497094631, 0.0017549070762470365, -0.0021814792416989803,
         0.0013063582591712475, 3.82569050998427e-05, -0.00019269168842583895)  # fmt: skip


def gelu(x: PrimExpr) -> PrimExpr:
    """x·(1 + erf(x / √2)) / 2, float32."""
    return _gated(x, _ERF, _ERF_REACH)


def gelu_tanh(x: PrimExpr) -> PrimExpr:
    """x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2, float32."""
    return _gated(x, _TANH, _TANH_REACH)


def _gated(x: PrimExpr, coefficients: tuple[float, ...], reach: float) -> PrimExpr:
    def half(x: PrimExpr) -> PrimExpr:
        t = tirx.min(x * x, f32(reach**2)) * f32(2 / reach**2) - f32(1)
        h = x * let(t, lambda t: polynomial(t, coefficients))
        return x * (f32(0.5) + tirx.max(f32(-0.5), tirx.min(f32(0.5), h)))

    return let(x, half)
