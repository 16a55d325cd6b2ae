"""Everything that is done to logits unit by unit, in one pass each: coins, log-probabilities, weighted residuals.

Suffixes: N rows (examples × samples), L rows of logits, O units, P machines of a pack. A row of logits or of units may
serve several consecutive rows n (the samples of one example): `share` says how many.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32

from rws_ray.core.kernels.jit import compiled, inlined, summing
from rws_ray.core.kernels.plain import DEAD

_f = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _f(math.log2(math.e)), _f(0.693359375), _f(math.log(2) - 0.693359375)
# Polynomials fitted at Chebyshev nodes; relative errors 3e-9 and 4e-9, below float32's rounding.
_E2, _E3, _E4, _E5, _E6 = _f(0.5), _f(0.16666415), _f(0.041666218), _f(0.0083751289), _f(0.0013948581)
_L1, _L2, _L3, _L4 = _f(0.33333158), _f(0.20012427), _f(0.13980709), _f(0.14087329)
_24_BITS, _UNIFORM = np.int32(0xFFFFFF), _f(2.0**-24)
_DEAD = _f(DEAD)


@inlined
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x for x ≤ 0: 2^n times a polynomial on |r| ≤ ln 2 / 2; e^-87 below -87."""
    x = max(x, _f(-87))
    n = np.floor(x * _LOG2E + _f(0.5))
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (r * r * tail + r + _f(1)) * power


@inlined
def _log1p(z):  # type: ignore[no-untyped-def]
    """log(1 + z) for 0 ≤ z ≤ 1, as 2 artanh(z / (2 + z))."""
    s = z / (_f(2) + z)
    w = s * s
    return _f(2) * (s + s * w * (_L1 + w * (_L2 + w * (_L3 + w * _L4))))


@inlined
def _fill_mean(logit_O, mean_O):  # type: ignore[no-untyped-def]
    """mean = σ(a)."""
    for o in range(len(logit_O)):
        a = logit_O[o]
        mean_O[o] = _mean(a, _exp(-abs(a)))


@inlined
def _mean(a, e):  # type: ignore[no-untyped-def]
    """σ(a), e = exp(−|a|)."""
    inverse = _f(1) / (_f(1) + e)
    return (inverse if a >= _f(0) else e * inverse) + (a - a)  # NaN stays NaN


@inlined
def _fill(logit_O, mean_O, on_O, off_O):  # type: ignore[no-untyped-def]
    """σ(a), and −log p of a unit that is on, softplus(−a), and of one that is off, softplus(a).

    softplus(a) = max(a, 0) + log(1 + e^-|a|): both parts are positive, so that sums of them never cancel.
    """
    for o in range(len(logit_O)):
        a = logit_O[o]
        e = _exp(-abs(a))
        shared = _log1p(e) + (a - a)  # NaN stays NaN
        mean_O[o] = _mean(a, e)
        on_O[o] = max(-a, _f(0)) + shared
        off_O[o] = max(a, _f(0)) + shared


@inlined
def _loss(unit, on, off):  # type: ignore[no-untyped-def]
    """−log p of a unit; in any other order, off + unit · (on − off), large terms would cancel."""
    return unit * on + (_f(1) - unit) * off


@summing
def _sum_of_losses(unit_O, on_O, off_O):  # type: ignore[no-untyped-def]
    """−log p of a row of units."""
    total = float32(0)
    for o in range(len(unit_O)):
        total += _loss(unit_O[o], on_O[o], off_O[o])
    return total


@inlined
def _alive(logit_O):  # type: ignore[no-untyped-def]
    """How many units there are but for dead ones at the end: how a sum is made depends on its length."""
    alive = len(logit_O)
    while alive > 0 and logit_O[alive - 1] == _DEAD:
        alive -= 1
    return alive


@inlined
def _toss(raw_O, mean_O, unit_O):  # type: ignore[no-untyped-def]
    """h = [u < σ(a)], u the low 24 bits of `raw` over 2²⁴."""
    for o in range(len(unit_O)):
        unit_O[o] = _f(1) if _f(raw_O[o] & _24_BITS) * _UNIFORM < mean_O[o] else _f(0)


@compiled("void(float32[:, ::1], int32[:, ::1], float32[:, ::1], float32[::1], boolean, float32[:, ::1])")
def draw(logit_LO, raw_NO, unit_NO, log_prob_N, keeps_means, scratch_3O):  # type: ignore[no-untyped-def]
    """Units and their log-probabilities; where `keeps_means`, means take the logits' place."""
    L = len(logit_LO)
    share = len(raw_NO) // max(L, 1)
    mean_O, on_O, off_O = scratch_3O[0], scratch_3O[1], scratch_3O[2]
    for row in range(L):
        alive = _alive(logit_LO[row])
        _fill(logit_LO[row], mean_O, on_O, off_O)
        if keeps_means:
            logit_LO[row] = mean_O
        for n in range(row * share, (row + 1) * share):
            _toss(raw_NO[n], mean_O, unit_NO[n])
            log_prob_N[n] = -_sum_of_losses(unit_NO[n, :alive], on_O[:alive], off_O[:alive])


@compiled("void(float32[:, ::1], int32[:, ::1], float32[:, ::1], float32[::1])")
def toss(logit_LO, raw_NO, unit_NO, mean_O):  # type: ignore[no-untyped-def]
    """Units alone; `mean_O` is scratch."""
    L = len(logit_LO)
    share = len(raw_NO) // max(L, 1)
    for row in range(L):
        _fill_mean(logit_LO[row], mean_O)
        for n in range(row * share, (row + 1) * share):
            _toss(raw_NO[n], mean_O, unit_NO[n])


@compiled("void(float32[:, ::1], float32[:, ::1], float32[::1], boolean, float32[:, ::1])")
def score(unit_MO, logit_LO, log_prob_N, keeps_means, scratch_3O):  # type: ignore[no-untyped-def]
    """log p = −Σ_i (h_i softplus(−a_i) + (1 − h_i) softplus(a_i)), shared where units or logits have fewer rows.

    Means as in `draw`.
    """
    L = len(logit_LO)
    N = len(log_prob_N)
    share, unit_share = N // max(L, 1), N // max(len(unit_MO), 1)
    mean_O, on_O, off_O = scratch_3O[0], scratch_3O[1], scratch_3O[2]
    for row in range(L):
        alive = _alive(logit_LO[row])
        _fill(logit_LO[row], mean_O, on_O, off_O)
        if keeps_means:
            logit_LO[row] = mean_O
        for n in range(row * share, (row + 1) * share):
            log_prob_N[n] = -_sum_of_losses(unit_MO[n // unit_share, :alive], on_O[:alive], off_O[:alive])


@compiled("void(float32[:, ::1], float32[:, ::1])")
def means(logit_LO, mean_LO):  # type: ignore[no-untyped-def]
    """σ(a)."""
    for row in range(len(logit_LO)):
        _fill_mean(logit_LO[row], mean_LO[row])


@compiled("void(float32[:, ::1], float32[:, ::1], float32[::1], float32[:, ::1], float32[:, :], float32[::1])")
def residuals(unit_MO, mean_LO, weight_N, residual_RO, bias_gradient_PO, bias_O):  # type: ignore[no-untyped-def]
    """r = weight · (σ(a) − h), summed over the rows n that share a row of `residual`; Σ r is added to the bias's.

    The rows of a pack's P machines come one machine after another, each with a bias of its own. `bias_O` is scratch.
    """
    L, O = mean_LO.shape
    N = len(weight_N)
    share, unit_share, sum_share = N // max(L, 1), N // max(len(unit_MO), 1), N // max(len(residual_RO), 1)
    bias_share = L // len(bias_gradient_PO)
    for row in range(L):
        mean_O = mean_LO[row]
        if row % bias_share == 0:
            bias_O[:] = bias_gradient_PO[row // bias_share]
        for n in range(row * share, (row + 1) * share):
            unit_O, residual_O, weight = unit_MO[n // unit_share], residual_RO[n // sum_share], weight_N[n]
            if n % sum_share == 0:
                residual_O[:] = _f(0)
            for o in range(O):
                value = weight * (mean_O[o] - unit_O[o])
                residual_O[o] += value
                bias_O[o] += value
        if (row + 1) % bias_share == 0:
            bias_gradient_PO[row // bias_share] = bias_O
