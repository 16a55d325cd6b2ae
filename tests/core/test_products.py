"""Products in either precision, behind one switch."""

import pytest
import torch

from rws_ray.core.products import add_product, factors, product


def matrices() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(20, 30, generator=draws), torch.randn(30, 10, generator=draws)


def test_outside_a_block_factors_are_as_they_are():
    a, b = matrices()
    assert torch.equal(product(a, b), a @ b)


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_product_is_as_near_as_its_precision(precision, error):
    a, b = matrices()
    exact = a.double() @ b.double()
    with factors(precision):
        found, total = product(a, b), torch.ones(20, 10)
        add_product(total, a, b)
    scale = float(exact.abs().max())
    assert 0 < float((found.double() - exact).abs().max()) < error * scale
    assert float((total.double() - 1 - exact).abs().max()) < error * scale


def test_products_of_bits_are_exact_in_bfloat16_up_to_256():
    bits = (torch.rand(50, 40, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    with factors("bfloat16"):
        assert torch.equal(product(bits.T, bits).float(), bits.T @ bits)


def test_the_switch_goes_back_after_an_error():
    a, b = matrices()
    with pytest.raises(RuntimeError), factors("bfloat16"):
        product(a, a)
    assert product(a, b).dtype == torch.float32
