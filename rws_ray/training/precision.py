"""The precision of training's matrix products. Estimates of the NLL are outside: they are always float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rws_ray.errors import ConfigError


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Matrix products in float32, or with bfloat16 factors and float32 sums (units are bits: only weights round)."""
    if precision == "float32":
        yield
        return
    if device.type != "cpu":
        raise ConfigError("scale.precision: bfloat16 products are made on CPUs alone; on a GPU take float32.")
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
