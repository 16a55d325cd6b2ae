"""Triton kernels of sigmoid layers: tiles of logits, their coins, log-probabilities and weighted residuals.

Suffixes: N rows (examples × samples), R rows of a tile, I input units, O output units, C output units of a tile. A
row of logits or of units may serve several consecutive rows n (the samples of one example): `share` says how many.
Tensors are float32 and contiguous. With `is_split` products have bfloat16 factors: bits as they are, and weights as a
sum of two, which leaves 16 of their 24 digits; inputs that are no bits are split likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

_compiled: Callable[[Callable[..., Any]], Any] = triton.jit
_drawing: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=["key", "number"])

# Factors are rounded to bfloat16. Triton's interpreter has no products of these: there they are put into float32.
_FACTOR: tl.constexpr = tl.constexpr(tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16)
# log(1 + z) = 2 artanh(z / (2 + z)), a polynomial fitted at Chebyshev nodes for 0 ≤ z ≤ 1: relative error 4e-9.
_L1: tl.constexpr = tl.constexpr(0.33333158)
_L2: tl.constexpr = tl.constexpr(0.20012427)
_L3: tl.constexpr = tl.constexpr(0.13980709)
_L4: tl.constexpr = tl.constexpr(0.14087329)


@_compiled
def _mean(a):  # type: ignore[no-untyped-def]
    """σ(a), NaN for NaN."""
    e = tl.exp(-tl.abs(a))
    inverse = 1.0 / (1.0 + e)
    return tl.where(a >= 0.0, inverse, e * inverse)


@_compiled
def _loss(unit, a):  # type: ignore[no-untyped-def]
    """−log p of a unit: softplus(−a) where it is on, softplus(a) where it is off; both parts are positive."""
    z = tl.exp(-tl.abs(a))
    s = z / (2.0 + z)
    w = s * s
    log1p = 2.0 * (s + s * w * (_L1 + w * (_L2 + w * (_L3 + w * _L4))))
    on, off = tl.maximum(-a, 0.0) + log1p, tl.maximum(a, 0.0) + log1p
    return unit * on + (1.0 - unit) * off


@_compiled
def _words(key, first_ptr, number, row_R, share, block, QUADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Philox's words for rows and 4 · QUADS units from the `block`-th four on: core.philox.philox_rows says which."""
    zero_RQ = tl.zeros((row_R.shape[0], QUADS), tl.int32)
    first_R = tl.load(first_ptr + row_R // share).to(tl.int32)
    c0 = zero_RQ + (block + tl.arange(0, QUADS))[None, :]
    c1 = zero_RQ + (row_R % share)[:, None]
    w0, w1, w2, w3 = tl.philox(key, c0, c1, zero_RQ + number, zero_RQ + first_R[:, None])
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@_compiled
def _rounded(factor):  # type: ignore[no-untyped-def]
    """In bfloat16."""
    return factor.to(tl.bfloat16).to(_FACTOR)


@_compiled
def _add_dot(total, a, b, is_split: tl.constexpr):  # type: ignore[no-untyped-def]
    """Total + a b."""
    if is_split:
        a_high, b_high = _rounded(a), _rounded(b)
        a_low, b_low = _rounded(a - a_high.to(tl.float32)), _rounded(b - b_high.to(tl.float32))
        total = tl.dot(a_high, b_high, total)
        total = tl.dot(a_high, b_low, total)
        if tl.max(tl.max(tl.abs(a_low.to(tl.float32)), 1), 0) > 0.0:  # never for bits
            total = tl.dot(a_low, b_high, total)
    else:
        total = tl.dot(a, b, total, input_precision="tf32x3")
    return total


@_compiled
def _logits(y_ptr, weight_ptr, bias_ptr, row_R, unit_C, N, I, O, STEP: tl.constexpr, is_split: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of y W + b, (R, C); NaN and infinities of W reach every row, as 0 · NaN does."""
    total_RC = tl.zeros((row_R.shape[0], unit_C.shape[0]), tl.float32)
    for start in range(0, I, STEP):
        input_S = start + tl.arange(0, STEP)
        y_mask = (row_R < N)[:, None] & (input_S < I)[None, :]
        y_RS = tl.load(y_ptr + row_R.to(tl.int64)[:, None] * I + input_S[None, :], mask=y_mask, other=0.0)
        weight_mask = (input_S < I)[:, None] & (unit_C < O)[None, :]
        weight_SC = tl.load(weight_ptr + input_S[:, None] * O + unit_C[None, :], mask=weight_mask, other=0.0)
        total_RC = _add_dot(total_RC, y_RS, weight_SC, is_split)
    return total_RC + tl.load(bias_ptr + unit_C, mask=unit_C < O, other=0.0)[None, :]


@_drawing
def raw(out_ptr, first_ptr, key, number, N, O, share, ROWS: tl.constexpr, UNITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A stream's words, (N, O) int32."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_C = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    here_R = tl.minimum(row_R, N - 1)
    words_RC = _words(key, first_ptr, number, here_R, share, tl.program_id(1) * (UNITS // 4), UNITS // 4)
    place_RC = row_R.to(tl.int64)[:, None] * O + unit_C[None, :]
    tl.store(out_ptr + place_RC, words_RC.to(tl.int32, bitcast=True), (row_R < N)[:, None] & (unit_C < O)[None, :])


@_drawing
def draw(  # type: ignore[no-untyped-def]
    logit_ptr, unit_ptr, log_prob_ptr, first_ptr, key, number, N, O, logit_share, stream_share,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Units h = [u < σ(a)], u the low 24 bits of a word over 2²⁴, and their log-probabilities."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here_R = tl.minimum(row_R, N - 1)
    loss_R = tl.zeros((ROWS,), tl.float32)
    for start in range(0, O, UNITS):
        unit_C = start + tl.arange(0, UNITS)
        is_unit_C = (unit_C < O)[None, :]
        logit_row_R = (here_R // logit_share).to(tl.int64)
        logit_RC = tl.load(logit_ptr + logit_row_R[:, None] * O + unit_C[None, :], mask=is_unit_C, other=0.0)
        word_RC = _words(key, first_ptr, number, here_R, stream_share, start // 4, UNITS // 4)
        uniform_RC = (word_RC & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08  # 2⁻²⁴
        h_RC = (uniform_RC < _mean(logit_RC)).to(tl.float32)
        loss_R += tl.sum(tl.where(is_unit_C, _loss(h_RC, logit_RC), 0.0), 1)
        tl.store(unit_ptr + row_R.to(tl.int64)[:, None] * O + unit_C[None, :], h_RC, (row_R < N)[:, None] & is_unit_C)
    tl.store(log_prob_ptr + row_R, -loss_R, row_R < N)


@_compiled
def score(  # type: ignore[no-untyped-def]
    unit_ptr, logit_ptr, log_prob_ptr, N, O, unit_share, logit_share, ROWS: tl.constexpr, UNITS: tl.constexpr
):  # fmt: skip
    """Log-probabilities of units on logits."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here_R = tl.minimum(row_R, N - 1)
    unit_row_R, logit_row_R = (here_R // unit_share).to(tl.int64), (here_R // logit_share).to(tl.int64)
    loss_R = tl.zeros((ROWS,), tl.float32)
    for start in range(0, O, UNITS):
        unit_C = start + tl.arange(0, UNITS)
        is_unit_C = (unit_C < O)[None, :]
        h_RC = tl.load(unit_ptr + unit_row_R[:, None] * O + unit_C[None, :], mask=is_unit_C, other=0.0)
        logit_RC = tl.load(logit_ptr + logit_row_R[:, None] * O + unit_C[None, :], mask=is_unit_C, other=0.0)
        loss_R += tl.sum(tl.where(is_unit_C, _loss(h_RC, logit_RC), 0.0), 1)
    tl.store(log_prob_ptr + row_R, -loss_R, row_R < N)


@_compiled
def residuals(  # type: ignore[no-untyped-def]
    unit_ptr, logit_ptr, sample_weight_ptr, residual_ptr, num_rows, O, unit_share, logit_share, sum_share,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Sums of weight · (σ(a) − h) over the `sum_share` rows n that share a row of `residual`."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_C = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    here_R, is_unit_C = tl.minimum(row_R, num_rows - 1), (unit_C < O)[None, :]
    total_RC = tl.zeros((ROWS, UNITS), tl.float32)
    for sample in range(0, sum_share):
        n_R = here_R.to(tl.int64) * sum_share + sample
        h_RC = tl.load(unit_ptr + (n_R // unit_share)[:, None] * O + unit_C[None, :], mask=is_unit_C, other=0.0)
        logit_RC = tl.load(logit_ptr + (n_R // logit_share)[:, None] * O + unit_C[None, :], mask=is_unit_C, other=0.0)
        total_RC += tl.load(sample_weight_ptr + n_R)[:, None] * (_mean(logit_RC) - h_RC)
    place_RC = row_R.to(tl.int64)[:, None] * O + unit_C[None, :]
    tl.store(residual_ptr + place_RC, total_RC, (row_R < num_rows)[:, None] & is_unit_C)


@_compiled
def linear(  # type: ignore[no-untyped-def]
    y_ptr, weight_ptr, bias_ptr, logit_ptr, N, I, O,
    ROWS: tl.constexpr, UNITS: tl.constexpr, STEP: tl.constexpr, is_split: tl.constexpr,
):  # fmt: skip
    """Logits y W + b, (N, O)."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_C = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    logit_RC = _logits(y_ptr, weight_ptr, bias_ptr, row_R, unit_C, N, I, O, STEP, is_split)
    place_RC = row_R.to(tl.int64)[:, None] * O + unit_C[None, :]
    tl.store(logit_ptr + place_RC, logit_RC, (row_R < N)[:, None] & (unit_C < O)[None, :])


@_compiled
def observe(  # type: ignore[no-untyped-def]
    y_ptr, weight_ptr, bias_ptr, unit_ptr, part_ptr, N, I, O, unit_share,
    ROWS: tl.constexpr, UNITS: tl.constexpr, STEP: tl.constexpr, is_split: tl.constexpr,
):  # fmt: skip
    """Log-probabilities of given units under y W + b by tiles of units, (O / UNITS, N): no logits are written."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_C = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    is_unit_C = (unit_C < O)[None, :]
    logit_RC = _logits(y_ptr, weight_ptr, bias_ptr, row_R, unit_C, N, I, O, STEP, is_split)
    unit_row_R = (tl.minimum(row_R, N - 1) // unit_share).to(tl.int64)
    h_RC = tl.load(unit_ptr + unit_row_R[:, None] * O + unit_C[None, :], mask=is_unit_C, other=0.0)
    loss_R = tl.sum(tl.where(is_unit_C, _loss(h_RC, logit_RC), 0.0), 1)
    tl.store(part_ptr + tl.program_id(1).to(tl.int64) * N + row_R, -loss_R, row_R < N)


@_compiled
def observed_gradient(  # type: ignore[no-untyped-def]
    y_ptr, weight_ptr, bias_ptr, unit_ptr, sample_weight_ptr, gradient_ptr, bias_gradient_ptr, N, I, O, unit_share,
    rows_each, ROWS: tl.constexpr, INPUTS: tl.constexpr, UNITS: tl.constexpr, STEP: tl.constexpr,
    is_split: tl.constexpr,
):  # fmt: skip
    """Σ weight · yᵀ (σ(a) − h) and Σ weight · (σ(a) − h) by slices of rows, (slices, I, O) and (slices, O).

    Logits are made anew, tile by tile, and go no further than the residuals made of them.
    """
    unit_C = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    part, input_J = tl.program_id(1).to(tl.int64), tl.program_id(2) * INPUTS + tl.arange(0, INPUTS)
    is_unit_C = unit_C < O
    total_JC, bias_C = tl.zeros((INPUTS, UNITS), tl.float32), tl.zeros((UNITS,), tl.float32)
    for start in range(0, rows_each, ROWS):
        row_R = tl.program_id(1) * rows_each + start + tl.arange(0, ROWS)
        is_row_R = row_R < N
        here_R = tl.minimum(row_R, N - 1)
        logit_RC = _logits(y_ptr, weight_ptr, bias_ptr, row_R, unit_C, N, I, O, STEP, is_split)
        h_place_RC = (here_R // unit_share).to(tl.int64)[:, None] * O + unit_C[None, :]
        h_RC = tl.load(unit_ptr + h_place_RC, mask=is_unit_C[None, :], other=0.0)
        sample_weight_R = tl.load(sample_weight_ptr + here_R)
        is_here_RC = is_row_R[:, None] & is_unit_C[None, :]
        residual_RC = tl.where(is_here_RC, sample_weight_R[:, None] * (_mean(logit_RC) - h_RC), 0.0)
        y_place_JR = row_R.to(tl.int64)[None, :] * I + input_J[:, None]
        y_JR = tl.load(y_ptr + y_place_JR, mask=is_row_R[None, :] & (input_J < I)[:, None], other=0.0)
        if is_split:
            total_JC = tl.dot(_rounded(y_JR), _rounded(residual_RC), total_JC)
        else:
            total_JC = tl.dot(y_JR, residual_RC, total_JC, input_precision="tf32x3")
        bias_C += tl.sum(residual_RC, 0)
    gradient_JC = gradient_ptr + (part * I + input_J[:, None]) * O + unit_C[None, :]
    tl.store(gradient_JC, total_JC, (input_J < I)[:, None] & is_unit_C[None, :])
    if tl.program_id(2) == 0:
        tl.store(bias_gradient_ptr + part * O + unit_C, bias_C, is_unit_C)
