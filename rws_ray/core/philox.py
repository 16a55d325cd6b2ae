"""Philox4x32-10, a counter-based random generator, in torch's integer operations on any device.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). A block of four 32-bit words is a
function of a 64-bit key and four 32-bit counters alone, so that any number can be made anywhere, in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF
_ROUND, _KEY = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(key: int, counters: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each block, int64 tensors that hold 32 bits; the counters are such tensors, broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counters)
    k0, k1 = key & _32_BITS, key >> 32 & _32_BITS
    for _ in range(10):
        low, high = c0 * _ROUND[0], c2 * _ROUND[1]  # modulo 2⁶⁴: the sign is only the highest bit
        c0, c1 = (high >> 32 & _32_BITS) ^ c1 ^ k0, high & _32_BITS
        c2, c3 = (low >> 32 & _32_BITS) ^ c3 ^ k1, low & _32_BITS
        k0, k1 = k0 + _KEY[0] & _32_BITS, k1 + _KEY[1] & _32_BITS
    return c0, c1, c2, c3


def philox_rows(key: int, counter_G: Tensor, draw: int, shape: tuple[int, int, int]) -> Tensor:
    """Words as int32 of shape (B, K, H), for the `draw`-th draw of one stream (G = 1) or of one for each example.

    Unit o of row n of a stream takes word o mod 4 of the block with the counters (o div 4, n, draw, counter). Rows
    count over the stream's own examples and samples; `counter_G`, int64, is taken modulo 2³².
    """
    B, K, H = shape
    assert len(counter_G) in (1, B)
    rows = torch.arange(B * K, device=counter_G.device)
    if len(counter_G) > 1:
        rows = rows % K
    counter_BK = (counter_G & _32_BITS).view(-1, 1).expand(B, K).reshape(B * K, 1)
    blocks = torch.arange(-(-H // 4), device=counter_G.device)
    words = philox(key, (blocks, rows.unsqueeze(1), torch.full_like(blocks, draw), counter_BK))
    signed = torch.stack(words, 2).view(B, K, 4 * len(blocks))[:, :, :H]
    return signed.to(torch.int32)  # keeps the low 32 bits
