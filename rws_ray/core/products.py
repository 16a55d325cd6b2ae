"""Matrix products of an update: gradients and their preconditioning, with factors in float32 or in bfloat16.

bfloat16 factors halve the time where the hardware has them. Gradients are sums over many noisy terms, which lose
nothing by it; units are bits, exact in either. Logits, log-probabilities and every estimate of an NLL stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_precision: ContextVar[str] = ContextVar("precision", default="float32")


@contextmanager
def factors(precision: str) -> Iterator[None]:
    """Within the block, products have factors of this precision: `float32` (as the tensors are) or `bfloat16`."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product a b; of bfloat16 factors it comes in bfloat16, its sums made in float32.

    Those of a pack, (P, …), are made one by one on a CPU: batched, small ones come with other bits than alone.
    """
    if a.dim() == 3 and a.device.type == "cpu":
        return torch.stack([product(*pair) for pair in zip(a, b, strict=True)])
    if _precision.get() == "bfloat16":
        return a.bfloat16() @ b.bfloat16()
    return a @ b


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to `total` in place; each of them a matrix, or as many matrices as a pack has machines."""
    if _precision.get() == "bfloat16":
        total.add_(product(a, b))
    elif total.dim() == 3:
        total.baddbmm_(a, b)
    else:
        total.addmm_(a, b)


def is_bfloat16() -> bool:
    """Whether products have bfloat16 factors here."""
    return _precision.get() == "bfloat16"
