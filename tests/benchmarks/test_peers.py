"""The benchmarks' peers compute our update where they claim to: a race between different things proves nothing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers.plain import PlainMachine, rws_loss
from rws_ray.core.importance import normalized_weights
from rws_ray.core.machine import HelmholtzMachine, total_log_prob

DIM, LAYERS, K = 6, [4, 3], 5


def twins() -> tuple[HelmholtzMachine, PlainMachine]:
    """Our machine and the plain one with the same random parameters."""
    ours, plain = HelmholtzMachine(DIM, LAYERS).initialize(3), PlainMachine(DIM, LAYERS)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.7, generator=torch.Generator().manual_seed(parameter.numel()))
        for mine, theirs in zip([*ours.p, *ours.q], [*plain.p, *plain.q], strict=True):
            theirs.weight.copy_(mine.weight.T)
            theirs.bias.copy_(mine.bias)
        plain.prior.copy_(ours.prior.bias)
    return ours, plain


def rows() -> torch.Tensor:
    return (torch.rand(7, DIM, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def coins(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.5).float()


def plain_gradients(plain: PlainMachine) -> list[torch.Tensor]:
    linear = [tensor for layer in [*plain.p, *plain.q] for tensor in (layer.weight.grad.T, layer.bias.grad)]
    return [*linear, plain.prior.grad]


def our_gradients(ours: HelmholtzMachine) -> list[torch.Tensor]:
    sigmoid = [tensor for layer in [*ours.p, *ours.q] for tensor in (layer.weight.grad, layer.bias.grad)]
    return [*sigmoid, ours.prior.bias.grad]


def our_update(ours: HelmholtzMachine, x_BD, h, dream) -> None:
    """Our local gradients at given states: the mean over the batch at wake_mix 0.5."""
    for parameter in ours.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        seen_p, seen_q = ours.observe_p(x_BD, h), ours.observe_q(x_BD, h)
        w_BK = normalized_weights(total_log_prob(seen_p) - total_log_prob(seen_q)).float() / len(x_BD)
        for layer, seen in zip([*ours.p, ours.prior], seen_p, strict=True):
            layer.add_gradient(seen, w_BK)
        dreamt = ours.observe_q(*dream)
        for layer, wake, sleep in zip(ours.q, seen_q, dreamt, strict=True):
            layer.add_gradient(wake, 0.5 * w_BK)
            layer.add_gradient(sleep, torch.full((len(dream[0]), 1), 0.5 / len(dream[0])))


def test_plain_pytorch_takes_our_gradient():
    ours, plain = twins()
    x_BD = rows()
    h = [(torch.rand(7, K, width, generator=torch.Generator().manual_seed(width)) < 0.5).float() for width in LAYERS]
    dream = [
        (torch.rand(9, 1, width, generator=torch.Generator().manual_seed(width)) < 0.5).float() for width in LAYERS
    ]
    x_dream = (torch.rand(9, DIM, generator=torch.Generator().manual_seed(5)) < 0.5).float()
    our_update(ours, x_BD, h, (x_dream, dream))
    flat = [states.reshape(-1, states.shape[-1]) for states in h]
    rws_loss(plain, x_BD, flat, (x_dream, [states[:, 0] for states in dream]), K).backward()
    for mine, theirs in zip(our_gradients(ours), plain_gradients(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def mean_p_gradient(is_per_example: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard error of Pyro's gradient of p's first weights over many draws, by example."""
    import pyro

    from benchmarks.peers.pyro_rws import PyroTrainer

    pyro.set_rng_seed(0)
    trainer = PyroTrainer(DIM, LAYERS, K, is_per_example)
    trainer.machine.load_state_dict(twins()[1].state_dict())
    draws = []
    for _ in range(400):
        for parameter in trainer.machine.parameters():
            parameter.grad = None
        trainer.svi.loss_and_grads(trainer.svi.model, trainer.svi.guide, rows())
        draws.append(trainer.machine.p[0].weight.grad.T / len(rows()))
    stacked = torch.stack(draws)
    return stacked.mean(0), stacked.std(0) / len(draws) ** 0.5


def our_mean_p_gradient() -> tuple[torch.Tensor, torch.Tensor]:
    from rws_ray.core.estimators import Estimator, add_rws_gradients
    from rws_ray.core.streams import Stream, generator

    ours, _ = twins()
    draws = []
    for number in range(400):
        for parameter in ours.parameters():
            parameter.grad = torch.zeros_like(parameter)
        streams = [Stream(generator(0, purpose, number)) for purpose in ("wake", "sleep")]
        add_rws_gradients(ours, rows(), Estimator(K), *streams)
        draws.append(ours.p[0].weight.grad / len(rows()))
    stacked = torch.stack(draws)
    return stacked.mean(0), stacked.std(0) / len(draws) ** 0.5


def deviations(is_per_example: bool) -> torch.Tensor:
    """How far Pyro's expected gradient is from ours, in standard errors."""
    ours, our_error = our_mean_p_gradient()
    theirs, their_error = mean_p_gradient(is_per_example)
    return (ours - theirs).abs() / (our_error.square() + their_error.square() + 1e-16).sqrt()


@pytest.mark.filterwarnings("ignore::UserWarning:pyro", "ignore::FutureWarning")
def test_pyro_with_weights_per_example_takes_our_gradient():
    assert float(deviations(is_per_example=True).max()) < 5


@pytest.mark.filterwarnings("ignore::UserWarning:pyro", "ignore::FutureWarning")
def test_pyro_as_shipped_does_not():
    """One weight a particle for the whole batch: another gradient, as its documentation warns."""
    assert float(deviations(is_per_example=False).max()) > 10
