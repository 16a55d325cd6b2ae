"""Chains of sigmoid layers: all samples of a batch, or all gradients, in one compiled call.

Layer by layer (`fused`) an update holds Python's lock for a fifth of its time, and threads wait for each other. These
call the same kernels on the same operands in the same order, so that the bits are the same.
Suffixes: B examples, N rows (examples × samples), M dreams, D visible units, I inputs and O units of a layer.
`widths` lists D and the layers' widths. `parameters` and `gradients` are addresses of contiguous float32: p's weights
and bias, layer by layer, data side first, the prior's bias, q's weights and bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from rws_ray.core.kernels import bits, coins
from rws_ray.core.kernels.jit import compiled, inlined

_BLOCK = bits.BLOCK
_draw, _toss, _score, _means, _residuals = coins.draw, coins.toss, coins.score, coins.means, coins.residuals
_pack_rows, _pack_columns, _product = bits.pack_rows, bits.pack_columns, bits.product


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), code


@inlined
def _matrix(addresses, place, rows, columns):  # type: ignore[no-untyped-def]
    """The weights or the gradient at a place, (1, rows, columns); a bias has one row."""
    return carray(_pointer(addresses[place]), (1, rows, columns))


@inlined
def _logits(words_1BR, parameters, place, num_inputs, logit_RO, scratch):  # type: ignore[no-untyped-def]
    """y W + b, y as packed rows."""
    R, O = logit_RO.shape
    weight_1IO, bias_1O = _matrix(parameters, place, num_inputs, O), _matrix(parameters, place + 1, 1, O)[0]
    _product(words_1BR, weight_1IO, bias_1O, logit_RO.reshape((1, R, O)), False, scratch)


@inlined
def _packed(unit_NO):  # type: ignore[no-untyped-def]
    N, O = unit_NO.shape
    words_1BN = np.empty((1, (O + _BLOCK - 1) // _BLOCK, N), np.uint64)
    _pack_rows(unit_NO, words_1BN)
    return words_1BN


@inlined
def _add_layer(unit_MO, mean_LO, weight_N, y_RI, words_1BI, gradients, place, scratch):  # type: ignore[no-untyped-def]
    """Add a layer's gradient, summed over rows that share their inputs; those also as packed columns."""
    R, I = y_RI.shape
    O = mean_LO.shape[1]
    residual_RO = np.empty((R, O), np.float32)
    bias_1O = _matrix(gradients, place + 1, 1, O)[0]
    _residuals(unit_MO, mean_LO, weight_N, residual_RO, bias_1O, np.empty(O, np.float32))
    no_bias = np.empty((1, 0), np.float32)
    _product(words_1BI, residual_RO.reshape((1, R, O)), no_bias, _matrix(gradients, place, I, O), True, scratch)


@inlined
def _packed_columns(y_RI):  # type: ignore[no-untyped-def]
    R, I = y_RI.shape
    words_1BI = np.empty((1, (R + _BLOCK - 1) // _BLOCK, I), np.uint64)
    _pack_columns(y_RI.reshape((1, R, I)), words_1BI)
    return words_1BI


@inlined
def _add_moment(y_RI, weight_R, moments, place, scratch):  # type: ignore[no-untyped-def]
    """Add Σ weight · ỹ ỹᵀ to a linear map's moment, ỹ its inputs with a 1 appended; nothing where there are none."""
    if len(moments) == 0:
        return
    R, I = y_RI.shape
    y_RJ, weighted_RJ = np.ones((R, I + 1), np.float32), np.empty((R, I + 1), np.float32)
    y_RJ[:, :I] = y_RI
    for r in range(R):
        weighted_RJ[r] = y_RJ[r] * weight_R[r]
    no_bias = np.empty((1, 0), np.float32)
    moment_1JJ = _matrix(moments, place, I + 1, I + 1)
    _product(_packed_columns(y_RJ), weighted_RJ.reshape((1, R, I + 1)), no_bias, moment_1JJ, True, scratch)


@inlined
def _part(flat, start, rows, columns):  # type: ignore[no-untyped-def]
    return flat[start : start + rows * columns].reshape((rows, columns))


@inlined
def _even(count):  # type: ignore[no-untyped-def]
    """Random words come in pairs: a layer's begin at an even place."""
    return count + count % 2


@compiled(
    "void(int64[::1], int64[::1], float32[:, ::1], uint64[:, :, ::1], int32[::1], float32[::1], float32[::1],"
    " float64[::1], float32[::1])"
)
def draw_samples(widths, parameters, x_BD, words_x, raw, units, means, logw_N, scratch):  # type: ignore[no-untyped-def]
    """Draw h ~ q(h|x), an equal number for each example, and score it: log w = log p(x, h) − log q(h|x).

    Args:
        words_x: x as packed rows.
        raw: for each of q's layers N · O random words, and one more where that is odd.
        units: filled with each layer's (N, O), one after the other.
        means: filled with q's, its first layer's of B rows, then p's, of N rows each.
        scratch: bits.scratch_size of the most rows.
    """
    B, N, L = len(x_BD), len(logw_N), len(widths) - 1
    log_prob_N, log_q_N = np.empty(N, np.float32), np.zeros(N, np.float64)
    unit_words = [words_x]
    at_raw = at_unit = at_mean = 0
    for layer in range(L):
        O, rows = widths[layer + 1], B if layer == 0 else N
        mean_RO, unit_NO = _part(means, at_mean, rows, O), _part(units, at_unit, N, O)
        _logits(unit_words[layer], parameters, 2 * (L + layer) + 1, widths[layer], mean_RO, scratch)
        _draw(mean_RO, _part(raw, at_raw, N, O), unit_NO, log_prob_N, True, np.empty((3, O), np.float32))
        log_q_N += log_prob_N
        unit_words.append(_packed(unit_NO))
        at_raw, at_unit, at_mean = at_raw + _even(N * O), at_unit + N * O, at_mean + rows * O
    logw_N[:] = 0.0
    at_unit = 0
    below_MO = x_BD
    for layer in range(L):
        O = widths[layer]
        mean_NO = _part(means, at_mean, N, O)
        _logits(unit_words[layer + 1], parameters, 2 * layer, widths[layer + 1], mean_NO, scratch)
        _score(below_MO, mean_NO, log_prob_N, True, np.empty((3, O), np.float32))
        logw_N += log_prob_N
        below_MO = _part(units, at_unit, N, widths[layer + 1])
        at_unit, at_mean = at_unit + N * widths[layer + 1], at_mean + N * O
    H = widths[L]
    _score(below_MO, _matrix(parameters, 2 * L, 1, H)[0], log_prob_N, False, np.empty((3, H), np.float32))
    logw_N += log_prob_N
    logw_N -= log_q_N


@compiled(
    "void(int64[::1], int64[::1], int64[::1], int64[::1], float32[:, ::1], float32[::1], float32[::1], float32[::1],"
    " float32[::1], float32[::1], float32[::1], float32[::1])"
)
def add_sample_gradients(  # type: ignore[no-untyped-def]
    widths, parameters, gradients, moments, x_BD, units, means, p_weight_N, q_weight_N, moment_N, moment_B, scratch
):
    """Add −Σ weight · ∂ log p(x, h) and −Σ weight · ∂ log q(h|x) of drawn samples; q's where it has weights at all.

    Units and means as draw_samples left them.

    Args:
        moments: addresses of the second moments of the layers' inputs, p's data side first, then q's; or none of them.
            p's come under `p_weight_N`, q's under `moment_N`, whose sums over samples are `moment_B`.
    """
    B, N, L = len(x_BD), len(p_weight_N), len(widths) - 1
    below_MI, below_words, below_N = x_BD, _packed_columns(x_BD), moment_B
    at_unit = at_q = 0
    at_p = B * widths[1] + N * widths[2:].sum()
    for layer in range(L):
        I, O = widths[layer], widths[layer + 1]
        unit_NO = _part(units, at_unit, N, O)
        words = _packed_columns(unit_NO)
        _add_layer(below_MI, _part(means, at_p, N, I), p_weight_N, unit_NO, words, gradients, 2 * layer, scratch)
        _add_moment(unit_NO, p_weight_N, moments, layer, scratch)
        rows = B if layer == 0 else N
        if len(q_weight_N):
            mean_RO, place = _part(means, at_q, rows, O), 2 * (L + layer) + 1
            _add_layer(unit_NO, mean_RO, q_weight_N, below_MI, below_words, gradients, place, scratch)
            _add_moment(below_MI, below_N, moments, L + layer, scratch)
        below_MI, below_words, below_N = unit_NO, words, moment_N
        at_unit, at_q, at_p = at_unit + N * O, at_q + rows * O, at_p + N * I
    H = widths[L]
    mean_1O, gradient_1O = np.empty((1, H), np.float32), _matrix(gradients, 2 * L, 1, H)[0]
    _means(_matrix(parameters, 2 * L, 1, H)[0], mean_1O)
    _residuals(below_MI, mean_1O, p_weight_N, np.empty((N, H), np.float32), gradient_1O, np.empty(H, np.float32))


@compiled("void(int64[::1], int64[::1], int64[::1], int64[::1], int32[::1], float32[::1], float32[::1])")
def add_dream_gradients(widths, parameters, gradients, moments, raw, weight_M, scratch):  # type: ignore[no-untyped-def]
    """Draw dreams (x, h) ~ p and add −Σ weight · ∂ log q(h|x); moments as above.

    Args:
        raw: for each of p's layers, the prior first, M · O random words, and one more where that is odd.
    """
    M, L = len(weight_M), len(widths) - 1
    units = np.empty(M * widths.sum(), np.float32)  # data side first
    H = widths[L]
    at = M * widths[:L].sum()
    above_MI = _part(units, at, M, H)
    _toss(_matrix(parameters, 2 * L, 1, H)[0], _part(raw, 0, M, H), above_MI, np.empty(H, np.float32))
    words = [_packed(above_MI)]  # top first
    at_raw = _even(M * H)
    for layer in range(L - 1, -1, -1):
        O = widths[layer]
        at -= M * O
        logit_MO, unit_MO = np.empty((M, O), np.float32), _part(units, at, M, O)
        _logits(words[-1], parameters, 2 * layer, widths[layer + 1], logit_MO, scratch)
        _toss(logit_MO, _part(raw, at_raw, M, O), unit_MO, np.empty(O, np.float32))
        words.append(_packed(unit_MO))
        at_raw += _even(M * O)
    below_MI = _part(units, 0, M, widths[0])
    at = M * widths[0]
    for layer in range(L):
        O, place = widths[layer + 1], 2 * (L + layer) + 1
        logit_MO, mean_MO = np.empty((M, O), np.float32), np.empty((M, O), np.float32)
        unit_MO = _part(units, at, M, O)
        _logits(words[L - layer], parameters, place, widths[layer], logit_MO, scratch)
        _means(logit_MO, mean_MO)
        _add_layer(unit_MO, mean_MO, weight_M, below_MI, _packed_columns(below_MI), gradients, place, scratch)
        _add_moment(below_MI, weight_M, moments, L + layer, scratch)
        below_MI = unit_MO
        at += M * O


def packed_rows(x_BD: np.ndarray) -> np.ndarray | None:
    """The codes of each row, (1, ⌈D / 40⌉, B); None where x holds anything but 0 and 1."""
    words = np.empty((1, -(-x_BD.shape[1] // _BLOCK), len(x_BD)), np.uint64)
    return words if bits.pack_rows(x_BD, words) else None
