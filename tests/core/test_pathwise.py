"""VAE and IWAE on a machine with one real latent, whose bounds are integrals that quadrature knows, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from enumeration import binary_states, within_standard_errors
from test_estimator_family import ascents, assert_expected, taught, update

from rws_ray.core.estimators import Estimator, add_rws_gradients
from rws_ray.core.estimators.iwae import add_iwae_gradients
from rws_ray.core.estimators.nvil import add_nvil_gradients
from rws_ray.core.estimators.vae import add_vae_gradients
from rws_ray.core.estimators.vimco import add_vimco_gradients
from rws_ray.core.machine import HelmholtzMachine
from rws_ray.core.streams import Stream, generator

NODES = 60


@pytest.fixture
def machine():
    """p(h) = N(0, 1), p(x|h) sigmoid; q(h|x) normal by way of a tanh layer of two units."""
    made = HelmholtzMachine(3, [1], p_layer=["sbn", "gaussian"], q_layer="gaussian", hidden=[2]).double()
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(0.7 * torch.randn(value.shape, generator=draws, dtype=torch.float64))
    return made


@pytest.fixture(name="x_BD")
def rows():
    return binary_states(3)[[1, 6]]


def log_weight(theta, x_BD, noise_BK):
    """log p(x, h) − log q(h|x) at h = μ(x) + s(x) ε, from the formulas."""
    tanh = torch.tanh(x_BD @ theta["q.0.network.maps.0.weight"] + theta["q.0.network.maps.0.bias"])
    mean, raw = (tanh @ theta["q.0.network.maps.1.weight"] + theta["q.0.network.maps.1.bias"]).chunk(2, 1)
    scale = torch.log1p(torch.exp(raw)) + 0.01
    h_BK = mean + scale * noise_BK
    logits_BKD = h_BK[:, :, None] * theta["p.0.weight"][0] + theta["p.0.bias"]
    log_x = (x_BD[:, None] * logits_BKD - torch.log1p(torch.exp(logits_BKD))).sum(2)
    return log_x - h_BK**2 / 2 + noise_BK**2 / 2 + scale.log()  # both normals' constants cancel


def nodes():
    """Where and with what weight N(0, 1) is integrated."""
    at, weight = np.polynomial.hermite_e.hermegauss(NODES)
    return torch.from_numpy(at), torch.from_numpy(weight / math.sqrt(2 * math.pi))


def exact_bound(theta, x_BD, num_samples):
    """E[log (1/K) Σ w_k] for K = 1 or 2, summed over rows."""
    at, weight = nodes()
    logw_BN = log_weight(theta, x_BD, at.expand(len(x_BD), -1))
    if num_samples == 1:
        return (logw_BN @ weight).sum()
    both_BNN = torch.logaddexp(logw_BN[:, :, None], logw_BN[:, None, :]) - math.log(2)
    return torch.einsum("bij,i,j->", both_BNN, weight, weight)


def exact_log_p(theta, x_BD):
    at, weight = nodes()
    return torch.logsumexp(log_weight(theta, x_BD, at.expand(len(x_BD), -1)) + weight.log(), 1).sum()


def leaves(machine):
    return {name: value.detach().clone().requires_grad_() for name, value in machine.named_parameters()}


def exact_gradient(machine, x_BD, num_samples):
    theta = leaves(machine)
    grads = torch.autograd.grad(exact_bound(theta, x_BD, num_samples), list(theta.values()))
    return dict(zip(theta, grads, strict=True))


def test_the_vae_gradient_equals_autograd_through_the_reparameterised_bound_on_the_same_noise(machine, x_BD):
    for add, bound in (
        (add_vae_gradients, lambda logw: logw.mean(1)),
        (add_iwae_gradients, lambda logw: torch.logsumexp(logw, 1) - math.log(7)),
    ):
        grads, info = update(machine, add, x_BD, Estimator(7))
        theta = leaves(machine)
        noise_BK = Stream(generator(0, "wake", 0)).normal((len(x_BD), 7, 1))[..., 0].double()
        total = bound(log_weight(theta, x_BD, noise_BK)).sum()
        total.backward()
        for name, value in grads.items():
            torch.testing.assert_close(value, -theta[name].grad, rtol=0, atol=1e-10, msg=name)
        torch.testing.assert_close(info.log_prob, total.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("add", "num_samples"), [(add_vae_gradients, 1), (add_vae_gradients, 3), (add_iwae_gradients, 2)]
)
def test_pathwise_gradients_are_unbiased_for_their_bounds(machine, x_BD, add, num_samples):
    of_bound = 1 if add is add_vae_gradients else num_samples
    draws, bounds = ascents(machine, add, x_BD, Estimator(num_samples))
    assert_expected(draws, exact_gradient(machine, x_BD, of_bound))
    assert within_standard_errors(bounds, exact_bound(leaves(machine), x_BD, of_bound).detach())


def test_score_functions_of_real_latents_have_the_same_expectations(machine, x_BD):
    draws, _ = ascents(machine, add_vimco_gradients, x_BD, Estimator(2))
    assert_expected(draws, exact_gradient(machine, x_BD, 2))
    memory = taught(machine, x_BD)
    draws, _ = ascents(machine, lambda *given: add_nvil_gradients(*given, memory=memory), x_BD, Estimator(1))
    assert_expected(draws, exact_gradient(machine, x_BD, 1))


def test_rws_ascends_log_p_with_real_latents_too(machine, x_BD):
    theta = leaves(machine)
    grads = torch.autograd.grad(exact_log_p(theta, x_BD), list(theta.values()))
    exact = dict(zip(theta, grads, strict=True))
    draws, _ = ascents(machine, add_rws_gradients, x_BD, Estimator(3000, wake_mix=1), copies=4)
    p_draws = {name: value for name, value in draws.items() if name.startswith("p")}
    assert_expected(p_draws, {name: exact[name] for name in p_draws})


def test_iwae_with_one_sample_is_the_vae_to_the_bit(machine, x_BD):
    one, info = update(machine, add_vae_gradients, x_BD, Estimator(1))
    other, same = update(machine, add_iwae_gradients, x_BD, Estimator(1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert info.ess == same.ess == len(x_BD)
    torch.testing.assert_close(info.log_prob, same.log_prob)


def test_elbo_iwae_bound_and_log_p_come_in_this_order(machine, x_BD):
    theta = {name: value.detach() for name, value in machine.named_parameters()}
    assert exact_bound(theta, x_BD, 1) < exact_bound(theta, x_BD, 2) < exact_log_p(theta, x_BD)
    estimate = machine.likelihood(x_BD, 20_000)
    off = float(estimate.log_prob.sum() - exact_log_p(theta, x_BD))
    assert abs(off) < 4 * float(estimate.error.norm()) < 0.2


def test_gradients_leave_no_graph_and_are_added_to_those_there(machine, x_BD):
    once = {name: value.clone() for name, value in update(machine, add_vae_gradients, x_BD, Estimator(3))[0].items()}
    info = add_vae_gradients(machine, x_BD, Estimator(3), *(Stream(generator(0, key, 0)) for key in ("wake", "sleep")))
    assert not any(value.requires_grad for value in info)
    for name, value in machine.named_parameters():
        torch.testing.assert_close(value.grad, 2 * once[name])
