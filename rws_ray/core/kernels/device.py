"""The inner loops of sigmoid layers in Triton's kernels, for float32 on a GPU.

See the package for what each computes, `tiles` for the kernels. Nothing here waits for the device, and shapes alone
decide what is launched, so that an update can be captured as one graph. Sums are made in a fixed order: the same
operands give the same bits.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from rws_ray.core.kernels import plain, tiles
from rws_ray.core.products import is_bfloat16
from rws_ray.core.streams import CounterStream, Stream

ROWS, UNITS, STEP = 64, 64, 32  # of a tile of logits, and inputs at a time
COIN_ROWS, COIN_UNITS = 4, 128
MAX_INPUTS = 512  # of one program's weight gradient: what its registers hold
PROGRAMS = 264  # two for each of an H100's 132 processors: into so many the visible gradient is cut


def linear(y_BKI: Tensor, weight_IO: Tensor, bias_O: Tensor) -> Tensor:
    """As kernels.linear; a pack's products are torch's."""
    if weight_IO.dim() == 3:
        return plain.linear(y_BKI, weight_IO, bias_O)
    B, K, I = y_BKI.shape
    O = len(bias_O)
    logits = y_BKI.new_empty(B, K, O)
    if logits.numel():
        operands = [each.detach().contiguous() for each in (y_BKI, weight_IO, bias_O)]
        tiles.linear[_grid(B * K, ROWS, O, UNITS)](*operands, logits, B * K, I, O, ROWS, UNITS, STEP, is_bfloat16())
    return logits


def raw(stream: CounterStream, shape: tuple[int, int, int]) -> Tensor:
    """As stream.raw."""
    B, K, O = shape
    words = torch.empty(shape, dtype=torch.int32, device=stream.first_G.device)
    if words.numel():
        grid, share = _grid(B * K, COIN_ROWS, O, COIN_UNITS), _stream_share(stream, B, K)
        key, draw = stream.key, stream.next_draw()
        tiles.raw[grid](words, stream.first_G, key, draw, B * K, O, share, COIN_ROWS, COIN_UNITS)
    return words


def draw(logits_BKO: Tensor, num_samples: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """As kernels.draw."""
    B, logits_k, O = logits_BKO.shape
    if not isinstance(stream, CounterStream):
        return plain.draw(logits_BKO, num_samples, stream)
    N, number = B * num_samples, stream.next_draw()
    h_BKO, log_prob_BK = logits_BKO.new_empty(B, num_samples, O), logits_BKO.new_empty(B, num_samples)
    if N:
        tiles.draw[(triton.cdiv(N, COIN_ROWS),)](
            logits_BKO.detach().contiguous(), h_BKO, log_prob_BK, stream.first_G, stream.key, number, N, O,
            num_samples // logits_k, _stream_share(stream, B, num_samples), COIN_ROWS, COIN_UNITS,
        )  # fmt: skip
    return h_BKO, log_prob_BK


def log_prob(h_BKO: Tensor, logits_BKO: Tensor) -> Tensor:
    """As kernels.log_prob."""
    units, logits = h_BKO.detach().contiguous(), logits_BKO.detach().contiguous()
    B, K = max(len(units), len(logits)), max(units.shape[1], logits.shape[1])
    log_prob_BK, N, O = logits.new_empty(B, K), B * K, logits.shape[2]
    if N:
        shares = [N // (each.shape[0] * each.shape[1]) for each in (units, logits)]
        tiles.score[(triton.cdiv(N, COIN_ROWS),)](units, logits, log_prob_BK, N, O, *shares, COIN_ROWS, COIN_UNITS)
    return log_prob_BK


def observe(h_BKO: Tensor, y_BKI: Tensor, weight_IO: Tensor, bias_O: Tensor) -> tuple[Tensor, Tensor]:
    """As kernels.observe: logits of units that an example's samples share are not kept."""
    B, K, I = y_BKI.shape
    if h_BKO.shape[1] == K or weight_IO.dim() == 3:
        logits = linear(y_BKI, weight_IO, bias_O)
        return logits, log_prob(h_BKO, logits)
    N, O = B * K, len(bias_O)
    grid = _grid(N, ROWS, O, UNITS)
    parts = y_BKI.new_empty(grid[1], N)
    if parts.numel():
        y, weight, bias, units = (each.detach().contiguous() for each in (y_BKI, weight_IO, bias_O, h_BKO))
        tiles.observe[grid](y, weight, bias, units, parts, N, I, O, K, ROWS, UNITS, STEP, is_bfloat16())
    return y_BKI.new_empty(B, K, 0), parts.sum(0).view(B, K)


def add_gradient(
    inputs: Tensor, units: Tensor, logits: Tensor, weight_BK: Tensor, weight_grad: Tensor | None, bias_grad: Tensor
) -> None:
    """As kernels.add_gradient."""
    B, K = weight_BK.shape
    num_rows, O = B * inputs.shape[1], logits.shape[2]
    residual_NO = logits.new_empty(num_rows, O)
    if residual_NO.numel():
        shares = [B * K // (each.shape[0] * each.shape[1]) for each in (units, logits, inputs)]
        tiles.residuals[_grid(num_rows, COIN_ROWS, O, COIN_UNITS)](
            *(each.contiguous() for each in (units, logits, weight_BK)), residual_NO, num_rows, O, *shares,
            COIN_ROWS, COIN_UNITS,
        )  # fmt: skip
    if weight_grad is not None:
        plain.add_rows_product(weight_grad, inputs.reshape(num_rows, inputs.shape[2]), residual_NO)
    bias_grad.add_(residual_NO.view(*bias_grad.shape[:-1], num_rows // bias_grad[..., 0].numel(), O).sum(-2))


def add_observed_gradient(
    inputs: Tensor, units: Tensor, weight_IO: Tensor, bias_O: Tensor, weight_BK: Tensor, weight_grad: Tensor,
    bias_grad: Tensor,
) -> None:  # fmt: skip
    """As kernels.add_observed_gradient."""
    B, K, I = inputs.shape
    N, O = B * K, len(bias_O)
    if not N * O:
        return
    block = min(MAX_INPUTS, max(16, triton.next_power_of_2(I)))
    columns, blocks = triton.cdiv(O, UNITS), triton.cdiv(I, block)
    slices = max(1, min(triton.cdiv(N, ROWS), PROGRAMS // (columns * blocks)))
    rows_each = triton.cdiv(triton.cdiv(N, slices), ROWS) * ROWS
    slices = triton.cdiv(N, rows_each)
    parts, bias_parts = inputs.new_empty(slices, I, O), inputs.new_empty(slices, O)
    operands = [each.detach().contiguous() for each in (inputs, weight_IO, bias_O, units, weight_BK)]
    tiles.observed_gradient[(columns, slices, blocks)](
        *operands, parts, bias_parts, N, I, O, K // units.shape[1], rows_each, ROWS, block, UNITS, STEP, is_bfloat16(),
        num_warps=8,
    )  # fmt: skip
    weight_grad.add_(parts.sum(0))
    bias_grad.add_(bias_parts.sum(0))


add_moment = plain.add_moment


def _grid(rows: int, row_step: int, units: int, unit_step: int) -> tuple[int, int]:
    return triton.cdiv(rows, row_step), triton.cdiv(units, unit_step)


def _stream_share(stream: CounterStream, batch: int, num_samples: int) -> int:
    """How many rows take their numbers from the same first counter."""
    assert len(stream.first_G) in (1, batch)
    return batch * num_samples // len(stream.first_G)
